r"""Searching neighbours in another set of points."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmark import peers
from benchmark.inputs import Clouds, clouds
from benchmark.runner import Case, Run, Workload
from torch_geometric_erwin import knn

_K = 3  # as many as interpolation needs


def _others(c: Clouds, size: int) -> tuple[Tensor, Tensor]:
    # As many other points in every cloud, and their offsets.
    others = clouds(c.ptr.size(0) - 1, size, seed=len(c.pos))
    return others.pos, others.ptr


def same_neighbors(c: Clouds, expected: Tensor, actual: Tensor) -> None:
    r"""Checks that both found the same neighbours.

    SciPy computes distances in float64. So a few neighbours may differ, between points
    that have equal distances in float32.
    """
    assert torch.equal(expected[0], actual[0])
    differing = int((expected[1] != actual[1]).sum())
    assert differing <= max(2, 1e-5 * actual.size(1)), f"{differing} neighbours differ"


def _workload(num: int, size: int, queries: int) -> Workload:
    def ours() -> Run:
        return lambda c: _searched(c, *_others(c, queries))

    def scipy() -> Run:
        search = peers.scipy_cross_knn(_K)
        return lambda c: search(c, *_others(c, queries))

    implementations: dict[str, Callable[[], Run]] = {
        "scipy cKDTree": scipy,
        "ours": ours,
    }
    return Workload(
        f"{num} x {queries:,} in {size:,}",
        partial(_clouds, num, size),
        implementations,
        "scipy cKDTree",
        same_neighbors,
        {"clouds": num, "points": num * size, "queries": num * queries},
    )


def _clouds(num: int, size: int, seed: int) -> Clouds:
    return clouds(num, size, seed=seed)


def _searched(c: Clouds, y: Tensor, ptr_y: Tensor) -> Tensor:
    return knn(c.pos, y, _K, ptr_x=c.ptr, ptr_y=ptr_y)


def cross_neighbors(size: str) -> Iterator[Workload]:
    r"""The 3 nearest points, from a coarse set to a fine one and back."""
    sizes = {"tiny": [(2, 200, 90)], "quick": [(16, 1024, 4096)]}.get(
        size, [(16, 1024, 4096), (1, 25_000, 100_000), (1, 100_000, 25_000)]
    )
    for num, points, queries in sizes:
        yield _workload(num, points, queries)


CASES = [
    Case(
        "cross_neighbors",
        "Neighbours in another set of points, trees included: 3 nearest",
        cross_neighbors,
        serial=True,
    )
]
