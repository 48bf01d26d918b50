"""Erwin, compared with an oracle that follows the paper one cloud at a time."""

import copy
import io
import pickle

import pytest
import torch
from clouds import cloud, ragged, randomised
from erwins import (
    EVERY_SIZE,
    EVERY_TREE,
    MIXED,
    arguments,
    assert_close,
    every_tree,
    make,
    tree_of,
)
from oracles.erwin import erwin as oracle
from torch_geometric.data import Batch, Data
from torch_geometric.nn import global_mean_pool

from torch_geometric_erwin.nn import Erwin


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
