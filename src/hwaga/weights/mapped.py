"""Tensors of safetensors files, mapped and not copied: a file's pages are read when a tensor's values are first used."""

from __future__ import annotations

import argparse
import mmap
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import InputError
from ..files import inside, read_json

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class Mapped(Mapping[str, Tensor]):
    """Tensors by name, of one or several safetensors files. Shapes and dtypes are known from the headers alone."""

    def __init__(self, *files: str | Path, names: Mapping[str, Path] | None = None) -> None:
        """names: which file holds a tensor, where an index says so (others in the files are stale and not looked at)."""
        self.files = [Path(f) for f in files]
        self._open: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.metadata: dict[str, str] = {}  # what the headers say beside names and shapes
        for file in self.files:
            try:
                handle = safe_open(file, "pt")
            except FileNotFoundError:
                raise InputError(f"{file} is missing") from None
            except (SafetensorError, OSError, ValueError, OverflowError) as error:
                raise InputError(f"{file} is not a whole safetensors file: {error}") from None
            self.metadata |= handle.metadata() or {}
            for name in handle.keys():  # noqa: SIM118 (no mapping)
                if names is None or names.get(name) == file:
                    part = handle.get_slice(name)
                    self._open[name] = handle
                    self.shapes[name] = tuple(part.get_shape())
                    self.dtypes[name] = DTYPES.get(part.get_dtype(), torch.float32)
        if names is not None and (lost := sorted(names.keys() - self._open.keys())):
            raise InputError(f"{names[lost[0]]} lacks the tensor {lost[0]!r}, which the index says it holds")

    def __getitem__(self, name: str) -> Tensor:
        return self._open[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def bytes(self) -> int:
        """Size of all tensors as stored."""
        return sum(torch.Size(self.shapes[n]).numel() * self.dtypes[n].itemsize for n in self)


class Renamed(Mapping[str, Tensor]):
    """Tensors under other names, still lazily: {new name: old name} of a mapping.

    flat: new names whose last two sizes, 1 and 1, are dropped (a 1 x 1 convolution that is a matrix here): a view.
    more: tensors that are held beside them.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], names: Mapping[str, str], flat: Collection[str] = (),
        more: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self._tensors, self._names, self._flat, self._more = tensors, dict(names), set(flat), dict(more or {})
        known: Mapping[str, tuple[int, ...]] | None = getattr(tensors, "shapes", None)
        if known is not None:
            shapes = {new: known[old] for new, old in self._names.items()}
            held = {name: tuple(value.shape) for name, value in self._more.items()}
            self.shapes = {new: shape[:-2] if new in self._flat else shape for new, shape in shapes.items()} | held
        kinds: Mapping[str, torch.dtype] | None = getattr(tensors, "dtypes", None)
        if kinds is not None:
            of_more = {name: value.dtype for name, value in self._more.items()}
            self.dtypes = {new: kinds[old] for new, old in self._names.items()} | of_more

    def __getitem__(self, name: str) -> Tensor:
        if name in self._more:
            return self._more[name]
        value = self._tensors[self._names[name]]
        return value.flatten(-3) if name in self._flat else value

    def __iter__(self) -> Iterator[str]:
        yield from self._names
        yield from self._more

    def __len__(self) -> int:
        return len(self._names) + len(self._more)


PAGEOUT = 21  # of madvise on Linux: what is in the pages stays as it is, and is read again when it is asked for
LEAST_PAGES = 16  # smaller ones are not worth a call
_advise: Any = None


def page_out(tensor: Tensor) -> None:
    """Tells the system that a large tensor in memory will not be read soon, so that a mapped file's pages do not add up beside
    the copies that were made of them. Changes nothing but memory; elsewhere than on Linux it does nothing."""
    global _advise
    if not sys.platform.startswith("linux") or tensor.device.type != "cpu":
        return
    start, page = tensor.data_ptr(), mmap.PAGESIZE
    first, last = -(-start // page) * page, (start + tensor.numel() * tensor.element_size()) // page * page
    if last - first < LEAST_PAGES * page:
        return
    if _advise is None:
        import ctypes

        _advise = getattr(ctypes.CDLL(None), "madvise", None) or (lambda *told: -1)
        if hasattr(_advise, "argtypes"):
            _advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    _advise(first, last - first, PAGEOUT)


def read_folder(folder: str | Path, stems: tuple[str, ...]) -> Mapped | dict[str, Tensor]:
    """The weights in a component's folder: `STEM.safetensors`, or its shards by the index, or, last, `STEM.bin`.

    A `.bin` is a pickle and is read by torch's loader for weights only, which builds nothing but tensors.
    """
    folder = Path(folder)
    for stem in stems:
        for variant in ("", ".fp16", ".bf16"):
            file = folder / f"{stem}{variant}.safetensors"
            index = folder / f"{stem}.safetensors.index{variant}.json"
            if file.is_file():
                return Mapped(file)
            if index.is_file():
                table = read_json(index).get("weight_map")
                if not isinstance(table, dict) or not table:
                    raise InputError(f"{index} has no weight_map")
                names = {name: inside(folder, str(shard)) for name, shard in table.items()}
                return Mapped(*sorted(set(names.values())), names=names)
    for stem in stems:
        if (file := folder / f"{stem}.bin").is_file():
            return read_pickled(file)
    there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "nothing"
    raise InputError(
        f"{folder} holds no weights: {' or '.join(f'{s}.safetensors' for s in stems)} is needed; there is {there}"
    )


INERT = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.lr_logger.LearningRateLogger",
    "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "main.ImageLogger",
    "main.SetupCallback",
    "main.CUDACallback",
)
"""Classes whose names old checkpoints of PyTorch Lightning hold as keys beside the weights; nothing of them is needed, and an
empty class stands in for each."""


class _Inert:
    """Stands for a class of `INERT`: takes anything and does nothing."""

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class Checkpoint(dict[str, Tensor]):
    """The tensors of a file of torch.save, and what else it says of them."""

    metadata: Mapping[str, Any] = {}  # the arguments of the training that wrote it, where it holds them
    kinds: tuple[str, ...] = ()  # of "ema" and "raw": what it holds, the one that was taken first


def read_pickled(file: str | Path, weights: str | None = None) -> Checkpoint:
    """The tensors of a file written by torch.save. Nothing in it is executed: anything but tensors and plain data is refused.

    Weights that lie below `state_dict` are found there; of a training's `model` and `ema` the averaged ones are taken, or
    those that `weights` ("ema", "raw") asks for. InputError if it has none of these.
    """
    import pickle
    import warnings
    import zipfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: a refusal says it better
            with torch.serialization.safe_globals([*((_Inert, name) for name in INERT), argparse.Namespace]):
                content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except FileNotFoundError:
        raise InputError(f"{file} is missing") from None
    except pickle.UnpicklingError as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{file} holds more than tensors and is refused (nothing in it was run): {first}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{file} is not a readable weight file: {first}") from None
    return _weights_in(content, file, weights)


def _weights_in(content: Any, file: str | Path, wanted: str | None) -> Checkpoint:
    kinds: list[str] = []
    said: dict[str, Any] = {}
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        said = {name: value for name, value in content.items() if isinstance(value, int | float | str)}
        content = content["state_dict"]
    elif isinstance(content, dict) and (isinstance(content.get("ema"), dict) or isinstance(content.get("model"), dict)):
        args = content.get("args")
        said = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {}
        there = {kind: content[key] for kind, key in (("ema", "ema"), ("raw", "model")) if content.get(key)}
        if wanted is not None and wanted not in there:
            raise InputError(f"weights={wanted!r}: {file} holds {' and '.join(there)} weights alone; leave weights out")
        kinds = sorted(there, key=lambda kind: kind != (wanted or "ema"))
        content = there[kinds[0]]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"{file} holds no table of tensors by name")
    found = Checkpoint(content)
    found.metadata, found.kinds = said, tuple(kinds)
    return found
