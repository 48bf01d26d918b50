"""The guides: their code runs, and their tables are made from the results."""

import ast
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from universes import SMALL

from benchmark import tables
from torch_geometric_erwin import datasets

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
SOURCES = [
    path
    for folder in ("torch_geometric_erwin", "examples", "benchmark", "tools")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
# A cell with a number, alone or with a unit.
UNIT = r"(s|ms|µs|ns|[kMG]i?B|GFLOP/s|%|x|×|times.*|points?|launches)"
MEASURED = re.compile(rf"\|\s*[<>~≈]?\d[\d.,]*( ?{UNIT})?\s*[|;(]")


def blocks(path, fence="python"):
    return re.findall(rf"```(?:{fence})\n(.*?)```", path.read_text(), re.DOTALL)


WITH_CODE = [path for path in PAGES if blocks(path)]


@pytest.fixture
def small_universes(monkeypatch):
    """The README's data set, with few haloes."""
    own = partial(datasets.CosmologyLPT, **SMALL)
    monkeypatch.setattr(datasets, "CosmologyLPT", own)


@pytest.mark.usefixtures("small_universes")
@pytest.mark.parametrize("path", WITH_CODE, ids=lambda path: path.name)
def test_blocks_run(path, tmp_path, monkeypatch):
    """All Python of a page, from top to bottom, as a reader would."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    before = torch.multiprocessing.get_sharing_strategy()
    scope = {}
    try:
        for block in blocks(path):
            exec(compile(block, path.name, "exec"), scope)
    finally:
        torch.multiprocessing.set_sharing_strategy(before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch.onnx
def test_blocks_that_need_onnx_run(tmp_path, monkeypatch):
    """Their fence is `py`, because they need more packages and half a minute."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    path, scope = DOCS / "explain.md", {}
    assert len(blocks(path, "python|py")) == len(blocks(path)) + 2
    for block in blocks(path, "python|py"):
        exec(compile(block, path.name, "exec"), scope)
        if "torch.onnx" in block:
            model, args, kwargs = (scope[n] for n in ("model", "args", "kwargs"))
            expected = model(*args, **kwargs).detach().numpy()
    np.testing.assert_allclose(scope["out"], expected, rtol=1e-4, atol=1e-5)


def test_no_other_fence():
    """Every block of Python is found."""
    fences = {
        fence
        for path in PAGES
        for fence in re.findall(r"^```(\w+)$", path.read_text(), re.MULTILINE)
    }
    assert fences <= {"python", "py", "bash", "bibtex", "text"}
    for path in PAGES:
        assert not blocks(path, "py") or path.name == "explain.md"


def test_pages_with_code():
    names = {"explain.md", "gpu.md", "mixers.md", "neighbors.md", "pyg.md", "units.md"}
    assert names | {"README.md"} <= {path.name for path in WITH_CODE}


@pytest.mark.parametrize("path", tables.GUIDES, ids=lambda path: path.name)
def test_tables_are_those_of_the_results(path):
    text = path.read_text()
    assert tables.written(text) == text, "run 'python -m benchmark.tables'"


def test_every_table_is_in_a_guide():
    shown = {
        name
        for path in tables.GUIDES
        for name in re.findall("<!-- table (.*) -->", path.read_text())
    }
    assert shown == tables.TABLES.keys()


def typed(text):
    """The lines of tables with measured numbers that are not made from results."""
    outside = re.sub(r"<!-- table (?s:.*?)<!-- end of table -->", "", text)
    lines = [line.strip() for line in outside.splitlines()]
    return [line for line in lines if line.startswith("|") and MEASURED.search(line)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_measured_number_in_a_table_is_typed(path):
    assert typed(path.read_text()) == []


def test_no_docstring_has_a_table_of_measured_numbers():
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                assert typed(text) == [], path


def test_typed_numbers_are_seen():
    table = "| points | time | ratio |\n| --- | --- | --- |\n| a few | {} | – |"
    for cell in ("1.88 s", "463 ms", "4.01", "0.40 GB", "58 %", "485,379", "30 times"):
        assert typed(table.format(cell))
        block = f"<!-- table model -->\n{table.format(cell)}\n<!-- end of table -->"
        assert not typed(block)
    assert not typed(table.format("CUDA 12.8"))
