import copy
import io
import pickle
from functools import partial

import pytest
import torch
from clouds import cloud, ragged, randomised
from oracles.erwin import erwin as oracle
from torch_geometric.data import Batch, Data
from torch_geometric.nn import global_mean_pool

from torch_geometric_erwin import Tree, ball_tree
from torch_geometric_erwin.nn import Erwin

B = 4
EVERY_SIZE = list(range(5 * B + 4))  # clouds of 0 to 5B + 3 points
MIXED = [0, 13, 1, 22, 2, 0, 5, 3, 0]


def arguments(strides=(2, 2), **kwargs):
    """Arguments with one value per level, as the oracle needs; three outputs."""
    levels = len(strides) + 1
    hidden = [8]
    for stride in strides:
        hidden.append(hidden[-1] if stride == 1 else hidden[-1] + 4)
    return {
        "in_channels": 2,
        "hidden_channels": hidden,
        "out_channels": 3,
        "ball_sizes": (B,) * levels,
        "strides": tuple(strides),
        "enc_depths": (2,) * levels,
        "enc_heads": (2,) * levels,
        "dec_depths": (2,) * (levels - 1),
        "dec_heads": (4,) * (levels - 1),
        "mp_steps": 1,
        "rotate": 45.0,
        **kwargs,
    }


def make(strides=(2, 2), seed=0, **kwargs):
    """A model in float64 and evaluation mode, with random values for all weights."""
    return randomised(Erwin(**arguments(strides, **kwargs)), seed).eval()


def assert_close(actual, expected, tolerance):
    """The tolerance is relative to the largest value."""
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).abs().max()
    assert error <= tolerance * expected.abs().max()


def cases():
    for rotate in (0.0, 45.0):
        yield (2, 2), {"rotate": rotate}, EVERY_SIZE
        yield (3,), {"rotate": rotate}, MIXED
        yield (1,), {"rotate": rotate}, MIXED
        yield (2,), {"rotate": rotate, "layout": "perfect"}, MIXED
        yield (1, 4), {"rotate": rotate, "layout": "perfect"}, MIXED
    for norm in ("batch", "layer"):
        yield (2, 3), {"norm": norm}, MIXED
    yield (), {}, MIXED
    yield (2, 2), {"decode": False}, MIXED
    yield (2,), {"dim": 2, "rotate": -30.0, "mp_steps": 2}, MIXED
    yield (4, 2), {"ball_sizes": (8, 3, 2), "enc_depths": (1, 3, 2)}, [40, 7, 1]
    yield (2, 6), {"mp_steps": 0, "dec_depths": (1, 2)}, [30, 7, 1]


@pytest.mark.parametrize("strides, kwargs, sizes", [*cases()], ids=str)
def test_equals_oracle(strides, kwargs, sizes):
    model, options = make(strides, **kwargs), arguments(strides, **kwargs)
    batch = ragged(sizes, dim=options.get("dim", 3))
    out = model(batch)
    weights = model.state_dict()
    expected = torch.cat(
        [
            oracle(weights, data.x, data.pos, data.edge_index, **options)
            for data in batch.to_data_list()
        ]
    )
    if not model.decode:
        out, cloud_of = out
        level = model.tree_transform()(batch).level[:, -1]
        assert (
            cloud_of.tolist()
            == torch.arange(len(sizes)).repeat_interleave(level).tolist()
        )
    # About 20 layers of products of up to 64 terms in double precision.
    assert_close(out, expected, 1e-12)


EVERY_TREE = [
    {"strides": (2, 2)},
    {"strides": (2, 2), "rotate": 0.0},
    {"strides": (3,)},
    {"strides": (1,)},
    {"strides": (2, 2), "layout": "perfect"},
]
every_tree = pytest.mark.parametrize("kwargs", EVERY_TREE, ids=str)


def tree_of(model, data):
    return Tree.from_data(model.tree_transform()(data), model.tree_config)


@every_tree
def test_cloud_alone_equals_cloud_in_batch(kwargs):
    model = make(**kwargs)
    transform = model.tree_transform()
    clouds = [transform(cloud(n, seed=n)) for n in EVERY_SIZE]
    alone = [model(data) for data in clouds]
    for order in (EVERY_SIZE, [7, 0, 23, 23, 1]):
        before = Batch.from_data_list([clouds[n] for n in order])
        after = transform(ragged_like(before))
        for batch in (before, after):
            out = model(batch).split([len(alone[n]) for n in order])
            for n, rows in zip(order, out, strict=True):
                if n > 0:
                    assert_close(rows, alone[n], 1e-12)
            for n, data in zip(order, batch.to_data_list(), strict=True):
                for name in transform(cloud(1)).to_dict():
                    if name != "tree_config":
                        assert torch.equal(data[name], clouds[n][name]), (n, name)


def ragged_like(batch):
    """The batch without its trees."""
    keys = ("x", "pos", "edge_index")
    clouds = [Data(**{k: d[k] for k in keys}) for d in batch.to_data_list()]
    return Batch.from_data_list(clouds)


@pytest.mark.parametrize("kwargs", EVERY_TREE[:4], ids=str)
def test_permuting_nodes_permutes_output(kwargs):
    model = make(**kwargs)
    for n in (2, 3, 13, 50):
        data = cloud(n)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
        place = torch.empty_like(order).scatter_(0, order, torch.arange(n))
        edges = place[data.edge_index]
        out = model(data.x[order], data.pos[order], edges)
        assert_close(out, model(data)[order], 1e-9)


@pytest.mark.parametrize("dim", [1, 4, 7])
def test_any_number_of_coordinates(dim):
    model, data = make(dim=dim), ragged([13, 1, 22], dim=dim)
    out = model(data)
    alone = torch.cat([model(item) for item in data.to_data_list()])
    assert_close(out, alone, 1e-12)
    rotated = make(dim=dim, rotate=0.0)(data)
    # In one dimension nothing can be rotated; otherwise the second tree differs.
    assert torch.allclose(out, rotated) == (dim == 1)


def test_output_depends_on_distant_nodes():
    # Three levels with balls of 4: without the coarse levels a node gets information
    # from few others.
    model = make()
    data = cloud(16)
    data.x.requires_grad_()
    (grad,) = torch.autograd.grad(model(data)[0].sum(), data.x)
    assert (grad.abs().amax(1) > 0).all()


@every_tree
def test_every_parameter_gets_a_gradient(kwargs):
    model = make(**kwargs)
    out = model(ragged([13, 1, 22]))
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        if name.endswith("lin_qkv.bias"):
            query, key, value = grad.chunk(3)
            # A constant added to all keys shifts all scores of a query by the same
            # number.
            assert key.abs().max() <= 1e-9 * grad.abs().max(), name
            grad = torch.cat([query, value])
        if name == "unpools.0.lin.weight" and model.strides == (1,):
            # A single child lies at the centre of its row.
            assert (grad[:, -3:] == 0).all()
            grad = grad[:, :-3]
        assert (grad != 0).all(), name


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_every_parameter_gets_a_gradient_in_training(norm):
    model = make(norm=norm).train()
    out = model(ragged([13, 1, 22]))
    (out * torch.randn_like(out)).sum().backward()
    largest = max(p.grad.abs().max() for p in model.parameters())
    for name, parameter in model.named_parameters():
        cancels = name.startswith("pools.") and name.endswith("lin.bias")
        if cancels and norm == "batch":
            # A batch norm removes a constant that is added to all rows.
            assert parameter.grad.abs().max() <= 1e-12 * largest, name
        else:
            assert parameter.grad.abs().max() > 1e-9 * largest, name


@pytest.mark.parametrize("sizes", [[], [0], [0, 0], [1], [1, 0], [2], [1, 1], [5]])
@pytest.mark.parametrize("strides", [(2, 2), (1,), (3,)], ids=str)
@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_tiny_batches_in_training(sizes, strides, decode, norm):
    # Down to one row, or none, in the norms.
    model = make(strides, decode=decode, norm=norm).train()
    data, ptr = ragged(sizes or [0]), torch.tensor([0, *sizes]).cumsum(0)
    out = model(data.x, data.pos, data.edge_index, ptr=ptr)
    out = out if decode else out[0]
    out.sum().backward()
    assert torch.isfinite(out).all()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads
    assert all(torch.isfinite(grad).all() for grad in grads)
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    assert all(torch.isfinite(buffer).all() for buffer in buffers)


def test_no_features():
    model = randomised(Erwin(**arguments(in_channels=0))).eval()
    data = cloud(13, channels=0)
    out = model(None, data.pos, data.edge_index)
    assert torch.equal(model(data), out)
    out.sum().backward()
    assert (model.embed.constant.grad != 0).all()
    # All nodes have the same vector, as in a model with one constant feature.
    other = randomised(Erwin(**arguments(in_channels=1))).eval()
    state = model.state_dict()
    state["embed.start.weight"] = state.pop("embed.constant")[:, None]
    state["embed.start.bias"] = torch.zeros(8, dtype=torch.float64)
    other.load_state_dict(state)
    ones = torch.ones(13, 1, dtype=torch.float64)
    assert_close(out, other(ones, data.pos, data.edge_index), 1e-13)


@pytest.mark.parametrize("attach", [False, True])
def test_ways_to_call(attach):
    model, batch = make(), ragged([13, 0, 1, 22])  # the last cloud is not empty
    tree = tree_of(model, batch)
    data = model.tree_transform()(batch) if attach else batch
    expected = model(data)
    x, pos, edge_index = batch.x, batch.pos, batch.edge_index
    assert torch.equal(model(x, pos, edge_index, ptr=batch.ptr), expected)
    assert torch.equal(model(x, pos, edge_index, batch=batch.batch), expected)
    assert torch.equal(model(x, pos, edge_index, ptr=batch.ptr, tree=tree), expected)
    del data.ptr
    assert torch.equal(model(data), expected)


def test_single_data_without_ptr():
    model, data = make(), cloud(22)
    expected = model(data.x, data.pos, data.edge_index, ptr=torch.tensor([0, 22]))
    assert torch.equal(model(data), expected)
    assert torch.equal(model(data.x, data.pos, data.edge_index), expected)
    assert torch.equal(model(model.tree_transform()(data)), expected)


def test_coarsest_rows_for_readouts():
    model, batch = make(decode=False), ragged([13, 1, 22])
    rows, cloud_of = model(batch)
    assert rows.shape == (4 + 1 + 6, 3)
    assert cloud_of.tolist() == [0] * 4 + [1] + [2] * 6
    pooled = global_mean_pool(rows, cloud_of)
    for data, expected in zip(batch.to_data_list(), pooled, strict=True):
        assert_close(global_mean_pool(*model(data))[0], expected, 1e-12)


def test_second_call_with_the_same_tree():
    model, batch = make(), ragged([13, 1, 22])
    batch = model.tree_transform()(batch)
    before = {key: copy.copy(value) for key, value in batch.to_dict().items()}
    assert torch.equal(model(batch), model(batch))
    for key, value in batch.to_dict().items():
        same = torch.equal if isinstance(value, torch.Tensor) else list.__eq__
        assert same(value, before[key]), key


def forces(model, data, create_graph=False):
    """Forces as the negative gradient of an energy, and the energy."""
    pos = data.pos.detach().requires_grad_()
    tree = tree_of(model, data)
    energy = model(data.x, pos, data.edge_index, ptr=data.ptr, tree=tree).square().sum()
    (grad,) = torch.autograd.grad(energy, pos, create_graph=create_graph)
    return -grad, energy


DIFFERENTIABLE = [
    {"strides": (2, 2)},
    {"strides": (1,), "rotate": 0.0},
    {"strides": (2,), "layout": "perfect"},  # with coincident rows
]


@pytest.mark.parametrize("kwargs", DIFFERENTIABLE, ids=str)
def test_forces_equal_finite_differences(kwargs):
    model, data = make(**kwargs), ragged([13, 1, 5])
    force, _ = forces(model, data)
    tree, step = tree_of(model, data), 1e-5
    direction = torch.randn(3, *data.pos.shape, dtype=torch.float64)
    for d in direction:
        energies = [
            model(
                data.x, data.pos + s * d, data.edge_index, ptr=data.ptr, tree=tree
            ).square()
            for s in (step, -step)
        ]
        slope = (energies[0] - energies[1]).sum() / (2 * step)
        # A central difference has an error of order step².
        torch.testing.assert_close(-(force * d).sum(), slope, rtol=1e-6, atol=0)
    # Moving a whole cloud changes nothing, so the forces on it sum to zero.
    for total in torch.stack([f.sum(0) for f in force.split([13, 1, 5])]):
        assert total.abs().max() <= 1e-12 * force.abs().max()


@pytest.mark.parametrize("kwargs", DIFFERENTIABLE, ids=str)
def test_second_gradient_through_forces(kwargs):
    model, data = make(**kwargs), ragged([13, 1, 5])
    force, energy = forces(model, data, create_graph=True)
    (energy + force.square().sum()).backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert not unused
    step = 1e-6
    for name in ("encoder.0.blocks.1.attention.sigma", "embed.start.weight"):
        parameter, losses = model.get_parameter(name), []
        for sign in (1, -1):
            other = copy.deepcopy(model)
            with torch.no_grad():
                other.get_parameter(name).view(-1)[0] += sign * step
            force, energy = forces(other, data)
            losses.append(energy.detach() + force.square().sum())
        slope = (losses[0] - losses[1]) / (2 * step)
        actual = parameter.grad.view(-1)[0]
        torch.testing.assert_close(actual, slope, rtol=1e-5, atol=0)


EVERY_CHECKPOINT = [True, [True, False, False], [False, True, True]]


@pytest.mark.parametrize("checkpoint", EVERY_CHECKPOINT, ids=str)
def test_checkpoint_changes_no_result(checkpoint):
    runs = []
    for flag in (False, checkpoint):
        model, data = make(checkpoint=flag).train(), ragged(MIXED)
        out = model(data)
        out.square().sum().backward()
        runs.append((out, [p.grad for p in model.parameters()], [*model.buffers()]))
    torch.testing.assert_close(*runs, rtol=0, atol=0)


def test_checkpoint_keeps_what_leads_to_second_derivatives():
    runs = []
    for flag in (False, True):
        model = make(checkpoint=flag)
        force, energy = forces(model, ragged([13, 1, 5]), create_graph=True)
        (energy + force.square().sum()).backward()
        runs.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-12)


def test_checkpoint_keeps_less():
    def kept(checkpoint):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            make(checkpoint=checkpoint).train()(ragged(MIXED))
        return sum(sizes)

    none, fine, coarse = kept(False), *map(kept, EVERY_CHECKPOINT[1:])
    assert kept(True) < min(fine, coarse)
    assert max(fine, coarse) < none


def test_positions_that_ask_for_a_gradient_do_not_change_the_output():
    data = ragged([13, 1, 22])
    expected = make()(data)
    data.pos.requires_grad_()
    assert_close(make()(data), expected, 1e-12)


def test_far_from_origin_in_float64():
    model, data = make(), ragged([13, 1, 22])
    tree = tree_of(model, data)
    moved = model(data.x, data.pos + 1000, data.edge_index, ptr=data.ptr, tree=tree)
    # Positions at 1000 are rounded to 1e-13.
    assert_close(moved, model(data), 1e-12)


def test_far_from_origin_in_float32():
    model, data = make(rotate=0.0), ragged([13, 1, 22], dtype=torch.float32)
    data.pos += 1000
    exact = model(data.x.double(), data.pos.double(), data.edge_index, ptr=data.ptr)
    out = model.float()(data)
    # Coarse positions are float32 numbers near 1000, with rounding errors of 3e-5.
    assert_close(out, exact, 1e-4)


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
def test_coincident_points(layout):
    model = make(layout=layout)
    data = ragged([22])
    data.pos[:] = data.pos[0].clone()
    out = model(data)
    force, _ = forces(model, data)
    assert torch.isfinite(out).all()
    assert torch.isfinite(force).all()


def roundtrip_torch(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def roundtrip_state_dict(model):
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = make(seed=1)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    return other


ROUNDTRIPS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": roundtrip_torch,
    "state_dict": roundtrip_state_dict,
}


@pytest.mark.parametrize("roundtrip", ROUNDTRIPS.values(), ids=[*ROUNDTRIPS])
def test_roundtrip(roundtrip):
    model, data = make(), ragged([13, 1, 22])
    expected = model(data)
    other = roundtrip(model)
    assert other is not model
    assert torch.equal(other(data), expected)
    assert torch.equal(other(other.tree_transform()(data)), expected)


def test_thread_counts_agree():
    model, data = make().float(), ragged([130, 1, 220], dtype=torch.float32)
    before, outs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            outs.append(model(data))
    finally:
        torch.set_num_threads(before)
    for out in outs[1:]:
        assert_close(out, outs[0], 1e-6)


def test_float32():
    model, data = make(), ragged([13, 1, 22], dtype=torch.float32)
    exact = model(data.x.double(), data.pos.double(), data.edge_index, ptr=data.ptr)
    out = model.float()(data)
    assert out.dtype == torch.float32
    assert_close(out, exact, 1e-5)


def small_weights(**kwargs):
    """Keeps the initial weights, whose activations are of order one."""
    torch.manual_seed(0)
    return Erwin(**arguments(**kwargs)).eval()


def test_autocast():
    model, data = small_weights(), ragged([13, 1, 22], dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(data)
        out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    expected = model(data).detach()
    # About ten layers in sequence, each with a relative rounding error of 2^-8.
    assert (out - expected).norm() <= 10 * 2**-8 * expected.norm()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("pos_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("training", [False, True])
def test_half_precision_model(pos_dtype, training):
    model, data = small_weights(), ragged([13, 1, 22], dtype=torch.bfloat16)
    data.pos = data.pos.to(pos_dtype)
    tree = tree_of(model, data)
    exact = copy.deepcopy(model).double().train(training)
    expected = exact(
        *(data.x.double(), data.pos.double(), data.edge_index), ptr=data.ptr, tree=tree
    )
    model = model.bfloat16().train(training)
    out = model(data)
    assert out.dtype == torch.bfloat16
    assert (out - expected).norm() <= 10 * 2**-8 * expected.norm()
    out.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_perfect_layout_differs_by_its_repeated_points():
    # Attention includes the rows of repeated points, so the results differ.
    perfect, balanced = make(layout="perfect"), make()
    perfect.load_state_dict(balanced.state_dict())
    full, partial = cloud(16), cloud(13)
    assert tree_of(perfect, full).mask.all()
    assert not tree_of(perfect, partial).mask.all()
    assert_close(perfect(full), balanced(full), 1e-12)
    assert not torch.allclose(perfect(partial), balanced(partial))


def test_strides_of_one_pool_nothing():
    model = make((1,))
    assert not [name for name in model.state_dict() if name.startswith("pools")]
    rows, _ = make((1,), decode=False)(cloud(13))
    assert len(rows) == 13


@pytest.mark.parametrize(
    "kwargs",
    [
        {"hidden_channels": [16, 32, 32], "ball_sizes": 8},
        {"hidden_channels": 16, "ball_sizes": [8, 8, 8]},
        {"hidden_channels": 16, "ball_sizes": 8, "strides": [2, 2]},
        {"hidden_channels": 16, "ball_sizes": 8, "enc_depths": [1, 2, 1]},
        {"hidden_channels": 16, "ball_sizes": 8, "enc_heads": [1, 2, 4]},
        {"hidden_channels": 16, "ball_sizes": 8, "dec_depths": (1, 1)},
        {"hidden_channels": 16, "ball_sizes": 8, "dec_heads": (2, 4)},
    ],
    ids=str,
)
def test_levels_follow_from_any_list(kwargs):
    model = Erwin(2, **kwargs)
    assert len(model.encoder) == len(model.hidden_channels) == 3
    assert len(model.decoder) == len(model.pools) == len(model.unpools) == 2
    config = model.tree_config
    assert config.ball_sizes == (8, 8, 8)
    assert config.strides == (2, 2)
    depths = kwargs.get("enc_depths", [2, 2, 2])
    assert [len(stage.blocks) for stage in model.encoder] == depths
    depths = kwargs.get("dec_depths", (2, 2))
    assert tuple(len(stage.blocks) for stage in model.decoder) == depths
    data = cloud(22, dtype=torch.float32)
    assert model(data).shape == (22, 16)


def test_default_heads_have_16_channels():
    model = Erwin(2, [8, 32, 64], ball_sizes=8)
    heads = [stage.blocks[0].attention.heads for stage in model.encoder]
    assert heads == [1, 2, 4]
    assert [stage.blocks[0].attention.heads for stage in model.decoder] == [1, 2]


@pytest.mark.parametrize("decode", [True, False])
def test_without_out_channels_there_is_no_head(decode):
    model = Erwin(2, [16, 32], ball_sizes=8, decode=decode)
    out = model(cloud(22, dtype=torch.float32))
    assert (out if decode else out[0]).size(1) == (16 if decode else 32)
    assert not [name for name, _ in model.named_parameters() if name.startswith("head")]


def test_tree_transform_fits():
    model = make((4, 2), ball_sizes=(16, 8, 4), rotate=-30.0, layout="perfect")
    assert model.tree_transform().config == model.tree_config
    data = model.tree_transform()(cloud(22))
    assert str(model.tree_config) == data.tree_config


def test_backend_reaches_every_block():
    reference, sdpa = make(backend="reference"), make(backend="sdpa")
    data = ragged([13, 1, 22])
    chosen = {m.backend for m in reference.modules() if hasattr(m, "backend")}
    assert chosen == {"reference"}
    assert_close(sdpa(data), reference(data), 1e-12)


def test_reset_parameters():
    torch.manual_seed(0)
    fresh = Erwin(**arguments(hidden_channels=[32, 64, 64]))
    model = copy.deepcopy(fresh)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name != "length_scale":  # the unit of length is set, not learned
                tensor.fill_(7)
    model.reset_parameters()
    state = model.state_dict()
    for name, expected in fresh.state_dict().items():
        if (expected == expected.view(-1)[0]).all():
            assert torch.equal(state[name], expected), name
        else:
            assert not torch.equal(state[name], expected), name
            assert state[name].abs().max() < 2 * expected.abs().max(), name


def test_repr():
    model = Erwin(2, [16, 32], out_channels=3, ball_sizes=8)
    assert repr(model) == (
        "Erwin(2, [16, 32], out_channels=3, ball_sizes=[8, 8], strides=[2])"
    )


class OwnMixer(torch.nn.Module):
    def __init__(self, channels, heads, ball_size, dim):
        super().__init__()


@pytest.mark.parametrize("kwargs, text", [
    ({"norm": "batch"}, "norm='batch'"),
    ({"block_norm": None}, "block_norm=None"),
    ({"norm": torch.nn.LayerNorm}, "norm=LayerNorm"),
    ({"distance": "relative"}, "distance='relative'"),
    ({"attention": [OwnMixer, "ball"]}, "attention=[OwnMixer, 'ball']"),
    ({"attention": partial(OwnMixer)}, "attention=partial"),
    (
        {"norm": "rms", "attention": OwnMixer},
        "attention=OwnMixer, norm='rms'",
    ),
], ids=str)  # fmt: skip
def test_repr_shows_what_is_not_the_default(kwargs, text):
    model = Erwin(2, [16, 32], out_channels=3, ball_sizes=8, **kwargs)
    assert repr(model).endswith(f"strides=[2], {text})")
    assert repr(pickle.loads(pickle.dumps(model))) == repr(model)


BAD = {
    "no list": ({"hidden_channels": 16}, "number of levels is unknown"),
    "empty list": ({"hidden_channels": []}, "'hidden_channels' must not be empty"),
    "lists disagree": (
        {"ball_sizes": [8, 8, 8]},
        r"'ball_sizes' must have one value or 2 \(got 3: .*'hidden_channels' is for 2",
    ),
    "in_channels": (
        {"in_channels": -1},
        r"'in_channels' must be at least 0 \(got -1\)",
    ),
    "hidden_channels": (
        {"hidden_channels": [16, 0]},
        r"'hidden_channels' must be at least 1 \(got 0\)",
    ),
    "out_channels": ({"out_channels": 0}, r"'out_channels' must be at least 1 \(got 0"),
    "ball_sizes": ({"ball_sizes": 0}, r"'ball_sizes' must be at least 1 \(got 0\)"),
    "number of ball_sizes": (
        {"ball_sizes": [8]},
        r"'ball_sizes' must have .* 2 \(got 1",
    ),
    "strides": ({"strides": [0]}, r"'strides' must be at least 1 \(got 0\)"),
    "number of strides": ({"strides": []}, r"'strides' must have one value or 1"),
    "enc_depths": ({"enc_depths": 0}, r"'enc_depths' must be at least 1 \(got 0\)"),
    "number of enc_depths": (
        {"enc_depths": [2]},
        "'enc_depths' must have one value or 2",
    ),
    "enc_heads": (
        {"enc_heads": [3, 2]},
        r"'enc_heads' must divide .* \(got 3 heads for 16",
    ),
    "number of enc_heads": ({"enc_heads": [2]}, "'enc_heads' must have one value or 2"),
    "no enc_heads": ({"enc_heads": 0}, r"'enc_heads' must be at least 1 \(got 0\)"),
    "dec_depths": ({"dec_depths": 0}, r"'dec_depths' must be at least 1 \(got 0\)"),
    "number of dec_depths": (
        {"dec_depths": []},
        "'dec_depths' must have one value or 1",
    ),
    "dec_heads": ({"dec_heads": 5}, r"'dec_heads' must divide .* \(got 5 heads for 16"),
    "number of dec_heads": ({"dec_heads": []}, "'dec_heads' must have one value or 1"),
    "dim": ({"dim": 0}, r"'dim' must be at least 1 \(got 0\)"),
    "rotate": (
        {"rotate": 400.0},
        r"'rotate' must be an angle in degrees \(got 400.0\)",
    ),
    "rotate is no number": ({"rotate": float("nan")}, r"'rotate'.*\(got nan\)"),
    "mp_steps": ({"mp_steps": -1}, r"'mp_steps' must be at least 0 \(got -1\)"),
    "mlp_ratio": ({"mlp_ratio": 0}, r"'mlp_ratio' must be at least 1 \(got 0\)"),
    "layout": ({"layout": "flat"}, r"'layout' must be one of .* \(got 'flat'\)"),
    "layout needs powers of two": (
        {"layout": "perfect", "strides": 3},
        r"layout='perfect' needs powers of two in 'strides' \(got 3\)",
    ),
    "backend": ({"backend": "flash"}, r"'backend' must be one of .* \(got 'flash'\)"),
    "checkpoint": (
        {"checkpoint": [True, False, True]},
        r"'checkpoint' must have one value or 2 \(got 3",
    ),
    "number of checkpoint": (
        {"checkpoint": [True]},
        r"'checkpoint' must have one value or 2 \(got 1: \[True\]\)",
    ),
    "channels over a stride of 1": (
        {"strides": 1},
        r"'hidden_channels' must not change over a stride of 1 \(got 16 and 32",
    ),
}


def with_defaults(kwargs):
    return {"in_channels": 2, "hidden_channels": [16, 32], "ball_sizes": 8, **kwargs}


@pytest.mark.parametrize("kwargs, message", BAD.values(), ids=[*BAD])
def test_bad_argument(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Erwin(**with_defaults(kwargs))


COUNTS = ["in_channels", "hidden_channels", "out_channels", "ball_sizes", "strides"]
COUNTS += ["enc_depths", "enc_heads", "dec_depths", "dec_heads", "dim", "mp_steps"]


@pytest.mark.parametrize("value", [2.0, "2", True], ids=repr)
@pytest.mark.parametrize("name", [*COUNTS, "mlp_ratio"])
def test_argument_of_other_type(name, value):
    with pytest.raises(TypeError, match=f"'{name}' must (be an integer|hold integers)"):
        Erwin(**with_defaults({"enc_depths": [2, 2], name: value}))


def test_checkpoint_of_other_type():
    with pytest.raises(TypeError, match=r"'checkpoint' must be a bool .*\(got 1\)"):
        Erwin(**with_defaults({"checkpoint": 1}))


STALE = {
    "fewer nodes": lambda data: data.subgraph(torch.arange(20)),
    "other order of nodes": lambda data: data.subgraph(torch.arange(22).flip(0)),
    "other ball sizes": lambda data: make((2,), ball_sizes=(8, 8)).tree_transform()(
        data
    ),
    "other strides": lambda data: make((4,)).tree_transform()(data),
    "other layout": lambda data: make((2,), layout="perfect").tree_transform()(data),
    "other rotation": lambda data: make((2,), rotate=0.0).tree_transform()(data),
}


@pytest.mark.parametrize("change", STALE.values(), ids=[*STALE])
def test_tree_that_does_not_fit_is_refused(change):
    model = make((2,))
    data = change(model.tree_transform()(cloud(22)))
    with pytest.raises(ValueError, match=r"tree_transform|apply 'BallTree' again"):
        model(data)


def test_tree_of_other_clouds_is_refused():
    model, data = make(), ragged([13, 9])
    other = tree_of(model, ragged([9, 13]))
    message = r"'ptr' must be .* the tree was built for, \[0, 9, 22\] \(got \[0, 13, 22"
    with pytest.raises(ValueError, match=message):
        model(data.x, data.pos, data.edge_index, ptr=data.ptr, tree=other)


def test_tree_of_other_configuration_is_refused():
    model, data = make(), cloud(13)
    tree = ball_tree(data.pos, ball_sizes=8, strides=[2, 2])
    with pytest.raises(ValueError, match=r"built for 'balls=8,8,8.*needed is 'balls=4"):
        model(data.x, data.pos, data.edge_index, tree=tree)


@pytest.mark.parametrize(
    "channels, heads", [(8, 1), (32, 2), (50, 2), (57, 3), (67, 1)]
)
def test_default_heads_divide_the_channels(channels, heads):
    model = Erwin(0, [channels], ball_sizes=8)
    assert model.encoder[0].blocks[0].attention.heads == heads
