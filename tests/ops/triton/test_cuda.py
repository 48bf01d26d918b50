"""Ball attention on a GPU, in every precision, compiled and captured."""

import pytest
import torch
from compiled import no_recompilation

from torch_geometric_erwin.nn import BallAttention, ball_attention, choose_backend

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
OPS = torch.ops.erwin
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HALF = DTYPES[1:]


def inputs(balls, heads=2, channels=8, dim=3, dtype=torch.float32, permuted=False):
    """The arguments of the packed operator, except the ball size and the scale."""
    generator = torch.Generator().manual_seed(sum(balls))

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    n = sum(balls)
    qkv = normal(n, 3, heads, channels).to("cuda", dtype).requires_grad_()
    pos, sigma = (t.cuda().requires_grad_() for t in (normal(n, dim), normal(heads)))
    perm = torch.randperm(n, generator=generator).cuda() if permuted else None
    return qkv, pos, torch.tensor(balls, dtype=torch.int64).cuda(), sigma, perm


def attend(args, ball_size, backend="triton", pos_grad=True):
    qkv, pos, ball_len, sigma, perm = args
    rows = (*qkv.unbind(1), pos if pos_grad else pos.detach(), ball_len, sigma)
    return ball_attention(*rows, ball_size=ball_size, perm=perm, backend=backend)


def results(args, ball_size, backend="triton", pos_grad=True):
    """The output and the gradients of q, k, v together, of sigma and of positions."""
    out = attend(args, ball_size, backend, pos_grad)
    leaves = (args[0], args[3], args[1])[: 3 if pos_grad else 2]
    weight = torch.linspace(-1, 1, out.numel(), device="cuda").view_as(out)
    return out.detach(), *torch.autograd.grad(out, leaves, weight.to(out.dtype))


def in_float64(args):
    return [
        t.detach().double().requires_grad_()
        if t is not None and t.is_floating_point()
        else t
        for t in args
    ]


def assert_close(actual, expected, tolerance):
    """The tolerance is relative to the largest value (to 1 if that is smaller)."""
    assert actual.shape == expected.shape
    allowed = tolerance * max(1, expected.abs().max().item())
    assert (actual.double() - expected).abs().max().item() <= allowed


def assert_equals_reference(args, ball_size, eps, pos_grad):
    actual = results(args, ball_size, pos_grad=pos_grad)
    expected = results(in_float64(args), ball_size, "reference")
    rows, _, _, channels = args[0].shape
    root = channels**0.5
    tolerances = (16, 16 * root, 8 * (rows * channels) ** 0.5, 16 * root)
    for a, e, tolerance in zip(actual, expected, tolerances):
        assert_close(a, e, tolerance * eps)


# Sizes near the tiles of 16 to 256 rows, and larger ones.
BALLS = [[1], [0, 2, 15], [16, 17, 33], [64, 100], [256, 0, 255], [257], [1030]]


@pytest.mark.parametrize("balls", BALLS, ids=str)
@pytest.mark.parametrize("channels", [8, 20, 32, 64, 128])
@pytest.mark.parametrize("dtype", [*DTYPES, "tf32"], ids=str)
@pytest.mark.parametrize("pos_grad", [False, True])
def test_equals_reference(monkeypatch, balls, channels, dtype, pos_grad):
    tf32 = dtype == "tf32"
    precision = "tf32" if tf32 else "ieee"
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", precision)
    dtype = torch.float32 if tf32 else dtype
    # TF32 rounds like float16. In half precision, weights and the output are rounded,
    # and gradients are computed from the rounded output.
    eps = torch.finfo(torch.float16 if tf32 else dtype).eps
    eps = eps if dtype == torch.float32 and not tf32 else eps / 4
    dim = {20: 2, 64: 5}.get(channels, 3)
    args = inputs(balls, 2, channels, dim, dtype, permuted=channels != 32)
    assert_equals_reference(args, max(balls), eps, pos_grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pos_grad", [False, True])
def test_same_bits_in_every_run(dtype, pos_grad):
    args = inputs([256] * 50 + [100, 0, 17], 8, 32, 3, dtype, permuted=True)
    expected = results(args, 256, pos_grad=pos_grad)
    for _ in range(5):
        actual = results(args, 256, pos_grad=pos_grad)
        for a, e in zip(actual, expected, strict=True):
            assert torch.equal(a, e)


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_balls_change_nothing(dtype):
    args = [*inputs([256, 100, 17], 4, 32, 3, dtype, permuted=True)]
    expected = results(args, 256)
    args[2] = torch.tensor([0, 256, 100, 0, 0, 17, 0]).cuda()
    for a, e in zip(results(args, 256), expected, strict=True):
        assert torch.equal(a, e)


def test_heads_far_apart():
    args = inputs([40], 3, 32, 3, torch.bfloat16)
    expected = results(args, 40)
    # The third head starts 2^31 numbers after the first, so 32-bit offsets overflow.
    far = torch.empty(2**31 + 40 * 3 * 32, dtype=torch.bfloat16, device="cuda")
    far = far.as_strided((40, 3, 3, 32), (32, 40 * 32, 2**30, 1))
    far.copy_(args[0].detach())
    actual = results((far.requires_grad_(), *args[1:]), 40)
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


def test_other_balls_have_no_influence():
    qkv, pos, *rest = inputs([200, 57], 4, 32)
    expected = results((qkv, pos, *rest), 256)
    with torch.no_grad():
        qkv[200:] = float("nan")
    actual = results((qkv, pos, *rest), 256)
    assert torch.equal(actual[0][:200], expected[0][:200])
    assert torch.equal(actual[3][:200], expected[3][:200])


def test_differences_of_float64_positions_are_taken_before_rounding():
    qkv, pos, *rest = inputs([200, 57], permuted=True)
    far = (pos.detach().double() + 1e6).requires_grad_()
    eps = torch.finfo(torch.float32).eps
    assert_equals_reference((qkv, far, *rest), 200, eps, True)


def test_reads_no_value_from_the_device():
    args = inputs([200, 57, 0], 4, 32, permuted=True)
    results(args, 256)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(args, 256)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", DTYPES)
def test_graph_replays_other_balls(dtype):
    first = inputs([256, 57, 0, 0], 4, 32, 3, dtype, permuted=True)
    second = inputs([100, 113, 60, 40], 4, 32, 3, dtype, permuted=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results(first, 256)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(first, 256)
    for args in (second, first, inputs([90, 80, 70, 60], 4, 32, 3, dtype, True)):
        with torch.no_grad():
            for place, value in zip(first, args, strict=True):
                place[: value.size(0)].copy_(value)
            rows = args[0].size(0)
            first[4][rows:] = torch.arange(rows, 313)  # every row once
        graph.replay()
        expected = results(first, 256)
        for a, e in zip(captured, expected, strict=True):
            assert torch.equal(a, e)
        if rows < 313:
            behind = first[4][rows:]
            for t in (captured[0], captured[1], captured[3]):
                assert (t[behind] == 0).all()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("permuted", [False, True])
def test_opcheck(packed, permuted):
    qkv, *rest = inputs([20, 7], permuted=permuted)
    rest = (*rest, 20, 0.3)
    if packed:
        torch.library.opcheck(OPS.ball_attention_packed.default, (qkv, *rest))
        return
    separate = [t.detach().requires_grad_() for t in qkv.unbind(1)]
    torch.library.opcheck(OPS.ball_attention.default, (*separate, *rest))


def test_second_gradients_equal_reference():
    args = inputs([20, 0, 7, 1], permuted=True)

    def second(args, backend):
        qkv, pos, _, sigma, _ = args
        energy = attend(args, 20, backend).square().sum()
        force, slope = torch.autograd.grad(energy, (pos, sigma), create_graph=True)
        loss = force.square().sum() + slope.square().sum()
        return torch.autograd.grad(loss, (qkv, pos, sigma))

    for a, e in zip(second(args, "triton"), second(in_float64(args), "reference")):
        assert_close(a, e, 64 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_graph_for_all_sizes(backend):
    def function(qkv, pos, ball_len, sigma, perm):
        rows = (*qkv.unbind(1), pos, ball_len, sigma)
        return ball_attention(*rows, ball_size=32, perm=perm, backend="triton")

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    # Sizes that are equal in the first batch are assumed to stay equal.
    for i, balls in enumerate([[20, 7, 0, 5, 9], [3, 9, 15], [5, 32]]):
        args = inputs(balls, permuted=True)
        with no_recompilation(i):
            out = compiled(*args)
        expected = function(*args)
        assert torch.equal(out, expected)
        weight = torch.linspace(-1, 1, out.numel(), device="cuda").view_as(out)
        leaves = (args[0], args[3])
        for a, e in zip(
            torch.autograd.grad(out, leaves, weight),
            torch.autograd.grad(expected, leaves, weight),
        ):
            assert torch.equal(a, e)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("backend", [None, "triton"])
def test_layer_under_autocast(dtype, backend):
    torch.manual_seed(0)
    layer = BallAttention(64, heads=2, ball_size=32, backend=backend).cuda()
    x, pos = torch.randn(50, 64, device="cuda"), torch.randn(50, 3, device="cuda")
    ball_len = torch.tensor([32, 18], device="cuda")
    with torch.autocast("cuda", dtype):
        out = layer(x, pos, ball_len)
    out.float().square().sum().backward()
    assert out.dtype == dtype
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())
    # Rounding errors of five products in sequence.
    expected = layer(x, pos, ball_len).detach()
    assert (out - expected).norm() <= 5 * torch.finfo(dtype).eps * expected.norm()


@pytest.mark.parametrize("dtype", DTYPES)
def test_is_chosen(dtype):
    q, pos = torch.rand(6, 2, 32, dtype=dtype).cuda(), torch.rand(6, 3).cuda()
    assert choose_backend(q, pos, False) == "triton"
    assert choose_backend(q, pos, True) == "triton"
    assert choose_backend(q.double(), pos, False) == "sdpa"
    assert choose_backend(q.repeat(1, 1, 5), pos, False) == "sdpa"
