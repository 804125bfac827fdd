"""Recipes: a YAML file that names a system, its sizes, the data, the training and the measuring.

    system: ddpm
    model: {...}            the system's own config
    data: {source: openmoji, size: 32}
    training: {steps: 20000, batch_size: 64, ...}
    evaluation: {n: 500}
    components: {autoencoder: openmoji/vae-kl}

A recipe that differs from another in little says which, and the difference alone: `base: openmoji/dit` stands for all of that
recipe, and what follows is put over it key by key; a mapping of another `kind` takes the place of the whole. A run's own
`recipe.yaml` is always whole.

Everything is checked before anything is done: an unknown key, a wrong type or a value out of range is an InputError in
one sentence that names the dotted key, the value and what would be right.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from .data import DataConfig
from .errors import InputError, unknown
from .evaluation.config import EvaluationConfig
from .files import inside, write_text
from .training.config import MAY_CHANGE, WHOLE_RUN, TrainingConfig

LARGEST = 2**20  # bytes of a recipe file


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """A validated recipe. `model` is checked against the system's own config."""

    system: str
    model: dict[str, Any] = Field(default_factory=dict)
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    components: dict[str, str] = Field(default_factory=dict)

    name: ClassVar[str] = ""

    def to_yaml(self) -> str:
        """The whole recipe, every default written out: enough to repeat the run."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)

    def save(self, path: str | Path) -> None:
        write_text(path, self.to_yaml())

    def fixed(self) -> dict[str, Any]:
        """What a run cannot change any more, by dotted key: all but the lengths and habits of training."""
        flat = flattened(self.model_dump(mode="json"))
        stages = self.training.stages
        free = {f"training.{key}" for key in MAY_CHANGE}
        free |= {f"training.{stage}.{key}" for stage in stages for key in MAY_CHANGE}
        return {key: value for key, value in flat.items() if key not in free and not key.startswith("evaluation.")}

    def fingerprint(self) -> str:
        """The SHA-256 of what is fixed, in hex."""
        return hashlib.sha256(json.dumps(self.fixed(), sort_keys=True).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------------- reading


def load_recipe(source: str | Path | Mapping[str, Any] | Recipe, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a shipped name (`openmoji/ddpm`), a YAML file, a mapping or a Recipe, with values put in.

    overrides: {"training.steps": 10, "data.source": "digits", ...}; a text is read as YAML. InputError in one sentence
    for whatever is unknown, missing, of a wrong type or out of range.
    """
    if isinstance(source, Recipe):
        values: dict[str, Any] = source.model_dump(mode="json")
        where = "recipe"
    elif isinstance(source, Mapping):
        values, where = json.loads(json.dumps(source, default=_refused)), "recipe"
    else:
        path = find_recipe(source)
        values, where = _read(path), str(source)
    values = _with_base(values, where)
    for key, value in (overrides or {}).items():
        _put(values, key, parsed(value) if isinstance(value, str) else value)
    return validated(values, where)


def shipped_recipes() -> list[str]:
    """The names of the recipes that came with the package: those that name a system, or another recipe as their base."""
    root = packaged()
    found = []
    for path in sorted(root.rglob("*.yaml")):
        if re.search(r"^(system|base)\s*:", path.read_text(encoding="utf-8"), re.MULTILINE):
            found.append(path.relative_to(root).with_suffix("").as_posix())
    return found


def packaged() -> Path:
    """The folder of shipped recipes: in the installed package, or beside src/ in a checkout."""
    here = Path(__file__).parent
    inner = here / "recipes"
    return inner if inner.is_dir() else here.parent.parent / "recipes"


def find_recipe(source: str | Path) -> Path:
    """The file of a recipe: a path that exists, then a shipped name, with or without `recipes/` and `.yaml`."""
    text = str(source)
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir() and (path / "recipe.yaml").is_file():
        raise InputError(
            f"{text} is a run, not a recipe; go on with: hwaga train --resume {text}, or name {text}/recipe.yaml"
        )
    name = text.removeprefix("./").removeprefix("recipes/").removesuffix(".yaml").removesuffix(".yml")
    known = shipped_recipes()
    if name in known:
        return inside(packaged(), f"{name}.yaml")
    raise unknown("recipe", text, known)


class _Loader(yaml.SafeLoader):
    """The safe loader, with numbers as everybody writes them (1e-3 is one), and without `no` and `off` for false."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in rules if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\d[\d_]*\.[\d_]*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?\d[\d_]*[eE][-+]?\d+|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN))$"
    ),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
    for key in keys:
        if isinstance(key, (list, dict)):
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a key must be a word")
        if keys.count(key) > 1:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: the key {key!r} is there twice")
    return yaml.SafeLoader.construct_mapping(loader, node, deep)  # type: ignore[no-untyped-call,no-any-return]


def _construct(loader: _Loader, node: yaml.MappingNode) -> Any:
    value: dict[Any, Any] = {}
    yield value
    value.update(_mapping(loader, node))


_Loader.add_constructor("tag:yaml.org,2002:map", _construct)


def parsed(text: str) -> Any:
    """The value of a text, as a recipe would read it; a text that is no YAML is itself."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a safe loader)
    except (yaml.YAMLError, ValueError):
        return text


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} has {path.stat().st_size} bytes; a recipe has at most {LARGEST}")
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a safe loader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{path} is not YAML that a recipe can be: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is no recipe: it should hold keys such as system: and training:")
    return value


def _with_base(values: dict[str, Any], where: str, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values put over those of the recipe that they name as their `base`, if they do."""
    if "base" not in values:
        return values
    name = values["base"]
    if not isinstance(name, str):
        raise InputError(f"{where}: base={_short(name)}: should be the name of a recipe, such as openmoji/ddpm")
    path = find_recipe(name).resolve()
    if path in above:
        raise InputError(f"{where}: base={name}: this recipe leads back to itself")
    rest = {key: value for key, value in values.items() if key != "base"}
    return _put_over(_with_base(_read(path), name, (*above, path)), rest)


def _put_over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, mapping by mapping; one of another `kind` has keys of its own and is taken whole."""
    if over.get("kind", base.get("kind")) != base.get("kind"):
        return dict(over)
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = _put_over(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    names = key.split(".")
    if not all(names):
        raise InputError(f"{key!r} is no key; right would be something like training.steps")
    place = values
    for name in names[:-1]:
        inner = place.setdefault(name, {})
        if not isinstance(inner, dict):
            inner = place[name] = {}
        place = inner
    place[names[-1]] = value


def _refused(value: object) -> Any:
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise InputError(f"recipe: {value!r} is of a type that a recipe cannot hold")


# ---------------------------------------------------------------------------------------------------------- validation


def validated(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A Recipe of plain values. The first thing that is wrong is an InputError."""
    from .systems import find

    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: {sentence(_telling(error), Recipe, values)}") from None
    except RecursionError:
        raise InputError(f"{where}: it refers to itself") from None
    system = find(recipe.system)
    for stage, own in recipe.training.stages.items():
        _check_stage(recipe, stage, own, system, where)
    _check_model(recipe, system, where)
    return recipe


def _check_stage(recipe: Recipe, stage: str, own: Mapping[str, Any], system: Any, where: str) -> None:
    """A stage's own values: `training.prior: {steps: 10}`."""
    names = list(system.stage_names)
    if stage not in names:
        near = _near(stage, [*TrainingConfig.model_fields, *names], "training")
        raise InputError(
            f"{where}: training.{stage} is neither a key of training nor a stage of {recipe.system} "
            f"({', '.join(names)}){near}"
        )
    for key in own:
        if key in WHOLE_RUN:
            raise InputError(
                f"{where}: training.{stage}.{key}: {key} holds for the whole run; right would be training.{key}"
            )
    try:
        recipe.training.for_stage(stage)
    except ValidationError as error:
        first = _telling(error)
        raise InputError(f"{where}: {sentence(first, TrainingConfig, own, f'training.{stage}')}") from None


def _check_model(recipe: Recipe, system: Any, where: str) -> None:
    """Keys and types of `model:`. What depends on the data (classes, sizes) is checked when they are open."""
    try:
        system.Config.model_validate(recipe.model)
    except ValidationError as error:
        fixed = [e for e in error.errors() if e["type"] != "value_error"]  # relations may hold only once completed
        if fixed:
            raise InputError(f"{where}: {sentence(fixed[0], system.Config, recipe.model, 'model')}") from None


def _telling(error: ValidationError) -> Any:
    """The error to tell of several: a mistyped key before the one that is missing for it."""
    return min(error.errors(), key=lambda found: found["type"] == "missing")


def sentence(found: Any, model: type[BaseModel], values: Any, prefix: str = "") -> str:
    """One error of pydantic in words: the dotted key, the value, and what would be right.

    `values` are those that were checked: what pydantic puts into a path beside their keys (the branch of a union) is
    left out.
    """
    path: list[str] = []
    place = values
    for part in found["loc"]:
        inside = part in place if isinstance(place, Mapping) else isinstance(place, list) and part in range(len(place))
        if inside:
            place = place[part]
        if inside or found["type"] == "missing":
            path.append(str(part))
    key = ".".join([prefix, *path] if prefix else path) or "the whole"
    if found["type"] == "extra_forbidden":
        known = [name for name in _fields_at(model, path[:-1], found["loc"]) if name != "stages"]
        return f"{key} is unknown; known here are {', '.join(known)}{_near(path[-1], known, key.rpartition('.')[0])}"
    if found["type"] == "missing":
        return f"{key} is missing" + ("; right would be for example system: ddpm" if key == "system" else "")
    if found["type"] == "union_tag_invalid":  # one of several shapes, which a key names
        told = found["ctx"]
        return f"{key}.{told['discriminator'].strip(chr(39))}={told['tag']!r}: should be one of {told['expected_tags']}"
    message = found["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message = re.sub(r"valid dictionary( or instance of \w+)?", "mapping of keys to values", message)
    message = re.sub(r"\b[Tt]uple\b", "list", message).replace("valid list", "list").replace(" after validation", "")
    shown = (
        "" if isinstance(found["input"], Mapping) and found["type"] == "value_error" else f"={_short(found['input'])}"
    )
    return f"{key}{shown}: {message}"


def _fields_at(model: Any, path: list[str], told: Sequence[Any]) -> list[str]:
    """The fields of the model that stands at a path below another; list positions are walked through. Of several shapes
    it is the one whose tag stands in `told`, the place as pydantic tells it."""
    for part in path:
        if part.isdecimal():
            continue
        field = getattr(model, "model_fields", {}).get(part)
        inner = [field.annotation, *get_args(field.annotation)] if field else [model]  # a stage's own values
        kinds = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
        tagged = [kind for kind in kinds if {field.default for field in _named(kind)} & set(told)]
        model = next(iter([*tagged, *kinds]), model)
    return list(model.model_fields)


def _named(kind: type[BaseModel]) -> list[Any]:
    return [field for field in kind.model_fields.values() if isinstance(field.default, str)]


def _near(name: str, known: list[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {prefix + '.' if prefix else ''}{close[0]}?" if close else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# ------------------------------------------------------------------------------------------------------------ comparing


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested mappings."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, name)
        else:
            flat[name] = value
    return flat


def differences(old: Recipe, new: Recipe) -> list[str]:
    """What of the fixed part differs: `training.batch_size: 64 in the run, 32 asked for`."""
    was, now = old.fixed(), new.fixed()
    keys = [key for key in dict.fromkeys([*was, *now]) if was.get(key) != now.get(key)]
    return [f"{key}: {_short(was.get(key))} in the run, {_short(now.get(key))} asked for" for key in keys]
