r"""Searching neighbours on a GPU."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from math import pi

import torch
from torch import Tensor

from benchmark import peers
from benchmark.cases.neighbors import same_edges
from benchmark.inputs import Clouds, clouds
from benchmark.runner import Case, Run, Workload, synchronised_seconds
from torch_geometric_erwin import _native, ball_tree, knn_graph, radius_graph

_K, _DEGREE = 16, 30
_ROWS = 4096  # rows of the matrix of distances that are computed at a time


def _on_gpu(num: int, size: int, seed: int) -> Clouds:
    # With the tree that a model of five levels needs anyway.
    c = clouds(num, size, seed=seed)
    tree = ball_tree(c.pos, ptr=c.ptr, ball_sizes=[128] * 5, strides=[2] * 4)
    return Clouds(c.pos.cuda(), c.ptr.cuda(), c.batch.cuda(), tree.to("cuda"))


def _by_all_distances(k: int) -> Run:
    # All distances, a block of rows at a time, and the smallest of each row.
    def run(c: Clouds) -> Tensor:
        source = []
        for start, stop in pairwise(c.ptr.tolist()):
            pos = c.pos[start:stop]
            for first in range(0, stop - start, _ROWS):
                rows = pos[first : first + _ROWS]
                far = torch.cdist(
                    rows, pos, compute_mode="donot_use_mm_for_euclid_dist"
                )
                far[:, first:].fill_diagonal_(torch.inf)
                nearest = far.topk(k, largest=False).indices
                source.append(nearest.flatten() + start)
        target = torch.arange(len(c.pos), device=c.pos.device).repeat_interleave(k)
        return torch.stack([torch.cat(source), target])

    return run


def _same_edges(c: Clouds, expected: Tensor, actual: Tensor) -> None:
    same_edges(c, expected.cpu(), actual.cpu())


def _workload(num: int, size: int, kind: str) -> Workload:
    # For _DEGREE neighbours inside the cloud; points at its border have fewer.
    radius = (_DEGREE / (4 / 3 * pi * size)) ** (1 / 3)
    implementations: dict[str, Callable[[], Run]]
    if kind == "knn":
        graph = partial(knn_graph, k=_K)
        baseline = "torch.cdist"
        implementations = {
            baseline: lambda: _by_all_distances(_K),
            "torch-cluster": partial(peers.torch_cluster_knn, _K),
        }
    else:
        graph = partial(radius_graph, r=radius)
        baseline = "torch-cluster"
        implementations = {
            baseline: partial(peers.torch_cluster_radius, radius, 8 * _DEGREE)
        }
    if size > 100_000:  # their time grows with the square
        implementations.clear()
        baseline = "ours"
    implementations["ours"] = lambda: lambda c: graph(c.pos, ptr=c.ptr)
    implementations["ours, tree given"] = lambda: (
        lambda c: graph(c.pos, ptr=c.ptr, tree=c.tree)
    )
    return Workload(
        f"{num} x {size:,}, {kind}",
        partial(_on_gpu, num, size),
        implementations,
        baseline,
        _same_edges,
        {"clouds": num, "points": num * size, "kind": kind},
        seconds=synchronised_seconds,  # searches wait for the GPU
    )


def neighbors_cuda(size: str) -> Iterator[Workload]:
    r"""The 16 nearest, and all within a radius that holds 30 on average."""
    if not (torch.cuda.is_available() and _native.library().erwin_has_cuda()):
        return
    batches = {"tiny": [(2, 200)], "quick": [(16, 4096)]}.get(
        size, [(16, 4096), (1, 100_000), (1, 1_000_000)]
    )
    for kind in ("knn", "radius"):
        for num, n in batches:
            yield _workload(num, n, kind)


CASES = [
    Case(
        "neighbors_cuda",
        "Neighbour search on a GPU: 16 nearest, and a radius of 30 on average",
        neighbors_cuda,
    )
]
