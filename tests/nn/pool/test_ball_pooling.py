from dataclasses import replace

import pytest
import torch
from clouds import randomised
from oracles import erwin as plain

from torch_geometric_erwin import Level, ball_tree
from torch_geometric_erwin.nn import BallPooling, BallUnpooling
from torch_geometric_erwin.utils.centre import centre_dense

GROUPS = {
    1: [[1], [1, 1, 1]],
    2: [[1], [2], [2, 1], [2, 2, 1, 2, 1]],
    3: [[1], [2], [3], [3, 2, 1, 3]],
    8: [[8, 5], [3], [1, 7]],
}
CASES = [(stride, lengths) for stride, cases in GROUPS.items() for lengths in cases]
every_case = pytest.mark.parametrize("stride, lengths", CASES, ids=str)
every_layer = pytest.mark.parametrize("cls", [BallPooling, BallUnpooling])


def normal(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def groups(lengths):
    return plain.runs(lengths, range(sum(lengths)))


def levels_of(pos, lengths, stride=2):
    """A level and a coarser level with groups of these lengths; each is one ball."""
    group_len = torch.as_tensor(lengths, dtype=torch.int64)
    children, centre = centre_dense(pos, group_len, stride)
    fine, coarse = (
        Level.build(p, torch.tensor([len(p)]), ball_size=max(1, len(p)))
        for p in (pos, centre)
    )
    return fine, replace(coarse, group_len=group_len, children=children)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@every_case
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_pooling_equals_definition(stride, lengths, dim, norm):
    layer = randomised(BallPooling(4, 5, stride, dim, norm)).eval()
    x, pos = normal(sum(lengths), 4), normal(sum(lengths), dim)
    expected = plain.pool(
        layer.state_dict(), list(x), list(pos), groups(lengths), stride
    )
    _, coarse = levels_of(pos, lengths, stride)
    out = (layer(x, coarse), coarse.pos)
    for actual, rows in zip(out, expected, strict=True):
        assert_close(actual, torch.stack(rows))


@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("dim", [1, 3])
def test_levels_of_a_tree_equal_definition(stride, dim):
    pos = normal(23, dim)
    ptr = torch.tensor([0, 13, 13, 14, 23])
    tree = ball_tree(pos, ptr=ptr, ball_sizes=4, strides=[stride])
    fine, coarse = tree.levels(pos)
    lengths = tree.group_len[0].tolist()
    down = randomised(BallPooling(4, 5, stride, dim)).eval()
    up = randomised(BallUnpooling(5, 4, stride, dim)).eval()
    x, rows = normal(23, 4), [*pos[tree.global_perm()]]
    expected, centres = plain.pool(
        down.state_dict(), list(x), rows, groups(lengths), stride
    )
    out = down(x, coarse)
    assert_close(out, torch.stack(expected))
    assert_close(coarse.pos, torch.stack(centres))
    expected = plain.unpool(
        *(up.state_dict(), [*out], list(x), rows, groups(lengths), stride)
    )
    assert_close(up(out, x, fine, coarse), torch.stack(expected))


@every_case
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_unpooling_equals_definition(stride, lengths, dim, norm):
    layer = randomised(BallUnpooling(5, 4, stride, dim, norm)).eval()
    x = normal(len(lengths), 5)
    skip, pos = normal(sum(lengths), 4), normal(sum(lengths), dim)
    expected = plain.unpool(
        *(layer.state_dict(), list(x), list(skip), list(pos), groups(lengths), stride)
    )
    actual = layer(x, skip, *levels_of(pos, lengths, stride))
    assert_close(actual, torch.stack(expected))


def pooled(layer, lengths, real=None):
    x, pos = normal(sum(lengths), 4), normal(sum(lengths), 3)
    _, coarse = levels_of(pos, lengths)
    return layer(x, replace(coarse, real=real))


def unpooled(layer, lengths, real=None):
    n = sum(lengths)
    x, skip, pos = normal(len(lengths), 5), normal(n, 4), normal(n, 3)
    fine, coarse = levels_of(pos, lengths)
    return layer(x, skip, replace(fine, real=real), coarse)


def test_pooling_is_normalised_over_the_rows_in_training():
    layer = BallPooling(4, 5, stride=2, norm="batch")
    out = pooled(layer.double(), [2, 2, 1, 2])
    assert_close(out.mean(0), torch.zeros_like(out[0]))
    # The batch norm adds 1e-5 to a variance of order one.
    assert (out.var(0, correction=0) - 1).abs().max() < 1e-3


def test_unpooling_is_normalised_over_the_rows_in_training():
    layer = BallUnpooling(5, 4, stride=2, norm="batch")
    out = unpooled(layer.double(), [2, 2, 1, 2])
    assert_close(out.mean(0), torch.zeros_like(out[0]))
    assert (out.var(0, correction=0) - 1).abs().max() < 1e-3


@pytest.mark.parametrize("run, cls", [(pooled, BallPooling), (unpooled, BallUnpooling)])
def test_mask_reaches_the_norm(run, cls):
    sizes = (4, 5) if cls is BallPooling else (5, 4)
    layer = randomised(cls(*sizes, stride=2, norm="batch"))
    lengths = [2, 2, 1]
    rows = len(lengths) if cls is BallPooling else sum(lengths)
    mask = torch.arange(rows) != 1
    before = layer.norm.running_mean.clone()
    layer.norm.momentum = 1.0
    out = run(layer, lengths, real=mask)
    layer.norm.train(False)
    # The new running statistics include only the rows that the mask selects.
    counted = (run(layer, lengths) - layer.norm.bias) / layer.norm.weight
    assert_close(counted[mask].mean(0), torch.zeros_like(counted[0]))
    assert not torch.equal(layer.norm.running_mean, before)
    assert out.shape == counted.shape


@pytest.mark.parametrize("training", [False, True])
def test_no_rows(training):
    fine, coarse = levels_of(torch.rand(0, 3), [])
    pool, unpool = BallPooling(4, 5, stride=2), BallUnpooling(5, 4, stride=2)
    x = pool.train(training)(torch.rand(0, 4), coarse)
    assert x.shape == (0, 5)
    assert coarse.pos.shape == (0, 3)
    out = unpool.train(training)(x, torch.rand(0, 4), fine, coarse)
    assert out.shape == (0, 4)


def test_one_pooled_row_in_training_is_finite():
    pool = BallPooling(4, 5, stride=2, norm="batch")
    x = pool(torch.rand(2, 4), levels_of(torch.rand(2, 3), [2])[1])
    assert torch.isfinite(x).all()
    assert (pool.norm.running_mean == 0).all()


def test_missing_child_counts_as_zero():
    layer = randomised(BallPooling(4, 5, stride=2)).eval()
    x, pos = normal(1, 4), normal(1, 3)
    _, coarse = levels_of(pos, [1])
    _, twice = levels_of(pos.repeat(2, 1), [2])
    assert_close(layer(torch.cat([x, torch.zeros_like(x)]), twice), layer(x, coarse))
    assert torch.equal(coarse.pos, pos)


@every_layer
def test_every_parameter_gets_a_gradient(cls):
    layer = randomised(cls(4, 4, stride=2)).eval()
    x = normal(5, 4).requires_grad_()
    pos = normal(5, 3).requires_grad_()
    fine, coarse = levels_of(pos, [2, 2, 1])
    if cls is BallPooling:
        out = layer(x, coarse)
        inputs = (x, pos)
    else:
        pooled_rows = normal(3, 4).requires_grad_()
        out = layer(pooled_rows, x, fine, coarse)
        inputs = (pooled_rows, x)
    (out * normal(*out.shape)).sum().backward()
    for tensor in (*inputs, *layer.parameters()):
        alone = tensor is pos  # a lone child has no offset
        assert (tensor.grad[:4] if alone else tensor.grad).ne(0).all()


def test_translation_moves_only_the_centres():
    layer = randomised(BallPooling(4, 5, stride=2)).eval()
    x, pos = normal(5, 4), normal(5, 3)
    _, coarse = levels_of(pos, [2, 2, 1])
    _, moved = levels_of(pos + 1000, [2, 2, 1])
    # float64 positions at 1000 are rounded to 1e-13.
    torch.testing.assert_close(layer(x, moved), layer(x, coarse), rtol=0, atol=1e-11)
    torch.testing.assert_close(moved.pos - 1000, coarse.pos, rtol=0, atol=1e-12)


@every_layer
def test_reset_parameters(cls):
    layer = randomised(cls(64, 64, stride=2, norm="batch"))
    layer.reset_parameters()
    assert (layer.lin.bias == 0).all()
    # A normal distribution, truncated at two standard deviations, has a standard
    # deviation of 0.88.
    assert 0.85 < layer.lin.weight.std() * layer.lin.in_features**0.5 < 0.91
    assert (layer.norm.weight == 1).all()
    assert (layer.norm.running_mean == 0).all()
    assert (layer.norm.running_var == 1).all()


@every_layer
def test_repr(cls):
    assert repr(cls(4, 8, stride=2)) == f"{cls.__name__}(4, 8, stride=2)"


@every_layer
def test_bad_stride(cls):
    with pytest.raises(ValueError, match=r"'stride' must be at least 1 \(got 0\)"):
        cls(4, 8, stride=0)


LENGTHS = torch.tensor([2, 2, 1])


def inputs_of(cls, channels):
    """Arguments of a layer that takes 4 features and returns the given number."""
    fine, coarse = levels_of(torch.rand(5, 3), LENGTHS)
    if cls is BallPooling:
        return {"x": torch.rand(5, 4), "coarse": coarse}
    x, skip = torch.rand(3, 4), torch.rand(5, channels)
    return {"x": x, "skip": skip, "fine": fine, "coarse": coarse}


BAD = {
    "no groups": ({"group_len": None, "children": None}, "it has no groups"),
    "children of two dimensions": (
        {"children": torch.rand(3, 2)},
        r"'coarse.children' must have shape \[3, stride, 3\] \(got \[3, 2\]\)",
    ),
    "children of other size": (
        {"children": torch.rand(4, 2, 3)},
        r"\[3, stride, 3\] \(got \[4, 2, 3\]\)",
    ),
    "another stride": (
        {"children": torch.rand(3, 4, 3)},
        r"pools 2 rows .* \[3, 2, 3\] \(got \[3, 4, 3\]\)",
    ),
    "another dimension": (
        {"children": torch.rand(3, 2, 2)},
        r"\[3, stride, 3\] \(got \[3, 2, 2\]\)",
    ),
    "group_len of int32": (
        {"group_len": LENGTHS.int()},
        "'coarse.group_len' must be an int64 tensor",
    ),
    "group_len of other size": (
        {"group_len": torch.tensor([2, 2, 1, 0])},
        r"'coarse.group_len' must have shape \[3\] \(got \[4\]\)",
    ),
    "group_len of two dimensions": (
        {"group_len": LENGTHS[None]},
        r"'coarse.group_len'.*\[1, 3\]",
    ),
    "group_len of other sum": (
        {"group_len": torch.tensor([2, 1, 1])},
        r"sum to the number of rows 5 \(got 4\)",
    ),
    "negative group_len": (
        {"group_len": torch.tensor([4, 2, -1])},
        r"between 0 and 2 \(got -1\)",
    ),
    "group_len above the stride": (
        {"group_len": torch.tensor([3, 1, 1])},
        r"between 0 and 2 \(got 3\)",
    ),
}


@every_layer
@pytest.mark.parametrize("kwargs, message", BAD.values(), ids=[*BAD])
def test_bad_argument(cls, kwargs, message):
    inputs = inputs_of(cls, 4)
    inputs["coarse"] = replace(inputs["coarse"], **kwargs)
    with pytest.raises((TypeError, ValueError), match=message):
        cls(4, 4, stride=2)(**inputs)


@pytest.mark.parametrize("rows", [4, 6])
def test_pooling_needs_the_rows_of_the_groups(rows):
    _, coarse = levels_of(torch.rand(5, 3), LENGTHS)
    message = rf"'coarse.group_len' must sum to the number of rows {rows} \(got 5\)"
    with pytest.raises(ValueError, match=message):
        BallPooling(4, 4, stride=2)(torch.rand(rows, 4), coarse)


def test_unpooling_needs_a_row_per_group():
    inputs = inputs_of(BallUnpooling, 4)
    with pytest.raises(
        ValueError, match=r"'x' must have shape \[3, 4\] \(got \[2, 4\]"
    ):
        BallUnpooling(4, 4, stride=2)(**{**inputs, "x": torch.rand(2, 4)})
    with pytest.raises(
        ValueError, match=r"'skip' must have shape \[5, 4\] \(got \[4, 4\]"
    ):
        BallUnpooling(4, 4, stride=2)(**{**inputs, "skip": torch.rand(4, 4)})


@every_layer
def test_a_norm_that_knows_no_mask(cls):
    """A norm as made by :func:`torch.nn.SyncBatchNorm.convert_sync_batchnorm`."""
    layer = cls(4, 6, stride=2).eval()
    layer = cls(4, 6, stride=2, norm="batch")
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(layer)
    converted.load_state_dict(layer.state_dict())
    inputs = inputs_of(cls, 6)
    out, expected = converted.eval()(**inputs), layer(**inputs)
    assert torch.equal(out, expected)


@every_layer
def test_features_of_other_size(cls):
    layer = cls(4, 6, stride=2)
    inputs = inputs_of(cls, 6)
    inputs["x"] = inputs["x"][:, 1:]
    with pytest.raises(ValueError, match=r"'x' must have shape \[\d, 4\] \(got"):
        layer(**inputs)


@every_layer
@pytest.mark.parametrize("name", ["in_channels", "out_channels", "stride", "dim"])
def test_bad_argument_of_the_layer(cls, name):
    arguments = {"in_channels": 4, "out_channels": 6, "stride": 2, "dim": 3, name: 0}
    with pytest.raises(ValueError, match=rf"'{name}' must be at least 1 \(got 0\)"):
        cls(**arguments)
