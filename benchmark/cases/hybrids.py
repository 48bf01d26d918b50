r"""A GPS layer with attention inside balls, and with attention between all nodes."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.nn import GCNConv, GPSConv

from benchmark.inputs import graphs
from benchmark.runner import Case, Run, UnavailableError, Workload
from torch_geometric_erwin import Tree, ball_tree
from torch_geometric_erwin.nn import HybridConv

CHANNELS, HEADS, BALL, EDGES = 64, 4, 128, 8

#: More nodes than these take minutes for one step, as the number of pairs grows with
#: the square.
MOST_NODES = 30_000


class Cloud(NamedTuple):
    r"""One cloud with features, edges and a tree."""

    x: Tensor  # [N, C]
    pos: Tensor  # [N, 3]
    batch: Tensor  # [N]
    edge_index: Tensor  # [2, E]
    tree: Tree


def _cloud(n: int, seed: int) -> Cloud:
    g = graphs(1, n, CHANNELS, EDGES, seed)
    tree = ball_tree(g.pos, ptr=g.ptr, ball_sizes=BALL)
    return Cloud(g.x, g.pos, g.batch, g.edge_index, tree)


def _gps(kind: str, n: int) -> Run:
    if kind == "multihead" and n > MOST_NODES:
        raise UnavailableError(f"attention between all of {n:,} nodes takes minutes")
    torch.manual_seed(0)
    conv = GCNConv(CHANNELS, CHANNELS)
    layer = GPSConv(CHANNELS, conv, heads=HEADS, attn_type=kind)
    return partial(_step, layer, lambda c: layer(c.x, c.edge_index, c.batch))


def _ours(has_tree: bool) -> Run:
    torch.manual_seed(0)
    conv = GCNConv(CHANNELS, CHANNELS)
    layer = HybridConv(CHANNELS, conv, heads=HEADS, ball_size=BALL)

    def call(c: Cloud) -> Tensor:
        tree = c.tree if has_tree else None
        return layer(c.x, c.pos, c.edge_index, c.batch, tree=tree)

    return partial(_step, layer, call)


def _step(
    layer: torch.nn.Module, call: Callable[[Cloud], Tensor], cloud: Cloud
) -> list[Tensor]:
    # The output and the gradient of the features.
    layer.zero_grad()
    cloud = cloud._replace(x=cloud.x.detach().requires_grad_())
    out = call(cloud)
    out.square().mean().backward()
    assert cloud.x.grad is not None
    return [out.detach(), cloud.x.grad]


def _close(cloud: Cloud, expected: list[Tensor], actual: list[Tensor]) -> None:
    for name, e, a in zip(("out", "gradient"), expected, actual, strict=True):
        error = float((a - e).norm() / e.norm())
        assert error < 1e-4, f"'{name}' is off by {error:.1e}"


def hybrids(size: str) -> Iterator[Workload]:
    r"""A training step on one cloud of more and more nodes."""
    sizes = {"tiny": [200], "quick": [1000, 10_000]}.get(size, [1000, 10_000, 100_000])
    for n in sizes:
        yield Workload(
            f"{n:,} nodes",
            partial(_cloud, n),
            {
                "GPSConv, multihead": partial(_gps, "multihead", n),
                "GPSConv, performer": partial(_gps, "performer", n),
                "ours, tree given": partial(_ours, True),
                "ours, tree built": partial(_ours, False),
            },
            "ours, tree given",
            _close,
            {"nodes": n},
            frozenset({"GPSConv, multihead", "GPSConv, performer"}),
        )


CASES = [
    Case(
        "hybrids",
        "A training step of one GPS layer: GCNConv and attention, 64 channels",
        hybrids,
        measures=("time", "memory"),
    )
]
