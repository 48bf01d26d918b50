"""Hybrid models as users write them, and the ragged clouds that they are tested on."""

from collections.abc import Callable, Sequence

import torch
from hybrid_layers import Near
from torch import Tensor
from torch.nn import BatchNorm1d, Dropout, Linear, Module, ModuleList, ReLU, Sequential
from torch_geometric.data import Batch, Data
from torch_geometric.nn import (
    GATv2Conv,
    GCNConv,
    GINEConv,
    PointNetConv,
    TransformerConv,
)
from torch_geometric.nn.models.schnet import InteractionBlock
from torch_geometric.transforms import Compose, Distance

from torch_geometric_erwin import Tree, ball_tree
from torch_geometric_erwin.nn import BallAttention, HybridConv
from torch_geometric_erwin.transforms import BallTree, TreeKNNGraph

C, B = 8, 8
SIZES = [0, 1, 2, B - 1, B, B + 1, 200, 30]
TREE = BallTree(ball_sizes=B)
GRAPH = Compose([TreeKNNGraph(k=4), Distance(norm=False)])


# Seven layers, how PyG's users call each, and what `HybridConv` needs for it.
LAYERS: dict[str, tuple[Callable, Callable, Callable]] = {
    "gcn": (
        lambda: GCNConv(C, C),
        lambda conv, x, b: conv(x, b.edge_index),
        lambda b: {},
    ),
    "gat": (
        lambda: GATv2Conv(C, C // 2, heads=2, edge_dim=1),
        lambda conv, x, b: conv(x, b.edge_index, b.edge_attr),
        lambda b: {"edge_attr": b.edge_attr},
    ),
    "point net": (
        lambda: PointNetConv(Linear(C + 3, C)),
        lambda conv, x, b: conv(x, b.pos, b.edge_index),
        lambda b: {},
    ),
    "transformer": (
        lambda: TransformerConv(C, C, edge_dim=1),
        lambda conv, x, b: conv(x, b.edge_index, b.edge_attr),
        lambda b: {"edge_attr": b.edge_attr},
    ),
    "gine": (
        lambda: GINEConv(Linear(C, C), edge_dim=1),
        lambda conv, x, b: conv(x, b.edge_index, b.edge_attr),
        lambda b: {"edge_attr": b.edge_attr},
    ),
    "schnet": (
        lambda: InteractionBlock(C, 1, C, 3.0),
        lambda conv, x, b: conv(x, b.edge_index, b.edge_attr[:, 0], b.edge_attr),
        lambda b: {"edge_attr": b.edge_attr, "edge_weight": b.edge_attr[:, 0]},
    ),
    "user": (Near, lambda conv, x, b: conv(x, b.pos, b.edge_index), lambda b: {}),
}


def clouds(sizes: Sequence[int] = SIZES, dtype: torch.dtype = torch.float64):
    """Clouds with edges, lengths of edges, features and smooth targets."""
    generator = torch.Generator().manual_seed(0)
    out = []
    for n in sizes:
        pos = torch.randn(n, 3, generator=generator, dtype=dtype)
        x = torch.randn(n, C, generator=generator, dtype=dtype)
        y = torch.cat([pos.sin(), x.mean(1, keepdim=True)], 1)
        out.append(GRAPH(Data(x=x, pos=pos, y=y)))
    return out


class NodeOrder(Module):
    """Two hybrid layers on plain data, with one tree for both.

    The second one uses the rotated tree, whose balls are other ones.
    """

    def __init__(self, name: str = "gcn", seed: int = 0, **kwargs) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.name, make = name, LAYERS[name][0]
        kwargs = {"heads": 2, "ball_size": B, **kwargs}
        self.layers = ModuleList(
            HybridConv(C, make(), rotated=rotated, **kwargs)
            for rotated in (False, True)
        )
        self.head = Linear(C, 4)

    def forward(self, batch: Batch) -> Tensor:
        tree = ball_tree(batch.pos, batch.batch, ball_sizes=B)
        return self.on_tree(batch, tree)

    def on_tree(self, batch: Batch, tree: Tree) -> Tensor:
        x, more = batch.x, LAYERS[self.name][2](batch)
        for layer in self.layers:
            x = layer(x, batch.pos, batch.edge_index, tree=tree, **more)
        return self.head(x)


class WithTree(NodeOrder):
    """The same model on data that has a tree already."""

    def forward(self, batch: Batch) -> Tensor:
        return self.on_tree(batch, Tree.from_data(batch, TREE.config))


class SortedLayer(Module):
    """The formula of the layer, written out for sorted data."""

    def __init__(self, name: str) -> None:
        super().__init__()
        make, self.call, _ = LAYERS[name]
        self.conv = make()
        self.attention = BallAttention(C, heads=2, ball_size=B)
        self.mlp = Sequential(
            Linear(C, 2 * C), ReLU(), Dropout(0.0), Linear(2 * C, C), Dropout(0.0)
        )
        self.norm1, self.norm2, self.norm3 = (BatchNorm1d(C) for _ in range(3))

    def forward(self, x, batch, level):
        near = self.norm1(x + self.call(self.conv, x, batch))
        far = self.norm2(x + self.attention(x, level))
        x = near + far
        return self.norm3(x + self.mlp(x))


class Sorted(Module):
    """The same model on sorted data: PyG's layer and the mixer see the same rows."""

    def __init__(self, name: str = "gcn") -> None:
        super().__init__()
        self.layers = ModuleList(SortedLayer(name) for _ in range(2))
        self.head = Linear(C, 4)

    def forward(self, batch: Batch) -> Tensor:
        (level,) = Tree.from_data(batch).levels(batch.pos)
        x = self.layers[0](batch.x, batch, level)
        x = self.layers[1](x, batch, level.rotated())
        return self.head(x)
