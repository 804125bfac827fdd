"""LoRA files: which change of which weight each tensor is a part of, in all spellings that are about; read and written.

    kohya        lora_unet_down_blocks_0_attentions_0_..._to_q.lora_down.weight, .lora_up.weight, .alpha [.dora_scale]
    LyCORIS      the same names with .lora_mid.weight (LoCon), .hada_w1_a ... (LoHa), .diff, .diff_b
    peft         unet.down_blocks.0.attentions.0. ... .to_q.lora_A.weight, .lora_B.weight; alpha in the header
    diffusers    unet. ... .attn1.processor.to_q_lora.down.weight, .lora.down.weight, .lora_linear_layer.down.weight (old)

A name in a file is a module's, in one of several spellings, and what it holds for it (`ROLES`). Names with "_" for "." cannot
be taken apart again, so every spelling is made from the model's own module names (`Spelled`) and looked up. Stable Diffusion
XL's networks are spelled by kohya's trainers as the original authors name them (`input_blocks_4_1_...`).

Without alpha the rank stands for it, but in a file of peft whose header (`lora_adapter_metadata`) or `adapter_config.json`
says it. Source of the names: the files themselves and the libraries that write them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..files import read_json, whole_file, write_tensors
from ..weights.lora import Change, Hadamard, LowRank, Place, Whole, plain
from ..weights.mapped import Mapped, read_pickled
from . import keys

# ------------------------------------------------------------------------------------------------------------ the names

DOTTED = {
    "network": ("unet.", "transformer.", "diffusion_model.", "model.diffusion_model.", ""),
    "text_encoder": ("text_encoder.", ""), "text_encoder_2": ("text_encoder_2.",), "text_encoder_3": ("text_encoder_3.",),
}  # fmt: skip
"""What the dotted names of a part's modules begin with, by part."""

SCORED = {
    "network": ("lora_unet_", "lora_transformer_", "lycoris_"), "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",), "text_encoder_3": ("lora_te3_",),
}  # fmt: skip
"""What they begin with where "_" stands for ".": kohya's."""

_SIDE = {"A": "down", "B": "up", "down": "down", "up": "up", "mid": "mid"}
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
ROLES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), role)
    for pattern, role in (
        (r"(?P<module>.+)\.lora_(?P<side>A|B)(\.\w+)?\.weight", ""),  # peft puts the adapter's name between
        (r"(?P<module>.+)\.lora_(?P<side>down|up|mid)\.weight", ""),
        (r"(?P<module>.+)\.lora(_linear_layer)?\.(?P<side>down|up)\.weight", ""),
        (r"(?P<module>.+?)\.(?P<old>\w+)_lora\.(?P<side>down|up)\.weight", ""),
        (r"(?P<module>.+?)\.(?P<old>\w+)_lora\.alpha", "alpha"),
        (r"(?P<module>.+)\.alpha", "alpha"),
        (r"(?P<module>.+)\.dora_scale", "dora_scale"),
        (r"(?P<module>.+)\.lora_magnitude_vector(\.(?!weight)\w+)?(\.weight)?", "magnitude"),
        (r"(?P<module>.+)\.(?P<role>hada_(w1_a|w1_b|w2_a|w2_b|t1|t2)|diff|diff_b)", ""),
    )
)
"""Patterns of what a tensor's name ends with."""


class Named(NamedTuple):
    """What a tensor's name says."""

    module: str  # as the file spells it
    role: str  # down, up, mid, alpha, dora_scale, magnitude, hada_w1_a, ..., diff, diff_b


def named(key: str) -> Named | None:
    """What a name says; None for one that is of no LoRA."""
    for pattern, role in ROLES:
        if (match := pattern.fullmatch(key)) is None:
            continue
        held = match.groupdict()
        module = held["module"].removeprefix("base_model.model.")
        if old := held.get("old"):
            module = module.removesuffix(".processor")
            of_text = ".self_attn" in module
            module += f".{_OLD_TEXT.get(old, old) if of_text else 'to_out.0' if old == 'to_out' else old}"
        return Named(module, role or held.get("role") or _SIDE[str(held["side"])])
    return None


def is_lora(names: Iterable[str]) -> bool:
    """Whether a file's tensors are those of a LoRA, alone or with others beside them."""
    return any((found := named(name)) is not None and found.role not in ("alpha", "diff", "diff_b") for name in names)


Spelled = Mapping[str, Place | tuple[Place, ...]]
"""{a module's name, without ".weight": the weight}, in one of the spellings of a network. Several weights: one below the other
they are the public one (queries, keys and values in one matrix)."""


def own_names(part: str, network: nn.Module) -> dict[str, Place]:
    """The modules of a network that have a weight, by its own names. Text encoders: as transformers' public files have
    them, with and without `text_model.`."""
    found: dict[str, Place] = {}
    for name, parameter in plain(network).named_parameters():
        module, _, last = name.rpartition(".")
        if last != "weight" or parameter.dim() < 2:
            continue
        place = Place(part, name)
        if part.startswith("text_encoder"):
            if (inner := re.fullmatch(r".*?\b((?:encoder|text_projection|embeddings|shared)\b.*)", module)) is None:
                continue
            lead = "" if inner[1].startswith(("text_projection", "encoder.block", "shared")) else "text_model."
            found.setdefault(lead + inner[1], place)
            found.setdefault(inner[1], place)
        else:
            found[module] = place
    return found


def by_table(part: str, network: nn.Module, spots: Mapping[str, keys.Place]) -> dict[str, Place | tuple[Place, ...]]:
    """The modules of a network by the names that a key table gives (`keys.places` of its parameters): a weight, some rows of
    one, or several weights in one. What is moved otherwise (repeated, turned over, its halves swapped) is left out."""
    own: dict[str, nn.Parameter] = dict(plain(network).named_parameters())
    found: dict[str, Place | tuple[Place, ...]] = {}
    parts: dict[str, dict[int, Place]] = {}
    for ours, (names, move, (k, count)) in spots.items():
        if not ours.endswith(".weight") or ours not in own:
            continue
        module = names[0].removesuffix(".weight")
        if move == "same":
            found[module] = Place(part, ours)
        elif move == "join":
            rows = own[ours].shape[0] // len(names)
            for i, name in enumerate(names):
                found[name.removesuffix(".weight")] = Place(part, ours, (i * rows, (i + 1) * rows))
        elif move == "rows":
            parts.setdefault(module, {})[k] = Place(part, ours)
            if len(parts[module]) == count:
                found[module] = tuple(parts[module][i] for i in range(count))
    return found


def part_of(places: Place | tuple[Place, ...]) -> str:
    """The part that a name is of."""
    return places.part if isinstance(places, Place) else places[0].part


def of_others(spelled: Sequence[Spelled]) -> list[Spelled]:
    """Those of all parts but the network that denoises."""
    return [names for names in spelled if all(part_of(place) != "network" for place in names.values())]


def looked_up(spellings: Iterable[Spelled]) -> dict[str, Place | tuple[Place, ...]]:
    """{a name as a file may spell it: the weight} of all spellings; the first that has a name keeps it."""
    found: dict[str, Place | tuple[Place, ...]] = {}
    for spelled in spellings:
        for module, place in spelled.items():
            part = part_of(place)
            for lead in DOTTED.get(part, (f"{part}.",)):
                found.setdefault(lead + module, place)
            for lead in SCORED.get(part, (f"lora_{part}_",)):
                found.setdefault(lead + module.replace(".", "_"), place)
    return found


# --------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file, not yet held against a model."""

    path: Path
    modules: Mapping[str, Change]  # by the name in the file; "NAME bias" for a change of a bias
    other: tuple[str, ...]  # names of tensors that are of no LoRA
    said: Mapping[str, Any] = field(default_factory=dict)  # the header


def read(source: str | Path) -> LoraFile:
    """The changes in a file, or in a folder as peft and diffusers write it. InputError names what is wrong with it."""
    path = _file_of(Path(source).expanduser())
    with open(path, "rb") as stream:
        head = stream.read(16)
    tensors: Mapping[str, Tensor] = Mapped(path) if head[8:9] == b"{" else read_pickled(path)
    said = dict(getattr(tensors, "metadata", {}))
    held: dict[str, dict[str, Tensor]] = {}
    other = []
    for key in tensors:
        if (found := named(key)) is None:
            other.append(key)
        else:
            held.setdefault(found.module, {})[found.role] = tensors[key]
    if kronecker := next((key for key in other if ".lokr_" in key), None):
        raise InputError(
            f"{path} is a LoKr (it holds {kronecker}), which cannot be loaded; LoRA, LoCon, LoHa and DoRA can"
        )
    if not is_lora(tensors) and not any({"diff", "diff_b"} & roles.keys() for roles in held.values()):
        some = ", ".join(sorted(tensors)[:3])
        raise InputError(f"{path} is no LoRA: its {len(tensors)} tensors ({some}, ...) are no changes of weights")
    alphas = _alphas(path, said)
    modules: dict[str, Change] = {}
    for module, roles in held.items():
        if roles.keys() == {"alpha"}:
            other.append(f"{module}.alpha")
            continue
        modules |= _changes(module, roles, alphas, path)
    return LoraFile(path, modules, tuple(other), said)


def _file_of(path: Path) -> Path:
    if path.is_dir():
        for name in ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "pytorch_lora_weights.bin",
                     "adapter_model.bin", "lora.safetensors"):  # fmt: skip
            if (path / name).is_file():
                return path / name
        raise InputError(
            f"{path} holds no LoRA: pytorch_lora_weights.safetensors or adapter_model.safetensors is needed"
        )
    if not path.is_file():
        raise InputError(f"{path}: there is no such LoRA file")
    if not path.stat().st_size:
        raise InputError(f"{path} is empty")
    return path


def _changes(module: str, roles: Mapping[str, Tensor], alphas: Alphas, path: Path) -> Iterator[tuple[str, Change]]:
    """The changes that a module's tensors are."""
    alpha = float(roles["alpha"]) if "alpha" in roles else None
    kind: LowRank | Hadamard | Whole
    if {"down", "up"} & roles.keys():
        if lost := [side for side in ("down", "up") if side not in roles]:
            raise InputError(f"{path}: {module} has one half of its LoRA and lacks the other ({lost[0]})")
        down, up = roles["down"], roles["up"]
        if min(down.dim(), up.dim()) < 2 or up.shape[1] != down.shape[0]:
            raise InputError(
                f"{path}: {module} has halves {tuple(down.shape)} and {tuple(up.shape)} of different ranks"
            )
        said, rooted = alphas.of(module, int(down.shape[0])) if alpha is None else (alpha, False)
        kind = LowRank(down, up, roles.get("mid"), said, rooted)
    elif "hada_w1_a" in roles:
        if lost := [name for name in ("hada_w1_b", "hada_w2_a", "hada_w2_b") if name not in roles]:
            raise InputError(f"{path}: {module} lacks {lost[0]} of its LoHa")
        cores = (roles["hada_t1"], roles["hada_t2"]) if {"hada_t1", "hada_t2"} <= roles.keys() else None
        first, second = (roles["hada_w1_a"], roles["hada_w2_a"]), (roles["hada_w1_b"], roles["hada_w2_b"])
        kind = Hadamard(first, second, cores, alpha)
    elif "diff" in roles:
        kind = Whole(roles["diff"])
    elif "diff_b" in roles:
        yield f"{module} bias", Change(Whole(roles["diff_b"]))
        return
    else:
        raise InputError(f"{path}: {module} has {', '.join(roles)} and nothing that it belongs to")
    if "magnitude" in roles:
        yield module, Change(kind, roles["magnitude"])
    elif "dora_scale" in roles:  # LyCORIS has had one length a column, all others one a row
        yield module, Change(kind, roles["dora_scale"], roles["dora_scale"].shape[0] == kind.shape[0])
    else:
        yield module, Change(kind)
    if "diff_b" in roles:
        yield f"{module} bias", Change(Whole(roles["diff_b"]))


class Alphas:
    """What a header or a config of peft says of alpha."""

    def __init__(self, parts: Mapping[str, Mapping[str, Any]]) -> None:
        self.parts = parts  # {"unet": {"r": 4, "lora_alpha": 8, ...}}; "" holds for all

    def of(self, module: str, rank: int) -> tuple[float | None, bool]:
        """(alpha, divided by the root of the rank) of a module; None where nothing is said."""
        for part, said in self.parts.items():
            inner = module.removeprefix(f"{part}.") if part else module
            if "lora_alpha" not in said or (part and inner == module):
                continue
            for pattern, alpha in (said.get("alpha_pattern") or {}).items():
                if re.fullmatch(rf"(.*\.)?({pattern})", inner):
                    return float(alpha), bool(said.get("use_rslora"))
            return float(said["lora_alpha"]), bool(said.get("use_rslora"))
        return None, False


def _alphas(path: Path, said: Mapping[str, Any]) -> Alphas:
    beside = path.with_name("adapter_config.json")
    if path.name.startswith("adapter_model") and beside.is_file():
        return Alphas({"": read_json(beside)})
    try:
        header = json.loads(said.get("lora_adapter_metadata") or "{}")
        parts: dict[str, dict[str, Any]] = {}
        for key, value in header.items():
            part, _, name = key.rpartition(".")
            parts.setdefault(part, {})[name] = value
    except (ValueError, AttributeError):
        raise InputError(f"{path}: its lora_adapter_metadata is not a table of settings") from None
    return Alphas(parts)


# ------------------------------------------------------------------------------------------------------------- matching


class Matched(NamedTuple):
    """A LoRA file held against a model."""

    changes: dict[Place, Change]
    lost: list[str]  # modules of the file that the model has not
    misshapen: list[str]  # "NAME changes a weight of 768 x 4, here 1024 x 4"


def matched(
    file: LoraFile, names: Mapping[str, Place | tuple[Place, ...]], networks: Mapping[str, nn.Module]
) -> Matched:  # fmt: skip
    """Which of the file's changes are of which weights. InputError where two are of the same."""
    changes: dict[Place, Change] = {}
    lost, misshapen = [], []
    for module, change in file.modules.items():
        key, _, bias = module.partition(" ")
        place = names.get(key)
        if isinstance(place, tuple) and not isinstance(place, Place):
            if bias or not isinstance(change.kind, LowRank) or change.magnitude is not None:
                lost.append(module)
                continue
            shapes = [tuple(plain(networks[p.part]).get_parameter(p.name).shape) for p in place]
            whole = (sum(shape[0] for shape in shapes), *shapes[0][1:])
            if not change.fits(whole):
                misshapen.append(f"{module} changes a weight of {_by(change.kind.shape)}, here it is {_by(whole)}")
                continue
            start = 0
            for one, shape in zip(place, shapes, strict=True):
                changes[one] = Change(change.kind.of_rows(start, start + shape[0]))
                start += shape[0]
            continue
        if place is not None and bias:
            place = _bias(place, networks)
        if place is None:
            lost.append(module)
            continue
        shape = tuple(plain(networks[place.part]).get_parameter(place.name).shape)
        if place.rows is not None:
            shape = (place.rows[1] - place.rows[0], *shape[1:])
        if not change.fits(shape):
            misshapen.append(f"{module} changes a weight of {_by(change.kind.shape)}, here it is {_by(shape)}")
            continue
        if place in changes:
            raise InputError(
                f"{file.path}: two of its modules, {module} among them, change the same weight, {place.name}"
            )
        changes[place] = change
    return Matched(changes, [*lost, *file.other], misshapen)


def _bias(place: Place, networks: Mapping[str, nn.Module]) -> Place | None:
    name = place.name.removesuffix("weight") + "bias"
    there = dict(plain(networks[place.part]).named_parameters())
    return place._replace(name=name) if name in there else None


def _by(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


FAMILIES = (
    (r"single_transformer_blocks|double_blocks|single_blocks", "Flux"),
    (r"joint_blocks|joint_transformer_blocks|transformer_blocks[._]\d+[._](attn\.add_q_proj|norm1_context)", "Stable Diffusion 3"),
    (r"img_mod|txt_mod|transformer_blocks[._]\d+[._]img_mlp", "Qwen-Image"),
    (r"(diffusion_model[._]|lora_unet_)blocks[._]\d+[._](self_attn|cross_attn)", "Wan"),
    (r"cap_embedder|noise_refiner|context_refiner", "Lumina or Z-Image"),
)  # fmt: skip
WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL", 1280: "the XL refiner"}


def made_for(file: LoraFile) -> str:
    """In words, what a LoRA seems to be of: by its names, by the width of the text that it attends to, by its header."""
    for pattern, family in FAMILIES:
        if any(re.search(pattern, module) for module in file.modules):
            return family
    said = str(file.said.get("ss_base_model_version") or file.said.get("modelspec.architecture") or "")
    for module, change in file.modules.items():
        if re.search(r"attn2[._]to_[kv]", module):
            width = change.kind.shape[1]
            return WIDTHS.get(width, f"a U-Net whose text is {width} wide")
    if said:
        return said
    if any(re.search(r"attentions|input_blocks|down_blocks", module) for module in file.modules):
        return "a U-Net such as Stable Diffusion's"
    return "another model"


# --------------------------------------------------------------------------------------------------------------- writing


def write(
    path: Path, changes: Mapping[Place, Change], spelled: Sequence[Spelled], style: str, lead: str = "unet."
) -> None:  # fmt: skip
    """Writes one safetensors file. spelled: the names of the style, part by part. style: "peft" or "kohya". lead: what peft's
    names of the main network begin with. InputError for a change that the style has no names for."""
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: a LoRA file's name ends in .safetensors")
    tensors: dict[str, Tensor] = {}
    said: dict[str, str] = {"format": "pt"}
    configs: dict[str, dict[str, tuple[int, float, bool]]] = {}
    for part, module, change in sorted(_as_spelled(changes, spelled), key=lambda found: found[:2]):
        if style == "kohya":
            second = part == "text_encoder" and any("text_encoder_2" in parts for parts in _parts(spelled))
            tensors |= _kohya(SCORED[part][int(second)] + module.replace(".", "_"), change)
            continue
        key = (lead if part == "network" else f"{part}.").rstrip(".")
        if not isinstance(change.kind, LowRank) or change.kind.mid is not None:
            raise InputError(
                f"{path}: {module} is no plain LoRA (LoHa, a middle or a whole difference); kohya's names have it"
            )
        low = change.kind
        tensors |= {f"{key}.{module}.lora_A.weight": low.down, f"{key}.{module}.lora_B.weight": low.up}
        if change.magnitude is not None:
            if not change.of_outputs:
                raise InputError(f"{path}: {module} has DoRA's lengths of columns; kohya's names have them")
            shape = (1, -1, 1, 1) if low.down.dim() == 4 else (-1,)
            tensors[f"{key}.{module}.lora_magnitude_vector"] = change.magnitude.reshape(shape)
        alpha = float(low.rank) if low.alpha is None else low.alpha
        configs.setdefault(key, {})[module] = (low.rank, alpha, low.rooted)
    if any(alpha != rank for config in configs.values() for rank, alpha, _ in config.values()):
        said["lora_adapter_metadata"] = json.dumps(_peft(configs, path), sort_keys=True)
    with whole_file(path) as part_file:
        write_tensors(part_file, tensors, said)


def _as_spelled(changes: Mapping[Place, Change], spelled: Sequence[Spelled]) -> Iterator[tuple[str, str, Change]]:
    """(part, module, change) by the spelling; a change of a whole weight that is spelled by rows is taken apart."""
    whole: dict[Place, str] = {}
    rows: dict[Place, list[tuple[str, tuple[int, int]]]] = {}
    for names in spelled:
        for module, place in names.items():
            if not isinstance(place, Place):
                continue
            whole.setdefault(place, module)
            if place.rows is not None:
                rows.setdefault(place._replace(rows=None), []).append((module, place.rows))
    for place, change in changes.items():
        bias = place.name.endswith(".bias")
        weight = place._replace(name=place.name.removesuffix("bias") + "weight") if bias else place
        if weight in whole:
            yield place.part, whole[weight] + (" bias" if bias else ""), change
        elif weight in rows and isinstance(change.kind, LowRank) and change.magnitude is None:
            for module, (start, stop) in rows[weight]:
                yield place.part, module, Change(change.kind.of_rows(start, stop))
        else:
            raise InputError(f"the change of {place.name} has no public name and cannot be written")


def _parts(spelled: Sequence[Spelled]) -> Iterator[set[str]]:
    for names in spelled:
        yield {part_of(place) for place in names.values()}


def _kohya(module: str, change: Change) -> dict[str, Tensor]:
    kind, found = change.kind, {}
    module, _, bias = module.partition(" ")
    if isinstance(kind, Whole):
        return {f"{module}.diff{'_b' if bias else ''}": kind.value}
    rank, alpha = kind.rank, kind.alpha
    if isinstance(kind, LowRank):
        found = {f"{module}.lora_down.weight": kind.down, f"{module}.lora_up.weight": kind.up}
        if kind.mid is not None:
            found[f"{module}.lora_mid.weight"] = kind.mid
        if kind.rooted and alpha is not None:
            alpha = alpha * math.sqrt(rank)  # alpha / r is then alpha / sqrt(r)
    else:
        for name, pair in (("w{}_a", kind.a), ("w{}_b", kind.b), ("t{}", kind.t)):
            found |= {f"{module}.hada_{name.format(i + 1)}": value for i, value in enumerate(pair or ())}
    found[f"{module}.alpha"] = torch.tensor(float(rank) if alpha is None else alpha)
    if change.magnitude is not None:
        ones = (1,) * (2 if isinstance(kind, LowRank) and kind.down.dim() == 4 else 0)
        shape = (-1, 1, *ones) if change.of_outputs else (1, -1, *ones)
        found[f"{module}.dora_scale"] = change.magnitude.reshape(shape)
    return found


def _peft(configs: Mapping[str, Mapping[str, tuple[int, float, bool]]], path: Path) -> dict[str, Any]:
    """The settings of peft's LoraConfig that say the alphas, as diffusers keeps them in a header."""
    said: dict[str, Any] = {}
    for part, modules in configs.items():
        rank, alpha, rooted = next(iter(modules.values()))
        if any(other[2] != rooted for other in modules.values()):
            raise InputError(
                f"{path}: some of its changes are divided by the rank, others by its root; kohya's names have both"
            )
        own: dict[str, Any] = {
            "r": rank, "lora_alpha": alpha, "target_modules": sorted(modules), "use_rslora": rooted,
            "rank_pattern": {f"^{re.escape(m)}": r for m, (r, _, _) in modules.items() if r != rank},
            "alpha_pattern": {f"^{re.escape(m)}": a for m, (_, a, _) in modules.items() if a != alpha},
        }  # fmt: skip
        said |= {f"{part}.{name}": value for name, value in own.items()}
    return said
