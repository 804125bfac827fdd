"""Run by test_gan.py in each of some processes: trains tiny GANs in float64 and writes what became of them."""

import json
import sys
from pathlib import Path

import tiny
import torch
from test_gan import InTurn

from hwaga.training import Trainer, TrainingConfig
from hwaga.training.distributed import world


class Doubled(tiny.Pictures):
    """In float64, so that sums in another order agree to more digits than training could hide."""

    def batch(self, indices, epochs=None):
        from dataclasses import replace

        batch = super().batch(indices, epochs)
        return replace(batch, image=batch.image.double())


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    found = {}
    with world(60) as processes:
        for kind in ("residual", "dcgan"):
            system = tiny.gan(kind=kind)
            for network in system.networks.values():
                network.double()
            config = TrainingConfig(steps=20, batch_size=6, learning_rate=1e-4, dtype="float32")
            work = Trainer(system.stages()[0], config, Doubled(16), InTurn(6), world=processes)
            for _ in range(3):
                work.step()
            found[kind] = [
                float(v.double().abs().sum()) for n in system.networks.values() for v in n.state_dict().values()
            ]
            row = work.metrics()
        found["row"] = [row[f"discriminator.{name}"] for name in ("real", "fake", "accuracy", "diversity")]
        name = f"{processes.rank}-{processes.size}.json"
    (folder / name).write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
