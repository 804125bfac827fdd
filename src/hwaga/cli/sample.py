"""`hwaga sample`: every keyword of `System.sample`, with dashes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import provenance
from ..errors import InputError, LostWords
from . import options
from .progress import Progress

LOADED = ("components", "weights", "loras")  # what a record keeps beside the call, to load the same model again


def sample(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A run, a model folder, a shipped name (openmoji/ddpm), a hub id."),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", "-n", help="Pictures (of each prompt).")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to paint; repeatable.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to paint.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="A class, number or name; repeatable: one a picture.")] = None,
    size: Annotated[str | None, typer.Option(metavar="HxW", help="Height and width in pixels, or one number.")] = None,
    steps: Annotated[str | None, typer.Option(metavar="N", help="Steps of the sampler; also STAGE=N,STAGE=N.")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim, …; the model's own if left out.")] = None,
    sampler_options: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Such as eta=0.5; repeatable.")
    ] = None,
    guidance_scale: Annotated[
        str | None, typer.Option(metavar="S", help="1 is off, 0 unconditional; also STAGE=S,STAGE=S.")
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture to start from or to edit; repeatable.")] = None,
    mask: Annotated[Path | None, typer.Option(help="White is painted anew.")] = None,
    strength: Annotated[float | None, typer.Option(help="0 keeps the picture, 1 keeps nothing of it.")] = None,
    fit_image: Annotated[
        bool | None, typer.Option("--fit-image/--no-fit-image", help="Bring the source to the trained sizes.")
    ] = None,
    keep_unmasked: Annotated[
        bool | None,
        typer.Option("--keep-unmasked/--no-keep-unmasked", help="Pixels outside the mask stay as they are."),
    ] = None,
    control: Annotated[list[Path] | None, typer.Option(help="A control picture; repeatable.")] = None,
    control_scale: Annotated[list[float] | None, typer.Option(help="1 is plain; repeatable: one a control.")] = None,
    seed: Annotated[int | None, typer.Option(help="Picture i of a seed is always the same.")] = None,
    noise: Annotated[Path | None, typer.Option(help="A safetensors file of draws to replay, by name.")] = None,
    own: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A keyword of the system's own; repeatable."),
    ] = None,
    component: Annotated[
        list[str] | None, typer.Option(metavar="NAME=SOURCE", help="Put another part in; repeatable.")
    ] = None,
    lora: Annotated[list[str] | None, typer.Option(metavar="FILE[:SCALE]", help="A LoRA; repeatable.")] = None,
    weights: Annotated[str | None, typer.Option(help="Which weights of the source, where it has several.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32, bfloat16, float16; int8 (CPU: rounded weights).")
    ] = None,
    memory: Annotated[str | None, typer.Option(metavar="8GB", help="A budget that is kept.")] = None,
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="PICTURE.png", help="Paint this picture again, by its own record."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="A prompt of which words would be cut off is refused.")
    ] = False,
    out: Annotated[
        Path, typer.Option(metavar="FILE_OR_FOLDER", help="A .png (one picture, or a grid) or a new folder.")
    ] = Path("sample.png"),
    quiet: Annotated[bool, typer.Option("--quiet", help="Plain lines instead of a bar.")] = False,
) -> None:
    """Paint pictures with a model."""
    call: dict[str, Any] = {
        "n": n,
        "prompt": options.one_or_many(prompt),
        "negative_prompt": negative_prompt,
        "label": options.labels(label),
        "size": options.size(size),
        "steps": options.by_stage("--steps", steps, int),
        "sampler": sampler,
        "sampler_options": options.pairs("--sampler-options", sampler_options) or None,
        "guidance_scale": options.by_stage("--guidance-scale", guidance_scale, float),
        "image": options.one_or_many(image),
        "mask": mask,
        "strength": strength,
        "fit_image": fit_image,
        "keep_unmasked": keep_unmasked,
        "control": options.one_or_many(control),
        "control_scale": options.one_or_many(control_scale),
        "seed": seed,
    }
    extra = options.pairs("--set", own)
    for name in extra:
        if name.replace("-", "_") in call:
            raise InputError(f"--set {name}=… is not a keyword of a system's own; use --{name.replace('_', '-')}")
    given = {name: value for name, value in call.items() if value is not None}
    given |= {name.replace("-", "_"): value for name, value in extra.items()}
    if noise is not None:
        given["noise"] = _draws(noise)
    loaded: dict[str, Any] = {
        "components": options.pairs("--component", component, str) or None,
        "weights": weights,
        "loras": options.loras(lora) or None,
    }
    painted_before: provenance.Record | None = None
    if from_ is not None:
        painted_before = provenance.read(from_)
        model, given, loaded, device, dtype = _again(painted_before, from_, model, given, loaded, device, dtype)
    if model is None:
        raise InputError("hwaga sample needs a MODEL, such as openmoji/ddpm, or --from PICTURE.png")
    provenance.check_target(out)

    from ..loading import load

    painter = load(
        model,
        device=device or "auto",
        dtype=dtype or "auto",
        components=loaded["components"],
        memory=memory,
        weights=loaded["weights"],
    )
    for file, scale in loaded["loras"] or ():
        print(f"hwaga: {painter.load_lora(file, scale=scale)}", file=sys.stderr)
    with Progress(f"painting with {model}", quiet) as bar, _no_word_lost(strict):
        images = painter.sample(**given, callback=bar.step, progress=False)
    records = [_kept(provenance.of(picture), loaded) for picture in images]
    if painted_before is not None:
        images, records = _only(painted_before, from_, images, records)
    files = provenance.save_images(images, out, records if all(records) else None)  # type: ignore[arg-type]
    print(files[0] if len(files) == 1 else f"{out} ({len(files)} pictures)")


@contextmanager
def _no_word_lost(strict: bool) -> Iterator[None]:
    """Inside, with `strict`, a prompt that would be cut off is bad input and not a note."""
    if not strict:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error", LostWords)
        try:
            yield
        except LostWords as lost:
            raise InputError(f"{lost} (--strict)") from None


def _again(
    record: provenance.Record,
    path: Path,
    model: str | None,
    given: dict[str, Any],
    loaded: dict[str, Any],
    device: str | None,
    dtype: str | None,
) -> tuple[str, dict[str, Any], dict[str, Any], str | None, str | None]:
    """Model, keywords, parts, device and dtype of the call that a record tells of; what is given now comes first."""
    call = dict(record["call"]) | given
    lost = [name for name, value in call.items() if provenance.not_stored(value)]
    if lost:
        what = ", ".join("--" + name.replace("_", "-") for name in lost)
        raise InputError(f"{path} was painted with {what} from memory, which the file does not hold; give it again")
    source = model or record.get("model")
    if not isinstance(source, str):
        raise InputError(f"{path} does not say which model painted it; name the MODEL")
    if isinstance(call.get("size"), list):
        call["size"] = tuple(call["size"])
    before = record.get("load") or {}
    parts = {name: loaded[name] if loaded[name] is not None else before.get(name) for name in LOADED}
    return source, call, parts, device or record.get("device"), dtype or record.get("dtype")


def _only(
    before: provenance.Record, path: Path | None, images: list[Any], records: list[Any]
) -> tuple[list[Any], list[Any]]:
    """Of a call painted again, the one picture that the file was; a warning where the model is no longer the same."""
    now = records[0] or {}
    for name in ("model_hash", "versions", "device", "dtype"):
        if before.get(name) != now.get(name):
            print(f"hwaga: {path} was painted with another {name.replace('_', ' ')}: {_short(before.get(name))} then, "
                  f"{_short(now.get(name))} now; the picture may differ", file=sys.stderr)  # fmt: skip
    index = before.get("index")
    same_call = all(now.get("call", {}).get(name) == before["call"].get(name) for name in ("n", "prompt", "label"))
    if index is None or not same_call or not 0 <= index < len(images):
        return images, records
    return [images[index]], [records[index]]


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return str(value)[:16]


def _kept(record: provenance.Record | None, loaded: dict[str, Any]) -> provenance.Record | None:
    parts = {name: provenance.plain(value) for name, value in loaded.items() if value is not None}
    return record if record is None or not parts else record | {"load": parts}


def _draws(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file of recorded draws."""
    if not path.is_file():
        raise InputError(f"--noise {path} is not a file; give a safetensors file of draws")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"--noise {path} is not a safetensors file: {error}") from None
