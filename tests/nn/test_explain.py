"""PyG's explainers on models that contain this package's layers."""

import copy

import pytest
import torch
from clouds import ragged, randomised
from torch_geometric.explain import Explainer
from torch_geometric.explain.algorithm import (
    AttentionExplainer,
    DummyExplainer,
    GNNExplainer,
)
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks
from torch_geometric.nn import (
    GATv2Conv,
    GCNConv,
    HeteroConv,
    SAGEConv,
    Sequential,
    TransformerConv,
    global_mean_pool,
    to_hetero,
)
from torch_geometric.utils import add_remaining_self_loops

from torch_geometric_erwin import ball_tree, knn_graph
from torch_geometric_erwin.nn import (
    MPNN,
    BallAttention,
    Block,
    Erwin,
    HybridConv,
    MPNNConv,
    SwiGLU,
    explainable,
)

SIZES = [13, 0, 1, 30]


def erwin():
    torch.manual_seed(0)
    model = Erwin(
        *(2, [8, 16], 3), ball_sizes=4, mp_steps=1, enc_depths=[2, 1], dec_depths=1
    )
    return randomised(model)


def mpnn():
    torch.manual_seed(0)
    return randomised(MPNN(2, 8, 3, num_layers=2))


class Readout(torch.nn.Module):
    """A model of a user, one output a cloud; its arguments have another order."""

    def __init__(self):
        super().__init__()
        self.model = erwin()

    def forward(self, x, edge_index, pos, batch):
        return global_mean_pool(self.model(x, pos, edge_index, batch=batch), batch)


def layers():
    conv = MPNNConv(2)
    return Sequential("x, pos, edge_index, batch", [(conv, "x, pos, edge_index -> x")])


MODELS = {
    "Erwin": (erwin, "node"),
    "MPNN": (mpnn, "node"),
    "a readout": (Readout, "graph"),
    "Sequential": (lambda: randomised(layers()), "node"),
}
MASKS = [
    ("attributes", "object"),
    ("object", "object"),
    ("object", None),
    (None, "object"),
]


def explainer_of(model, algorithm, task="node", node=None, edge=None):
    return Explainer(
        explainable(model),
        algorithm,
        explanation_type="model",
        node_mask_type=node,
        edge_mask_type=edge,
        model_config={"mode": "regression", "task_level": task},
    )


def state_of(model):
    names = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [(m.training, getattr(m, "explain", None)) for m in model.modules()]
    return names, flags


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("node", "edge"), MASKS)
@pytest.mark.parametrize("algorithm", [GNNExplainer, DummyExplainer])
def test_masks_of_ragged_batches(name, node, edge, algorithm):
    make, task = MODELS[name]
    model, batch = make().train(), ragged(SIZES)
    algorithm = algorithm(epochs=3) if algorithm is GNNExplainer else algorithm()
    explainer = explainer_of(model, algorithm, task, node, edge)
    args = {"pos": batch.pos, "batch": batch.batch}
    before, expected = (
        state_of(model),
        model(batch.x, edge_index=batch.edge_index, **args),
    )
    for index in (None, 2):
        found = explainer(batch.x, batch.edge_index, index=index, **args)
        assert found.validate(raise_on_error=True)
        torch.testing.assert_close(found.prediction, expected)
        shapes = {
            "attributes": batch.x.shape,
            "object": (batch.num_nodes, 1),
            None: None,
        }
        for mask, shape in (
            (found.get("node_mask"), shapes[node]),
            (found.get("edge_mask"), (batch.num_edges,) if edge else None),
        ):
            assert (mask is None) == (shape is None)
            if mask is not None:
                assert mask.shape == shape
                assert mask.isfinite().all()
                assert ((mask >= 0) & (mask <= 1)).all()
                assert mask.any()
    # The model is the same again, and gives the same bits.
    after = state_of(model)
    assert after[1] == before[1]
    assert after[0].keys() == before[0].keys()
    assert all(torch.equal(after[0][key], value) for key, value in before[0].items())
    out = model(batch.x, edge_index=batch.edge_index, **args)
    assert torch.equal(out, expected)


def test_a_node_is_explained_by_its_cloud_alone():
    # PyG sets masks to zero where the first gradient is zero.
    batch = ragged(SIZES)
    explainer = explainer_of(
        erwin(), GNNExplainer(epochs=2), "node", "object", "object"
    )
    args = {"pos": batch.pos, "batch": batch.batch}
    found = explainer(batch.x, batch.edge_index, index=20, **args)
    assert not found.node_mask[batch.batch != 3].any()
    assert not found.edge_mask[batch.batch[batch.edge_index[0]] != 3].any()
    # Attention reaches further than the edges of the one step of message passing.
    source, target = batch.edge_index
    assert (found.node_mask > 0).sum() > 2 * len(source[target == 20].unique())


class Mean(torch.nn.Module):
    """Every row gets the mean of its ball: attention whose weights are equal."""

    def __init__(self):
        super().__init__()
        self.attention = BallAttention(2, heads=1, ball_size=8)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.attention.lin_qkv.weight[4:] = torch.eye(2)
            self.attention.lin_out.weight.copy_(torch.eye(2))

    def forward(self, x, pos, edge_index, batch=None, tree=None):
        (level,) = tree.levels(pos)
        return tree.to_nodes(self.attention(tree.to_rows(x), level))


def test_the_node_that_matters_gets_the_largest_mask():
    torch.manual_seed(0)
    pos, x = torch.rand(40, 3), 0.1 * torch.rand(40, 2)
    tree = ball_tree(pos, ball_sizes=8, rotate=0.0)
    x[17, 1] = 20.0
    row = tree.global_perm().argsort()[17]
    ball = tree.global_perm().split(tree.ball_len[0].tolist())[row // 8]
    reader = int(ball[ball != 17][0])
    algorithm = GNNExplainer(epochs=60, lr=0.1)
    explainer = explainer_of(Mean(), algorithm, node="attributes")
    edge_index = torch.zeros(2, 0, dtype=torch.long)
    found = explainer(x, edge_index, index=reader, pos=pos, tree=tree)
    assert found.node_mask.argmax() == 17 * 2 + 1
    others = found.node_mask.flatten().sort(descending=True).values
    assert others[0] > 1.2 * others[1]
    is_other = torch.ones(40, dtype=torch.bool)
    is_other[ball] = False
    assert not found.node_mask[is_other].any()


class OneStep(torch.nn.Module):
    """Message passing in which only nodes with a mark send a message."""

    def __init__(self):
        super().__init__()
        self.conv = MPNNConv(8)
        with torch.no_grad():
            self.conv.lin_offset.weight.zero_()
            self.conv.lin_target.weight.zero_()
            self.conv.lin_target.bias.copy_(torch.linspace(-1, 1, 8))
            norm, bias = self.conv.norm_message, self.conv.lin_target.bias
            norm.bias.copy_(-norm(torch.nn.functional.gelu(bias)))

    def forward(self, x, pos, edge_index):
        return self.conv(x, pos, edge_index)


def test_the_edge_that_matters_gets_the_largest_mask():
    torch.manual_seed(0)
    x, pos = torch.zeros(12, 8), torch.rand(12, 3)
    x[5] = torch.randn(8)
    source, target = torch.arange(1, 12), torch.zeros(11, dtype=torch.long)
    edge_index = torch.stack([source, target])
    explainer = explainer_of(OneStep(), GNNExplainer(epochs=60, lr=0.1), edge="object")
    found = explainer(x, edge_index, index=0, pos=pos)
    order = found.edge_mask.argsort(descending=True)
    assert source[order[0]] == 5
    assert found.edge_mask[order[0]] > 1.2 * found.edge_mask[order[1]]


@pytest.mark.parametrize("name", ["Erwin", "MPNN", "a readout"])
def test_edge_masks_reach_the_messages(name):
    make, task = MODELS[name]
    model, batch = make().eval(), ragged(SIZES)
    explainer = explainer_of(model, DummyExplainer(), task, edge="object")
    args = {"pos": batch.pos, "batch": batch.batch}
    call = (batch.x, batch.edge_index)
    plain = explainer.get_prediction(*call, **args)
    ones = torch.ones(batch.num_edges).double()
    masked = explainer.get_masked_prediction(*call, edge_mask=ones, **args)
    torch.testing.assert_close(masked, plain)
    # Message-passing layers whose messages are zero.
    zero = explainer.get_masked_prediction(*call, edge_mask=0 * ones, **args)
    for layer in model.modules():
        if isinstance(layer, MPNNConv):
            with torch.no_grad():
                layer.norm_message.weight.zero_()
                layer.norm_message.bias.zero_()
    torch.testing.assert_close(zero, explainer.get_prediction(*call, **args))
    assert not torch.allclose(zero, plain)


class OnRows(torch.nn.Module):
    """Ball attention beside an attention layer of PyG, on the rows of a tree."""

    def __init__(self, conv):
        super().__init__()
        self.block = Block(8, BallAttention(8, 2, 4), SwiGLU(8, 16), conv)

    def forward(self, x, pos, edge_index, tree):
        (level,) = tree.levels(pos, edge_index)
        return tree.to_nodes(self.block(tree.to_rows(x), level))


class OnNodes(torch.nn.Module):
    """The same in the order of the nodes."""

    def __init__(self, conv):
        super().__init__()
        self.layer = HybridConv(8, conv, heads=2, ball_size=4)

    def forward(self, x, pos, edge_index, tree):
        return self.layer(x, pos, edge_index, tree=tree)


@pytest.mark.parametrize("model", [OnRows, OnNodes])
@pytest.mark.parametrize("conv", [GATv2Conv, TransformerConv])
def test_attention_of_a_layer_of_pyg(model, conv):
    torch.manual_seed(0)
    conv = conv(8, 4, heads=2)
    model, batch = model(conv).eval(), ragged(SIZES, channels=8, dtype=torch.float32)
    tree = ball_tree(batch.pos, batch.batch, ball_sizes=4, rotate=0.0)
    explainer = explainer_of(model, AttentionExplainer(), edge="object")
    found = explainer(batch.x, batch.edge_index, pos=batch.pos, tree=tree)
    rows, edge_index = batch.x, batch.edge_index
    if isinstance(model, OnRows):
        (level,) = tree.levels(batch.pos, edge_index)
        edge_index = level.edge_index
        rows = model.block.norm_attention(tree.to_rows(rows))
    _, (_, alpha) = conv(rows, edge_index, return_attention_weights=True)
    expected = alpha[: batch.num_edges].amax(1)  # self-loops come after the edges
    torch.testing.assert_close(found.edge_mask, expected)


class OnTwoGraphs(torch.nn.Module):
    """A layer on the given edges, with loops at all nodes, and one on others."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = GATv2Conv(8, 8), GATv2Conv(8, 8)
        self.loops = MPNNConv(8)

    def forward(self, x, pos, edge_index):
        x = self.coarse(self.fine(x, edge_index), edge_index[:, ::2])
        loops, _ = add_remaining_self_loops(edge_index, num_nodes=len(x))
        return self.loops(x, pos, loops)


@pytest.mark.parametrize("algorithm", [GNNExplainer, AttentionExplainer])
def test_layers_on_other_edges_are_left_out(algorithm):
    torch.manual_seed(0)
    model = OnTwoGraphs().eval()
    batch = ragged(SIZES, channels=8, dtype=torch.float32)
    algorithm = algorithm(epochs=3) if algorithm is GNNExplainer else algorithm()
    explainer = explainer_of(model, algorithm, edge="object")
    found = explainer(batch.x, batch.edge_index, pos=batch.pos)
    assert found.edge_mask.shape == (batch.num_edges,)
    assert model.coarse.explain is False
    assert model.fine.explain is None is model.loops.explain
    if isinstance(algorithm, AttentionExplainer):
        call = (batch.x, batch.edge_index)
        _, (_, alpha) = model.fine(*call, return_attention_weights=True)
        expected = alpha[: batch.num_edges, 0]
        torch.testing.assert_close(found.edge_mask, expected)
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("algorithm", [GNNExplainer, DummyExplainer])
def test_masks_of_hybrid_layers(algorithm):
    torch.manual_seed(0)
    model = OnNodes(GATv2Conv(8, 4, heads=2)).eval()
    batch = ragged(SIZES, channels=8, dtype=torch.float32)
    tree = ball_tree(batch.pos, batch.batch, ball_sizes=4, rotate=0.0)
    before = model(batch.x, batch.pos, batch.edge_index, tree)
    algorithm = algorithm(epochs=3) if algorithm is GNNExplainer else algorithm()
    explainer = explainer_of(model, algorithm, node="object", edge="object")
    call = {"pos": batch.pos, "tree": tree, "index": 20}
    found = explainer(batch.x, batch.edge_index, **call)
    assert found.node_mask.shape == (batch.num_nodes, 1)
    assert found.edge_mask.shape == (batch.num_edges,)
    assert found.node_mask.isfinite().all()
    assert torch.equal(model(batch.x, batch.pos, batch.edge_index, tree), before)


def test_ball_attention_is_no_attention_over_edges():
    batch = ragged(SIZES)
    explainer = explainer_of(erwin(), AttentionExplainer(), edge="object")
    with pytest.raises(ValueError, match="Could not collect any attention"):
        explainer(batch.x, batch.edge_index, pos=batch.pos, batch=batch.batch)


def test_weights_are_shared():
    model = mpnn()
    wrapped = explainable(model)
    assert all(a is b for a, b in zip(model.parameters(), wrapped.parameters()))
    assert repr(wrapped) == f"Explainable({model})"


@pytest.mark.parametrize("mode", [True, False])
def test_an_explainer_keeps_the_mode(mode):
    model = mpnn()
    explainer = explainer_of(model, DummyExplainer(), edge="object")
    model.train(mode)  # after it was adapted
    batch = ragged(SIZES)
    explainer(batch.x, batch.edge_index, pos=batch.pos)
    assert {module.training for module in model.modules()} == {mode}
    wrapped = copy.deepcopy(explainable(model))
    assert wrapped.training == wrapped.model.training == mode
    assert wrapped.train(not mode).training == wrapped.model.training != mode


def test_positions_are_asked_for():
    explainer = explainer_of(mpnn(), DummyExplainer(), node="object")
    batch = ragged(SIZES)
    with pytest.raises(ValueError, match="'pos' is missing: give it to the explainer"):
        explainer(batch.x, batch.edge_index)


def test_bad_arguments_are_refused_by_the_model():
    model, batch = explainable(mpnn()), ragged(SIZES)
    for name in ("x", "edge_index", "pos"):
        for value in (3.0, [1], torch.tensor(1), torch.zeros(3)):
            given = {key: batch[key] for key in ("x", "edge_index", "pos")}
            with pytest.raises((TypeError, ValueError), match=f"'{name}'"):
                model(**{**given, name: value})


def test_a_model_without_positions_needs_no_adapter():
    message = r"must take 'pos' and 'edge_index' by name \(got 'GCNConv', which takes"
    with pytest.raises(TypeError, match=message):
        explainable(GCNConv(2, 2))
    with pytest.raises(TypeError, match="'model' must be a module"):
        explainable(mpnn)


HETERO = {("a", "to", "a"): (5, 9), ("b", "to", "b"): (4, 7)}


def hetero_inputs():
    torch.manual_seed(0)
    sizes = {edge_type[0]: n for edge_type, (n, _) in HETERO.items()}
    x = {t: torch.rand(n, 8) for t, n in sizes.items()}
    pos = {t: torch.rand(n, 3) for t, n in sizes.items()}
    edges = {t: torch.randint(n, (2, e)) for t, (n, e) in HETERO.items()}
    return x, pos, edges


@pytest.mark.parametrize(
    "make",
    [lambda: MPNNConv(8), lambda: HybridConv(8, MPNNConv(8), heads=2, ball_size=4)],
    ids=["MPNNConv", "HybridConv"],
)
def test_hetero_conv(make):
    x, pos, edges = hetero_inputs()
    layer = HeteroConv({edge_type: make() for edge_type in HETERO}).eval()
    out = layer(x, pos, edges)
    for edge_type, conv in layer.convs.items():
        t = edge_type[0]
        assert torch.equal(out[t], conv(x[t], pos[t], edges[edge_type]))


class TwoSteps(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = MPNNConv(8), MPNNConv(8)

    def forward(self, x, pos, edge_index):
        return self.second(self.first(x, pos, edge_index), pos, edge_index)


def test_to_hetero():
    x, pos, edges = hetero_inputs()
    model = to_hetero(TwoSteps(), ([*x], [*HETERO]))
    out = model(x, pos, edges)
    for edge_type, edge_index in edges.items():
        t, name = edge_type[0], "__".join(edge_type)
        h = x[t]
        for convs in model.children():
            h = convs[name](h, pos[t], edge_index)
        assert torch.equal(out[t], h)


def test_edges_between_types_are_refused():
    x, pos, edges = hetero_inputs()
    edges["a", "to", "b"] = torch.zeros(2, 3, dtype=torch.long)
    layer = HeteroConv({edge_type: MPNNConv(8) for edge_type in edges})
    with pytest.raises(TypeError, match=r"'x' must be a tensor \(got 'tuple'\)"):
        layer(x, pos, edges)


def test_a_mask_does_not_reach_as_many_edges_of_a_coarse_level():
    """With strides of 1, level 1 has the edges between nodes, in another order."""
    torch.manual_seed(0)
    pos, x = torch.rand(40, 3), torch.rand(40, 2)
    edge_index = knn_graph(pos, 4)
    model = Erwin(
        *(2, [8, 8], 1),
        ball_sizes=8,
        strides=1,
        mp_steps=0,
        enc_depths=1,
        dec_depths=1,
        conv=[None, lambda channels: SAGEConv(channels, channels)],
    ).eval()
    wanted = model(x, pos, edge_index)
    adapted = explainable(model)
    set_masks(adapted, torch.zeros(edge_index.size(1)), edge_index)
    out = adapted(x, edge_index, pos=pos)
    clear_masks(adapted)
    assert torch.equal(out, wanted)
    assert model.encoder[1].blocks[0].conv.explain is False
