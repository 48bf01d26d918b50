r"""Message passing on nodes in random order and on nodes that a tree sorted."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, Optional

import torch
from torch import Tensor
from torch.nn import Linear, Module
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv, PointNetConv

from benchmark.inputs import Graphs, graphs
from benchmark.runner import Case, Run, Workload
from torch_geometric_erwin.nn import MPNNConv
from torch_geometric_erwin.nn.conv.call import call_conv
from torch_geometric_erwin.transforms import BallTree

_CHANNELS, _NEIGHBORS = 32, 16

LAYERS: dict[str, Callable[[], Module]] = {
    "GCNConv": lambda: GCNConv(_CHANNELS, _CHANNELS),
    "PointNetConv": lambda: PointNetConv(Linear(_CHANNELS + 3, _CHANNELS)),
    "MPNNConv": lambda: MPNNConv(_CHANNELS, dim=3),
}


class Orders(NamedTuple):
    r"""The same graph with nodes and edges in several orders."""

    random: Graphs
    nodes: Graphs  # nodes in tree order, edges as they were
    edges: Graphs  # and edges sorted by the nodes that they lead to
    order: Tensor  # [N], the node in every place of the tree order


class Outputs(NamedTuple):
    r"""What a layer computes, in the order of its nodes."""

    out: Tensor
    grad: Tensor  # of the features
    order: Optional[Tensor]  # None for the random order


def _orders(size: int, seed: int) -> Orders:
    random = graphs(1, size, _CHANNELS, _NEIGHBORS, seed)
    data = Data(x=random.x, pos=random.pos, edge_index=random.edge_index)
    data = BallTree(ball_sizes=128, reorder=True)(data)
    nodes = random._replace(x=data.x, pos=data.pos, edge_index=data.edge_index)
    by_target = data.edge_index[1].argsort(stable=True)
    edges = nodes._replace(edge_index=data.edge_index[:, by_target])
    return Orders(random, nodes, edges, data.original_node.long())


def _call(layer: Module, g: Graphs) -> tuple[Tensor, Tensor]:
    x = g.x.detach().requires_grad_()
    out = call_conv(layer, x, g.pos, g.edge_index)
    loss = (out * g.x).sum()
    (grad, *_) = torch.autograd.grad(loss, [x, *layer.parameters()])
    return out.detach(), grad


def _workload(name: str, size: int) -> Workload:
    torch.manual_seed(0)
    layer = LAYERS[name]()

    def run(field: str, orders: Orders) -> Outputs:
        out, grad = _call(layer, getattr(orders, field))
        return Outputs(out, grad, None if field == "random" else orders.order)

    def loader(field: str) -> Callable[[], Run]:
        return lambda: partial(run, field)

    return Workload(
        f"{name}, {size:,}",
        partial(_orders, size),
        {
            "random order": loader("random"),
            "ours, nodes sorted": loader("nodes"),
            "ours, edges sorted too": loader("edges"),
        },
        "random order",
        _same,
        {"layer": name, "points": size},
    )


def _same(orders: Orders, expected: Outputs, actual: Outputs) -> None:
    for own, right in zip(actual[:2], expected[:2]):
        if actual.order is not None and expected.order is None:
            right = right[actual.order]
        # Sums over edges in another order; those of gradients are over 16 on average.
        torch.testing.assert_close(own, right, rtol=1e-3, atol=1e-3)


def locality(size: str) -> Iterator[Workload]:
    r"""Clouds of several sizes, each with its 16 nearest neighbours."""
    sizes = {"tiny": [200], "quick": [10_000]}.get(size, [10_000, 100_000])
    for name in LAYERS:
        for n in sizes:
            yield _workload(name, n)


CASES = [
    Case(
        "locality",
        "Message passing, forward and backward, on nodes in random and in tree order",
        locality,
    )
]
