"""Hybrids train to the same numbers in node order and on sorted data."""

import copy

import pytest
import torch
import torch.nn.functional as F
from composition.hybrids import LAYERS, B, C, NodeOrder, Sorted, WithTree, clouds
from torch.nn import LayerNorm, Linear, Module
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader
from torch_geometric.nn import MLP, Sequential

from torch_geometric_erwin import Tree, ball_tree, to_original
from torch_geometric_erwin.nn import BallAttention, Block, Erwin
from torch_geometric_erwin.transforms import BallTree

STEPS = 20
SORT = BallTree(ball_sizes=B, reorder=True)


def train(model, data):
    """The losses of all steps; then the outputs on all clouds, in evaluation."""
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    while len(losses) < STEPS:
        for batch in DataLoader(data, batch_size=4):
            optimiser.zero_grad()
            loss = F.mse_loss(model(batch), batch.y)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    batch = Batch.from_data_list(data)
    with torch.no_grad():
        out = model.eval()(batch)
    return torch.tensor(losses), out, batch


def assert_same_training(node_order, by_rows, data, transform=SORT):
    losses, out, _ = train(node_order, data)
    sorted_losses, rows, batch = train(by_rows, [transform(cloud) for cloud in data])
    torch.testing.assert_close(sorted_losses, losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(to_original(rows, batch), out, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(rows, out)  # the nodes were sorted
    # The two batches take turns.
    assert losses[-2:].sum() < 0.9 * losses[:2].sum()


@pytest.mark.parametrize("name", LAYERS)
def test_written_out_for_sorted_data(name):
    node_order, by_rows = NodeOrder(name).double(), Sorted(name).double()
    by_rows.load_state_dict(node_order.state_dict())
    assert_same_training(node_order, by_rows, clouds())


class InSequential(Module):
    """The model in node order without a line of code: every layer has its own tree."""

    def __init__(self):
        super().__init__()
        model = NodeOrder("gcn")
        call = "x, pos, edge_index, batch -> x"
        layers = [*((layer, call) for layer in model.layers), model.head]
        self.model = Sequential("x, pos, edge_index, batch", layers)

    def forward(self, batch):
        return self.model(batch.x, batch.pos, batch.edge_index, batch.batch)


def test_in_a_sequential():
    model, other = InSequential().double(), NodeOrder("gcn").double()
    for a, b in zip(train(model, clouds())[:2], train(other, clouds())[:2]):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("conv", [None, "user"])
@pytest.mark.parametrize("norm", ["batch", "graph"])
def test_a_whole_model_on_sorted_data(norm, conv):
    """Also with messages on coarse levels."""
    torch.manual_seed(0)
    sizes = {"ball_sizes": B, "strides": 4, "enc_depths": 2, "dec_depths": 1}
    conv = conv and (lambda channels: LAYERS["user"][0]())
    model = Erwin(C, [C, C], 4, mp_steps=1, norm=norm, conv=conv, **sizes).double()
    transform = BallTree([B, B], [4], reorder=True, edges=conv is not None)
    assert_same_training(model, copy.deepcopy(model), clouds(), transform)


@pytest.mark.parametrize("name, norm", [("gat", "batch"), ("schnet", "graph")])
def test_the_same_layer_on_sorted_data(name, norm):
    models = (kind(name, norm=norm).double() for kind in (NodeOrder, WithTree))
    assert_same_training(*models, clouds())


class Blocks(Module):
    """Blocks on sorted data, where rows of level 0 are nodes."""

    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        attention = BallAttention(C, heads=2, ball_size=B)
        mlp = MLP([C, 2 * C, C], norm=None)
        self.block = Block(C, attention, mlp, conv=make(), norm="layer")
        self.head = Linear(C, 4)

    def forward(self, batch):
        tree, edges = Tree.from_data(batch), (batch.edge_index, batch.edge_attr)
        (level,) = tree.levels(batch.pos, *edges)
        return self.head(self.block(batch.x, level))


class NodeOrderBlocks(Module):
    """The formula of the block in node order."""

    def __init__(self, make, call):
        super().__init__()
        self.call = call
        self.block = Module()
        self.block.norm_attention = LayerNorm(C)
        self.block.attention = BallAttention(C, heads=2, ball_size=B)
        self.block.conv = make()
        self.block.norm_mlp = LayerNorm(C)
        self.block.mlp = MLP([C, 2 * C, C], norm=None)
        self.head = Linear(C, 4)

    def forward(self, batch):
        tree = ball_tree(batch.pos, batch.batch, ball_sizes=B)
        (level,) = tree.levels(batch.pos)
        x, block = batch.x, self.block
        h = block.norm_attention(x)
        far = tree.to_nodes(block.attention(tree.to_rows(h), level))
        x = x + far + self.call(block.conv, h, batch)
        x = x + block.mlp(block.norm_mlp(x))
        return self.head(x)


# SchNet's block needs lengths beside the features of edges, which levels do not have.
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "schnet"])
def test_blocks_on_sorted_data(name):
    make, call, _ = LAYERS[name]
    by_rows, node_order = Blocks(make).double(), NodeOrderBlocks(make, call).double()
    node_order.load_state_dict(by_rows.state_dict())
    assert_same_training(node_order, by_rows, clouds())
