import pytest
import torch
from clouds import randomised
from oracles import erwin as plain

from torch_geometric_erwin.nn import BallPooling, BallUnpooling

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


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@every_case
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_pooling_equals_definition(stride, lengths, dim):
    layer = randomised(BallPooling(4, 5, stride, dim)).eval()
    x, pos = normal(sum(lengths), 4), normal(sum(lengths), dim)
    expected = plain.pool(
        layer.state_dict(), list(x), list(pos), groups(lengths), stride
    )
    out = layer(x, pos, torch.tensor(lengths))
    for actual, rows in zip(out, expected, strict=True):
        assert_close(actual, torch.stack(rows))


@every_case
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_unpooling_equals_definition(stride, lengths, dim):
    layer = randomised(BallUnpooling(5, 4, stride, dim)).eval()
    x = normal(len(lengths), 5)
    skip, pos = normal(sum(lengths), 4), normal(sum(lengths), dim)
    expected = plain.unpool(
        *(layer.state_dict(), list(x), list(skip), list(pos), groups(lengths), stride)
    )
    actual = layer(x, skip, pos, torch.tensor(lengths))
    assert_close(actual, torch.stack(expected))


def pooled(layer, lengths, **kwargs):
    x, pos = normal(sum(lengths), 4), normal(sum(lengths), 3)
    return layer(x, pos, torch.tensor(lengths), **kwargs)[0]


def unpooled(layer, lengths, **kwargs):
    n = sum(lengths)
    x, skip, pos = normal(len(lengths), 5), normal(n, 4), normal(n, 3)
    return layer(x, skip, pos, torch.tensor(lengths), **kwargs)


def test_pooling_is_normalised_over_the_rows_in_training():
    out = pooled(BallPooling(4, 5, stride=2).double(), [2, 2, 1, 2])
    assert_close(out.mean(0), torch.zeros_like(out[0]))
    # The batch norm adds 1e-5 to a variance of order one.
    assert (out.var(0, correction=0) - 1).abs().max() < 1e-3


def test_unpooling_is_normalised_over_the_rows_in_training():
    out = unpooled(BallUnpooling(5, 4, stride=2).double(), [2, 2, 1, 2])
    assert_close(out.mean(0), torch.zeros_like(out[0]))
    assert (out.var(0, correction=0) - 1).abs().max() < 1e-3


@pytest.mark.parametrize("run, cls", [(pooled, BallPooling), (unpooled, BallUnpooling)])
def test_mask_reaches_the_norm(run, cls):
    sizes = (4, 5) if cls is BallPooling else (5, 4)
    layer = randomised(cls(*sizes, stride=2))
    lengths = [2, 2, 1]
    rows = len(lengths) if cls is BallPooling else sum(lengths)
    mask = torch.arange(rows) != 1
    before = layer.norm.running_mean.clone()
    layer.norm.momentum = 1.0
    out = run(layer, lengths, mask=mask)
    layer.norm.train(False)
    # The new running statistics are those of the rows that count.
    counted = (run(layer, lengths) - layer.norm.bias) / layer.norm.weight
    assert_close(counted[mask].mean(0), torch.zeros_like(counted[0]))
    assert not torch.equal(layer.norm.running_mean, before)
    assert out.shape == counted.shape


@pytest.mark.parametrize("training", [False, True])
def test_no_rows(training):
    none = torch.empty(0, dtype=torch.int64)
    pool, unpool = BallPooling(4, 5, stride=2), BallUnpooling(5, 4, stride=2)
    x, pos = pool.train(training)(torch.rand(0, 4), torch.rand(0, 3), none)
    assert x.shape == (0, 5)
    assert pos.shape == (0, 3)
    out = unpool.train(training)(x, torch.rand(0, 4), pos, none)
    assert out.shape == (0, 4)


def test_one_pooled_row_in_training_is_finite():
    pool = BallPooling(4, 5, stride=2)
    x, _ = pool(torch.rand(2, 4), torch.rand(2, 3), torch.tensor([2]))
    assert torch.isfinite(x).all()
    assert (pool.norm.running_mean == 0).all()


def test_missing_child_counts_as_zero():
    layer = randomised(BallPooling(4, 5, stride=2)).eval()
    x, pos = normal(1, 4), normal(1, 3)
    alone, centre = layer(x, pos, torch.tensor([1]))
    twice = torch.cat([x, torch.zeros_like(x)]), pos.repeat(2, 1), torch.tensor([2])
    assert_close(layer(*twice)[0], alone)
    assert torch.equal(centre, pos)


@every_layer
def test_every_parameter_gets_a_gradient(cls):
    layer = randomised(cls(4, 4, stride=2)).eval()
    n, group_len = 5, torch.tensor([2, 2, 1])
    x = normal(n, 4).requires_grad_()
    pos = normal(n, 3).requires_grad_()
    if cls is BallPooling:
        out, _ = layer(x, pos, group_len)
        inputs = (x, pos)
    else:
        coarse = normal(3, 4).requires_grad_()
        out = layer(coarse, x, pos, group_len)
        inputs = (coarse, x)
    (out * normal(*out.shape)).sum().backward()
    for tensor in (*inputs, *layer.parameters()):
        alone = tensor is pos  # a lone child has no offset
        assert (tensor.grad[:4] if alone else tensor.grad).ne(0).all()


def test_translation_moves_only_the_centres():
    layer = randomised(BallPooling(4, 5, stride=2)).eval()
    x, pos, lengths = normal(5, 4), normal(5, 3), torch.tensor([2, 2, 1])
    out, centre = layer(x, pos, lengths)
    moved, moved_centre = layer(x, pos + 1000, lengths)
    # float64 positions at 1000 are rounded to 1e-13.
    torch.testing.assert_close(moved, out, rtol=0, atol=1e-11)
    torch.testing.assert_close(moved_centre - 1000, centre, rtol=0, atol=1e-12)


@every_layer
def test_reset_parameters(cls):
    layer = randomised(cls(64, 64, stride=2))
    layer.reset_parameters()
    assert (layer.lin.bias == 0).all()
    # A normal distribution truncated at two deviations has one of 0.88.
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
BAD = {
    "pos of one dimension": ({"pos": torch.rand(5)}, r"'pos' must have shape \[5, 3\]"),
    "pos of other size": ({"pos": torch.rand(4, 3)}, r"\[5, 3\] \(got \[4, 3\]\)"),
    "group_len of int32": ({"group_len": LENGTHS.int()}, "'group_len' must be int64"),
    "group_len of two dimensions": (
        {"group_len": LENGTHS[None]},
        r"'group_len'.*\[1, 3\]",
    ),
    "group_len of other sum": (
        {"group_len": torch.tensor([2, 1, 1])},
        r"sum to the number of rows 5 \(got 4\)",
    ),
    "negative group_len": (
        {"group_len": torch.tensor([2, 2, 2, -1])},
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
    inputs = {"pos": torch.rand(5, 3), "group_len": LENGTHS, **kwargs}
    features = {"x": torch.rand(5, 4)}
    if cls is BallUnpooling:
        features = {"x": torch.rand(3, 4), "skip": torch.rand(5, 4)}
    with pytest.raises(ValueError, match=message):
        cls(4, 4, stride=2)(**features, **inputs)


def test_unpooling_needs_a_row_per_group():
    x, skip, pos = torch.rand(2, 4), torch.rand(5, 4), torch.rand(5, 3)
    with pytest.raises(
        ValueError, match=r"'x' must have shape \[3, 4\] \(got \[2, 4\]"
    ):
        BallUnpooling(4, 4, stride=2)(x, skip, pos, LENGTHS)


@every_layer
def test_a_norm_that_knows_no_mask(cls):
    """As :func:`torch.nn.SyncBatchNorm.convert_sync_batchnorm` puts in its place."""
    layer = cls(4, 6, stride=2).eval()
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(cls(4, 6, stride=2))
    converted.load_state_dict(layer.state_dict())
    inputs = {"pos": torch.rand(5, 3), "group_len": LENGTHS, "x": torch.rand(5, 4)}
    if cls is BallUnpooling:
        inputs.update(x=torch.rand(3, 4), skip=torch.rand(5, 6))
    out, expected = converted.eval()(**inputs), layer(**inputs)
    if cls is BallPooling:
        out, expected = out[0], expected[0]
    assert torch.equal(out, expected)


@every_layer
def test_features_of_other_size(cls):
    layer = cls(4, 6, stride=2)
    inputs = {"pos": torch.rand(5, 3), "group_len": LENGTHS, "x": torch.rand(5, 3)}
    if cls is BallUnpooling:
        inputs.update(x=torch.rand(3, 3), skip=torch.rand(5, 6))
    with pytest.raises(ValueError, match=r"'x' must have shape \[\d, 4\] \(got"):
        layer(**inputs)


@every_layer
@pytest.mark.parametrize("name", ["in_channels", "out_channels", "stride", "dim"])
def test_bad_argument_of_the_layer(cls, name):
    arguments = {"in_channels": 4, "out_channels": 6, "stride": 2, "dim": 3, name: 0}
    with pytest.raises(ValueError, match=rf"'{name}' must be at least 1 \(got 0\)"):
        cls(**arguments)
