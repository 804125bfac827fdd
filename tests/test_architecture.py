"""The house's rules that can be read off the source: who imports whom, how long files are, what is never written."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src" / "hwaga"

EVERYBODY = {"interfaces", "errors", "files", "provenance", "precision", "allocation"}
"""Leaves that every room may import: types, sentences, whole files, the record of a picture, device and dtype, what was freed."""

MAY_IMPORT: dict[str, set[str]] = {
    "interfaces": set(),
    "errors": set(),
    "files": {"errors"},
    "provenance": {"errors", "files"},
    "precision": {"errors"},
    "allocation": set(),
    "layers": set(),
    "networks": {"layers"},
    "processes": set(),
    "samplers": {"processes"},
    "weights": {"layers"},
    "objectives": {"processes", "samplers", "layers"},
    "conditioning": {"networks", "layers"},
    "data": set(),
    "formats": {"networks", "conditioning", "processes", "samplers", "weights"},
    "systems": {
        "layers", "networks", "processes", "samplers", "weights", "objectives", "conditioning", "formats",
    },
    "training": {"data"},
    "evaluation": {"data", "networks", "conditioning", "layers"},
    "laboratory": {"networks", "processes", "samplers", "objectives", "training", "data"},
    "loading": {"systems", "formats", "weights", "layers"},
    "saving": {"loading", "systems", "formats", "weights"},
    "recipes": {"data", "training", "evaluation", "systems"},
    "preparing": {"recipes", "loading", "systems", "data", "training"},
    "measuring": {"recipes", "loading", "data", "evaluation"},
    "curves": {"measuring", "evaluation", "samplers", "systems"},
    "running": {"recipes", "preparing", "measuring", "loading", "saving", "systems", "data", "training", "evaluation"},
    "cli": {"data", "training", "evaluation", "systems", "loading", "saving", "recipes", "preparing", "running", "laboratory",
            "curves", "conditioning"},
    "__main__": {"cli"},
    "__init__": {"systems", "loading", "saving", "running", "provenance"},
}  # fmt: skip


def sources() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def room_of(file: Path) -> str:
    first = file.relative_to(SRC).parts[0]
    return first.removesuffix(".py")


def house_imports(tree: ast.AST, file: Path) -> set[str]:
    """Rooms that a file imports from, imports inside functions and under TYPE_CHECKING too."""
    package = ["hwaga", *file.relative_to(SRC).parts[:-1]]
    found: set[str] = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *((node.module or "").split(".") if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "hwaga":
                found.add(parts[1] if len(parts) > 1 else "__init__")
    return found


def test_rooms_import_only_downwards() -> None:
    wrong = []
    for file in sources():
        room = room_of(file)
        assert room in MAY_IMPORT, f"{file}: the room {room!r} is not declared; say in this table what it may import"
        allowed = MAY_IMPORT[room] | (EVERYBODY if room not in EVERYBODY else set()) | {room, "__version__"}
        if room == "cli":
            allowed |= {"__init__", *SRC_NAMES}
        wrong += [f"{file.relative_to(SRC)} imports {name}" for name in house_imports(parsed(file), file) - allowed]
    assert wrong == []


SRC_NAMES = ("load", "train", "resume", "evaluate", "export", "convert", "save_images")
"""Public names of the package itself, which the command line may use as a user does."""


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def test_nothing_imports_the_command_line() -> None:
    users = [str(f.relative_to(SRC)) for f in sources() if "cli" in house_imports(parsed(f), f)]
    assert all(name.startswith(("cli/", "__main__")) for name in users), users


def test_an_import_that_leads_upwards_would_be_seen(tmp_path: Path) -> None:
    tree = ast.parse("def f():\n    from ..systems import find\n    import hwaga.cli.main\n    from .. import running")
    assert house_imports(tree, SRC / "layers" / "conv.py") == {"systems", "cli", "running"}


def test_no_source_file_is_longer_than_600_lines() -> None:
    assert {} == {
        str(f.relative_to(ROOT)): n for f in sources() if (n := len(f.read_text(encoding="utf-8").splitlines())) > 600
    }


def test_no_compiled_extension_and_no_pickle() -> None:
    """Neither is imported anywhere; torch.save, torch.load and an unguarded np.load would use pickles."""
    wrong = []
    for file in sources():
        for node in ast.walk(parsed(file)):
            where = f"{file.relative_to(SRC)}:{getattr(node, 'lineno', 0)}"
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            if modules in (["pickle"], ["pickle", "pickle.UnpicklingError"]):
                continue  # for the name of an error; any other use of the module is found below
            if file.name == "stylegan_pickle.py":
                continue  # the restricted reader itself: a closed list of classes and opcodes (tests/formats)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id == "pickle" and node.attr != "UnpicklingError":
                    wrong.append(f"{where} pickle.{node.attr}")
            if any(part in ("cpp_extension", "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
                   for name in modules for part in name.split(".")):  # fmt: skip
                wrong.append(f"{where} imports {modules[0]}")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                    wrong.append(f"{where} allow_pickle")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                call = (owner, node.func.attr)
                if call == ("torch", "save") or (call == ("torch", "load") and given.get("weights_only") != "True"):
                    wrong.append(
                        f"{where} {owner}.{node.func.attr} (reading: weights_only=True, the restricted unpickler)"
                    )
                if call in (("np", "load"), ("numpy", "load")) and "allow_pickle" not in given:
                    wrong.append(f"{where} np.load without allow_pickle=False")
                if owner == "yaml" and node.func.attr in ("load", "load_all", "unsafe_load", "full_load"):
                    if given.get("Loader") not in safe_loaders(file):
                        wrong.append(f"{where} yaml.{node.func.attr}: only the safe loader")
    assert wrong == []


def safe_loaders(file: Path) -> set[str]:
    """yaml.SafeLoader, and the classes of a file that are made from it."""
    classes = [node for node in ast.walk(parsed(file)) if isinstance(node, ast.ClassDef)]
    return {"yaml.SafeLoader", *(c.name for c in classes if [ast.unparse(b) for b in c.bases] == ["yaml.SafeLoader"])}


def test_no_global_generator_is_touched() -> None:
    """Named streams only: no seeding of torch's, numpy's or Python's generator."""
    banned = {("torch", "manual_seed"), ("torch", "seed"), ("random", "seed"), ("torch", "set_rng_state")}
    wrong = []
    for file in sources():
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                value = node.func.value
                if isinstance(value, ast.Name) and (value.id, node.func.attr) in banned:
                    wrong.append(f"{file.relative_to(SRC)}:{node.lineno} {value.id}.{node.func.attr}")
                if isinstance(value, ast.Attribute) and value.attr == "random" and node.func.attr != "default_rng":
                    owner = value.value.id if isinstance(value.value, ast.Name) else ""
                    if owner in ("np", "numpy") and node.func.attr[0].islower():
                        wrong.append(f"{file.relative_to(SRC)}:{node.lineno} np.random.{node.func.attr}")
    assert wrong == []


@pytest.mark.parametrize(
    "name", ["LICENSE", "LICENSE-DATA", "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
)
def test_the_papers_of_the_project_are_there(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8")) > 500
