r"""Building trees on a GPU."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmark import peers
from benchmark.inputs import Clouds, clouds
from benchmark.runner import Case, Run, Workload, cuda_seconds, synchronised_seconds
from torch_geometric_erwin import Tree
from torch_geometric_erwin.tree import TreeConfig
from torch_geometric_erwin.tree.builder import build_tree

_ONE = TreeConfig(256, (), 0.0)
_LEVELS = TreeConfig([256] * 5, [2] * 4, 45.0)


def _moved(num: int, size: int, seed: int) -> Clouds:
    c = clouds(num, size, seed=seed)
    return Clouds(c.pos.cuda(), c.ptr.cuda(), c.batch.cuda())


def _copied(build: Run, c: Clouds) -> Any:
    # The cost of a builder on the host for a training step on a GPU, copies included.
    output = build(Clouds(c.pos.cpu(), c.ptr.cpu(), c.batch.cpu()))
    if isinstance(output, Tree):
        return output.to("cuda")
    return [torch.as_tensor(part).cuda() for part in output[:2]]


def _ours_on_host(config: TreeConfig) -> Run:
    return partial(_copied, lambda c: build_tree(c.pos, c.ptr, config))


def _balltree_erwin(config: TreeConfig) -> Run:
    if not config.rotate:
        return partial(_copied, peers.balltree_erwin())
    args = ([*config.ball_sizes], [*config.strides], config.rotate)
    return partial(_copied, peers.balltree_erwin_rotated(*args))


def _update(config: TreeConfig, largest: int) -> Run:
    # All inputs have the same size, so the tree of the first one can be updated.
    trees: list[Tree] = []

    def run(c: Clouds) -> Tree:
        if not trees:
            trees.append(build_tree(c.pos, c.ptr, config))
        return trees[0].update(c.pos, max_points=largest)

    return run


def _graph(config: TreeConfig, largest: int) -> Run:
    # Captured once; every input is copied to the tensor that the graph reads.
    update = _update(config, largest)
    state: dict[str, Any] = {}

    def run(c: Clouds) -> Tree:
        if not state:
            pos = c.pos.clone()
            still = Clouds(pos, c.ptr, c.batch)
            update(still)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                state["tree"] = update(still)
            state["pos"], state["graph"] = pos, graph
        state["pos"].copy_(c.pos)
        state["graph"].replay()
        return state["tree"]

    return run


def _sort(c: Clouds) -> Tensor:
    return torch.sort(c.pos[:, 0]).indices


def _same(c: Clouds, expected: Any, actual: Any) -> None:
    if not isinstance(actual, Tree) or not isinstance(expected, Tree):
        return  # for other sizes the original splits at other places
    for a, b in zip(
        [expected.perm, *expected.perm_rot], [actual.perm, *actual.perm_rot]
    ):
        assert torch.equal(a, b), "another order"


def _workloads(config: TreeConfig, size: str) -> Iterator[Workload]:
    if not torch.cuda.is_available():
        return
    batches = {
        "tiny": [(2, 300), (1, 20_000)],
        "quick": [(16, 4096), (1, 1_000_000)],
        "full": [(16, 4096), (16, 16_384), (1, 1_000_000), (1, 16_000_000)],
    }[size]
    for num, n in batches:
        params = {"clouds": num, "points": num * n, "dim": 3, "kind": "uniform"}
        inputs = partial(_moved, num, n)
        yield Workload(
            f"{num} x {n:,}, as called",
            inputs,
            {
                "ours on the host, copied": partial(_ours_on_host, config),
                "balltree-erwin, copied": partial(_balltree_erwin, config),
                "ours": lambda: lambda c: build_tree(c.pos, c.ptr, config),
                "ours, update": partial(_update, config, n),
            },
            "ours on the host, copied",
            _same,
            params,
            seconds=synchronised_seconds,
        )
        yield Workload(
            f"{num} x {n:,}, on the device",
            inputs,
            {
                "torch.sort of one axis": lambda: _sort,
                "ours, update": partial(_update, config, n),
                "ours, update in a graph": partial(_graph, config, n),
            },
            "torch.sort of one axis",
            _same,
            params,
            apart=frozenset({"torch.sort of one axis"}),
            seconds=cuda_seconds,
        )


def tree_cuda(size: str) -> Iterator[Workload]:
    r"""The order of points for one level; empty without a GPU."""
    yield from _workloads(_ONE, size)


def tree_rotated_cuda(size: str) -> Iterator[Workload]:
    r"""Five levels and their rotated trees; empty without a GPU."""
    yield from _workloads(_LEVELS, size)


CASES = [
    Case("tree_cuda", "Building ball trees on a GPU (needs one)", tree_cuda),
    Case(
        "tree_rotated_cuda",
        "Building five levels and their rotated trees on a GPU (needs one)",
        tree_rotated_cuda,
    ),
]
