"""GPS layers with ball attention, compared with PyG's layer and plain formulas."""

import copy
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from clouds import cloud, ragged, randomised
from compiled import no_recompilation
from torch.nn import Linear, Module
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch
from torch_geometric.nn import (
    GATv2Conv,
    GCNConv,
    GINEConv,
    GPSConv,
    MessagePassing,
    PointNetConv,
    Sequential,
    TransformerConv,
)
from torch_geometric.nn.models.schnet import InteractionBlock
from torch_geometric.utils import remove_self_loops

from torch_geometric_erwin import Tree, ball_tree, pad_batch
from torch_geometric_erwin.nn import BallAttention, HybridConv
from torch_geometric_erwin.transforms import BallTree

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


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_plain_formulas(name, rotated):
    layer = randomised(layer_of(name, norm="layer", rotated=rotated))
    batch = batch_of()
    tree = ball_tree(batch.pos, ptr=batch.ptr, ball_sizes=B)
    batch.x.requires_grad_()
    norms = layer.norm1, layer.norm2, layer.norm3
    outs = [
        layer(batch.x, batch.pos, batch.edge_index, tree=tree, **given(batch, name)),
        expected(layer, batch, tree, name, norms),
    ]
    torch.testing.assert_close(*outs, rtol=1e-11, atol=1e-11)
    inputs = [batch.x, *layer.parameters()]
    grads = [
        torch.autograd.grad(out.square().sum(), inputs, allow_unused=True)
        for out in outs
    ]
    for own, right in zip(*grads, strict=True):
        if right is not None:  # SchNet's block has a layer that it does not use
            torch.testing.assert_close(own, right, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("name", LAYERS)
def test_trains_on_ragged_clouds(name):
    layer = layer_of(name)
    batch = batch_of(dtype=torch.float32)
    tree = ball_tree(batch.pos, ptr=batch.ptr, ball_sizes=B)
    torch.manual_seed(1)
    target = torch.randn(len(batch.x), C)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        out = layer(
            batch.x, batch.pos, batch.edge_index, tree=tree, **given(batch, name)
        )
        loss = F.mse_loss(out, target)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", ["gcn", "gat", "user"])
@pytest.mark.parametrize("norm", ["batch", "graph", "layer", "instance"])
def test_a_cloud_alone_and_in_a_batch(name, norm):
    layer = randomised(layer_of(name, norm=norm, rotated=True)).eval()
    batch = batch_of()
    out = layer(batch.x, batch.pos, batch.edge_index, batch.batch, **given(batch, name))
    for i, data in enumerate(batch.to_data_list()):
        alone = layer(data.x, data.pos, data.edge_index, **given(data, name))
        own = out[batch.ptr[i] : batch.ptr[i + 1]]
        torch.testing.assert_close(alone, own, rtol=1e-12, atol=1e-12)


def args_of(batch):
    return batch.x, batch.pos, batch.edge_index


@pytest.mark.parametrize("rotated", [False, True])
def test_one_tree_or_one_each_time(rotated):
    layer = randomised(layer_of("gcn", rotated=rotated)).eval()
    batch = batch_of()
    args = args_of(batch)
    ptr = {"ptr": batch.ptr}
    outs = [
        layer(*args, batch.batch),
        layer(*args, **ptr),
        layer(*args, tree=ball_tree(batch.pos, **ptr, ball_sizes=B)),
        layer(*args, batch.batch, tree=ball_tree(batch.pos, **ptr, ball_sizes=B)),
        layer(*args, **ptr, tree=ball_tree(batch.pos, **ptr, ball_sizes=B)),
    ]
    for out in outs[1:]:
        assert torch.equal(out, outs[0])
    # Other balls: smaller ones, and those of a tree whose groups no ball divides.
    norms = layer.norm1, layer.norm2, layer.norm3
    for kwargs in ({"ball_sizes": 4}, {"ball_sizes": [B, 4], "strides": [4]}):
        tree = ball_tree(batch.pos, **ptr, **kwargs)
        wanted = expected(layer, batch, tree, "gcn", norms)
        out = layer(*args, tree=tree)
        torch.testing.assert_close(out, wanted, rtol=1e-11, atol=1e-11)
        assert not torch.allclose(out, outs[0])


@pytest.mark.parametrize("n", [0, 1, 2, B - 1, B, B + 1])
def test_small_clouds(n):
    layer = randomised(layer_of("gcn", norm="graph"))
    data = cloud(n, channels=C)
    tree = ball_tree(data.pos, ball_sizes=B)
    args = args_of(data)
    out = layer(*args, tree=tree)
    norms = layer.norm1, layer.norm2, layer.norm3
    wanted = expected_of_cloud(layer, data, tree, norms)
    torch.testing.assert_close(out, wanted, rtol=1e-11, atol=1e-11)
    out.sum().backward()
    assert layer(data.x, data.pos, data.edge_index[:, :0], tree=tree).shape == (n, C)


def expected_of_cloud(layer, data, tree, norms):
    messages = layer.conv(data.x, data.edge_index)
    attention = dense_attention(layer.attention, data.x, data.pos, tree, False)
    out = norms[0](data.x + messages) + norms[1](data.x + attention)
    return norms[2](out + layer.mlp(out))


@pytest.mark.parametrize("norm", ["batch", "graph", "instance", "layer"])
def test_a_tree_that_repeats_nodes(norm):
    layer = randomised(layer_of("gcn", norm=norm))
    batch = batch_of([5, 0, 12, 1])
    tree = ball_tree(batch.pos, ptr=batch.ptr, ball_sizes=B, layout="perfect")
    assert tree.num_rows(0) > len(batch.x)
    out = layer(*args_of(batch), tree=tree)
    # The same from the mixer's output; norms must count every node once.
    (level,) = tree.levels(batch.pos)
    attention = tree.to_nodes(layer.attention(tree.to_rows(batch.x), level))
    flat = ball_tree(batch.pos, ptr=batch.ptr, ball_sizes=B)
    layer.attention = Constant(flat.to_rows(attention))
    wanted = layer(*args_of(batch), tree=flat)
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)


class Constant(Module):
    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def forward(self, x, level):
        return self.rows


@pytest.mark.parametrize("norm", ["batch", "graph"])
def test_padding_changes_nothing(norm):
    layer = randomised(layer_of("gcn", norm=norm))
    batch = batch_of()
    padded = pad_batch(BallTree(ball_sizes=B)(batch.clone()), 90, 8, 250)
    tree = ball_tree(batch.pos, ptr=batch.ptr, ball_sizes=B)
    states = [copy.deepcopy(layer) for _ in range(2)]
    out = states[0](*args_of(batch), tree=tree)
    longer = states[1](*args_of(padded), padded.batch, tree=tree.pad(90, 8))
    torch.testing.assert_close(longer[: len(out)], out, rtol=1e-12, atol=1e-12)
    for one, other in zip(*(s.state_dict().values() for s in states), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


# The first backend does not generate code, which would take longest.
@pytest.mark.parametrize(
    "name, norm, backend",
    [
        ("schnet", "graph", "aot_eager"),
        pytest.param("point net", "batch", "aot_eager", marks=pytest.mark.slow),
        pytest.param("gat", "instance", "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiled(name, norm, backend):
    layer = layer_of(name, rotated=True, norm=norm)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    torch.compiler.reset()
    for step, sizes in enumerate((SIZES, [30, 2, 11, 9])):
        batch = batch_of(sizes, torch.float32)
        tree = ball_tree(batch.pos, ptr=batch.ptr, ball_sizes=B)
        args, more = args_of(batch), given(batch, name)
        with no_recompilation(step):
            out = compiled(*args, tree=tree, **more)
            out.square().sum().backward()
        torch.testing.assert_close(
            out, layer(*args, tree=tree, **more), rtol=1e-4, atol=1e-5
        )


def test_compiled_code_compares_clouds_with_those_of_the_tree():
    layer = layer_of("gcn").eval()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="eager")
    torch.compiler.reset()
    batch = batch_of(dtype=torch.float32)
    tree = ball_tree(batch.pos, batch.batch, ball_sizes=B)
    expected = layer(*args_of(batch), batch.batch, tree)
    torch.testing.assert_close(compiled(*args_of(batch), batch.batch, tree), expected)
    with pytest.raises(RuntimeError, match="'batch' is of other clouds than 'tree'"):
        compiled(*args_of(batch), batch.batch.flip(0), tree)


def test_compiled_code_needs_a_tree():
    compiled = torch.compile(layer_of("gcn"), fullgraph=True, backend="eager")
    torch.compiler.reset()
    with pytest.raises(Exception, match="compiled code needs a tree: pass 'tree="):
        compiled(*args_of(batch_of(dtype=torch.float32)))


# Hints that PyTorch gives once in a process.
@pytest.mark.filterwarnings("ignore:.*[Ss]parse.*")
def test_other_forms_of_edges():
    layer = randomised(layer_of("gcn")).eval()
    batch = batch_of()
    x, pos, edge_index = args_of(batch)
    # PyG treats self-loops of matrices differently.
    edge_index = remove_self_loops(edge_index.unique(dim=1))[0].contiguous()
    wanted = layer(x, pos, edge_index, batch.batch)
    n = len(x)
    values = torch.ones(edge_index.size(1), dtype=x.dtype)
    matrix = torch.sparse_coo_tensor(edge_index.flip(0), values, (n, n))
    for edges in (EdgeIndex(edge_index, sparse_size=(n, n)), matrix.to_sparse_csr()):
        out = layer(x, pos, edges, batch.batch)
        torch.testing.assert_close(out, wanted, rtol=1e-11, atol=1e-11)
    with pytest.raises(ValueError, match=r"'edge_index' must have shape \[61, 61\]"):
        layer(x, pos, torch.eye(3).to_sparse())
    with pytest.raises(TypeError, match=r"'edge_index' must be .* \(got 'list'\)"):
        layer(x, pos, edge_index.tolist())
    edge_attr = torch.rand(5, EDGE, dtype=x.dtype)
    gat = layer_of("gat").double()
    with pytest.raises(ValueError, match="'edge_attr'"):
        gat(x, pos, edge_index, edge_attr=edge_attr)
    with pytest.raises(TypeError, match=r"'edge_attr' is torch\.float32, 'x' is"):
        gat(*args_of(batch), edge_attr=batch.edge_attr.float())


@pytest.mark.parametrize("with_tree", [False, True])
def test_in_a_sequential(with_tree):
    torch.manual_seed(0)
    names = "x, pos, edge_index, batch" + ", tree" * with_tree
    header = f"{names} -> x"
    layers = [layer_of("gcn"), layer_of("point net", rotated=True)]
    model = Sequential(
        names,
        [(layers[0], header), torch.nn.ReLU(), (layers[1], header), Linear(C, 2)],
    ).double()
    batch = batch_of()
    tree = ball_tree(batch.pos, batch.batch, ball_sizes=B)
    out = model(*args_of(batch), batch.batch, *([tree] * with_tree))
    x = layers[0](*args_of(batch), batch.batch).relu()
    x = layers[1](x, batch.pos, batch.edge_index, batch.batch)
    torch.testing.assert_close(out, model[3](x))


def test_any_mixer():
    class BallMean(Module):
        required_runs = (4,)

        def __init__(self, channels, heads, ball_size, dim, scale=1.0):
            super().__init__()
            self.scale = scale

        def forward(self, x, level):
            assert level.runs[4].sum() == len(x)
            balls = level.to_balls(x)
            mean = balls.sum(1) / level.ball_mask.sum(1)[:, None]
            return self.scale * level.from_balls(mean[:, None].expand_as(balls))

    batch = batch_of()
    layer = HybridConv(C, None, BallMean, 1, B, norm=None, attn_kwargs={"scale": 2.0})
    layer.double()
    tree = ball_tree(batch.pos, ptr=batch.ptr, ball_sizes=B, runs=[[4]])
    wanted = batch.x.clone()
    for ball in tree.global_perm().split(tree.ball_len[0].tolist()):
        wanted[ball] += 2 * batch.x[ball].mean(0)
    wanted = wanted + layer.mlp(wanted)
    for out in (
        layer(batch.x, batch.pos, tree=tree),
        layer(batch.x, batch.pos, ptr=batch.ptr),
    ):
        torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"'tree' must have the runs .* \(got \[\]"):
        layer(batch.x, batch.pos, tree=ball_tree(batch.pos, ball_sizes=B))


def test_every_parameter_gets_a_gradient():
    for conv in (GCNConv(C, C), None):
        layer = HybridConv(C, conv, heads=2, ball_size=B)
        batch = batch_of(dtype=torch.float32)
        edges = batch.edge_index if conv is not None else None
        out = layer(batch.x, batch.pos, edges, batch.batch)
        (out * torch.randn_like(out)).sum().backward()
        assert all(p.grad is not None for p in layer.parameters())


def test_dropout_is_that_of_training():
    torch.manual_seed(0)
    layer = HybridConv(C, None, ball_size=B, dropout=0.5, norm=None)
    with torch.no_grad():
        layer.mlp[3].weight.zero_()
        layer.mlp[3].bias.zero_()
    data = cloud(4000, channels=C, dtype=torch.float32)
    tree = ball_tree(data.pos, ball_sizes=B)
    kept = layer(data.x, data.pos, tree=tree) - data.x
    full = layer.eval()(data.x, data.pos, tree=tree) - data.x
    zero = kept.abs() < 1e-6
    assert 0.48 < zero.float().mean() < 0.52
    torch.testing.assert_close(kept[~zero], 2 * full[~zero], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [copy.deepcopy, "pickle"])
def test_copies(kind):
    layer = layer_of("gcn", act="leaky_relu", act_kwargs={"negative_slope": 0.3})
    if kind == "pickle":
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = kind(layer)
    args = args_of(batch_of(dtype=torch.float32))
    assert torch.equal(other(*args), layer(*args))
    fresh = layer_of("gcn", act=torch.nn.LeakyReLU(0.3))
    fresh.load_state_dict(layer.eval().state_dict())
    assert torch.equal(fresh.eval()(*args), layer(*args))


def test_repr():
    layer = HybridConv(C, GCNConv(C, C), heads=2, ball_size=B, rotated=True)
    assert repr(layer) == (
        "HybridConv(8, GCNConv(8, 8), BallAttention(8, heads=2, ball_size=8), "
        "rotated=True)"
    )


def test_reset_parameters():
    layer = randomised(layer_of("gcn"))
    before = copy.deepcopy(layer.state_dict())
    layer.reset_parameters()
    for name, value in layer.state_dict().items():
        if value.is_floating_point():
            assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision(autocast):
    layer = layer_of("gcn", norm="graph").eval()
    batch = batch_of(dtype=torch.float32)
    wanted = layer(*args_of(batch), batch.batch)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(*args_of(batch), batch.batch)
        assert out.dtype == torch.float32
    else:
        x = batch.x.bfloat16()
        out = layer.bfloat16()(x, batch.pos, batch.edge_index, batch.batch)
        assert out.dtype == torch.bfloat16
    assert (out.float() - wanted).norm() < 0.03 * wanted.norm()


# Conversion of PyG's layer.


def gps(norm, conv=None, **kwargs):
    torch.manual_seed(0)
    return randomised(GPSConv(C, conv, heads=2, norm=norm, **kwargs))


NORMS = ["batch_norm", "graph_norm", "layer_norm", "instance_norm", None]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "name, kwargs",
    [
        ("gcn", {}),
        ("gine", {"act": "elu", "act_kwargs": {"alpha": 0.5}}),
        (None, {"attn_kwargs": {"bias": False}}),
    ],
)
def test_converted_layer_equals_the_original(name, kwargs, norm, training):
    conv = LAYERS[name][0]() if name else None
    original = gps(norm, conv, **kwargs).train(training)
    layer = HybridConv.from_gps(original, ball_size=64)
    batch = batch_of([20, 7, 1, 33] if norm != "instance_norm" else [20, 7, 33])
    batch.x.requires_grad_()
    more = given(batch, name) if name else {}
    outs = [
        original(batch.x, batch.edge_index, batch.batch, **more),
        layer(*args_of(batch), batch.batch, **more),
    ]
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(outs[0])
    grads = [torch.autograd.grad((o * weights).sum(), batch.x) for o in outs]
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-8, atol=1e-8)
    # Training statistics are the same too.
    args = batch.x, batch.edge_index, batch.batch
    original, layer = original.eval(), layer.eval()
    torch.testing.assert_close(
        layer(*args_of(batch), batch.batch, **more),
        original(*args, **more),
        rtol=1e-9,
        atol=1e-9,
    )


def test_a_one_row_cloud_of_pygs_instance_norm_is_pygs():
    original = gps("instance_norm", GCNConv(C, C)).eval()
    layer = HybridConv.from_gps(original)
    data = cloud(1, channels=C)
    out = original(data.x, data.edge_index, torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(layer(*args_of(data)), out)


def test_gradients_of_converted_weights():
    original = gps("graph_norm", GCNConv(C, C))
    layer = HybridConv.from_gps(original, ball_size=64)
    batch = batch_of([20, 33])
    original(batch.x, batch.edge_index, batch.batch).square().sum().backward()
    layer(*args_of(batch), batch.batch).square().sum().backward()
    attention, given = layer.attention, original.attn
    for own, right in (
        (layer.conv.lin.weight, original.conv.lin.weight),
        (attention.lin_qkv.weight, given.in_proj_weight),
        (attention.lin_qkv.bias, given.in_proj_bias),
        (attention.lin_out.weight, given.out_proj.weight),
        (attention.lin_out.bias, given.out_proj.bias),
        (layer.mlp[0].weight, original.mlp[0].weight),
        (layer.norm3.norm.weight, original.norm3.weight),
    ):
        torch.testing.assert_close(own.grad, right.grad, rtol=1e-8, atol=1e-8)
    assert attention.sigma.grad.abs().min() > 0
    assert attention.lin_pos.weight.grad.abs().min() > 0


def test_a_converted_layer_is_a_copy():
    original = gps("batch_norm", GCNConv(C, C)).eval()
    layer = HybridConv.from_gps(original, B, 2, True)
    assert not layer.training
    assert (layer.ball_size, layer.dim, layer.rotated) == (B, 2, True)
    before = copy.deepcopy(original.state_dict())
    with torch.no_grad():
        for tensor in layer.state_dict().values():
            tensor.zero_()
    for name, value in original.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_cannot_be_converted():
    with pytest.raises(TypeError, match="'conv' must be a GPSConv"):
        HybridConv.from_gps(GCNConv(C, C))
    with pytest.raises(ValueError, match="must have attn_type='multihead'"):
        HybridConv.from_gps(GPSConv(C, None, heads=2, attn_type="performer"))
    for name in ("add_bias_kv", "add_zero_attn"):
        with pytest.raises(ValueError, match=f"'conv' must not have .*{name}"):
            HybridConv.from_gps(GPSConv(C, None, attn_kwargs={name: True}))
    dropped = GPSConv(C, None, dropout=0.1, attn_kwargs={"dropout": 0.5})
    with pytest.warns(UserWarning, match="no dropout of its weights: the 0.5"):
        layer = HybridConv.from_gps(dropped)
    assert layer.dropout == layer.mlp[2].p == 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HybridConv.from_gps(GPSConv(C, None, norm=None, dropout=0.1))


# Wrong arguments.


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"conv": 3}, TypeError, r"'conv' must be a module or None \(got 3\)"),
        ({"attention": "all"}, ValueError, "'attention' must be one of"),
        ({"heads": 3}, ValueError, "'heads' must divide"),
        ({"attn_kwargs": {"dropout": 0.5}}, TypeError, "takes no 'dropout', which"),
        ({"attention": 4}, TypeError, r"'attention' .*\(got 4\); .*'heads=4'"),
        ({"norm": "group"}, ValueError, "'norm' must be one of"),
        ({"norm_kwargs": {"mode": 1}}, TypeError, "'mode'"),
        ({"act": "sharp"}, ValueError, "'act' must be an activation"),
        ({"act": 3}, TypeError, "'act' must be a name, a module or a callable"),
        ({"act_kwargs": {"slope": 1}}, TypeError, "'act' must be an activation"),
        ({"dropout": 1.0}, ValueError, "'dropout' must be at least 0 and below 1"),
        ({"rotated": 1}, TypeError, "'rotated' must be a bool"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        HybridConv(**{"channels": C, "conv": None, **kwargs})


def test_bad_inputs():
    layer = layer_of("gcn", rotated=True).double()
    batch = batch_of()
    args = args_of(batch)
    ptr = batch.ptr

    def tree_of(**kwargs) -> Tree:
        return ball_tree(batch.pos, ptr=ptr, **{"ball_sizes": B, **kwargs})

    for more, message in (
        ({"tree": tree_of(ball_sizes=16)}, r"at most 'ball_size=8' .*\(got 16\)"),
        ({"tree": tree_of(rotate=0)}, "'tree' must have a rotated tree"),
        (
            {"tree": ball_tree(batch.pos[:9], ball_sizes=B)},
            "the tree does not fit its data: 'perm' has 9 entries for 61 nodes",
        ),
        ({"ptr": ptr, "batch": batch.batch}, "'batch' and 'ptr' say the same"),
        (
            {"ptr": ptr, "batch": batch.batch, "tree": tree_of()},
            "'batch' and 'ptr' say the same",
        ),
        (
            {"tree": tree_of(), "batch": torch.zeros_like(batch.batch)},
            "'batch' or 'ptr' must be of the clouds that the tree was built for",
        ),
        (
            {"tree": tree_of(), "ptr": torch.tensor([0, 61])},
            "'batch' or 'ptr' must be of the clouds that the tree was built for",
        ),
        ({"batch": batch.batch[1:]}, "'batch' must have an entry for each of 61 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(*args, **more)
    x, pos, edge_index = args
    with pytest.raises(TypeError, match=r"'x' is torch\.float32, the weights are"):
        layer(x.float(), pos, edge_index)
    with pytest.raises(ValueError, match=r"'pos' must have 3 .*'dim=2'"):
        layer(x, pos[:, :2], edge_index)
    with pytest.raises(ValueError, match="'edge_index' must name one of 61 nodes"):
        layer(x, pos, edge_index + 30)
    with pytest.raises(TypeError, match=r"arguments are \(x, pos, edge_index, batch"):
        layer(x, edge_index, batch.batch)  # the order of `GPSConv`
    with pytest.raises(TypeError, match="'GCNConv' takes no 'edge_attr'"):
        layer(*args, edge_attr=batch.edge_attr)
    with pytest.raises(TypeError, match="'GCNConv' needs 'edge_index'"):
        layer(x, pos)
    with pytest.raises(TypeError, match="there is none that takes 'edge_attr'"):
        HybridConv(C, None).double()(x, pos, edge_attr=batch.edge_attr)
    wide = HybridConv(C, GCNConv(C, 2 * C)).double()
    with pytest.raises(ValueError, match=r"'conv\(x\)' must have shape \[61, 8\]"):
        wide(*args)


def test_relative_distances_do_not_depend_on_the_unit():
    layer = HybridConv(
        C, None, heads=2, ball_size=B, attn_kwargs={"distance": "relative"}
    )
    layer.double()
    assert isinstance(layer.attention, BallAttention)
    data = cloud(30, channels=C)
    tree = ball_tree(data.pos, ball_sizes=B)
    outs = [layer(data.x, unit * data.pos, tree=tree) for unit in (1, 1000)]
    torch.testing.assert_close(*outs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("unit", [1e-4, 1e4])
def test_far_units_are_told_once(unit):
    data = cloud(30, channels=C)
    layer = HybridConv(C, None, heads=2, ball_size=B, rotated=True).double()
    pos = unit * data.pos
    with pytest.warns(
        UserWarning, match="balls extend over about .*'relative'"
    ) as told:
        layer(data.x, pos)
    assert told[0].filename == __file__
    number = float(str(told[0].message).split("about ")[1].split(",")[0])
    (extents,) = ball_tree(pos, ball_sizes=B).extents(pos)
    assert number == pytest.approx(float(extents.median()), rel=0.1)
    layer(data.x, pos)  # a warning is an error


def test_far_units_under_transforms():
    data = cloud(30, channels=C)
    tree, pos = ball_tree(data.pos, ball_sizes=B), 1e4 * data.pos
    for call in (
        lambda layer: torch.func.grad(lambda p: layer(data.x, p).sum())(pos),
        lambda layer: torch.vmap(lambda p: layer(data.x, p, tree=tree))(pos[None]),
    ):
        layer = HybridConv(C, None, heads=2, ball_size=B, norm="layer").double()
        with pytest.warns(UserWarning, match="balls extend over about"):
            call(layer)


def test_units_that_are_no_reason_to_warn():
    data = cloud(30, channels=C)
    relative = {"distance": "relative"}
    for factor, kwargs in (
        (10.0, {}),
        (1e4, {"attn_kwargs": relative}),
        (1e4, {"attention": lambda *sizes: Scaled()}),  # has a unit of its own
        (0.0, {}),
    ):
        layer = HybridConv(C, None, heads=2, ball_size=B, **kwargs).double()
        layer(data.x, factor * data.pos)
    layer(data.x[:0], data.pos[:0])
    layer(data.x[:1], 1e6 * data.pos[:1])


class Scaled(torch.nn.Module):
    def forward(self, x, level):
        return x
