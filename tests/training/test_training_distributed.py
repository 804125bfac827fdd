from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hwaga.errors import InputError
from hwaga.training.distributed import World
from hwaga.training.loop import part

HERE = Path(__file__).parent


def started(what: str, folder: Path, size: int) -> list[subprocess.Popen[str]]:
    """`size` processes as torchrun starts them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    path = os.pathsep.join([str(HERE), *sys.path])
    return [
        subprocess.Popen(
            [sys.executable, str(HERE / "two_processes.py"), what, str(folder)], stderr=subprocess.PIPE, text=True,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": path},
        )
        for rank in range(size)
    ]  # fmt: skip


def ended(processes: list[subprocess.Popen[str]]) -> None:
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, torch.Tensor]]]:
    """What one process found, and each of two."""
    folder = tmp_path_factory.mktemp("two")
    ended([*started("main", folder, 1), *started("main", folder, 2)])
    return folder, [load_file(folder / f"{name}.safetensors") for name in ("0 of 1", "0 of 2", "1 of 2")]


def of(kind: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.split(":", 1)[1]: value for key, value in tensors.items() if key.startswith(f"{kind}:")}


@pytest.mark.parametrize("kind", ["even", "uneven", "few", "accumulated"])
def test_two_processes_give_the_gradients_of_one(kind: str, found: tuple[Path, list[dict[str, torch.Tensor]]]) -> None:
    """In float64, to rounding; batches that two does not divide, fewer pictures than the batch, accumulated parts."""
    one, *two = (of(kind, tensors) for tensors in found[1])
    assert len(one) > 5
    for each in two:
        for name, gradient in one.items():
            if name == "row":  # float32 terms
                torch.testing.assert_close(each[name], gradient, rtol=1e-6, atol=1e-7)
            else:
                torch.testing.assert_close(each[name], gradient, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kind", ["denoising", "gan", "whole", "unused", "run"])
def test_two_processes_give_the_weights_of_one_after_training(
    kind: str, found: tuple[Path, list[dict[str, torch.Tensor]]]
) -> None:
    """Each kind of objective; `run` with saving, sampling, evaluation and a resume on the way."""
    one, *two = (of(kind, tensors) for tensors in found[1])
    for each in two:
        assert each.keys() == one.keys() and each
        for name, value in one.items():
            torch.testing.assert_close(each[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("sharded", "plain"), [("sharded", "denoising"), ("sharded run", "run")])
def test_parameters_that_are_shared_out_train_to_the_same_weights(
    sharded: str, plain: str, found: tuple[Path, list[dict[str, torch.Tensor]]]
) -> None:
    one = of(plain, found[1][0])
    for each in (of(sharded, tensors) for tensors in found[1][1:]):
        assert each.keys() == one.keys() and each
        for name, value in one.items():
            torch.testing.assert_close(each[name], value, rtol=1e-4, atol=1e-4)


def test_a_non_finite_term_in_one_process_stops_all(found: tuple[Path, list[dict[str, torch.Tensor]]]) -> None:
    folder = found[0]
    assert (folder / "trouble 0 of 1").read_text() == "none"
    assert "not finite in another process" in (folder / "trouble 0 of 2").read_text()
    assert "the term 'bad' is not finite" in (folder / "trouble 1 of 2").read_text()


def test_a_stuck_process_ends_the_others_with_its_name(tmp_path: Path) -> None:
    ended(started("stuck", tmp_path, 2))
    assert "step 2: process 1 of 2 did not answer within 3 s" in (tmp_path / "told").read_text()


def test_parts_differ_by_at_most_one_and_cover_everything() -> None:
    for whole, parts in ((7, 2), (3, 3), (10, 4), (5, 1)):
        pieces = [part(whole, parts, i) for i in range(parts)]
        assert [start for start, _ in pieces] == [sum(n for _, n in pieces[:i]) for i in range(parts)]
        assert sum(n for _, n in pieces) == whole and max(n for _, n in pieces) - min(n for _, n in pieces) <= 1


def test_a_batch_smaller_than_the_number_of_processes_is_refused() -> None:
    from training_toys import denoising_stage

    from hwaga.training import Trainer, TrainingConfig

    with pytest.raises(InputError, match="training.batch_size=2 is less than the 3 processes"):
        Trainer(denoising_stage(), TrainingConfig(batch_size=2), None, None, world=World(0, 3))  # type: ignore[arg-type]
