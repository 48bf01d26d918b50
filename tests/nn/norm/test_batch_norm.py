import copy

import pytest
import torch
from clouds import randomised

from torch_geometric_erwin.nn import BatchNorm

MOMENTA = [0.1, 1.0, None]
every_momentum = pytest.mark.parametrize("momentum", MOMENTA)


def normal(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    return (3 + 2 * torch.randn(*shape, generator=generator)).to(dtype)


def pair(**kwargs):
    """The layer and PyTorch's, with the same weights and statistics."""
    norm = randomised(BatchNorm(4, **kwargs))
    theirs = torch.nn.BatchNorm1d(4, **kwargs).double()
    theirs.load_state_dict(norm.state_dict())
    return norm, theirs


def assert_same_buffers(a, b):
    for (name, x), (_, y) in zip(a.named_buffers(), b.named_buffers(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("rows", [2, 3, 50])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
@every_momentum
def test_equals_torch(rows, affine, training, momentum):
    norm, theirs = pair(momentum=momentum, affine=affine)
    norm.train(training)
    theirs.train(training)
    for _ in range(2):
        x = normal(rows, 4)
        torch.testing.assert_close(norm(x), theirs(x), rtol=1e-12, atol=1e-12)
        assert_same_buffers(norm, theirs)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [0, 1])
@every_momentum
def test_too_few_rows_are_normalised_by_running_statistics(rows, momentum, masked):
    norm, theirs = pair(momentum=momentum)
    before = copy.deepcopy(norm)
    x = normal(rows, 4)
    mask = torch.ones(rows, dtype=torch.bool) if masked else None
    torch.testing.assert_close(norm(x, mask), theirs.eval()(x), rtol=1e-12, atol=1e-12)
    assert_same_buffers(norm, before)
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_give_gradients(rows):
    norm = randomised(BatchNorm(4))
    x = normal(rows, 4).requires_grad_()
    norm(x).square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert (norm.bias.grad != 0).all() == (rows > 0)


@pytest.mark.parametrize("count", [2, 3, 9])
@every_momentum
def test_mask_equals_torch_on_the_counted_rows(count, momentum):
    norm, theirs = pair(momentum=momentum)
    mask = torch.arange(9) >= 9 - count
    for step in range(2):
        x = normal(9 + step, 4)[:9].requires_grad_()
        out, expected = norm(x, mask), theirs(x[mask])
        torch.testing.assert_close(out[mask], expected, rtol=1e-12, atol=1e-12)
        assert_same_buffers(norm, theirs)
        weight = normal(count, 4)
        (grad,) = torch.autograd.grad((out[mask] * weight).sum(), x)
        (wanted,) = torch.autograd.grad((expected * weight).sum(), x)
        torch.testing.assert_close(grad, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("count", [0, 1])
@every_momentum
def test_mask_with_too_few_rows(count, momentum):
    norm, theirs = pair(momentum=momentum)
    before = copy.deepcopy(norm)
    x, mask = normal(5, 4).requires_grad_(), torch.arange(5) < count
    out = norm(x, mask)
    torch.testing.assert_close(out, theirs.eval()(x), rtol=1e-12, atol=1e-12)
    assert_same_buffers(norm, before)
    out.square().sum().backward()
    assert torch.isfinite(x.grad).all()


def test_too_few_rows_do_not_count_in_a_cumulative_average():
    norm, theirs = pair(momentum=None)
    norm(normal(1, 4))
    norm(normal(3, 4), torch.zeros(3, dtype=torch.bool))
    x = normal(6, 4)
    norm(x, torch.ones(6, dtype=torch.bool))
    theirs(x)
    assert_same_buffers(norm, theirs)


def test_excluded_rows_enter_no_statistic():
    norm = randomised(BatchNorm(4))
    x, mask = normal(5, 4), torch.tensor([True, False, True, True, False])
    expected = copy.deepcopy(norm)(x, mask)
    x[~mask] = float("nan")
    assert torch.equal(norm(x, mask)[mask], expected[mask])
    assert torch.isfinite(norm.running_mean).all()
    assert torch.isfinite(norm.running_var).all()


def test_mask_has_no_effect_in_evaluation():
    norm = randomised(BatchNorm(4)).eval()
    x = normal(5, 4)
    assert torch.equal(norm(x, torch.arange(5) < 2), norm(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("module_dtype", ["of the input", "float32"])
def test_half_precision(dtype, module_dtype):
    # 70,000 rows: neither their number nor their sum fits into float16.
    x, mask = normal(70_000, 2, dtype=dtype), torch.arange(70_000) % 7 > 0
    norm, exact = BatchNorm(2, momentum=1.0), BatchNorm(2, momentum=1.0).double()
    norm = norm.to(dtype) if module_dtype == "of the input" else norm
    out, expected = norm(x, mask), exact(x.double(), mask)
    assert out.dtype == dtype
    # One rounding error of values up to 5.
    assert (out - expected).abs().max() <= 5 * torch.finfo(dtype).eps
    difference = (norm.running_var - exact.running_var).abs() / exact.running_var
    assert difference.max() <= torch.finfo(norm.running_var.dtype).eps * 10


def test_reset_parameters():
    norm = randomised(BatchNorm(4))
    norm(normal(5, 4))
    norm.reset_parameters()
    for name, value in BatchNorm(4).double().state_dict().items():
        assert torch.equal(norm.state_dict()[name], value), name


def test_repr():
    assert repr(BatchNorm(4)).startswith("BatchNorm(4, eps=1e-05, momentum=0.1")


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)])
def test_bad_input(shape):
    with pytest.raises(ValueError, match=r"'input' must have shape \[N, C\]"):
        BatchNorm(4)(torch.rand(shape))


@pytest.mark.parametrize("training", [True, False])
def test_bad_mask(training):
    norm, x = BatchNorm(4).train(training), torch.rand(3, 4)
    with pytest.raises(ValueError, match=r"'mask' must have shape \[3\] \(got \[2\]\)"):
        norm(x, torch.ones(2, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"'mask' must be boolean \(got torch.int64\)"):
        norm(x, torch.ones(3, dtype=torch.int64))


def test_needs_running_statistics():
    with pytest.raises(ValueError, match="'track_running_stats' must be true"):
        BatchNorm(4, track_running_stats=False)
