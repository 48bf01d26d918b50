import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torch_geometric_erwin import _native, ball_tree, knn_graph, radius_graph

SOURCE = Path(__file__).parent / "allocations.cpp"


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    if sys.platform != "linux" or shutil.which("c++") is None:
        pytest.skip("needs Linux, where a program replaces a library's allocations")
    program = tmp_path_factory.mktemp("allocations") / "allocations"
    flags = ["-std=c++17", "-O1", "-rdynamic", "-pthread"]
    subprocess.run(["c++", *flags, SOURCE, "-o", program, "-ldl"], check=True)
    return program


@pytest.mark.parametrize("threads", [1, 3])
def test_every_allocation_may_fail(threads, harness):
    args = [harness, _native.library()._name, str(threads)]
    result = subprocess.run(args, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(result.stdout) > 200  # allocations failed


def test_out_of_memory_is_a_memory_error(monkeypatch):
    monkeypatch.setattr(_native, "_function", lambda name: lambda: 4)
    with pytest.raises(MemoryError, match="erwin_knn: out of memory"):
        _native.call("erwin_knn")


def test_memory_for_outputs():
    pos = torch.rand(300_000, 3)
    tree = ball_tree(pos, ball_sizes=16)
    with pytest.raises(MemoryError, match=r"erwin::knn: .* you tried to allocate 1439"):
        knn_graph(pos, 299_999, tree=tree)
    assert knn_graph(pos[:10], 2).shape == (2, 20)


@pytest.mark.parametrize("cap", [None, 10**6])
def test_a_radius_with_more_edges_than_memory_is_refused_before_it_is_searched(cap):
    pos = torch.rand(2_000_000, 3)  # all pairs of these points would take 64 TB
    tree = ball_tree(pos, ball_sizes=16)
    with pytest.raises(MemoryError, match="erwin_radius_count: out of memory"):
        radius_graph(pos, 2.0, max_num_neighbors=cap, tree=tree)
    assert radius_graph(pos, 0.0, max_num_neighbors=cap, tree=tree).shape == (2, 0)
