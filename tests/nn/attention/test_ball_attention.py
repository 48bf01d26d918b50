import copy

import pytest
import torch
from clouds import randomised
from oracles import erwin as plain
from oracles.ball_attention import ball_attention as oracle

from torch_geometric_erwin import Level
from torch_geometric_erwin.nn import BallAttention, ball_attention

B = 4
BALLS = {
    "no balls": [],
    "an empty ball": [0],
    "1": [1],
    "2": [2],
    "B - 1": [B - 1],
    "B": [B],
    "B + 1": [B, 1],
    "full": [B, B],
    "mixed": [B, 1, B - 1, 2, B],
    "empty at the end": [3, 1, 0, 0],
}
# The precision in which a backend is tested; native supports only float32.
PRECISION = {
    "reference": torch.float64,
    "sdpa": torch.float64,
    "native": torch.float32,
}
# Outputs are sums of at most B terms of order one. Scores of order ten have errors of
# ten roundings.
TOLERANCE = {"reference": 1e-13, "sdpa": 1e-13, "native": 16 * torch.finfo().eps}
BACKENDS = [*PRECISION]
every_backend = pytest.mark.parametrize("backend", BACKENDS)
with_positions = pytest.mark.parametrize("backend", ["reference", "native"])
every_balls = pytest.mark.parametrize("balls", BALLS.values(), ids=[*BALLS])


def inputs(balls, heads=2, width=3, dim=3, dtype=torch.float64, seed=0):
    """Queries, keys, values, positions and distance factors; all need gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.to(dtype).requires_grad_()

    n = sum(balls)
    qkv = (normal(n, heads, width) for _ in range(3))
    return (*qkv, normal(n, dim), torch.tensor(balls, dtype=torch.int64), normal(heads))


def in_float64(tensors):
    """Leaves of the same values."""
    return [
        t.detach().double().requires_grad_() if t.is_floating_point() else t
        for t in tensors
    ]


def run(tensors, backend=None, **kwargs):
    q, k, v, pos, balls, sigma = tensors
    pos = pos.detach() if backend == "sdpa" else pos  # sdpa gives them no gradient
    args = (q, k, v, pos, balls, sigma)
    return ball_attention(*args, **{"ball_size": B, "backend": backend, **kwargs})


def run_oracle(tensors, **kwargs):
    q, k, v, pos, balls, sigma = tensors
    return oracle(q, k, v, pos, balls.tolist(), sigma, **kwargs)


def gradients(out, leaves):
    """Gradients of a weighted sum of the outputs; weights differ from row to row."""
    if not out.requires_grad:  # there are no rows
        return [None] * len(leaves)
    weight = torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype)
    return torch.autograd.grad((out * weight).sum(), leaves, allow_unused=True)


def assert_close(actual, expected, tolerance):
    """The tolerance is relative to the largest value (to 1 if that is smaller)."""
    assert actual.shape == expected.shape
    if expected.numel() > 0:
        allowed = tolerance * max(1, expected.abs().max().item())
        assert (actual.double() - expected).abs().max().item() <= allowed


def assert_equals_oracle(tensors, tolerance, backend, differentiable=False, perm=None):
    exact = in_float64(tensors)
    if not differentiable:
        tensors = [*tensors]
        tensors[3] = tensors[3].detach()
    out = run(tensors, backend, perm=perm)
    expected = run_oracle(exact, perm=None if perm is None else perm.tolist())
    assert out.dtype == tensors[0].dtype
    assert_close(out, expected, tolerance)
    chosen = (0, 1, 2, 3, 5) if differentiable else (0, 1, 2, 5)
    grads = gradients(out, [tensors[i] for i in chosen])
    wanted = gradients(expected, [exact[i] for i in chosen])
    for grad, want, i in zip(grads, wanted, chosen):
        # If no ball has two rows, the oracle never computes a distance.
        want = torch.zeros_like(exact[i]) if want is None else want
        if out.numel() > 0:
            assert grad.dtype == tensors[i].dtype
        elif grad is None:
            grad = torch.zeros_like(exact[i])
        assert_close(grad, want, tolerance)


@every_backend
@every_balls
@pytest.mark.parametrize("dim", [1, 2, 3, 7])
def test_equals_oracle(balls, dim, backend):
    tensors = inputs(balls, dim=dim, dtype=PRECISION[backend])
    assert_equals_oracle(tensors, TOLERANCE[backend], backend)


@pytest.mark.parametrize("dim", [1, 2, 3, 7])
@every_balls
@with_positions
def test_gradient_of_positions_equals_oracle(balls, dim, backend):
    tensors = inputs(balls, dim=dim, dtype=PRECISION[backend])
    assert_equals_oracle(tensors, 10 * TOLERANCE[backend], backend, True)


# In units in the last place. Scores are of order ten, so weights have errors of about
# ten roundings. `reference` computes half precision in float32 and rounds once.
# `native` computes gradients from the rounded output; in the gradient of sigma these
# errors add up over rows. `sdpa` also rounds the distance bias.
TOLERANCES = [
    ("reference", torch.float32, 16),
    ("sdpa", torch.float32, 16),
    ("native", torch.float32, 16),
    ("reference", torch.bfloat16, 1),
    ("sdpa", torch.bfloat16, 4),
    ("native", torch.bfloat16, 8),
    ("reference", torch.float16, 1),
    ("sdpa", torch.float16, 4),
]


@pytest.mark.parametrize("backend, dtype, units", TOLERANCES)
@every_balls
def test_lower_precision_equals_oracle(balls, backend, dtype, units):
    tolerance = units * torch.finfo(dtype).eps
    assert_equals_oracle(inputs(balls, dtype=dtype), tolerance, backend)


@pytest.mark.parametrize(
    "backend, dtype", [b[:2] for b in TOLERANCES if b[1] != torch.float32]
)
def test_half_precision_features_with_float32_positions(backend, dtype):
    q, k, v, pos, balls, sigma = inputs([4, 2], dtype=dtype)
    tensors = (q, k, v, pos.detach().float(), balls, sigma.detach().float())
    out = run(tensors, backend)
    assert out.dtype == dtype
    assert_close(out, run_oracle(in_float64(tensors)), 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("heads, width", [(1, 1), (1, 8), (5, 2)])
@every_backend
def test_heads(heads, width, backend):
    tensors = inputs([4, 3], heads, width, dtype=PRECISION[backend])
    assert_equals_oracle(tensors, TOLERANCE[backend], backend)


@every_backend
def test_ball_size_may_exceed_every_ball(backend):
    tensors = inputs([4, 3, 0], dtype=PRECISION[backend])
    out = run(tensors, backend, ball_size=64)
    assert_close(out, run_oracle(in_float64(tensors)), TOLERANCE[backend])


@every_backend
def test_scale(backend):
    tensors = inputs([4, 3], dtype=PRECISION[backend])
    out = run(tensors, backend, scale=0.1)
    expected = run_oracle(in_float64(tensors), scale=0.1)
    assert_close(out, expected, TOLERANCE[backend])
    assert not torch.allclose(out, run(tensors, backend))


@every_backend
def test_extreme_scores_stay_finite(backend):
    q, k, v, pos, balls, sigma = inputs([4, 3], dtype=PRECISION[backend])
    tensors = (q * 100, k * 100, v, pos, balls, sigma)
    # Scores of 1e4 have errors 1e4 times as large, and so do weights. exp(1e4) would be
    # infinite.
    eps = torch.finfo(PRECISION[backend]).eps
    expected = run_oracle(in_float64(tensors))
    assert_close(run(tensors, backend), expected, 4e4 * eps)


@every_balls
@every_backend
def test_permuted_rows_equal_gather_and_scatter(balls, backend):
    tensors = inputs(balls, dtype=PRECISION[backend])
    perm = torch.randperm(sum(balls), generator=torch.Generator().manual_seed(1))
    assert_equals_oracle(tensors, TOLERANCE[backend], backend, perm=perm)
    q, k, v, pos, lengths, sigma = tensors
    gathered = run((q[perm], k[perm], v[perm], pos[perm], lengths, sigma), backend)
    expected = torch.empty_like(q).index_copy(0, perm, gathered)
    assert torch.equal(run(tensors, backend, perm=perm), expected)


@with_positions
def test_gradient_of_positions_through_permutation(backend):
    perm = torch.tensor([6, 2, 4, 0, 1, 5, 3])
    tensors = inputs([4, 3], dtype=PRECISION[backend])
    assert_equals_oracle(tensors, 10 * TOLERANCE[backend], backend, True, perm)


@every_backend
def test_far_from_origin(backend):
    # The difference of two close float32 numbers is exact, so an offset must not cost
    # precision. With more than 25 rows, torch.cdist would use its matrix form.
    n = 30
    q, k, v, pos, balls, sigma = inputs([n], dtype=torch.float32)
    pos = (pos.detach() + 1000).requires_grad_()
    tensors = (q, k, v, pos, balls, sigma)
    out = run(tensors, backend, ball_size=n)
    assert_close(out, run_oracle(in_float64(tensors)), 16 * torch.finfo().eps)


@every_backend
def test_coincident_points(backend):
    q, k, v, pos, balls, sigma = inputs([4, 3], dtype=PRECISION[backend])
    pos = pos.detach().clone()
    pos[1], pos[3], pos[5] = pos[0], pos[0], pos[4]
    tensors = (q, k, v, pos.requires_grad_(), balls, sigma)
    differentiable = backend != "sdpa"
    assert_equals_oracle(tensors, 10 * TOLERANCE[backend], backend, differentiable)


def test_second_gradient_at_coincident_points_is_finite():
    tensors = inputs([4, 3])
    leaves = [tensors[i] for i in (0, 1, 2, 3, 5)]
    with torch.no_grad():
        tensors[3][1] = tensors[3][0]
    out = run(tensors)
    first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    for grad in (*first, *second):
        assert torch.isfinite(grad).all()
        assert grad.abs().max() > 0


@pytest.mark.parametrize("balls", [[3, 1], [2, 0]], ids=str)
def test_reference_passes_gradcheck(balls):
    *leaves, pos, lengths, sigma = inputs(balls, heads=1, width=2, dim=2)

    def function(q, k, v, pos, sigma):
        return run((q, k, v, pos, lengths, sigma))

    assert torch.autograd.gradcheck(function, (*leaves, pos, sigma))
    assert torch.autograd.gradgradcheck(function, (*leaves, pos, sigma))


@every_backend
def test_strided_inputs(backend):
    tensors = inputs([4, 3], dtype=PRECISION[backend])
    expected = run(tensors, backend)
    q, k, v, pos, balls, sigma = (t.detach() for t in tensors)
    wide = torch.stack([q, k, v], dim=-1)  # channels three numbers apart
    pos = torch.stack([pos, pos], dim=-1)[..., 0]
    balls = balls.repeat_interleave(2)[::2]
    sigma = torch.stack([sigma, sigma], dim=1)[:, 0]
    strided = (*wide.unbind(-1), pos, balls, sigma)
    assert not any(t.is_contiguous() for t in strided)
    assert_close(run(strided, backend), expected, TOLERANCE[backend] / 10)


@every_backend
def test_other_balls_have_no_influence(backend):
    tensors = [t.detach() for t in inputs([4, 3], dtype=PRECISION[backend])]
    out = run(tensors, backend)
    other = [t.clone() for t in tensors]
    for t in other[:4]:
        t[4:] = torch.randn_like(t[4:]) * 100
    assert torch.equal(run(other, backend)[:4], out[:4])


def change(index, value):
    def apply(tensors):
        tensors[index] = value(tensors[index]) if callable(value) else value
        return tensors

    return apply


BAD = {
    "q of two dimensions": (change(0, lambda q: q[0]), {}, "shape \\[N, H, d\\]"),
    "k of other shape": (change(1, lambda k: k[:, :1]), {}, "shape \\[N, H, d\\]"),
    "v of other shape": (change(2, lambda v: v[:-1]), {}, "shape \\[N, H, d\\]"),
    "pos of one dimension": (change(3, lambda p: p[:, 0]), {}, "'pos'.*\\[7, D\\]"),
    "pos of other size": (change(3, lambda p: p[1:]), {}, "'pos'.*got \\[6, 3\\]"),
    "ball_len of two dimensions": (change(4, lambda b: b[None]), {}, "'ball_len'"),
    "ball_len of int32": (change(4, lambda b: b.int()), {}, "'ball_len' must be int64"),
    "ball_len of other sum": (
        change(4, lambda b: b - 1),
        {},
        "number of rows 7 .got 5",
    ),
    "negative ball_len": (
        change(4, torch.tensor([4, 4, -1])),
        {},
        "between 0 and 4 \\(got -1\\)",
    ),
    "ball_len above the ball size": (
        change(4, torch.tensor([5, 2])),
        {},
        "between 0 and 4 \\(got 5\\)",
    ),
    "sigma of other size": (change(5, lambda s: s[:1]), {}, "'sigma'.*got \\[1\\]"),
    "sigma of two dimensions": (change(5, lambda s: s[None]), {}, "'sigma'"),
    "ball size 0": (change(0, lambda q: q), {"ball_size": 0}, "'ball_size'.*got 0"),
    "perm of other size": (
        change(0, lambda q: q),
        {"perm": torch.arange(6)},
        "'perm'.*\\[7\\].*got \\[6\\]",
    ),
    "perm of two dimensions": (
        change(0, lambda q: q),
        {"perm": torch.arange(7)[None]},
        "'perm'",
    ),
    "perm with a repeated row": (
        change(0, lambda q: q),
        {"perm": torch.tensor([0, 1, 2, 3, 4, 5, 5])},
        "'perm' must hold every row once",
    ),
    "unknown backend": (
        change(0, lambda q: q),
        {"backend": "flash"},
        "'backend' must be one of .*'sdpa'.* \\(got 'flash'\\)",
    ),
}


@pytest.mark.parametrize("apply, kwargs, message", BAD.values(), ids=[*BAD])
def test_bad_argument(apply, kwargs, message):
    tensors = apply([t.detach() for t in inputs([4, 3])])
    with pytest.raises(ValueError, match=message):
        ball_attention(*tensors, **{"ball_size": B, **kwargs})


BAD_DTYPES = {
    "different": (change(1, lambda k: k.float()), "'q', 'k', 'v'.*float64.*float32"),
    "integer features": (
        lambda t: [x.long() for x in t[:3]] + t[3:],
        "'q' must be floating-point",
    ),
    "integer positions": (change(3, lambda p: p.long()), "'pos'.*torch.int64"),
    "integer sigma": (change(5, lambda s: s.long()), "'sigma'.*torch.int64"),
}


@pytest.mark.parametrize("apply, message", BAD_DTYPES.values(), ids=[*BAD_DTYPES])
def test_bad_dtype(apply, message):
    tensors = apply([t.detach() for t in inputs([4, 3])])
    with pytest.raises(TypeError, match=message):
        run(tensors)


def make_layer(backend=None, dim=3):
    """The layer in the backend's precision, and with the same weights in float64."""
    layer = randomised(BallAttention(6, heads=2, ball_size=B, dim=dim, backend=backend))
    layer.to(PRECISION.get(backend, torch.float64))
    return layer, {k: v.double() for k, v in layer.state_dict().items()}


def level_of(pos, balls, perm=None):
    """A level whose balls are those of a second tree if its order is given."""
    level = Level.build(pos, torch.tensor(balls), ball_size=B, perm_rot=perm)
    return level if perm is None else level.rotated()


def layer_inputs(balls, channels=6, dim=3, dtype=torch.float64):
    """Rows and their positions."""
    generator = torch.Generator().manual_seed(sum(balls))
    n = sum(balls)
    x = torch.randn(n, channels, generator=generator, dtype=dtype)
    return x, torch.randn(n, dim, generator=generator, dtype=dtype)


@pytest.mark.parametrize("balls", [[1], [4, 1], [4, 2, 3]], ids=str)
@pytest.mark.parametrize("dim", [1, 2, 3])
@every_backend
def test_layer_equals_oracle(balls, dim, backend):
    layer, weights = make_layer(backend, dim)
    x, pos = layer_inputs(balls, dim=dim, dtype=PRECISION[backend])
    rows = plain.runs(balls, range(len(x)))
    expected = plain.attention(
        weights, list(x.double()), list(pos.double()), rows, heads=2
    )
    out = layer(x, level_of(pos, balls))
    assert_close(out, torch.stack(expected), TOLERANCE[backend])


@every_backend
def test_layer_equals_oracle_in_rotated_balls(backend):
    layer, weights = make_layer(backend)
    x, pos = layer_inputs([4, 1, 3], dtype=PRECISION[backend])
    perm = torch.tensor([3, 7, 0, 5, 1, 2, 6, 4])
    rows = plain.runs([4, 1, 3], perm.tolist())
    expected = plain.attention(
        weights, list(x.double()), list(pos.double()), rows, heads=2
    )
    out = layer(x, level_of(pos, [4, 1, 3], perm))
    assert_close(out, torch.stack(expected), TOLERANCE[backend])


def test_layer_of_no_rows():
    layer = BallAttention(6, heads=2, ball_size=B)
    ball_len = torch.empty(0, dtype=torch.int64)
    level = Level.build(torch.rand(0, 3), ball_len, ball_size=B)
    out = layer(torch.rand(0, 6), level)
    assert out.shape == (0, 6)


@every_backend
def test_layer_gives_every_parameter_a_gradient(backend):
    layer, _ = make_layer(backend)
    x, pos = layer_inputs([4, 1, 3], dtype=PRECISION[backend])
    out = layer(x, level_of(pos, [4, 1, 3]))
    (out * torch.randn_like(out)).sum().backward()
    bias = layer.lin_qkv.bias.grad.view(3, -1)
    # A constant added to all keys shifts all scores of a query by the same number,
    # which has no effect.
    assert bias[1].abs().max() < 10 * TOLERANCE[backend]
    assert (bias[[0, 2]].abs() > 1e-5).all()
    for name, parameter in layer.named_parameters():
        if name != "lin_qkv.bias":
            assert (parameter.grad.abs() > 1e-5).all(), name


def test_layer_gradient_of_positions():
    layer = randomised(BallAttention(6, 2, B))
    x, pos = layer_inputs([4, 3])
    pos.requires_grad_()
    layer(x, level_of(pos, [4, 3])).square().sum().backward()
    # Moving a whole ball changes nothing.
    assert pos.grad.abs().max() > 1e-3
    assert pos.grad[:4].sum(0).abs().max() < 1e-12


def test_layer_is_translation_invariant():
    layer = randomised(BallAttention(6, heads=2, ball_size=B))
    x, pos = layer_inputs([4, 3])
    # float64 positions at 1000 are rounded to 1e-13.
    moved, level = level_of(pos + 1000, [4, 3]), level_of(pos, [4, 3])
    assert_close(layer(x, moved), layer(x, level), 1e-11)


def test_layer_reset_parameters():
    torch.manual_seed(0)
    layer = BallAttention(64, heads=8, ball_size=B)
    before = copy.deepcopy(layer.state_dict())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(7)
    layer.reset_parameters()
    for name, parameter in layer.named_parameters():
        if name == "sigma":
            assert (parameter + 1).abs().max() < 0.06  # -1 + 0.01 N(0, 1)
            assert parameter.std() > 0
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            assert 0.8 < parameter.std() * parameter.size(1) ** 0.5 < 0.96
            assert not torch.equal(parameter, before[name])


@every_backend
def test_layer_under_autocast(backend):
    layer = BallAttention(16, heads=2, ball_size=B, backend=backend)
    x, pos = layer_inputs([4, 4, 3], 16, dtype=torch.float32)
    level = level_of(pos, [4, 4, 3])
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, level)
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    # Five products in sequence, each with a relative rounding error of 2^-8.
    expected = layer(x, level).detach()
    assert (out - expected).norm() <= 5 * 2**-8 * expected.norm()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


def test_layer_bad_argument():
    with pytest.raises(ValueError, match=r"'heads' must divide.* 6 \(got 4\)"):
        BallAttention(6, heads=4, ball_size=B)
    with pytest.raises(ValueError, match=r"'heads' must be at least 1 \(got 0\)"):
        BallAttention(6, heads=0, ball_size=B)
    with pytest.raises(ValueError, match=r"'backend' must be one of.*\(got 'flash'\)"):
        BallAttention(6, heads=2, ball_size=B, backend="flash")


def test_layer_refuses_other_levels():
    layer, x, pos = BallAttention(6, heads=2, ball_size=B), *layer_inputs([4, 3])
    for rows, what in ((x[1:], r"\[6, 6\]"), (x[:, 1:], r"\[7, 5\]")):
        with pytest.raises(ValueError, match=rf"'x' must .* \[7, 6\] \(got {what}\)"):
            layer(rows, level_of(pos, [4, 3]))
    with pytest.raises(ValueError, match=r"'level.pos' must have 3 .*'dim=2'"):
        layer(x, level_of(pos[:, :2], [4, 3]))
    larger = Level.build(pos, torch.tensor([4, 3]), ball_size=B + 1)
    with pytest.raises(ValueError, match=r"have up to 5 rows, .* 'ball_size=4'"):
        layer(x, larger)
    smaller = Level.build(pos, torch.tensor([2, 2, 2, 1]), ball_size=B - 2)
    assert layer.double()(x, smaller).shape == x.shape


def test_layer_repr():
    layer = BallAttention(6, heads=2, ball_size=B)
    assert repr(layer) == "BallAttention(6, heads=2, ball_size=4)"


@every_backend
def test_no_score_of_an_absent_row_counts(backend):
    # Slots without a row are at the origin in a dense view. The origin is farthest from
    # every row, and here farther rows get larger weights, so such slots would show.
    q, k, v, pos, balls, sigma = inputs([4, 2], dtype=PRECISION[backend])
    tensors = (q, k, v, pos.detach() + 1000, balls, sigma.detach().abs())
    expected = run_oracle(in_float64(tensors))
    assert_close(run(tensors, backend), expected, TOLERANCE[backend])


def test_perm_of_other_dtype():
    tensors = [t.detach() for t in inputs([4, 3])]
    with pytest.raises(TypeError, match=r"'perm' must be int64 \(got torch.int32\)"):
        ball_attention(*tensors, ball_size=B, perm=torch.arange(7, dtype=torch.int32))


def test_any_module_embeds_positions():
    layer = BallAttention(8, heads=2, ball_size=4)
    x, level = torch.rand(6, 8), level_of(torch.rand(6, 3), [4, 2])
    expected = layer(x, level)
    linear = layer.lin_pos
    layer.lin_pos = torch.nn.Sequential(torch.nn.Identity(), linear)  # has no weight
    torch.testing.assert_close(layer(x, level), expected)
