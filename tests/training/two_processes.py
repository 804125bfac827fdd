"""Run by test_training_distributed.py in each of two processes: writes what it found to FOLDER/RANK.safetensors."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from training_toys import InTurn, Pictures, denoising_stage, final_tensors, gan_stage, plain_net, seeded, session

from hwaga.errors import WorkError
from hwaga.interfaces import Batch, Objective, Stage
from hwaga.training import Trainer, TrainingConfig, World
from hwaga.training.distributed import world


def gradients(
    processes: World, batch_size: int = 6, pictures: int = 20, accumulation: int = 1
) -> dict[str, torch.Tensor]:
    """The gradients of one step in float64, summed over the processes."""
    net = seeded(plain_net).double()
    work = trainer(denoising_stage(net), processes, batch_size=batch_size, pictures=pictures, accumulation=accumulation)
    found: dict[str, torch.Tensor] = {}
    optimizer = work.optimizers["main"]

    def keep(step: int) -> None:
        found.update({n: p.grad.clone() for n, p in zip(optimizer.names, optimizer.parameters, strict=True)})

    optimizer.move = keep  # type: ignore[method-assign]
    work.step()
    row = work.metrics()
    return {**found, "row": torch.tensor([row["denoise.loss"], row["denoise.watched"]], dtype=torch.float64)}


def trainer(stage: Stage, processes: World, pictures: int = 20, **config: object) -> Trainer:
    data = Pictures(pictures)
    full = TrainingConfig(**{"steps": 20, "batch_size": 6, **config})
    return Trainer(stage, full, data, InTurn(len(data), full.batch_size), world=processes)


def moved(stage: Stage, processes: World, **config: object) -> dict[str, torch.Tensor]:
    """Weights and averages after 20 steps."""
    work = trainer(stage, processes, **config)
    for _ in range(20):
        work.step()
    from hwaga.training.checkpoint import parts

    return {f"{file}/{k}": t.contiguous().clone() for file, ts in parts(work, {}).items() for k, t in ts.items()}


def whole_batch_stage() -> Stage:
    """A loss that is no mean over pictures: the spread of the whole batch."""
    net = seeded(plain_net).double()

    def loss(batch: Batch, draw: object) -> dict[str, torch.Tensor]:
        return {"spread": net(batch.image.double()).std(0).mean()}

    return Stage("whole", {"network": net}, [Objective("o", ("network",), loss)], batch_statistics=True)


def unused_stage(processes: World) -> Stage:
    """A parameter that only process 1 uses in its part."""
    net = seeded(plain_net).double()

    def loss(batch: Batch, draw: object) -> dict[str, torch.Tensor]:
        part = net[0](batch.image.double()).mean()
        return {"o": part + (processes.size * net[4].weight.sum() if processes.rank == processes.size - 1 else 0.0)}

    return Stage("unused", {"network": net}, [Objective("o", ("network",), loss)])


def main(folder: Path) -> None:
    with world(timeout=60.0, device="cpu") as processes:
        found: dict[str, dict[str, torch.Tensor]] = {
            "even": gradients(processes),
            "uneven": gradients(processes, batch_size=7),
            "few": gradients(processes, batch_size=4, pictures=3),
            "accumulated": gradients(processes, batch_size=7, accumulation=2),
            "denoising": moved(denoising_stage(seeded(plain_net)), processes),
            "gan": moved(gan_stage(), processes),
            "whole": moved(whole_batch_stage(), processes),
            "unused": moved(unused_stage(processes), processes),
        }
        if processes.size > 1:
            found["sharded"] = moved(denoising_stage(seeded(plain_net)), processes, shard=True)
        for name, shard in (("run", False), *((("sharded run", True),) if processes.size > 1 else ())):
            place = folder / f"{name} {processes.size}"
            if processes.main:
                place.mkdir()
            processes.barrier()
            for steps in (7, 12):  # saved, sampled, measured, resumed
                stage = denoising_stage(seeded(plain_net))
                work = session(place, [stage], steps=steps, evaluate_every=4, shard=shard)
                work.world, work.score = processes, lambda: {"fid": 1.0}
                work.run()
            processes.barrier()
            found[name] = final_tensors(place)
        trouble = "none"
        try:
            stage = denoising_stage(seeded(plain_net))
            plain = stage.objectives[0].loss

            def loss(batch: Batch, draw: object) -> dict[str, torch.Tensor]:
                return {**plain(batch, draw), "bad": torch.tensor(float("nan") if processes.rank == 1 else 0.0)}

            trainer(Stage("s", stage.networks, [Objective("o", ("network",), loss)]), processes).step()
        except WorkError as error:
            trouble = str(error)
        (folder / f"trouble {processes.rank} of {processes.size}").write_text(trouble)
        flat = {f"{kind}:{k}": t.contiguous() for kind, ts in found.items() for k, t in ts.items()}
        save_file(flat, folder / f"{processes.rank} of {processes.size}.safetensors")


def stuck(folder: Path) -> None:
    """Process 1 comes too late; process 0 must end with its name."""
    with world(timeout=3.0, device="cpu") as processes:
        processes.barrier(step=1)
        if processes.rank == 1:
            while not (folder / "told").exists():
                pass
            return
        try:
            processes.barrier(step=2)
        except WorkError as error:
            (folder / "told.part").write_text(str(error))
            (folder / "told.part").rename(folder / "told")


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"main": main, "stuck": stuck}[sys.argv[1]](Path(sys.argv[2]))
