"""PyG layers inside hybrid ones, and what a hybrid layer should compute."""

import torch
import torch.nn.functional as F
from clouds import ragged
from torch.nn import Linear
from torch_geometric.data import Batch
from torch_geometric.nn import (
    GATv2Conv,
    GCNConv,
    GINEConv,
    MessagePassing,
    PointNetConv,
    TransformerConv,
)
from torch_geometric.nn.models.schnet import InteractionBlock

from torch_geometric_erwin.nn import HybridConv

C, B, EDGE = 8, 8, 3
SIZES = [20, 0, 7, 1, 33]


class Near(MessagePassing):
    """A user's layer: neighbours' features, weighted by their distance."""

    def __init__(self):
        super().__init__(aggr="mean")
        self.lin = Linear(C, C)

    def forward(self, x, pos, edge_index):
        return self.propagate(edge_index, x=self.lin(x), pos=pos)

    def message(self, x_j, pos_i, pos_j):
        return x_j * (-(pos_i - pos_j).square().sum(1, keepdim=True)).exp()


# A layer, how its users call it, and what it needs beside x, pos and edge_index.
LAYERS = {
    "gcn": (lambda: GCNConv(C, C), lambda f, x, pos, e, a, w: f(x, e), ""),
    "gat": (
        lambda: GATv2Conv(C, C // 2, heads=2, edge_dim=EDGE),
        lambda f, x, pos, e, a, w: f(x, e, a),
        "edge_attr",
    ),
    "point net": (
        lambda: PointNetConv(Linear(C + 3, C)),
        lambda f, x, pos, e, a, w: f(x, pos, e),
        "",
    ),
    "transformer": (
        lambda: TransformerConv(C, C, edge_dim=EDGE),
        lambda f, x, pos, e, a, w: f(x, e, a),
        "edge_attr",
    ),
    "gine": (
        lambda: GINEConv(Linear(C, C), edge_dim=EDGE),
        lambda f, x, pos, e, a, w: f(x, e, a),
        "edge_attr",
    ),
    "schnet": (
        lambda: InteractionBlock(C, EDGE, C, 3.0),
        lambda f, x, pos, e, a, w: f(x, e, w, a),
        "edge_weight edge_attr",
    ),
    "user": (Near, lambda f, x, pos, e, a, w: f(x, pos, e), ""),
}


def batch_of(sizes=SIZES, dtype=torch.float64):
    """Clouds with distances on their edges, and powers of them as features."""
    clouds = ragged(sizes, channels=C, dtype=dtype).to_data_list()
    for data in clouds:
        source, target = data.edge_index
        data.edge_weight = (data.pos[source] - data.pos[target]).norm(dim=1)
        data.edge_attr = torch.stack([data.edge_weight**k for k in range(EDGE)], 1) / 9
    return Batch.from_data_list(clouds)


def given(batch, name):
    return {key: batch[key] for key in LAYERS[name][2].split()}


def dense_attention(attention, x, pos, tree, rotated):
    """Ball attention with all pairs, of which a mask leaves those of one ball."""
    order = tree.global_perm()
    if rotated:
        order = order[tree.global_perm_rot(0)]
    ball = torch.empty(len(x), dtype=torch.int64)
    place = torch.arange(len(tree.ball_len[0])).repeat_interleave(tree.ball_len[0])
    ball[order] = place
    same = ball[:, None] == ball
    mean = same.to(pos.dtype) @ pos / same.sum(1, keepdim=True)
    h = x + attention.lin_pos(pos - mean)
    qkv = attention.lin_qkv(h).unflatten(1, (3, attention.heads, -1))
    q, k, v = qkv.permute(1, 2, 0, 3)
    difference = pos[:, None] - pos
    # The root of zero has no gradient, and coincident points add nothing anyway.
    square = difference.square().sum(-1)
    distance = torch.where(square > 0, square, 1).sqrt() * (square > 0)
    scores = q @ k.mT / q.size(-1) ** 0.5 + attention.sigma[:, None, None] * distance
    weights = scores.masked_fill(~same, -torch.inf).softmax(-1)
    return attention.lin_out((weights @ v).transpose(0, 1).flatten(1))


def expected(layer, batch, tree, name, norms):
    x, pos, edges = batch.x, batch.pos, batch.edge_index
    messages = LAYERS[name][1](
        layer.conv, x, pos, edges, batch.edge_attr, batch.edge_weight
    )
    attention = dense_attention(layer.attention, x, pos, tree, layer.rotated)
    out = norms[0](x + messages) + norms[1](x + attention)
    first, last = layer.mlp[0], layer.mlp[3]
    return norms[2](out + last(F.relu(first(out))))


def layer_of(name, **kwargs):
    torch.manual_seed(0)
    return HybridConv(C, LAYERS[name][0](), heads=2, ball_size=B, **kwargs)


def args_of(batch):
    return batch.x, batch.pos, batch.edge_index
