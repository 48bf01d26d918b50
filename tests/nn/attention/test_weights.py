import sys
from inspect import signature
from itertools import accumulate, pairwise

import pytest
import torch
from clouds import ragged, randomised
from torch_geometric.nn import GATConv, GCNConv

from torch_geometric_erwin import Level, Tree, ball_tree
from torch_geometric_erwin.nn import (
    BallAttention,
    Erwin,
    HybridConv,
    attention_weights,
)

B, HEADS, CHANNELS = 4, 2, 6
BALLS = [[], [0], [1], [2], [B - 1], [B], [B, 1], [B, 1, 0, B - 1, 2, B]]
every_balls = pytest.mark.parametrize("balls", BALLS, ids=str)


def inputs(balls, rotated=False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(len(balls))
    n = sum(balls)
    x, pos = (
        torch.randn(n, w, generator=generator, dtype=torch.float64).to(dtype)
        for w in (CHANNELS, 3)
    )
    perm = torch.randperm(n, generator=generator) if rotated else None
    lengths = torch.tensor(balls, dtype=torch.int64)
    level = Level.build(pos, lengths, ball_size=B, perm_rot=perm)
    return x, level.rotated()


def layer_of(**kwargs):
    return randomised(BallAttention(CHANNELS, HEADS, B, **kwargs))


def plain_weights(layer, x, level):
    """The pairs and weights of every ball, one query at a time."""
    order = range(len(x)) if level.perm is None else level.perm.tolist()
    ends = [0, *accumulate(level.ball_len.tolist())]
    pairs, weights = [], []
    for start, end in pairwise(ends):
        ball = [*order[start:end]]
        pos = level.pos[ball]
        pos = pos - pos.mean(0)
        if layer.distance == "relative":
            extent = pos.square().sum(1).mean().sqrt()
            pos = pos / (extent if extent > 0 else 1)
        h = x[ball] + pos @ layer.lin_pos.weight.T + layer.lin_pos.bias
        qkv = h @ layer.lin_qkv.weight.T + layer.lin_qkv.bias
        q, k, _ = qkv.view(len(ball), 3, HEADS, CHANNELS // HEADS).unbind(1)
        for i, target in enumerate(ball):
            score = (k * q[i]).sum(-1) / q.size(-1) ** 0.5
            score = score + layer.sigma * (pos - pos[i]).norm(dim=-1)[:, None]
            weights.append(score.softmax(0))
            pairs += [(source, target) for source in ball]
    empty = x.new_zeros(0, HEADS)
    return torch.tensor(pairs).view(-1, 2).T, torch.cat([empty, *weights])


def by_pair(edge_index, alpha):
    """Pairs in ascending order, with their weights."""
    order = sorted(range(edge_index.size(1)), key=lambda e: edge_index[:, e].tolist())
    return edge_index[:, order], alpha[order]


@every_balls
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("distance", ["absolute", "relative"])
def test_equals_softmax(balls, rotated, distance):
    layer, (x, level) = layer_of(distance=distance), inputs(balls, rotated)
    pairs, alpha = by_pair(*layer.attention_weights(x, level))
    expected_pairs, expected = by_pair(*plain_weights(layer, x, level))
    assert torch.equal(pairs, expected_pairs)
    torch.testing.assert_close(alpha, expected, rtol=0, atol=1e-14)


@every_balls
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("backend", ["native", "sdpa", "reference"])
def test_output_follows_from_weights(balls, rotated, backend):
    dtype = torch.float32 if backend == "native" else torch.float64
    layer = layer_of(backend=backend).to(dtype)
    x, level = inputs(balls, rotated, dtype)
    out, ((source, target), alpha) = layer(x, level, return_attention_weights=True)
    # The flag changes no bit of the output.
    assert torch.equal(out, layer(x, level))
    v = layer.lin_qkv(x + layer.lin_pos(level.offset))[:, 2 * CHANNELS :]
    message = alpha[:, :, None] * v.view(-1, HEADS, CHANNELS // HEADS)[source]
    total = torch.zeros(len(x), CHANNELS, dtype=dtype)
    total.index_add_(0, target, message.flatten(1))
    tolerance = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(layer.lin_out(total), out, rtol=0, atol=tolerance)
    sums = torch.zeros(len(x), HEADS, dtype=dtype).index_add_(0, target, alpha)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=tolerance)


@pytest.mark.parametrize("rotated", [False, True])
def test_weights_have_gradients(rotated):
    layer, (x, level) = layer_of(), inputs([3, 2, 1], rotated)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer.attention_weights(x, level)[1], x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_sum_to_one(dtype):
    layer = layer_of().to(dtype)
    x, level = inputs([4, 3], dtype=torch.float32)
    (_, target), alpha = layer.attention_weights(x.to(dtype), level)
    assert alpha.dtype == torch.float32
    sums = torch.zeros(7, HEADS).index_add_(0, target, alpha)
    torch.testing.assert_close(sums, torch.ones(7, HEADS))


@pytest.mark.parametrize("flag", [(), (None,), (False,)], ids=str)
def test_weights_are_computed_only_when_asked(flag, monkeypatch):
    def refuse(*args):
        raise AssertionError("weights were computed")

    layer, args = layer_of(), inputs([4, 3])
    monkeypatch.setattr(sys.modules[BallAttention.__module__], "dense_weights", refuse)
    assert isinstance(layer(*args, *flag), torch.Tensor)
    with pytest.raises(AssertionError, match="weights were computed"):
        layer(*args, True)


def test_flag_is_that_of_pyg():
    layers = (BallAttention, HybridConv, GATConv)
    parameters = [signature(layer.forward).parameters for layer in layers]
    assert {p["return_attention_weights"].default for p in parameters} == {None}


SIZES = [13, 0, 1, 30, B + 1]


def erwin(**kwargs):
    torch.manual_seed(0)
    kwargs = {"mp_steps": 1, "enc_depths": [2, 1], "dec_depths": 1, **kwargs}
    model = Erwin(2, [8, 16], 3, ball_sizes=B, enc_heads=2, **kwargs)
    return randomised(model).eval()


def test_layers_of_a_model_in_the_order_of_calls():
    model, batch = erwin(), ragged(SIZES)
    found = attention_weights(model, model.tree_transform()(batch))
    assert [layer.name for layer in found] == [
        *("encoder.0.blocks.0.attention", "encoder.0.blocks.1.attention"),
        *("encoder.1.blocks.0.attention", "decoder.0.blocks.0.attention"),
    ]
    assert [layer.alpha.size(1) for layer in found] == [2, 2, 2, 2]
    assert [layer.level.perm is not None for layer in found] == [
        *(False, True, False, False)
    ]
    modules = dict(model.named_modules())
    assert all(isinstance(modules[layer.name], BallAttention) for layer in found)


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
def test_pairs_of_a_model_are_nodes_on_level_0(layout):
    model = erwin(layout=layout)
    data = model.tree_transform()(ragged(SIZES))
    tree = Tree.from_data(data)
    node, n = tree.global_perm(), data.num_nodes
    first = {int(m): r for r, m in reversed([*enumerate(node)])}
    for layer in attention_weights(model, data):
        l = int(layer.name[8])
        order = torch.arange(tree.num_rows(l))
        if layer.level.perm is not None:
            order = tree.global_perm_rot(l)
        rows = [
            (r, ball) for ball in order.split(tree.ball_len[l].tolist()) for r in ball
        ]
        expected = [
            (int(s), int(t)) if l else (int(node[s]), int(node[t]))
            for t, ball in rows
            for s in ball
            if l or first[int(node[t])] == t
        ]
        assert sorted(map(tuple, layer.edge_index.T.tolist())) == sorted(expected)
        count = tree.num_rows(1) if l else n
        sums = torch.zeros(count, 2).double()
        sums.index_add_(0, layer.edge_index[1], layer.alpha.detach())
        torch.testing.assert_close(sums, torch.ones_like(sums))
        cloud = layer.level.batch if l else data.batch
        assert torch.equal(*cloud[layer.edge_index])


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
def test_weights_of_nodes_reproduce_the_first_layer(layout):
    model = erwin(layout=layout)
    data = model.tree_transform()(ragged(SIZES))
    tree = Tree.from_data(data)
    layer, calls = model.encoder[0].blocks[0].attention, []
    hook = layer.register_forward_hook(
        lambda m, args, out: calls.append((args[0], out))
    )
    weights = attention_weights(model, data)[0]
    hook.remove()
    ((x, out),) = calls
    level = weights.level
    v = layer.lin_qkv(x + layer.lin_pos(level.offset))[:, 16:].unflatten(1, (2, 4))
    source, target = weights.edge_index
    message = weights.alpha[:, :, None] * tree.to_nodes(v)[source]
    total = torch.zeros(data.num_nodes, 8).double()
    total = total.index_add(0, target, message.flatten(1))
    torch.testing.assert_close(layer.lin_out(total), tree.to_nodes(out))


def test_a_cloud_alone_has_the_same_weights():
    model, batch = erwin(), ragged(SIZES)
    together = attention_weights(model, batch)[0]
    start = batch.ptr[3]
    is_own = (batch.batch == 3)[together.edge_index[0]]
    alone = attention_weights(model, batch[3])[0]
    assert torch.equal(together.edge_index[:, is_own] - start, alone.edge_index)
    torch.testing.assert_close(together.alpha[is_own], alone.alpha)


def test_a_model_is_left_as_it_was():
    model, batch = erwin(), ragged(SIZES)
    before = model(batch)
    attention_weights(model, batch)
    with pytest.raises(ValueError, match="'x'"):
        attention_weights(model, None, batch.pos)
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(batch), before)


def test_a_compiled_model_runs_without_its_code():
    model, batch = erwin(), ragged(SIZES)

    def refuse(graph, inputs):
        raise AssertionError("the model was compiled")

    compiled = torch.compile(model, backend=refuse)
    found = attention_weights(compiled, model.tree_transform()(batch))
    expected = attention_weights(model, batch)
    assert len(found) == len(expected)
    assert all(torch.equal(a.alpha, b.alpha) for a, b in zip(found, expected))


class Mean(torch.nn.Module):
    """A mixer of a user, which tells its weights."""

    def forward(self, x, level):
        dense = level.to_balls(x)
        mean = dense.sum(1, keepdim=True) / level.ball_len[:, None, None].clamp(min=1)
        return level.from_balls(mean.expand_as(dense).contiguous())

    def attention_weights(self, x, level):
        rows = torch.arange(level.num_rows).expand(2, -1)
        return rows, torch.ones(level.num_rows, 1)


def test_mixers_of_users_are_observed():
    model = erwin(attention=lambda *sizes: Mean())
    found = attention_weights(model, batch := ragged(SIZES))
    assert len(found) == 4
    nodes, again = found[0].edge_index
    assert torch.equal(nodes.sort().values, torch.arange(batch.num_nodes))
    assert torch.equal(nodes, again)


def test_a_layer_alone_gives_rows():
    layer, (x, level) = layer_of(), inputs([4, 3])
    (found,) = attention_weights(layer, x, level=level)
    assert torch.equal(found.edge_index, layer.attention_weights(x, level)[0])


def test_a_model_without_attention_is_refused():
    with pytest.raises(ValueError, match=r"\(got 'Linear', which calls none\)"):
        attention_weights(torch.nn.Linear(2, 2), torch.rand(3, 2))
    with pytest.raises(TypeError, match=r"'model' must be a module \(got None\)"):
        attention_weights(None)


def test_levels_know_their_nodes():
    pos = torch.rand(20, 3)
    tree: Tree = ball_tree(pos, ball_sizes=[4, 4], strides=[2])
    fine, coarse = tree.levels(pos)
    assert torch.equal(fine.pos, pos[fine.node])
    assert torch.equal(fine.rotated().node, fine.node)
    assert coarse.node is None


def hybrid(**kwargs):
    torch.manual_seed(0)
    conv = GCNConv(CHANNELS, CHANNELS)
    return randomised(HybridConv(CHANNELS, conv, "ball", HEADS, B, **kwargs)).eval()


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("rotated", [False, True])
def test_hybrid_layers_give_nodes(rotated, layout):
    layer, data = hybrid(rotated=rotated), ragged(SIZES, channels=CHANNELS)
    tree = ball_tree(data.pos, data.batch, ball_sizes=B, layout=layout)
    inputs = (data.x, data.pos, data.edge_index, data.batch)
    out, weights = layer(*inputs, tree=tree, return_attention_weights=True)
    assert torch.equal(out, layer(*inputs, tree=tree))
    (observed,) = attention_weights(layer, *inputs, tree=tree)
    assert observed.name == "attention"
    assert torch.equal(weights[0], observed.edge_index)
    assert torch.equal(weights[1], observed.alpha)
    (source, target), alpha = weights
    sums = torch.zeros(data.num_nodes, HEADS).double().index_add_(0, target, alpha)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    (level,) = tree.levels(data.pos)
    level = level.rotated() if rotated else level
    rows = tree.to_rows(data.x)
    v = layer.attention.lin_qkv(rows + layer.attention.lin_pos(level.offset))
    v = tree.to_nodes(v)[:, 2 * CHANNELS :].view(-1, HEADS, CHANNELS // HEADS)
    total = torch.zeros(data.num_nodes, CHANNELS).double()
    total.index_add_(0, target, (alpha[:, :, None] * v[source]).flatten(1))
    expected = tree.to_nodes(layer.attention(rows, level))
    torch.testing.assert_close(layer.attention.lin_out(total), expected)


def test_hybrid_layers_whose_mixer_tells_nothing():
    class Silent(torch.nn.Module):
        def forward(self, x, level):
            return x

    layer = HybridConv(CHANNELS, None, lambda *sizes: Silent())
    x, pos = torch.rand(5, CHANNELS), torch.rand(5, 3)
    with pytest.raises(TypeError, match=r"needs a mixer with a method .*got Silent"):
        layer(x, pos, return_attention_weights=True)
    assert layer(x, pos).shape == x.shape
