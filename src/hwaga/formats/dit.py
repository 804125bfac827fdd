"""DiT's and SiT's public layouts: the transformer of a DiTPipeline folder, and the original authors' single files.

One key table, `TABLE`, names each tensor in the original file and in the folder; both are read and written by it. The two
differ in more than names, and so do the networks that they become here:

    the folder has a copy of the embedders in every block; queries, keys and values apart; frequencies of a time divided
    by n / 2 - 1 (`frequency_shift` 1); and the second norm of a block takes eps from its config (1e-5 in the public ones)
    the file has one embedder; queries, keys and values in one matrix; frequencies divided by n / 2; eps 1e-6; and it
    stores the fixed position vectors, which are computed here

A file does not say how many heads it has: 72 numbers a head at width 1152, else 64. SiT's files (Ma et al. 2024) have the
names and shapes of DiT's. They are told by `path_type` among the arguments of the training that wrote them, or by a name that
begins with SiT. Their network is fed t = 1 at the data and 0 at the noise and says data - noise, so that here time is
turned round (`time_offset` 1, `time_scale` -1) and the last layer has the other sign.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from torch import Tensor

from ..errors import InputError, first_mistake
from ..files import write_tensors
from ..networks.dit import DiTConfig, fixed_positions
from ..weights.fill import without_memory
from ..weights.lora import plain
from .folders import PublicFolder, write_component
from .keys import Assembled, Move, Moved, places, taken_apart
from .lora import Spelled, by_table
from .stored import Stored, as_stored, dtypes_of


class Row(NamedTuple):
    """One of our names, the original file's, the folder's, and how the numbers move into the folder's."""

    ours: str
    original: str
    folder: tuple[str, ...]
    move: Move = "same"


def _rows() -> tuple[Row, ...]:
    block, old, new = "blocks.{i}", "blocks.{i}", "transformer_blocks.{i}"
    every = "transformer_blocks.{each}.norm1.emb"
    qkv = tuple(f"{new}.attn1.to_{part}.{{path}}" for part in "qkv")
    return (
        Row("patches.{path}", "x_embedder.proj.{path}", ("pos_embed.proj.{path}",)),
        Row("time.linear_1.{path}", "t_embedder.mlp.0.{path}", (f"{every}.timestep_embedder.linear_1.{{path}}",), "repeat"),
        Row("time.linear_2.{path}", "t_embedder.mlp.2.{path}", (f"{every}.timestep_embedder.linear_2.{{path}}",), "repeat"),
        Row(
            "labels.weight", "y_embedder.embedding_table.weight",
            (f"{every}.class_embedder.embedding_table.weight",), "repeat",
        ),
        Row(f"{block}.modulation.{{path}}", f"{old}.adaLN_modulation.1.{{path}}", (f"{new}.norm1.linear.{{path}}",)),
        Row(f"{block}.attention.qkv.{{path}}", f"{old}.attn.qkv.{{path}}", qkv, "join"),
        Row(f"{block}.attention.out.{{path}}", f"{old}.attn.proj.{{path}}", (f"{new}.attn1.to_out.0.{{path}}",)),
        Row(f"{block}.mlp.up.{{path}}", f"{old}.mlp.fc1.{{path}}", (f"{new}.ff.net.0.proj.{{path}}",)),
        Row(f"{block}.mlp.down.{{path}}", f"{old}.mlp.fc2.{{path}}", (f"{new}.ff.net.2.{{path}}",)),
        Row("out.modulation.{path}", "final_layer.adaLN_modulation.1.{path}", ("proj_out_1.{path}",)),
        Row("out.linear.{path}", "final_layer.linear.{path}", ("proj_out_2.{path}",)),
    )  # fmt: skip


TABLE = _rows()
FOLDER = tuple(Moved(row.ours, row.folder, row.move) for row in TABLE)
ORIGINAL = tuple(Moved(row.ours, (row.original,)) for row in TABLE)
SIT = tuple(row._replace(move="negate") if row.ours.startswith("out.linear") else row for row in ORIGINAL)

CLASSES = ("Transformer2DModel", "DiTTransformer2DModel")  # older folders name the first
DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": None, "num_layers": 28,
    "dropout": 0.0, "norm_num_groups": 32, "attention_bias": True, "sample_size": 32, "patch_size": 2,
    "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000, "upcast_attention": False,
    "norm_type": "ada_norm_zero", "norm_elementwise_affine": False, "norm_eps": 1e-5,
}  # fmt: skip
ONLY: dict[str, tuple[Any, ...]] = {  # fields of which one value is DiT; the older class knows others, and more fields
    "dropout": (0, 0.0), "attention_bias": (True,), "activation_fn": ("gelu-approximate",), "norm_type": ("ada_norm_zero",),
    "norm_elementwise_affine": (False,), "cross_attention_dim": (None,), "num_vector_embeds": (None,),
    "only_cross_attention": (False,), "use_linear_projection": (False,), "double_self_attention": (False,),
    "attention_type": ("default",), "caption_channels": (None,), "use_additional_conditions": (None, False),
    "interpolation_scale": (None, 1, 1.0),
}  # fmt: skip


@dataclass(frozen=True)
class Found(Stored[DiTConfig]):
    """What a folder or file holds."""

    size: tuple[int, int] = field(kw_only=True)  # (height, width) of what the network works on
    flow: bool = False  # a SiT


def _checked(values: dict[str, Any], where: str) -> DiTConfig:
    try:
        return DiTConfig(**values)
    except ValidationError as error:
        raise InputError(f"{where}: {first_mistake(error)}") from None


def _names(config: DiTConfig) -> list[str]:
    with without_memory():
        return list(config.build().state_dict())


def spelled(network: Any, part: str, table: tuple[Moved, ...]) -> Spelled:
    """{a module's public name: our weight, or the rows of it that are its} by a key table, as files of LoRA name them."""
    own = [name for name, _ in plain(network).named_parameters()]
    return by_table(part, network, places(own, table, each=network.config.depth))


# --------------------------------------------------------------------------------------------------------------- folders


def read_component(folder: PublicFolder, component: str = "transformer") -> Found:
    """The transformer in a DiTPipeline's folder, or in a flat one."""
    place = folder.place(component)
    where = str(place / "config.json")
    public, tensors = folder.config(component), folder.tensors(component)
    config = network_config(public, where)
    ours = Assembled(tensors, places(_names(config), FOLDER, each=config.depth), str(place))
    side = int(public.get("sample_size") or DEFAULTS["sample_size"])
    return Found(config, ours, str(place), {"network": public, "dtypes": dtypes_of(tensors)}, size=(side, side))


def network_config(public: Mapping[str, Any], where: str) -> DiTConfig:
    """Our config of a public one; InputError for what that class knows and this network does not do."""
    full = {**DEFAULTS, **{k: v for k, v in public.items() if not k.startswith("_")}}
    for key in full:
        if key not in DEFAULTS and key not in ONLY:
            raise InputError(f"{where}: {key} is no field of {CLASSES[1]}")
    for key, values in ONLY.items():
        if key in full and full[key] not in values:
            raise InputError(f"{where}: {key}={full[key]!r} cannot be loaded; {' or '.join(map(repr, values))} can")
    side, patch = full["sample_size"], full["patch_size"]
    if not isinstance(side, int) or not isinstance(patch, int) or patch < 1 or side % patch:
        raise InputError(f"{where}: sample_size={side!r} is no whole multiple of patch_size={patch!r}")
    return _checked(
        {
            "patch": patch, "width": full["num_attention_heads"] * full["attention_head_dim"], "depth": full["num_layers"],
            "heads": full["num_attention_heads"], "in_channels": full["in_channels"],
            "out_channels": full["out_channels"] or full["in_channels"], "classes": full["num_embeds_ada_norm"] + 1,
            "grid": (side // patch,) * 2, "mlp_eps": full["norm_eps"], "frequency_shift": 1.0,
        },
        where,
    )  # fmt: skip


def public_config(config: DiTConfig, size: tuple[int, int]) -> dict[str, Any]:
    """The public config of ours at (height, width) of what it works on; InputError where there is none."""
    refuse(config, "folder", frequency_shift=1.0, time_scale=1.0, time_offset=0.0, mlp_ratio=4.0)
    if size[0] != size[1]:
        raise InputError(f"size={size}: the public layout has one side for both; a square can be exported")
    return {
        "_class_name": CLASSES[1], **DEFAULTS, "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads, "in_channels": config.in_channels,
        "out_channels": config.out_channels, "num_layers": config.depth, "sample_size": size[0],
        "patch_size": config.patch, "num_embeds_ada_norm": config.classes - 1, "norm_eps": config.mlp_eps or config.eps,
    }  # fmt: skip


def refuse(config: DiTConfig, layout: str, **fixed: Any) -> None:
    """InputError where a config has no such public layout: what it is, and what could be written."""
    common = {
        "conditioning": "adaln-zero", "positions": "sine-cosine", "mlp": "gelu", "qk_norm": False, "eps": 1e-6,
        "frequency_width": 256, "guidance_width": 0, "span": False,
    }  # fmt: skip
    for key, value in {**common, **fixed}.items():
        if getattr(config, key) != value:
            raise InputError(
                f"network.{key}={getattr(config, key)}: the public {layout} has no field for it; {value} can be exported"
            )
    if not config.classes:
        raise InputError(f"network.classes=0: the public {layout} always has labels")


def write_folder(place: Path, network: Any, size: tuple[int, int], layout: Mapping[str, Any]) -> None:
    """Writes the transformer's folder: as it was loaded, if it was."""
    config = layout.get("network") or public_config(network.config, size)
    tensors = network.state_dict()
    where = places(tensors, FOLDER, each=network.config.depth)
    write_component(place, config, as_stored(taken_apart(tensors, where), layout.get("dtypes")))


# ----------------------------------------------------------------------------------------------------------------- files


def is_dit(tensors: Mapping[str, Any]) -> bool:
    """Whether the names are those of an original DiT or SiT file."""
    marks = ("x_embedder.proj.weight", "y_embedder.embedding_table.weight", "blocks.0.adaLN_modulation.1.weight")
    return all(name in tensors for name in (*marks, "final_layer.linear.weight"))


def read_file(path: Path, tensors: Mapping[str, Tensor]) -> Found:
    """A single file that `is_dit` knows."""
    config, side = config_of(tensors, str(path))
    flow = _is_sit(path, getattr(tensors, "metadata", {}))
    if flow:
        config = config.model_copy(update={"time_scale": -1.0, "time_offset": 1.0})
    where = places(_names(config), SIT if flow else ORIGINAL)
    known = [name for name in tensors if name == "pos_embed"]
    ours = Assembled(tensors, where, str(path), known)
    if known:
        _are_fixed(tensors["pos_embed"], config, path)
    layout = {"original": "sit" if flow else "dit", "dtypes": dtypes_of(tensors)}
    return Found(config, ours, str(path), layout, flow, size=(side, side))


def config_of(tensors: Mapping[str, Tensor], where: str) -> tuple[DiTConfig, int]:
    """The config that a file's shapes are of, and the side of what it works on."""
    shapes = getattr(tensors, "shapes", None) or {name: tuple(value.shape) for name, value in tensors.items()}
    try:
        width, channels, patch, _ = shapes["x_embedder.proj.weight"]
        depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
        cells = math.isqrt(shapes["pos_embed"][1]) if "pos_embed" in shapes else 32 // patch
        ratio = shapes["blocks.0.mlp.fc1.weight"][0] / width
        values = {
            "patch": patch, "width": width, "depth": depth, "heads": width // 72 if width == 1152 else max(1, width // 64),
            "mlp_ratio": ratio, "in_channels": channels,
            "out_channels": shapes["final_layer.linear.weight"][0] // patch**2,
            "classes": shapes["y_embedder.embedding_table.weight"][0], "grid": (cells, cells),
            "frequency_width": shapes["t_embedder.mlp.0.weight"][1],
        }  # fmt: skip
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"{where} is no whole DiT: it lacks {error.args[0]}") from None
    return _checked(values, where), cells * patch


def _is_sit(path: Path, said: Mapping[str, Any]) -> bool:
    if "path_type" in said:
        for key, only in (("path_type", "Linear"), ("prediction", "velocity")):
            if said.get(key, only) != only:
                raise InputError(f"{path}: trained with {key}={said[key]}, which cannot be loaded; {only} can")
        return True
    name = path.name.lower()
    if not name.startswith(("sit", "dit")):
        warnings.warn(
            f"{path.name}: DiT's and SiT's files hold the same names, and nothing in it says which it is: taken for a DiT; "
            f"a SiT's file should have a name that begins with SiT",
            stacklevel=2,
        )
    return name.startswith("sit")


def _are_fixed(stored_positions: Tensor, config: DiTConfig, path: Path) -> None:
    """InputError where a file's position vectors are others than those that are computed here."""
    fixed = fixed_positions(config)
    if stored_positions.shape != fixed.shape or (stored_positions.float() - fixed).abs().max() > 1e-2:
        raise InputError(
            f"{path}: its pos_embed is not the fixed one of sines and cosines; such a file cannot be loaded"
        )


def write_file(path: Path, network: Any, layout: Mapping[str, Any], flow: bool) -> None:
    """Writes one safetensors file with the original names; `flow`: as a SiT."""
    config: DiTConfig = network.config
    times = {"time_scale": -1.0, "time_offset": 1.0} if flow else {"time_scale": 1.0, "time_offset": 0.0}
    refuse(config, "file", frequency_shift=0.0, **times)
    if config.mlp_eps not in (None, config.eps):
        raise InputError(f"network.mlp_eps={config.mlp_eps}: the public file has no field for it; 1e-6 can be exported")
    heads = config.width // 72 if config.width == 1152 else max(1, config.width // 64)
    if config.heads != heads:
        raise InputError(
            f"network.heads={config.heads}: of a file of width {config.width} its readers take {heads} heads"
        )
    if config.grid is None:
        raise InputError("network.grid=null: the original file holds the positions of one grid; set network.grid")
    tensors = network.state_dict()
    public = taken_apart(tensors, places(tensors, SIT if flow else ORIGINAL))
    said = {"format": "pt", **({"path_type": "Linear", "prediction": "velocity"} if flow else {})}
    write_tensors(path, as_stored({"pos_embed": fixed_positions(config), **public}, layout.get("dtypes")), said)
