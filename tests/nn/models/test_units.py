"""Positions in any unit: the length scale, extents and relative distances."""

import copy
import io
import math
import pickle
import warnings

import pytest
import torch
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.loader import DataLoader

from torch_geometric_erwin import ball_tree, knn_graph
from torch_geometric_erwin.nn import BallAttention, BatchNorm, Erwin, ErwinBlock


def clouds(sizes, dim=3, scale=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    pos = [scale * torch.randn(n, dim, generator=g) for n in sizes]
    return [Data(pos=p, x=torch.randn(len(p), 2, generator=g)) for p in pos]


def erwin(**kwargs):
    torch.manual_seed(0)
    arguments = {"ball_sizes": 8, "mp_steps": 0, "norm": "graph", **kwargs}
    return Erwin(2, [16, 32], 3, **arguments).eval()


def extent(rows):
    # Computed from the definition, in float64.
    rows = [[float(v) for v in row] for row in rows]
    mean = [sum(axis) / len(rows) for axis in zip(*rows)]
    square = sum((v - m) ** 2 for row in rows for v, m in zip(row, mean))
    return (square / len(rows)) ** 0.5


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
@pytest.mark.parametrize("sizes", [[0], [1], [2], [7], [8], [9], [0, 30, 1, 8]])
def test_extents_are_root_mean_square_distances(sizes, dim):
    batch = Batch.from_data_list(clouds(sizes, dim))
    tree = ball_tree(batch.pos, ptr=batch.ptr, ball_sizes=[8, 4], strides=[2])
    pos = batch.pos.double()
    for level, found in zip(tree.levels(pos), tree.extents(pos)):
        balls = level.pos.split(level.ball_len.tolist())
        expected = [extent(rows.tolist()) for rows in balls]
        assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        balls = level.pos[level.perm_rot].split(level.ball_len.tolist())
        expected = [extent(rows.tolist()) for rows in balls]
        found = level.rotated().extent
        assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_extents_have_gradients_of_any_order():
    generator = torch.Generator().manual_seed(0)
    pos = torch.rand(11, 2, dtype=torch.float64, generator=generator)
    pos[8:] = pos[8]  # a ball without extent
    tree = ball_tree(pos, ball_sizes=4)
    pos.requires_grad_()

    def extents(pos):
        return tree.extents(pos)[0][:2]

    assert torch.autograd.gradcheck(extents, pos)
    assert torch.autograd.gradgradcheck(extents, pos)
    (gradient,) = torch.autograd.grad(tree.extents(pos)[0].sum(), pos)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("rotated", [False, True])
def test_relative_offsets(rotated):
    pos = torch.randn(21, 3, dtype=torch.float64)
    pos[:4] = 0.5  # some points coincide
    (level,) = ball_tree(pos, ball_sizes=4).levels(pos)
    level = level.rotated() if rotated else level
    perm = torch.arange(21) if level.perm is None else level.perm
    expected = torch.empty_like(pos)
    for rows in perm.split(level.ball_len.tolist()):
        size = extent(level.pos[rows].tolist()) or 1.0
        expected[rows] = (level.pos[rows] - level.pos[rows].mean(0)) / size
    torch.testing.assert_close(level.relative_offset, expected)


@pytest.mark.parametrize("backend", [None, "reference", "sdpa"])
def test_relative_attention_sees_no_scale(backend):
    """Each ball may have a unit of its own."""
    pos, x = torch.randn(24, 3), torch.randn(24, 16)
    tree = ball_tree(pos, ball_sizes=8, rotate=0)
    (level,) = tree.levels(pos)
    factor = 10.0 ** torch.tensor([-3.0, 0.0, 2.0]).repeat_interleave(8)
    scaled = torch.empty_like(pos)
    scaled[tree.global_perm()] = level.pos * factor[:, None]
    (other,) = tree.levels(scaled)
    for distance, same in (("relative", True), ("absolute", False)):
        layer = BallAttention(16, 2, 8, backend=backend, distance=distance)
        with torch.no_grad():
            layer.lin_pos.weight.normal_()
        out = layer(x, other)
        assert torch.allclose(layer(x, level), out, atol=1e-5) == same
    # The output for the middle ball has not changed, up to rounding.
    torch.testing.assert_close(layer(x, level)[8:16], out[8:16], atol=1e-5, rtol=1e-5)


def test_relative_attention_is_absolute_attention_of_scaled_positions():
    """Compares with the layer on positions in units of the ball's extent."""
    pos, x = torch.randn(8, 3), torch.randn(8, 16)
    tree = ball_tree(pos, ball_sizes=8)
    (size,) = tree.extents(pos)
    block = ErwinBlock(16, 2, 8)
    (level,), (unit,) = tree.levels(pos), tree.levels(pos / size)
    expected = block(x, unit)
    block.attention.distance = "relative"
    torch.testing.assert_close(block(x, level), expected)


def test_relative_model_trains_compiles_and_has_second_order_gradients():
    model = erwin(distance="relative", dim=2).train()
    batch = Batch.from_data_list(clouds([30, 0, 1, 17], dim=2))
    batch = model.tree_transform()(batch)
    pos = batch.pos.requires_grad_()
    (force,) = torch.autograd.grad(model(batch).sum(), pos, create_graph=True)
    force.square().sum().backward()
    assert all(
        p.grad.isfinite().all() for p in model.parameters() if p.grad is not None
    )
    assert batch.pos.grad.isfinite().all()
    model.eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(batch), model(batch))


@pytest.mark.parametrize("wrong", ["far", None, 1])
def test_distance_is_checked(wrong):
    with pytest.raises((TypeError, ValueError), match="'distance'"):
        erwin(distance=wrong)


@pytest.mark.parametrize("argument", [{"distance": "relative"}, {"backend": "sdpa"}])
def test_arguments_of_ball_attention_need_it(argument):
    def own(channels, heads, ball_size, dim):
        return torch.nn.Identity()

    with pytest.raises(ValueError, match=f"'{next(iter(argument))}' is for"):
        erwin(attention=own, **argument)


# ---- length scale


@pytest.mark.parametrize("mp_steps", [0, 1])
def test_the_unit_of_positions_makes_no_difference(mp_steps):
    metres = Batch.from_data_list(clouds([40, 1, 23]))
    edges = knn_graph(metres.pos, 4, ptr=metres.ptr)
    model = erwin(mp_steps=mp_steps)
    model.set_length_scale(metres)
    expected = model(metres.x, metres.pos, edges, ptr=metres.ptr)
    millimetres = metres.clone()
    millimetres.pos = 1024 * metres.pos  # exact in binary
    model.set_length_scale(millimetres)
    out = model(metres.x, millimetres.pos, edges, ptr=metres.ptr)
    assert torch.equal(out, expected)


def test_length_scale_is_the_power_of_two_at_the_median_extent():
    data = clouds([40, 1, 0, 23, 16])
    model = erwin()
    found = []
    for cloud in data:
        config = model.tree_config
        tree = ball_tree(cloud.pos, ball_sizes=config.ball_sizes, strides=[2])
        found += [e for e in tree.extents(cloud.pos)[0].tolist() if e > 0]
    median = sorted(found)[(len(found) - 1) // 2]
    expected = 2.0 ** round(math.log2(median))
    with_trees = [model.tree_transform()(cloud) for cloud in data]
    for source in (
        data,
        data[::-1],
        Batch.from_data_list(data),
        with_trees,
        Batch.from_data_list(with_trees),
        DataLoader(data, batch_size=2, shuffle=True),
        (cloud for cloud in data),
        torch.utils.data.Subset(data, range(len(data))),
    ):
        assert model.set_length_scale(source) is model
        assert float(model.length_scale) == expected


def test_length_scale_as_a_tensor():
    for length in (torch.tensor(0.25), torch.tensor(0.25, dtype=torch.float64)):
        assert erwin().set_length_scale(length).length_scale == 0.25
    for wrong in (torch.tensor([0.25]), torch.tensor(3), torch.tensor(True)):
        with pytest.raises(TypeError, match="the length scale must be given by"):
            erwin().set_length_scale(wrong)


def test_length_scale_of_heterogeneous_data():
    data = HeteroData()
    data["atom"].pos = torch.randn(20, 3)
    model = erwin()
    model.set_length_scale(data["atom"])
    expected = model.length_scale.clone()
    assert torch.equal(
        model.set_length_scale(Data(pos=data["atom"].pos)).length_scale, expected
    )


def test_length_scale_is_saved_and_old_state_has_none():
    model = erwin()
    model.set_length_scale(0.37)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    other = erwin()
    other.load_state_dict(state)
    assert float(other.length_scale) == pytest.approx(0.37)
    del state["length_scale"]
    other.load_state_dict(state)
    assert float(other.length_scale) == 1
    inside = torch.nn.ModuleDict({"erwin": other})
    inside.load_state_dict({f"erwin.{k}": v for k, v in state.items()})
    assert float(copy.deepcopy(model).length_scale) == pytest.approx(0.37)


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        (0, ValueError, "positive.*got 0"),
        (-1.0, ValueError, "positive.*got -1"),
        (float("nan"), ValueError, "positive.*got nan"),
        (float("inf"), ValueError, "positive.*got inf"),
        (1e-60, ValueError, "positive.*float32.*got 1e-60"),
        (True, TypeError, "length scale.*'bool'"),
        (None, TypeError, "length scale.*'NoneType'"),
        ("data", TypeError, "length scale.*'str'"),
        (torch.rand(3, 3), TypeError, "length scale.*'Tensor'"),
        (HeteroData(), TypeError, "length scale.*'HeteroData'"),
        ([], ValueError, "no ball has two different points"),
        ([Data(pos=torch.ones(9, 3))], ValueError, "no ball has two different points"),
        ([Data(x=torch.ones(9, 3))], ValueError, "'data.pos' is missing"),
        (HeteroData(a={"x": torch.ones(9)})["a"], ValueError, "'data.pos' is missing"),
        ([Data(pos=torch.ones(9, 2))], ValueError, "must have 3 coordinates"),
        ([torch.ones(9, 3)], TypeError, "length scale.*'Tensor'"),
        ([Data(pos=torch.full((9, 3), torch.nan))], ValueError, "'pos' must be finite"),
    ],
)
def test_bad_sources_are_named(source, kind, message):
    model = erwin()
    with pytest.raises(kind, match=message):
        model.set_length_scale(source)
    assert float(model.length_scale) == 1


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_far_units_are_told_once(scale):
    (data,) = clouds([40], scale=scale)
    model = erwin()
    with pytest.warns(UserWarning, match="set_length_scale") as told:
        model(data.x, data.pos)
    number = float(str(told[0].message).rsplit("(", 1)[1].split(")")[0])
    tree = ball_tree(data.pos, ball_sizes=8)
    assert number == pytest.approx(float(tree.extents(data.pos)[0].median()), rel=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(data.x, data.pos)
    erwin().set_length_scale(number)(data.x, data.pos)  # a warning is an error


def test_far_units_under_transforms():
    (data,) = clouds([10], scale=1e4)
    model = erwin()

    def energy(pos):
        return model(data.x, pos).sum()

    with pytest.warns(UserWarning, match="set_length_scale"):
        torch.func.grad(energy)(data.pos)
    model = erwin()
    tree = ball_tree(data.pos, ball_sizes=[8, 8], strides=[2])
    with pytest.warns(UserWarning, match="set_length_scale"):
        torch.vmap(lambda pos: model(data.x, pos, tree=tree))(data.pos[None])


@pytest.mark.parametrize("sizes", [[0], [1], [1, 1, 1]])
def test_clouds_without_extent_are_no_reason_to_warn(sizes):
    batch = Batch.from_data_list(clouds(sizes, scale=1e6))
    erwin()(batch.x, batch.pos, ptr=batch.ptr)


def test_far_points_and_single_points_are_no_reason_to_warn():
    """What counts is the median over balls that have an extent."""
    pos = torch.rand(400, 3)
    pos[7] = 1e6
    model = erwin()
    model(torch.rand(400, 2), pos)
    pos = torch.cat([torch.rand(10, 3), 100 * torch.rand(2000, 3)])
    ptr = torch.tensor([0, *range(10, 2011)])
    model(torch.rand(2010, 2), 0.1 * pos, ptr=ptr)
    (data,) = clouds([10], scale=0.1)
    tree = ball_tree(data.pos, ball_sizes=[8, 8], strides=[2]).pad(4000, 2)
    rows = torch.zeros(4000, 3)
    rows[:10] = data.pos
    model(torch.rand(4000, 2), rows, tree=tree)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_length_scale_stays_in_single_precision(dtype):
    for length in (1e-9, 1e5, 0.3):
        model = erwin().set_length_scale(length).to(dtype)
        assert model.length_scale.dtype == torch.float32
        assert float(model.length_scale) == torch.tensor(length)
        other = pickle.loads(pickle.dumps(model))
        assert torch.equal(other.length_scale, model.length_scale)
    (data,) = clouds([20], scale=1e5)
    model = erwin().set_length_scale(1e5)
    expected = model(data.x, data.pos)
    out = model.to(dtype)(data.x.to(dtype), data.pos)
    torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1)


def test_half_positions_do_not_overflow():
    (data,) = clouds([20], scale=100.0)
    half = data.pos.half()
    model = erwin(distance="relative").set_length_scale(1e-3)
    with pytest.warns(UserWarning, match="set_length_scale"):
        expected = model(data.x, half.float())
    out = model(data.x, half)
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("factor", [1e3, 3e-4])
def test_extents_of_half_precision(factor):
    pos = (torch.rand(32, 3) * factor).half()
    tree = ball_tree(pos.float(), ball_sizes=8)
    torch.testing.assert_close(
        tree.extents(pos)[0].float(), tree.extents(pos.float())[0], rtol=5e-2, atol=0
    )
    (level,), (exact,) = tree.levels(pos), tree.levels(pos.float())
    out = level.relative_offset
    assert out.dtype == torch.float16
    expected = exact.relative_offset
    torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1)


def test_far_from_the_origin_no_digit_is_lost():
    """Neighbours of a lattice at 2^17, in single precision."""
    axis = torch.arange(6.0)
    pos = torch.cartesian_prod(axis, axis, axis)
    x = torch.randn(len(pos), 2)
    model = erwin().set_length_scale(Data(pos=0.1 * pos))
    tree = model.tree_transform()(Data(pos=pos, x=x))
    near = model(tree)
    far = tree.clone()
    far.pos = pos + 2.0**17
    torch.testing.assert_close(model(far), near, rtol=0, atol=0)


def test_memory_that_comes_later_has_a_length_scale():
    with torch.device("meta"):
        model = Erwin(2, [16], ball_sizes=8, mp_steps=0)
    model = model.to_empty(device="cpu")
    assert float(model.length_scale) == 1


def test_a_part_of_a_state_leaves_the_length_scale():
    model = erwin().set_length_scale(5.0)
    state = model.state_dict()
    part = {k: v for k, v in state.items() if k.startswith("encoder")}
    for some in (part, {}):
        model.load_state_dict(some, strict=False)
        assert float(model.length_scale) == 5


def test_far_units_of_an_ensemble():
    (data,) = clouds([10], scale=1e4)
    models = [erwin() for _ in range(3)]
    weights, buffers = torch.func.stack_module_state(models)
    tree = ball_tree(data.pos, ball_sizes=[8, 8], strides=[2])

    def call(weights, buffers):
        state = {**weights, **buffers}
        kwargs = {"tree": tree}
        return torch.func.functional_call(models[0], state, (data.x, data.pos), kwargs)

    with pytest.warns(UserWarning, match="set_length_scale"):
        out = torch.vmap(call)(weights, buffers)
    assert out.shape == (3, 10, 3)


# ---- coupled clouds


def energies(model, sizes=(9, 6)):
    batch = Batch.from_data_list(clouds(sizes))
    return model(batch.x, batch.pos.requires_grad_(), ptr=batch.ptr)


@pytest.mark.parametrize("place", ["norm", "block_norm"])
def test_coupled_clouds_are_told_once(place):
    model = erwin(**{place: "batch"}).train()
    with pytest.warns(UserWarning, match="other clouds"):
        energies(model)
    energies(model)


def test_uncoupled_clouds_are_not_told():
    energies(erwin(norm="batch"))  # evaluation
    energies(erwin(norm="batch").train(), sizes=(9,))
    energies(erwin(norm="graph").train())
    energies(erwin(norm="layer", block_norm="layer").train())
    energies(erwin(norm="batch").train(), sizes=(9, 0, 0))
    frozen = erwin(norm="batch").train()
    for norm in frozen.modules():
        if isinstance(norm, BatchNorm):
            norm.eval()
    energies(frozen)
    batch = Batch.from_data_list(clouds([9]))
    model = erwin(norm="batch").train()
    tree = ball_tree(batch.pos, ball_sizes=[8, 8], strides=[2]).pad(20, 3)
    pos = torch.cat([batch.pos, torch.zeros(11, 3)]).requires_grad_()
    model(torch.rand(20, 2), pos, tree=tree)


def test_a_norm_over_the_batch_that_comes_later_is_told():
    model = erwin(norm="layer").train()
    energies(model)
    with pytest.warns(UserWarning, match="norm='batch'"):
        model.load_state_dict(erwin(norm="batch").state_dict())
    with pytest.warns(UserWarning, match="other clouds"):
        energies(model)
    state = erwin(norm="layer").state_dict()
    model.load_state_dict(state)  # and back
    assert model.state_dict().keys() == state.keys()
    energies(model)


def test_warnings_are_at_the_line_that_calls_the_model():
    (data,) = clouds([40], scale=1e4)
    with pytest.warns(UserWarning, match="set_length_scale") as told:
        erwin()(data.x, data.pos)
    assert told[0].filename == __file__
    with pytest.warns(UserWarning, match="other clouds") as told:
        energies(erwin(norm="batch").train())
    assert told[0].filename == __file__
