"""Public pickles: networks of their layout are read whole, and nothing in a file is ever run."""

from __future__ import annotations

import collections
import os
import pickle
import pickletools
import sys
import types

import numpy as np
import pytest
import tiny
import torch

import hwaga
from hwaga.errors import InputError
from hwaga.formats import stylegan_pickle
from hwaga.layers.initialise import build_on
from hwaga.networks.stylegan3 import AliasFreeConfig


def _fake(name, **members):
    module = types.ModuleType(name)
    for key, value in members.items():
        value.__module__, value.__qualname__, value.__name__ = name, key, key
        setattr(module, key, value)
    return module


@pytest.fixture
def public(monkeypatch):
    """The names that public files speak of, so that such a file can be written here; gone again when it is read."""

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("a class of the file was built")

    class EasyDict(dict):
        pass

    class Network:
        pass

    modules = {
        "torch_utils": types.ModuleType("torch_utils"), "dnnlib": types.ModuleType("dnnlib"),
        "torch_utils.persistence": _fake("torch_utils.persistence", _reconstruct_persistent_obj=_reconstruct_persistent_obj),
        "dnnlib.util": _fake("dnnlib.util", EasyDict=EasyDict), "dnnlib.tflib": types.ModuleType("dnnlib.tflib"),
        "dnnlib.tflib.network": _fake("dnnlib.tflib.network", Network=Network),
    }  # fmt: skip
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules


class Persistent:
    """Pickled as the public files have their networks."""

    def __init__(self, reconstruct, name, state, source="raise SystemExit('the source in the file was run')"):
        self.reconstruct, self.name, self.state, self.source = reconstruct, name, state, source

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": self.name, "state": self.state}
        return self.reconstruct, (meta,)


def written(module, public, path="", says=None):
    """A module of ours as the public class would be pickled; `says` gives plain attributes by dotted name."""
    reconstruct = public["torch_utils.persistence"]._reconstruct_persistent_obj
    children = {name: written(child, public, f"{path}{name}.", says) for name, child in module.named_children()}
    state = {
        "training": False, "_parameters": collections.OrderedDict(module.named_parameters(recurse=False)),
        "_buffers": collections.OrderedDict(module.named_buffers(recurse=False)), "_modules": collections.OrderedDict(children),
        "_non_persistent_buffers_set": set(), **(says(path.rstrip(".")) if says else {}),
    }  # fmt: skip
    if hasattr(module, "taps") and hasattr(module, "weight"):
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        state["_buffers"]["resample_filter"] = torch.outer(taps, taps) / 64
    return Persistent(reconstruct, type(module).__name__, state)


def stylegan2(public, classes=0, clamp=None):
    """A small system of ours and the public pickle's content of the same weights."""
    names = tiny.CLASSES[:classes]
    system = tiny.stylegan(classes=names, generator={"clamp": clamp}, discriminator={"clamp": clamp})
    with torch.no_grad():
        for name, p in system.generator.named_parameters():
            if "noise_strength" in name:
                p.fill_(0.3)

    def says(path):
        attributes = {"": {"z_dim": 8, "w_dim": 8, "c_dim": classes, "img_channels": 3}}
        last = path.split(".")[-1]
        if last.startswith(("conv", "torgb", "fromrgb")):
            return {"conv_clamp": clamp, "use_noise": True}
        if last.startswith("fc"):
            return {"bias_gain": np.float64(0.01)}
        if last == "mapping":
            return {"w_avg_beta": 0.995}
        return attributes.get(path, {})

    d = written(system.networks["discriminator"], public, says=lambda path: says(path) or {})
    deviation = Persistent(d.reconstruct, "MinibatchStdLayer", {"group_size": 4, "num_channels": 1})
    d.state["_modules"]["b4"].state["_modules"]["mbstd"] = deviation
    g = written(system.generator, public, says=says)
    easy = public["dnnlib.util"].EasyDict
    return system, {
        "G": g,
        "D": d,
        "G_ema": g,
        "augment_pipe": None,
        "training_set_kwargs": easy(path="x", use_labels=False),
    }


def saved(tmp_path, content, name="network.pkl", protocol=4):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize(("classes", "clamp"), [(0, None), (3, 256.0)])
def test_a_public_file_paints_and_judges_as_the_weights_in_it_and_is_saved_again(
    public, tmp_path, classes, clamp, protocol
):
    system, content = stylegan2(public, classes, clamp)
    path = saved(tmp_path, content, "anything.dat", protocol)
    for name in public:
        del sys.modules[name]
    loaded = hwaga.load(path, device="cpu", dtype="float32")
    assert loaded.config.generator == system.config.generator
    assert loaded.config.discriminator == system.config.discriminator
    call = {
        "n": 3,
        "seed": 1,
        "output": "tensor",
        "progress": False,
        "truncation": 0.7,
        "label": [0, 1, 2] if classes else None,
    }
    assert torch.equal(loaded.sample(**call), system.sample(**call))
    pictures, label = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]) if classes else None
    judged = [one.networks["discriminator"](pictures, label) for one in (loaded, system)]
    assert torch.equal(*judged)
    folder = hwaga.export(loaded, tmp_path / "ours", format="hwaga")
    assert torch.equal(hwaga.load(folder, device="cpu").sample(**call), system.sample(**call))
    assert (folder / "generator" / "model.safetensors").is_file()


def test_a_stylegan3_file_paints_as_the_weights_in_it(public, tmp_path):
    config = AliasFreeConfig(
        resolution=16, channel_base=128, channel_max=8, z_dim=8, w_dim=8, layers=4, kernel=1, radial=True
    )
    network = build_on(config)
    network.initialise(torch.Generator().manual_seed(0))

    def says(path):
        if path == "":
            return {"z_dim": 8, "w_dim": 8, "c_dim": 0, "img_channels": 3}
        if path == "synthesis":
            kwargs = {
                "channel_base": 128,
                "channel_max": 8,
                "num_layers": 4,
                "use_radial_filters": True,
                "conv_kernel": 1,
            }
            return {"img_resolution": 16, "output_scale": 0.25, "num_critical": 2, "_init_kwargs": kwargs}
        if ".L" in path and "affine" not in path:
            return {"conv_kernel": 1, "conv_clamp": 256}
        return {"w_avg_beta": 0.998} if path == "mapping" else {"bias_gain": 0.01} if ".fc" in path else {}

    path = saved(tmp_path, {"G_ema": written(network, public, says=says)})
    loaded = hwaga.load(path, device="cpu", dtype="float32")
    assert loaded.config.generator == config and loaded.config.discriminator is None
    z = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(loaded.generator(z), network(z))
    with pytest.raises(InputError, match="only paints"):
        loaded.stages()


# ------------------------------------------------------------------------------------------------------ what is refused


class Runs:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch {}",), "posix.system"),
        (eval, ("open('{}', 'w')",), "builtins.eval"),
        (exec, ("open('{}', 'w')",), "builtins.exec"),
        (__import__, ("os",), "builtins.__import__"),
        (np.load, ("{}",), "numpy"),
        (torch.load, ("{}",), "torch.serialization.load"),
    ],
)
def test_what_is_not_on_the_list_is_refused_by_name_and_nothing_is_run(tmp_path, function, arguments, named):
    witness = tmp_path / "witness"
    given = tuple(a.format(witness) if isinstance(a, str) else a for a in arguments)
    for where in (Runs(function, *given), {"G_ema": Runs(function, *given)}, {"G": [Runs(function, *given)]}):
        path = saved(tmp_path, where)
        with pytest.raises(InputError) as error:
            hwaga.load(path, device="cpu")
        assert (
            named in str(error.value) and "nothing in it was run" in str(error.value) and str(path) in str(error.value)
        )
        assert not witness.exists() and "\n" not in str(error.value)


def test_the_oldest_protocol_too_is_refused(tmp_path):
    witness = tmp_path / "witness"
    path = tmp_path / "old.pkl"
    path.write_bytes(f"cos\nsystem\n(S'touch {witness}'\ntR.".encode())
    with pytest.raises(InputError):
        hwaga.load(path, device="cpu")
    path.write_bytes(b"\x80\x02" + f"cos\nsystem\n(S'touch {witness}'\ntR.".encode())
    with pytest.raises(InputError, match="os.system"):
        hwaga.load(path, device="cpu")
    assert not witness.exists()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"\x80\x02ccollections\nOrderedDict\n)\x81}b.", None),  # harmless, but no network
        (b"\x80\x02(cos\nsystem\nS'true'\no.", "OBJ"),
        (b"\x80\x02(S'true'\nios\nsystem\n.", "INST"),
        (b"\x80\x02P1\n.", "PERSID"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x04cbuiltins\nset\n)}\x92.", "NEWOBJ_EX"),
    ],
)
def test_opcodes_that_are_not_on_the_list_are_refused_by_name(tmp_path, data, named):
    path = tmp_path / "odd.pkl"
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        hwaga.load(path, device="cpu")
    assert (named or "no network named G_ema") in str(error.value)


def test_a_state_that_would_change_a_class_or_a_function_is_refused(tmp_path):
    """BUILD writes into an object's attributes: only tables, arrays and tensors have any here."""
    listed = (
        ("torch_utils.persistence", "_reconstruct_persistent_obj"),
        ("dnnlib.util", "EasyDict"),
        ("torch", "Size"),
    )
    for module, name in listed:
        path = tmp_path / "build.pkl"
        path.write_bytes(f"\x80\x02c{module}\n{name}\n}}X\x01\x00\x00\x00aX\x01\x00\x00\x00bsb.".encode("latin1"))
        with pytest.raises(InputError, match="gives a state to"):
            hwaga.load(path, device="cpu")


def test_a_tensor_that_reaches_beyond_its_storage_is_refused():
    storage = torch.storage.TypedStorage(
        wrap_storage=torch.zeros(4).untyped_storage(), dtype=torch.float32, _internal=True
    )
    with pytest.raises(pickle.UnpicklingError, match="beyond"):
        stylegan_pickle._rebuilt(storage, 0, (8,), (1,))
    with pytest.raises(pickle.UnpicklingError, match="beyond"):
        stylegan_pickle._rebuilt(storage, -1, (2,), (1,))


def test_networks_of_tensorflow_are_refused_by_name(public, tmp_path):
    network = public["dnnlib.tflib.network"].Network
    path = saved(tmp_path, (network(), network(), network()))
    with pytest.raises(InputError, match="TensorFlow.*stylegan2-ada-pytorch"):
        hwaga.load(path, device="cpu")


def test_a_file_cut_short_and_a_pickle_of_something_else_are_told_apart(public, tmp_path):
    _, content = stylegan2(public)
    whole = saved(tmp_path, content).read_bytes()
    cut = tmp_path / "cut.pkl"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a whole pickle|refused"):
        hwaga.load(cut, device="cpu")
    with pytest.raises(InputError, match="no StyleGAN.*a, b"):
        hwaga.load(saved(tmp_path, {"a": 1, "b": 2}), device="cpu")


def test_every_opcode_on_the_list_is_one_of_pythons():
    assert {code.name for code in pickletools.opcodes} >= stylegan_pickle.OPCODES
