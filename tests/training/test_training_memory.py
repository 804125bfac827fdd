from __future__ import annotations

import resource

import pytest
import torch
from torch import nn
from training_toys import Pictures, denoising_stage, gan_stage, plain_net, seeded

from hwaga.errors import InputError
from hwaga.interfaces import Batch, Objective, Stage
from hwaga.training import TrainingConfig
from hwaga.training import memory as room
from hwaga.training.memory import Alive, Memory, available_memory, check_fits, largest_batch, predict, shown

MIB = 2**20


def batch(n: int) -> Batch:
    return Pictures(1).batch([0] * n)


def test_alive_counts_what_lives_and_forgets_what_is_gone() -> None:
    with Alive() as alive:
        a = torch.zeros(MIB // 4)
        b = a + 1
        assert alive.now == 2 * MIB
        del a
        c = b.view(2, -1)  # no memory of its own
        assert alive.now == MIB
    assert alive.peak == 2 * MIB and c.shape[0] == 2


@pytest.mark.parametrize("stage", [denoising_stage(seeded(plain_net)), gan_stage()], ids=["denoising", "gan"])
@pytest.mark.parametrize("count", [1, 7])
def test_tensors_without_memory_are_counted_as_real_ones_are(stage: Stage, count: int) -> None:
    config = TrainingConfig(batch_size=count)
    fake = room._peak(stage, config, batch, count, torch.float32, fake=True)
    real = room._peak(stage, config, batch, count, torch.float32, fake=False)
    assert fake > 0 and fake == pytest.approx(real, rel=0.02)


def test_a_prediction_leaves_networks_generators_and_flags_as_they_were() -> None:
    stage = gan_stage()
    before = {n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in stage.networks.items()}
    state = torch.get_rng_state()
    predict(stage, TrainingConfig(batch_size=4), batch)
    assert torch.equal(state, torch.get_rng_state())
    for name, network in stage.networks.items():
        assert all(torch.equal(before[name][k], v) for k, v in network.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_parameters_gradients_moments_and_averages_are_counted() -> None:
    net = nn.Linear(1024, 1024, bias=False)  # 4 MiB
    stage = Stage(
        "s",
        {"net": net},
        [Objective("o", ("net",), lambda b, d: {"o": net(torch.zeros(len(b), 1024)).sum()})],
        averaged=("net",),
    )
    found = predict(stage, TrainingConfig(batch_size=2, ema={"half_lives": [1, 2]}), batch, frozen=MIB, process=5 * MIB)
    assert (found.parameters, found.gradients, found.optimizer, found.averages) == (5 * MIB, 4 * MIB, 8 * MIB, 8 * MIB)
    assert found.activations < MIB // 4 and found.total == 30 * MIB + found.activations + found.allocator


def test_accumulation_needs_the_memory_of_a_part() -> None:
    stage = denoising_stage(seeded(plain_net))
    whole, parts = (predict(stage, TrainingConfig(batch_size=32, accumulation=k), batch) for k in (1, 4))
    assert parts.activations < 0.3 * whole.activations and parts.optimizer == whole.optimizer


def test_a_loss_that_asks_for_values_is_measured_on_real_pictures_instead() -> None:
    net = seeded(plain_net)

    def loss(b, d):
        x = net(b.image)
        return {"o": x.square().mean() * float(x.detach().mean() > -1e9)}  # float() has no shapes-only form

    stage = Stage("s", {"net": net}, [Objective("o", ("net",), loss)])
    plain = Stage("s", {"net": net}, [Objective("o", ("net",), lambda b, d: {"o": net(b.image).square().mean()})])
    config = TrainingConfig(batch_size=16)
    asked, other = (predict(s, config, batch).activations for s in (stage, plain))
    assert asked == pytest.approx(other, rel=0.1)


def test_the_largest_batch_fits_and_the_next_ones_do_not() -> None:
    stage, config = denoising_stage(seeded(plain_net)), TrainingConfig()
    available = 80 * MIB
    most = largest_batch(stage, config, batch, available)
    assert most > 3
    assert predict(stage, config, batch, pictures=most).total <= available
    assert predict(stage, config, batch, pictures=most + 2).total > available
    assert largest_batch(stage, config, batch, 1000) == 0


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    memory = {"s": Memory(2 * MIB, MIB, MIB, MIB, 100 * MIB, process=500 * MIB)}
    check_fits(memory, 200 * MIB, lambda name: 0)
    with pytest.raises(InputError, match="needs 105 MiB to train, 50 MiB are free.*training.batch_size=9 .*would fit"):
        check_fits(memory, 50 * MIB, lambda name: 9)
    with pytest.raises(InputError, match="a smaller model would fit"):
        check_fits(memory, 50 * MIB, lambda name: 0)


def test_a_limit_on_the_address_space_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    used = psutil.Process().memory_info().vms
    real = resource.getrlimit

    def limited(what: int) -> tuple[int, int]:
        return (used + 64 * MIB, resource.RLIM_INFINITY) if what == resource.RLIMIT_AS else real(what)

    free = available_memory(torch.device("cpu"))
    monkeypatch.setattr(room.resource, "getrlimit", limited)
    assert 0 <= available_memory(torch.device("cpu")) <= min(free + MIB, 64 * MIB)


def test_bytes_are_shown_in_words() -> None:
    assert [shown(n) for n in (100, 2048, 1536 * 2**20, 3 * 2**40)] == ["100 bytes", "2 KiB", "1.5 GiB", "3 TiB"]


def test_constants_that_a_network_keeps_are_real_after_a_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types
    from functools import lru_cache

    @lru_cache
    def table() -> torch.Tensor:
        return torch.ones(3, 1, 1)

    module = types.ModuleType("hwaga.kept_for_a_test")
    module.table = table  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    net = seeded(plain_net)
    stage = Stage("s", {"net": net}, [Objective("o", ("net",), lambda b, d: {"o": net(b.image * table()).mean()})])
    predict(stage, TrainingConfig(batch_size=2), batch)
    assert table().tolist() == [[[1.0]]] * 3
