r"""Searching neighbours in another set of points."""

from collections.abc import Callable, Iterator
from functools import partial
from math import pi

import torch
from torch import Tensor

from benchmark import peers
from benchmark.cases.neighbors import same_edges
from benchmark.inputs import Pair, pair
from benchmark.runner import Case, Run, Workload
from torch_geometric_erwin import ball_tree, knn, knn_interpolate, radius

_DEGREE = 30  # points within the radius, on average
_CHANNELS = 32  # features that are interpolated
_ALL_PAIRS = 5_000  # points of a cloud up to which all distances fit
_BASELINE = "scipy cKDTree"

Runs = dict[str, Callable[[], Run]]


def _with_tree(num: int, size: int, queries: int, seed: int) -> Pair:
    # With the tree of the points that a model of five levels needs anyway.
    p = pair(num, size, queries, _CHANNELS, seed)
    pos, ptr = p.points.pos, p.points.ptr
    tree = ball_tree(pos, ptr=ptr, ball_sizes=[128] * 5, strides=[2] * 4)
    return p._replace(points=p.points._replace(tree=tree))


def _same_edges(p: Pair, expected: Tensor, actual: Tensor) -> None:
    same_edges(p.points, expected.flip(0), actual.flip(0))


def _same_features(p: Pair, expected: Tensor, actual: Tensor) -> None:
    # A few queries may have another neighbour: see `same_edges`.
    close = torch.isclose(expected, actual, rtol=1e-3, atol=1e-4).all(dim=1)
    differing = int((~close).sum())
    assert differing <= 1e-5 * len(close), f"{differing} rows differ"


def _workload(num: int, size: int, queries: int, kind: str, k: int) -> Workload:
    kinds = {"knn": _knn, "radius": _radius, "interpolate": _interpolate}
    runs, ours = kinds[kind](size, k)
    if size > _ALL_PAIRS:
        runs.pop("torch.cdist", None)

    def run(p: Pair, given: bool) -> Tensor:
        options = {"ptr_x": p.points.ptr, "ptr_y": p.queries.ptr}
        return ours(p, tree=p.points.tree if given else None, **options)

    runs["ours"] = lambda: partial(run, given=False)
    runs["ours, tree given"] = lambda: partial(run, given=True)
    label = "radius" if kind == "radius" else f"{kind} {k}"
    return Workload(
        f"{num} x {queries:,} in {num} x {size:,}, {label}",
        partial(_with_tree, num, size, queries),
        runs,
        _BASELINE,
        _same_features if kind == "interpolate" else _same_edges,
        {"clouds": num, "points": num * size, "queries": num * queries, "kind": kind},
    )


def _knn(size: int, k: int) -> tuple[Runs, Callable[..., Tensor]]:
    runs: Runs = {
        _BASELINE: partial(peers.scipy_cross_knn, k),
        "torch-cluster": partial(peers.torch_cluster_cross_knn, k),
        "PyG": partial(peers.pyg_cross_knn, k),
        "torch.cdist": partial(peers.cdist_cross_knn, k),
    }
    return runs, lambda p, **options: knn(p.points.pos, p.queries.pos, k, **options)


def _radius(size: int, k: int) -> tuple[Runs, Callable[..., Tensor]]:
    # For _DEGREE neighbours inside the cloud; points at its border have fewer.
    r = (_DEGREE / (4 / 3 * pi * size)) ** (1 / 3)
    runs: Runs = {
        _BASELINE: partial(peers.scipy_cross_radius, r),
        "torch-cluster": partial(peers.torch_cluster_cross_radius, r, 8 * _DEGREE),
    }
    return runs, lambda p, **options: radius(p.points.pos, p.queries.pos, r, **options)


def _interpolate(size: int, k: int) -> tuple[Runs, Callable[..., Tensor]]:
    def by(search: Callable[[int], Run]) -> Callable[[], Run]:
        return lambda: peers.interpolated(k, search(k))

    runs: Runs = {
        _BASELINE: by(peers.scipy_cross_knn),
        "torch-cluster": by(peers.torch_cluster_cross_knn),
        "PyG": partial(peers.pyg_interpolate, k),
        "torch.cdist": by(peers.cdist_cross_knn),
    }
    return runs, lambda p, **options: knn_interpolate(
        p.x, p.points.pos, p.queries.pos, k=k, **options
    )


def cross_neighbors(size: str) -> Iterator[Workload]:
    r"""The 3 and the 16 nearest, all within a radius that holds 30 on average, and
    interpolation of 32 features from a coarser set to a finer one.
    """
    equal = {"tiny": [(2, 200, 90)], "quick": [(16, 4096, 4096)]}.get(
        size, [(16, 4096, 4096), (1, 100_000, 100_000)]
    )
    finer = {"tiny": [(2, 90, 200)], "quick": [(16, 1024, 4096)]}.get(
        size, [(16, 1024, 4096), (1, 25_000, 100_000)]
    )
    for kind, k in (("knn", 3), ("knn", 16), ("radius", 0)):
        for sizes in equal:
            yield _workload(*sizes, kind, k)
    for sizes in finer:
        yield _workload(*sizes, "interpolate", 3)


CASES = [
    Case(
        "cross_neighbors",
        "Neighbours in another set of points, trees included: 3 and 16 nearest, all "
        "within a radius, and interpolation from the 3 nearest",
        cross_neighbors,
        serial=True,
    )
]
