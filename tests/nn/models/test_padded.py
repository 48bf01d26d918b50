"""Padding changes only sizes: outputs, gradients and statistics stay the same."""

import copy

import pytest
import torch
from clouds import ragged, randomised
from compiled import no_recompilation
from devices import without_values
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch

from torch_geometric_erwin import Tree, masked_mean, pad_batch
from torch_geometric_erwin.nn import Erwin

# Batches in training with gradients of positions: clouds depend on each other, as told.
pytestmark = pytest.mark.filterwarnings(
    "ignore:in training, a norm over the batch:UserWarning"
)

BATCHES = {
    "ragged": [20, 0, 7, 1, 33],
    "one point": [1],
    "no points": [0, 0],
    "a full ball": [8],
    "one more": [9],
}
MODELS = {
    "two strides": {"strides": (2, 2)},
    "no rotation": {"strides": (4, 2), "rotate": 0.0},
    "stride three": {"strides": 3},
    "flat": {"strides": 1, "hidden_channels": [8, 8]},
    "one level": {"strides": (), "hidden_channels": [8]},
    "unequal balls": {"ball_sizes": [8, 5, 3], "strides": (2, 2)},
    "no messages": {"mp_steps": 0, "strides": (2, 2)},
    "no features": {"in_channels": 0, "strides": 2},
    "recomputed": {"checkpoint": True, "strides": 2},
    "sdpa": {"backend": "sdpa", "strides": 2},
    "forces": {"strides": 2},
    "norms of rows": {"strides": 2, "norm": "layer"},
    "norms of clouds": {"strides": 2, "norm": "graph", "block_norm": "graph"},
}
every_batch = pytest.mark.parametrize("sizes", BATCHES.values(), ids=[*BATCHES])
every_model = pytest.mark.parametrize("name", MODELS)
every_mode = pytest.mark.parametrize("training", [True, False])


def make(name, **kwargs):
    # The norm over the batch must leave out the rows that padding adds.
    options = {"in_channels": 2, "mp_steps": 1, "norm": "batch"}
    options |= {**MODELS[name], **kwargs}
    strides = options["strides"]
    levels = len(strides) + 1 if isinstance(strides, tuple) else 2
    options = {"hidden_channels": [8, 16, 32][:levels], "ball_sizes": 8, **options}
    return randomised(Erwin(out_channels=3, **options))


def batch_for(model, sizes, dtype=torch.float64):
    transform = model.tree_transform()
    clouds = ragged(sizes, channels=model.in_channels, dtype=dtype).to_data_list()
    for data in clouds:
        data.y = torch.ones(data.num_nodes, 3, dtype=dtype)
    return Batch.from_data_list([transform(data) for data in clouds])


def padded(batch, nodes=30, graphs=2, edges=50):
    """Pads a batch with this many more nodes, clouds and edges."""
    n, g, e = batch.num_nodes, batch.num_graphs, batch.num_edges
    return pad_batch(batch, n + nodes, g + graphs, e + edges)


def step(model, batch, forces=False):
    """The outputs of the real nodes, and the gradients of positions and weights."""
    mask = getattr(batch, "node_mask", None)
    batch.pos.requires_grad_(forces)
    out = model(batch)
    if mask is None:
        mask = torch.ones(len(out), dtype=torch.bool)
    masked_mean((out - batch.y).square(), mask).backward()
    # A weight that no row has used has no gradient.
    grads = [
        torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()
    ]
    if forces:
        grads.append(batch.pos.grad[mask])
        assert not batch.pos.grad[~mask].any()
    return out[mask].detach(), grads


def assert_close(actual, expected, tolerance=1e-10):
    """The tolerance is relative to the norm; sums have another order."""
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= tolerance * (1 + expected.norm())


def assert_same_step(model, batch, other, tolerance=1e-10, forces=False):
    twin = copy.deepcopy(model)
    expected, expected_grads = step(model, batch, forces)
    out, grads = step(twin, other, forces)
    assert_close(out, expected, tolerance)
    largest = max([1.0, *(float(g.norm()) for g in expected_grads)])
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert (grad - expected_grad).norm() <= tolerance * largest
    for a, b in zip(twin.buffers(), model.buffers(), strict=True):
        assert_close(a.double(), b.double(), tolerance)


@every_mode
@every_batch
@every_model
def test_padding_changes_nothing(name, sizes, training):
    model = make(name).train(training)
    batch = batch_for(model, sizes)
    assert_same_step(model, batch, padded(batch), forces=name == "forces")


@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=5),
    extra=st.tuples(st.integers(1, 90), st.integers(1, 4), st.integers(0, 100)),
    strides=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    ball_size=st.integers(1, 20),
    rotate=st.sampled_from([0.0, 30.0]),
)
@settings(max_examples=60)
def test_any_padding_changes_nothing(sizes, extra, strides, ball_size, rotate):
    model = randomised(
        Erwin(
            *(2, [8] * (len(strides) + 1), 3),
            ball_sizes=ball_size,
            strides=strides,
            enc_depths=2,
            dec_depths=1,
            mp_steps=1,
            rotate=rotate,
        )
    )
    batch = batch_for(model, sizes)
    assert_same_step(model, batch, padded(batch, *extra))


@every_mode
def test_single_precision(training):
    model = make("two strides").float().train(training)
    batch = batch_for(model, BATCHES["ragged"], torch.float32)
    assert_same_step(model, batch, padded(batch), tolerance=1e-6)


def test_coarse_rows():
    model = make("two strides", decode=False).eval()
    batch = batch_for(model, BATCHES["ragged"])
    expected, cloud = model(batch)
    other = padded(batch)
    out, padded_cloud = model(other)
    real = other.graph_mask[padded_cloud]
    assert_close(out[real], expected)
    assert torch.equal(padded_cloud[real], cloud)


def test_tree_as_an_argument():
    model = make("two strides").train()
    batch = batch_for(model, BATCHES["ragged"])
    other = padded(batch)
    tree = Tree.from_data(other, model.tree_config)
    out = copy.deepcopy(model)(
        other.x, other.pos, other.edge_index, ptr=other.ptr, tree=tree
    )
    assert_close(out[other.node_mask], model(batch))


def test_values_of_added_nodes_do_not_matter():
    model = make("two strides").train()
    batch = padded(batch_for(model, BATCHES["ragged"]))
    other = batch.clone()
    other.x[~other.node_mask] = 1e3
    other.pos[~other.node_mask] -= 50.0
    twin = copy.deepcopy(model)
    expected, grads = step(model, batch)
    out, other_grads = step(twin, other)
    assert_close(out, expected)
    for a, b in zip(other_grads, grads, strict=True):
        assert_close(a, b)
    for a, b in zip(twin.buffers(), model.buffers(), strict=True):
        assert_close(a.double(), b.double())


def test_mask_is_needed(monkeypatch):
    """Norms that include the added rows give another result."""
    model = make("two strides").train()
    batch = batch_for(model, BATCHES["ragged"])
    other = padded(batch)
    expected = copy.deepcopy(model)(batch)

    def every_row(tree, level):
        return torch.ones(tree.num_rows(level), dtype=torch.bool)

    monkeypatch.setattr(Tree, "real_rows", every_row)
    assert (model(other)[other.node_mask] - expected).norm() > 1e-3 * expected.norm()


@pytest.mark.parametrize(
    "training", [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_one_static_graph_for_all_sizes(training):
    torch.compiler.reset()
    torch.manual_seed(0)
    # One block of every kind, so that compiling is fast.
    model = make("no features", enc_depths=[2, 1], dec_depths=1).train(training)
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    for i, sizes in enumerate([[40, 27, 0, 5], [21], [80], [1, 1, 1, 1], [0, 9]]):
        batch = pad_batch(batch_for(model, sizes), 100, 5, 300)
        with no_recompilation(i):
            out = compiled(batch)
            masked_mean((out - batch.y).square(), batch.node_mask).backward()
        expected, _ = step(eager, batch_for(model, sizes))
        assert_close(out[batch.node_mask], expected)
    for a, b in zip(model.parameters(), eager.parameters(), strict=True):
        assert_close(a.grad, b.grad)
    for a, b in zip(model.buffers(), eager.buffers(), strict=True):
        assert_close(a.double(), b.double())
    torch.compiler.reset()


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_padding_reads_nothing(device):
    model = make("two strides").train(device == "meta")
    batch = batch_for(model, BATCHES["ragged"])
    with without_values(device) as move:
        model, batch = move(model), move(batch)
        other = padded(batch)
        assert other.pos.device.type == device
        loss = masked_mean(model(other), other.node_mask)
        if device == "meta":
            loss.backward()
