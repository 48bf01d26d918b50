"""GPS layers with ball attention, compared with plain formulas."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from clouds import cloud, randomised
from compiled import no_recompilation
from hybrid_layers import (
    EDGE,
    LAYERS,
    SIZES,
    B,
    C,
    args_of,
    batch_of,
    dense_attention,
    expected,
    given,
    layer_of,
)
from torch.nn import Linear, Module
from torch_geometric import EdgeIndex
from torch_geometric.nn import GCNConv, Sequential
from torch_geometric.utils import remove_self_loops

from torch_geometric_erwin import ball_tree, pad_batch
from torch_geometric_erwin.nn import HybridConv
from torch_geometric_erwin.transforms import BallTree


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
