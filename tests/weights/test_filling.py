"""Networks built of shapes alone, and files that do not lie in memory twice."""

from __future__ import annotations

import subprocess
import sys

import torch
from safetensors.torch import save_file
from torch import nn

from hwaga.layers.initialise import without_memory
from hwaga.weights.mapped import Mapped, page_out


def test_built_of_shapes_alone_nothing_is_drawn_and_nothing_large_is_imported():
    code = (
        "import sys, torch; from torch import nn; from hwaga.layers.initialise import without_memory\n"
        "state = torch.get_rng_state(); before = set(sys.modules)\n"
        "with without_memory():\n"
        "    made = nn.ModuleList([nn.Embedding(3, 4), nn.Linear(4, 5), nn.Conv2d(2, 2, 3), nn.LayerNorm(4)])\n"
        "assert made[0].weight.is_meta and made[1].weight.shape == (5, 4)\n"
        "assert torch.equal(state, torch.get_rng_state()) and 'torch._refs' not in set(sys.modules) - before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_shapes_are_those_of_the_real_thing():
    make = lambda: nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 5), nn.GroupNorm(2, 4))  # noqa: E731
    with without_memory():
        shapes = {name: value.shape for name, value in make().state_dict().items()}
    assert shapes == {name: value.shape for name, value in make().state_dict().items()}


def test_what_is_paged_out_is_there_when_it_is_asked_for(tmp_path):
    whole = torch.arange(2**18, dtype=torch.float32)
    save_file({"a": whole, "b": whole[:7].clone()}, tmp_path / "a.safetensors")
    mapped = Mapped(tmp_path / "a.safetensors")
    for tensor in (mapped["a"], mapped["a"][1000:200_000], mapped["b"], whole):
        held = tensor.clone()
        page_out(tensor)
        assert torch.equal(tensor, held)
