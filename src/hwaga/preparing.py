"""From a recipe to what training needs: the device, the data, the system, and whether it all fits in memory.

Everything is opened and checked here, before a run writes its first file.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .errors import InputError
from .interfaces import Batch, Precomputed, Stage
from .precision import choose_device, choose_dtype
from .recipes import Recipe
from .training.config import TrainingConfig
from .training.loop import StepDraw, on
from .training.memory import MakeBatch, Memory, available_memory, check_fits, largest_batch, predict, process_memory

if TYPE_CHECKING:
    from .data import Bucketed, Dataset, Joined
    from .systems.base import System

Say = Callable[[str], None]
Doing = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Chosen:
    """Where and in which type training computes."""

    device: torch.device
    dtype: torch.dtype
    threads: int


@contextmanager
def choose(recipe: Recipe, say: Say) -> Iterator[Chosen]:
    """Inside, torch works with the recipe's number of threads. Says what was chosen where one may not expect it."""
    device, line = choose_device(recipe.training.device, "training.device")
    dtype, slow = choose_dtype(recipe.training.dtype, device, "training.dtype", training=True)
    for sentence in (line, slow):
        if sentence:
            say(sentence)
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.training.threads or before)
    try:
        yield Chosen(device, dtype, torch.get_num_threads())
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Prepared:
    """A system with first weights (or those to fine-tune) on its device, and the data to train and to judge it."""

    recipe: Recipe
    chosen: Chosen
    system: System
    data: Dataset
    held_out: Dataset | None
    before: Dataset | None = None  # pictures of before, to be learned beside (data/prior.py)
    buckets: Bucketed | None = None  # the same pictures in batches of one size each (data/buckets.py)

    @property
    def order(self) -> Callable[[int, int, int], Any]:
        """Which pictures a step sees: of (pictures, batch size, seed)."""
        from .data import Order

        return Order if self.buckets is None else self.buckets.order

    @property
    def pictures(self) -> Dataset | Joined | Bucketed:
        """What training sees."""
        from .data import Joined

        if self.buckets is not None:
            return self.buckets
        prior = self.recipe.data.prior
        if self.before is None or prior is None:
            return self.data
        return Joined(self.data, self.before, prior.caption, prior.weight)

    def reference(self, split: str) -> Dataset:
        from .data import open_data

        if split == "held-out" and self.held_out is not None:
            return replace(self.held_out, beside={}, extras=())  # the pictures alone: nothing beside them judges
        return open_data(self.recipe.data, split)

    def machine(self) -> dict[str, Any]:
        """What the bits of a result depend on beside recipe and data."""
        return {
            "torch": torch.__version__, "threads": self.chosen.threads, "device": str(self.chosen.device),
            "dtype": str(self.chosen.dtype).split(".")[1], "processor": platform.machine(),
        }  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """The head of the report."""
        counts = self.system.parameters_by_network()
        return {
            "system": f"{self.system.title} ({self.system.year})",
            "parameters": ", ".join(f"{name} {count:,}" for name, count in counts.items()),
            "data": "; ".join(data_lines(self.data)),
            **self.machine(),
        }

    def notes(self) -> list[str]:
        said = [self.data.licence and f"Data licence: {self.data.licence}", self.data.attribution]
        return [line for line in said if line]


def opened(recipe: Recipe, chosen: Chosen, say: Say, doing: Doing = lambda what: nullcontext()) -> Prepared:
    """Data and system of a recipe. InputError for what cannot be used, and for what would not fit in memory. `doing` is a
    context that names long work."""
    data, held_out = _data(recipe)
    for line in data_lines(data):
        say(line)
    components = _components(recipe)
    memory = _memory(recipe, data, chosen, components)
    if memory is not None:
        stages, predicted, sample = memory
        free = available_memory(chosen.device)

        def most(name: str) -> int:
            config = recipe.training.for_stage(name)
            return largest_batch(
                stages[name], config, sample, free, dtype=chosen.dtype, frozen=_frozen(predicted, stages, name)
            )  # fmt: skip

        check_fits(predicted, free, most)
    system = _create(recipe, data, components)
    if recipe.training.start_from is not None:
        start_from(system, recipe.training.start_from, say, recipe.components)
    for network in system.networks.values():
        network.to(chosen.device)
    if extras := system.data_extras():
        data, held_out = data.with_extras(extras), None if held_out is None else held_out.with_extras(extras)
    before, buckets = _before(recipe, system, data, say), _buckets(recipe, system, data, say)
    if (wanted := system.precomputed()) and buckets is None:
        data, held_out = _beside(data, held_out, wanted, say, doing)
        before = None if before is None else _beside(before, None, wanted, say, doing)[0]
    return Prepared(recipe, chosen, system, data, held_out, before, buckets)


def _buckets(recipe: Recipe, system: System, data: Dataset, say: Say) -> Bucketed | None:
    """The pictures by size, where `data.buckets` asks for it."""
    from .data import bucketed

    step = recipe.data.buckets
    if step is None:
        return None
    if recipe.data.prior is not None or not system.weighs:
        why = "with data.prior" if recipe.data.prior else f"with {system.title}, which learns pictures of one size"
        raise InputError(f"data.buckets={step} {why}: leave one of them out")
    found = bucketed(data, step)
    for part in found.parts:
        type(system).check_data(system.config, part.size)
    say(f"buckets     {found.text}; what is computed of pictures is so at each step")
    return found


def _before(recipe: Recipe, system: System, data: Dataset, say: Say) -> Dataset | None:
    """The pictures of `data.prior`, prepared as the data are."""
    from .data import open_data

    prior = recipe.data.prior
    if prior is None:
        return None
    if not system.weighs or system.config.student is not None:
        raise InputError(f"data.prior: {system.title} has no loss a picture that could be weighted; leave it out")
    own = recipe.data.model_copy(update={"source": prior.source, "held_out": 0.0, "prior": None, "label": "none"})
    before = open_data(own, "all").with_extras(system.data_extras())
    if data.captions is not None and before.captions is None and prior.caption is None:
        raise InputError(
            f"data.prior.source={prior.source!r} has no captions; say what its pictures were painted from: data.prior.caption"
        )
    say(f"prior       {prior.source}: {len(before)} pictures of before are learned beside, weighted {prior.weight:g}")
    return before


def _beside(
    data: Dataset, held_out: Dataset | None, wanted: Mapping[str, Precomputed], say: Say, doing: Doing
) -> tuple[Dataset, Dataset | None]:  # fmt: skip
    """Both sets with what is computed of each picture once, out of the cache or into it."""
    from .data.beside import with_beside

    with doing(f"{' and '.join(wanted)} of {len(data.store):,} pictures"):
        data, lacking = with_beside(data, wanted)
        if lacking:
            say(f"{', '.join(lacking)}: computed anew at each step, as data.random_crop shows other pictures each time")
        return data, held_out if held_out is None else with_beside(held_out, wanted)[0]


def data_lines(data: Dataset) -> list[str]:
    """What was found, used and left out: found = used + left out."""
    kinds: dict[str, list[str]] = {}
    for item in data.left_out:
        kinds.setdefault(item.reason.split(" as ")[0].split(":")[0], []).append(item.name)
    lines = [f"data        {data.config.source}: {data.found} pictures found, {len(data.left_out)} left out"]
    for reason, names in sorted(kinds.items(), key=lambda kind: -len(kind[1])):
        some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        lines.append(f"  left out  {len(names)}: {reason} ({some})")
    used = ", ".join(f"{count} {split}" for split, count in data.splits.items())
    return [*lines, f"  used      {data.used}: {used}"]


def start_from(system: System, source: str, say: Say, given: Container[str] = ()) -> None:
    """Takes the weights of a trained model wherever names and shapes agree, and says which layers are new.

    A network that it lacks (a public file's adversary) begins anew; those `given` as components stay. InputError if a network
    has nothing in common with it.
    """
    from .loading import load

    old = load(source, device="cpu", dtype="float32")
    if not set(old.networks) & set(system.networks):
        mine, theirs = ", ".join(system.networks), ", ".join(old.networks)
        raise InputError(f"training.start_from={source!r} has no network of this recipe ({mine}); it has {theirs}")
    for name, network in system.networks.items():
        if name in given:
            continue
        if name not in old.networks:
            say(f"{name}: new, as {source} has none of that name")
            continue
        own, given = network.state_dict(), old.networks[name].state_dict()
        same = {key: value for key, value in given.items() if key in own and own[key].shape == value.shape}
        new = [key for key in own if key not in same]
        if not same:
            raise InputError(
                f"training.start_from={source!r}: none of the weights of {name!r} fits this recipe's network"
            )
        network.load_state_dict({**own, **same})
        say(f"{name}: {len(same)} of {len(own)} tensors from {source}" + (f"; new: {', '.join(new)}" if new else ""))


# ------------------------------------------------------------------------------------------------------------- planning


@dataclass(frozen=True)
class Planned:
    """Of each stage: name, steps, memory, largest batch, seconds a step."""

    parameters: Mapping[str, int]
    stages: tuple[tuple[str, int, Memory, int, float | None], ...]
    data: tuple[str, ...]


def planned(recipe: Recipe, chosen: Chosen, timed: bool) -> Planned:
    """What training the recipe would take. Nothing is written but the data's own cache."""
    data, _ = _data(recipe)
    components = _components(recipe)
    found = _memory(recipe, data, chosen, components)
    if found is None:  # no shapes-only form: the real thing
        system = _create(recipe, data, components)
        stages, sample = {stage.name: stage for stage in system.stages()}, _sample(data, system)
        predicted = {name: _predict(recipe, stage, system.networks, sample, chosen) for name, stage in stages.items()}
    else:
        stages, predicted, sample = found
    free = available_memory(chosen.device)
    fits = all(memory.total - memory.process <= free for memory in predicted.values())
    clock = _seconds(recipe, _create(recipe, data, components), data, chosen) if timed and fits else {}
    rows = []
    for name, memory in predicted.items():
        config = recipe.training.for_stage(name)
        frozen = _frozen(predicted, stages, name)
        most = largest_batch(stages[name], config, sample, free, dtype=chosen.dtype, frozen=frozen)
        rows.append((name, config.steps, memory, most, clock.get(name)))
    networks: dict[str, nn.Module] = {n: m for stage in stages.values() for n, m in stage.networks.items()}
    parameters = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    return Planned(parameters, tuple(rows), tuple(data_lines(data)))


def _memory(
    recipe: Recipe, data: Dataset, chosen: Chosen, components: Mapping[str, nn.Module]
) -> tuple[dict[str, Stage], dict[str, Memory], MakeBatch] | None:  # fmt: skip
    """Stages on networks without memory, what each would need, and batches for them; None where a system cannot be made
    so."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from .systems import find
    from .systems.base import About

    cls = find(recipe.system)
    model = cls.with_components(cls.taught(recipe.model, data.every_caption), components)
    full = cls.checked(cls.complete(model, data.config.shape, data.classes))
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            networks = {name: config.build() for name, config in cls.network_configs(full).items()}
        for name, part in components.items():
            if hasattr(part, "files"):  # what a network has beside its weights: a tokenizer
                networks[name].files = part.files
        system = cls(full, networks, About(size=data.config.shape, classes=data.classes))
        stages, sample = {stage.name: stage for stage in system.stages()}, _sample(data, system)
        needs = {name: _predict(recipe, stage, networks, sample, chosen) for name, stage in stages.items()}
        return stages, needs, sample
    except InputError:
        raise
    except Exception:  # something in the system asks for values, which a plan does not have
        return None


def _predict(
    recipe: Recipe, stage: Stage, networks: Mapping[str, nn.Module], sample: MakeBatch, chosen: Chosen
) -> Memory:  # fmt: skip
    beside = [network for name, network in networks.items() if name not in stage.networks]
    frozen = sum(p.numel() * p.element_size() for network in beside for p in network.parameters())
    config = recipe.training.for_stage(stage.name)
    return predict(stage, config, sample, frozen=frozen, dtype=chosen.dtype, process=process_memory())


def _frozen(predicted: Mapping[str, Memory], stages: Mapping[str, Stage], name: str) -> int:
    own = sum(p.numel() * p.element_size() for network in stages[name].networks.values() for p in network.parameters())
    return predicted[name].parameters - own


def _seconds(recipe: Recipe, system: System, data: Dataset, chosen: Chosen) -> dict[str, float]:
    """Seconds a step by stage: forward and backward of a few pictures, the second time, scaled to the batch."""
    result = {}
    for network in system.networks.values():
        network.to(chosen.device)
    for stage in system.stages():
        config: TrainingConfig = recipe.training.for_stage(stage.name)
        count = min(8, config.batch_size)
        batch = on(_sample(data, system)(count), chosen.device)
        draw = StepDraw(0, stage.name, config.steps - 1, whole=count, device=chosen.device)
        spent = 0.0
        for objective in stage.objectives:
            for _ in range(2):
                begun = time.perf_counter()
                with torch.autocast(chosen.device.type, chosen.dtype, enabled=chosen.dtype != torch.float32):
                    terms = objective.loss(batch, draw)
                sum((t.float() for n, t in terms.items() if not n.startswith("_")), torch.zeros(())).backward()
                if chosen.device.type == "cuda":
                    torch.cuda.synchronize()
                once = time.perf_counter() - begun
            spent += once / objective.every
        result[stage.name] = spent * config.batch_size / count
    return result


# -------------------------------------------------------------------------------------------------------------- opening


def _data(recipe: Recipe) -> tuple[Dataset, Dataset | None]:
    from .data import open_data

    data = open_data(recipe.data)
    if not len(data):
        raise InputError(
            f"data.source={recipe.data.source!r} has no pictures to train on ({len(data.left_out)} were left out)"
        )
    if recipe.data.held_out == 0 and data.splits.get("held-out") == 0:  # a handful of pictures, all to be learned
        return data, None
    held_out = open_data(recipe.data, "held-out")
    return data, held_out if len(held_out) else None


def _sample(data: Dataset, system: System) -> MakeBatch:
    """A batch of n pictures of the data, over and over again where it has fewer; zeros for what is computed of each once."""
    data, wanted = data.with_extras(system.data_extras()), system.precomputed()

    def make(n: int) -> Batch:
        batch = data.batch(np.arange(n) % len(data))
        held = {} if data.config.random_crop else {name: torch.zeros(n, *one.shape) for name, one in wanted.items()}
        return replace(batch, extra={**batch.extra, **held})

    return make


def _create(recipe: Recipe, data: Dataset, components: Mapping[str, nn.Module]) -> System:
    from .systems import find

    counts = [] if data.labels is None else np.bincount(data.labels, minlength=len(data.classes)).tolist()
    beside = bool(recipe.model.get("lora"))  # of a LoRA the base is remembered, whatever it is
    shared = {name: source for name, source in recipe.components.items() if beside or source.startswith("openmoji/")}
    about = {"data": data.config.source, "data_licence": data.licence, "attribution": data.attribution}
    cls = find(recipe.system)
    return cls.create(
        cls.taught(recipe.model, data.every_caption), size=data.config.shape, classes=data.classes,
        label_counts=counts, seed=recipe.training.seed,
        about={**about, "components": shared}, components=components,
    )  # fmt: skip


def _components(recipe: Recipe) -> dict[str, nn.Module]:
    """The trained networks that the recipe names, each from the model that has one of that name."""
    from .loading import load
    from .systems import find

    found, cls = {}, find(recipe.system)
    for name, source in recipe.components.items():
        other, part = load(source, device="cpu", dtype="float32"), cls.stands_for.get(name, name)
        if (network := other.lends(part)) is None:
            raise InputError(
                f"components.{name}={source!r} has no network {part!r}; it has {', '.join(other.networks)}"
            )
        cls.check_component(recipe.model, name, other)
        found[name] = network.requires_grad_(False)
    return found
