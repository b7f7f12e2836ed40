"""Where the code lies: a room imports only rooms below it, and nothing imports in a circle."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tlray"
BELOW: dict[str, set[str]] = {
    "core": set(),
    "images": {"core"},
    "models": {"core"},
    "cluster": {"core"},
    "features": {"core", "images", "models", "cluster"},
    "plugins": {"core", "models", "cluster"},
    "training": {"core", "images", "models", "cluster", "features"},
    "evaluation": {"core", "images", "models", "cluster", "features"},
}
BELOW["recipes"] = {*BELOW} - {"plugins"}
BELOW["cli"] = {*BELOW}


def imports() -> dict[str, set[str]]:
    """The modules of tlray that each of them imports, also inside a function."""
    modules = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    imported: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                inner = {f"{node.module}.{alias.name}" for alias in node.names} - {"tlray.__version__"}
                imported[name] |= {other if other in modules else node.module for other in inner}
            elif isinstance(node, ast.Import):
                imported[name] |= modules.keys() & {alias.name for alias in node.names}
    return imported


IMPORTS = imports()


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_only_rooms_below_it(room):
    upward = {
        (name.removeprefix("tlray.").replace(".", "/") + ".py", other.split(".")[1])
        for name, others in IMPORTS.items()
        if name.split(".")[1:2] == [room]
        for other in others - {"tlray"}
        if other.split(".")[1] not in {room, *BELOW[room]}
    }
    assert upward == set()


def test_only_the_users_of_tlray_import_its_public_api():
    """A room would import all others with it; the version is no part of a room."""
    assert [name for name, others in IMPORTS.items() if "tlray" in others] == []


def test_every_room_has_its_floor():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(BELOW)


def test_no_module_imports_itself_by_way_of_others():
    TopologicalSorter(IMPORTS).prepare()  # Raises a CycleError that names the modules.


def private_names(tree: ast.Module) -> set[str]:
    """The private names that a module imports, or uses of an object, without defining them itself."""
    used, own = set(), {"_asdict", "_fields", "_replace", "_exit"}  # These are public.
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            own.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            used |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            used |= {part for alias in node.names for part in alias.name.split(".")}
        elif isinstance(node, ast.Attribute):
            of_itself = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            (own if of_itself else used).add(node.attr)
    return {name for name in used - own if re.fullmatch(r"_[a-z]\w*|__reduce__|src|v2", name)}


def test_only_one_module_uses_private_names():
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in PACKAGE.rglob("*.py")
        if (names := private_names(ast.parse(path.read_text())))
    }
    assert found.pop("core/private.py") >= {"_flatten_layers", "_private", "v2", "__reduce__"}
    assert found == {}
