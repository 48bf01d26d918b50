"""The kernels in Triton's interpreter, which runs them on CPU tensors.

Only `test_interpreter.py` collects this file, in a process that interprets kernels. The
interpreter computes products in half precision wrongly; `test_cuda.py` tests those.
"""

import pytest
import torch

from torch_geometric_erwin.nn import ball_attention
from torch_geometric_erwin.ops.triton import attention, tiles

EPS = torch.finfo(torch.float32).eps
pytestmark = pytest.mark.usefixtures("fill")


def inputs(balls, heads=2, channels=8, dim=3, permuted=False, behind=0, seed=0):
    """The arguments of the operator, and a gradient of its output."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    n = sum(balls) + behind
    q, k, v = normal(n, 3, heads, channels).unbind(1)
    perm = torch.randperm(n, generator=generator) if permuted else None
    lengths = torch.tensor(balls, dtype=torch.int64)
    args = [q, k, v, normal(n, dim), lengths, normal(heads), perm]
    return [*args, max([*balls, 1]), channels**-0.5], normal(n, heads, channels)


def results(args, grad, pos_grad=True):
    """The output and the gradients of q, k, v together, of sigma and of positions."""
    out, *rest = attention.forward(*args)
    return out, *attention.backward(grad, out, *rest, *args, pos_grad)


# With gradients of positions, queries use another kernel with smaller tiles. All sizes
# are tested in both ways. Other properties are tested in one way, and in the other way
# only in the slow tests.
every = pytest.mark.parametrize("pos_grad", [False, True])
both = pytest.mark.parametrize(
    "pos_grad", [False, pytest.param(True, marks=pytest.mark.slow)]
)


def reference(args, grad):
    q, k, v, pos, balls, sigma, perm, ball_size, scale = args
    qkv = torch.stack([q, k, v], dim=1)
    leaves = [t.double().requires_grad_() for t in (qkv, sigma, pos)]
    qkv, sigma, pos = leaves
    rows = (*qkv.unbind(1), pos, balls, sigma)
    options = {"scale": scale, "backend": "reference"}
    out = ball_attention(*rows, ball_size=ball_size, perm=perm, **options)
    return out.detach(), *torch.autograd.grad(out, leaves, grad.double())


def assert_close(actual, expected, tolerance):
    """The tolerance is relative to the largest value (to 1 if that is smaller)."""
    assert actual.shape == expected.shape
    allowed = tolerance * max(1, expected.abs().max().item())
    assert (actual.double() - expected).abs().max().item() <= allowed


def assert_equals_reference(args, grad, pos_grad):
    out, grad_qkv, grad_sigma, grad_pos = results(args, grad, pos_grad)
    expected = reference(args, grad)
    rows, _, channels = out.shape
    # An output is a mean, whose error does not grow with the ball.
    assert_close(out, expected[0], 16 * EPS)
    # Gradients are differences of terms of order sqrt(channels). The gradient of sigma
    # adds up the errors of all rows.
    assert_close(grad_qkv, expected[1], 16 * channels**0.5 * EPS)
    assert_close(grad_sigma, expected[2], 8 * (rows * channels) ** 0.5 * EPS)
    if pos_grad:
        assert_close(grad_pos, expected[3], 16 * channels**0.5 * EPS)
    else:
        assert grad_pos.shape == (0, args[3].size(1))


# Balls of sizes near tiles of 16 and 32 rows; heads, channels, coordinates.
SIZES = [
    ([1], (2, 8, 3)),
    ([0, 2, 15], (1, 20, 2)),
    ([0, 2, 15], (3, 1, 5)),
    ([16, 0, 17], (2, 8, 1)),
    ([16, 0, 17], (1, 65, 3)),
    ([31, 33], (1, 32, 3)),
    ([31, 33], (2, 20, 2)),
    ([70], (1, 8, 3)),
    ([5, 3], (1, 128, 7)),
]


@pytest.mark.parametrize("balls, widths", SIZES, ids=str)
@every
def test_equals_reference(balls, widths, pos_grad):
    permuted = widths[1] % 8 != 0
    assert_equals_reference(*inputs(balls, *widths, permuted), pos_grad)


@pytest.mark.parametrize("scale", [0.0, -0.3, 2.0])
def test_scale(scale):
    args, grad = inputs([17, 3], heads=1)
    args[-1] = scale
    assert_equals_reference(args, grad, True)


@pytest.mark.parametrize("permuted", [False, True])
@both
def test_rows_behind_the_last_ball_are_zero(pos_grad, permuted):
    args, grad = inputs([20, 7, 0], permuted=permuted, behind=37)
    perm = torch.arange(64) if args[6] is None else args[6]
    out, grad_qkv, grad_sigma, grad_pos = results(args, grad, pos_grad)
    for rows in (out, grad_qkv, grad_pos) if pos_grad else (out, grad_qkv):
        assert torch.equal(rows[perm[27:]], torch.zeros_like(rows[perm[27:]]))
    # The values in these places change nothing.
    other = [t.clone() for t in args[:4]]
    for t in (*other, grad):
        t[perm[27:]] = float("nan")
    actual = results([*other, *args[4:]], grad, pos_grad)
    for a, e in zip(actual, (out, grad_qkv, grad_sigma, grad_pos), strict=True):
        assert torch.equal(a, e)


@both
def test_empty_balls_change_nothing(pos_grad):
    args, grad = inputs([20, 7], permuted=True)
    padded = [*args]
    padded[4] = torch.tensor([0, 20, 0, 7, 0, 0, 0])
    # The gradient of sigma is a sum in float64, and added zeros do not change it.
    expected = results(args, grad, pos_grad)
    for a, e in zip(results(padded, grad, pos_grad), expected, strict=True):
        assert torch.equal(a, e)


@both
def test_a_larger_ball_size_changes_nothing(pos_grad):
    args, grad = inputs([20, 7])
    expected = results(args, grad, pos_grad)
    args[7] = 32  # a ball size with the same tiles
    for a, e in zip(results(args, grad, pos_grad), expected, strict=True):
        assert torch.equal(a, e)


@both
def test_other_balls_have_no_influence(pos_grad):
    args, grad = inputs([20, 7])
    out, grad_qkv, _, grad_pos = results(args, grad, pos_grad)
    for t in (*args[:4], grad):
        t[20:] = 100 * torch.randn_like(t[20:])
    other, other_qkv, _, other_pos = results(args, grad, pos_grad)
    assert torch.equal(other[:20], out[:20])
    assert torch.equal(other_qkv[:20], grad_qkv[:20])
    assert torch.equal(other_pos[:20], grad_pos[:20])


@both
def test_same_bits_in_every_run(pos_grad):
    args, grad = inputs([33, 7], permuted=True)
    expected = results(args, grad, pos_grad)
    for a, e in zip(results(args, grad, pos_grad), expected, strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("permuted", [False, True])
@both
def test_asking_ahead_changes_nothing(monkeypatch, pos_grad, permuted):
    args, grad = inputs([33, 0, 7], permuted=permuted, behind=3)
    expected = results(args, grad, pos_grad)

    def ahead(*about):
        tile = tiles.keys_tile(*about)
        assert not tile.ahead
        return tile._replace(ahead=True)

    monkeypatch.setattr(attention, "keys_tile", ahead)
    for a, e in zip(results(args, grad, pos_grad), expected, strict=True):
        assert torch.equal(a, e)


def test_differences_of_float64_positions_are_taken_before_rounding():
    # float32 has a spacing of 0.06 at a million.
    args, grad = inputs([20, 7], permuted=True)
    args[3] = args[3].double() + 1e6
    assert_equals_reference(args, grad, True)


@pytest.mark.parametrize("sigma", [-1.0, 1.0])
@both
def test_absent_rows_have_no_weight_far_from_the_origin(pos_grad, sigma):
    args, grad = inputs([20, 7], permuted=True)
    args[3] += 1000
    args[5].fill_(sigma)
    assert_equals_reference(args, grad, pos_grad)


@both
def test_coincident_points(pos_grad):
    args, grad = inputs([20, 7])
    args[3][1], args[3][3], args[3][22] = args[3][0], args[3][0], args[3][21]
    assert_equals_reference(args, grad, pos_grad)


@both
def test_large_scores_stay_finite(pos_grad):
    args, grad = inputs([20, 7])
    args[0] *= 100
    args[1] *= 100
    assert all(t.isfinite().all() for t in results(args, grad, pos_grad))
    # Scores of 1e4 have errors 1e4 times as large, and so do weights.
    assert_close(results(args, grad, pos_grad)[0], reference(args, grad)[0], 4e4 * EPS)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@both
def test_what_is_not_a_number_stays_in_its_ball_and_head(pos_grad, value):
    args, grad = inputs([20, 7])
    out, grad_qkv, *_ = results(args, grad, pos_grad)
    args[1] = args[1].clone()
    args[1][3, 0, 2] = value  # the key of row 3, head 0
    other, other_qkv, *_ = results(args, grad, pos_grad)
    assert not other[:20, 0].isfinite().all()
    assert torch.equal(other[20:], out[20:])
    assert torch.equal(other[:, 1], out[:, 1])
    assert torch.equal(other_qkv[20:], grad_qkv[20:])
    assert torch.equal(other_qkv[:, :, 1], grad_qkv[:, :, 1])


@pytest.mark.parametrize("balls", [[], [0], [0, 0]], ids=str)
@pytest.mark.parametrize("behind", [0, 5])
def test_no_rows_in_balls(balls, behind):
    args, grad = inputs(balls, behind=behind)
    out, grad_qkv, grad_sigma, grad_pos = results(args, grad)
    assert torch.equal(out, torch.zeros(behind, 2, 8))
    assert torch.equal(grad_qkv, torch.zeros(behind, 3, 2, 8))
    assert torch.equal(grad_sigma, torch.zeros(2))
    assert torch.equal(grad_pos, torch.zeros(behind, 3))


@both
def test_wrong_lengths_do_not_lead_out_of_the_tensors(pos_grad):
    args, grad = inputs([20, 7])
    expected = results(args, grad, pos_grad)
    args[4] = torch.tensor([20, 11])  # four rows more than there are
    for a, e in zip(results(args, grad, pos_grad), expected, strict=True):
        assert torch.equal(a, e)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
@pytest.mark.parametrize("longest, permuted", [(41, False), (65, True)])
@both
def test_a_ball_beyond_the_ball_size_is_not_a_number(pos_grad, longest, permuted):
    args, grad = inputs([20, longest, 7], 1, permuted=permuted, behind=5)
    valid = results(args, grad, pos_grad)
    args[7] = 20
    rows = torch.arange(len(grad)) if args[6] is None else args[6]
    wrong = rows[20 : 20 + longest]
    right = torch.cat([rows[:20], rows[20 + longest :]])
    actual = results(args, grad, pos_grad)
    for i in (0, 1, 3) if pos_grad else (0, 1):
        assert actual[i][wrong].isnan().all()
        assert_close(actual[i][right], valid[i][right].double(), 64 * EPS)


def test_any_strides_of_rows_and_heads():
    args, grad = inputs([20, 7])
    expected = results(args, grad)
    heads_first = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in args[:3]]
    for a, e in zip(results([*heads_first, *args[3:]], grad), expected, strict=True):
        assert torch.equal(a, e)
    ones = torch.ones(27, 2, 8)
    expanded = torch.ones(1, 1, 8).expand(27, 2, 8)
    for a, e in zip(results(args, expanded), results(args, ones), strict=True):
        assert torch.equal(a, e)
