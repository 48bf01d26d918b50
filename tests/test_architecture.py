"""Later folders import from earlier ones; private names are not used elsewhere."""

import ast
from pathlib import Path

import pytest

import torch_geometric_erwin

NAME = "torch_geometric_erwin"
ROOT = Path(torch_geometric_erwin.__file__).parent
# A folder may import from those before it.
ROOMS = [
    *("_native", "utils", "ops", "tree", "data", "neighbors", "cuda_graph"),
    *("transforms", "nn", "datasets", "visualization", "__init__"),
]
FILES = sorted(ROOT.rglob("*.py"))


def room(parts):
    return parts[0] if parts else "__init__"


def imports(path):
    """Every module of the package that a file imports, and the names taken from it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module.split(".")[0] == NAME:
                yield node.module, [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == NAME:
                    yield alias.name, []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_down(path):
    own = room(path.relative_to(ROOT).with_suffix("").parts)
    for module, names in imports(path):
        parts = module.split(".")[1:]
        targets = [room(parts)]
        if not parts:
            targets = [n if n in ROOMS else "__init__" for n in names]
        for target in targets:
            assert ROOMS.index(target) <= ROOMS.index(own), f"{own} -> {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_private_names_stay_at_home(path):
    for module, names in imports(path):
        for name in names:
            is_private = name.startswith("_") and name not in ("_native", "__version__")
            assert not is_private, f"{module}.{name}"


def test_every_room_is_known():
    found = {room(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}
    assert found == set(ROOMS)
