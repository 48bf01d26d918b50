import pytest
import torch
from compiled import no_recompilation
from hypothesis import given
from hypothesis import strategies as st

import torch_geometric_erwin.nn  # noqa: F401  (registers the operators)
from torch_geometric_erwin import _native
from torch_geometric_erwin.nn import ball_attention

EPS = torch.finfo(torch.float32).eps
ISAS = [*_native.CPU_ISAS][: _native.library().erwin_cpu_isa() + 1]
OPS = torch.ops.erwin


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def inputs(balls, heads=2, channels=8, dim=3, dtype=torch.float32, permuted=False):
    """The arguments of the packed operator, except the ball size and the scale."""
    generator = torch.Generator().manual_seed(sum(balls))

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    n = sum(balls)
    qkv = normal(n, 3, heads, channels).to(dtype).requires_grad_()
    pos, sigma = normal(n, dim).requires_grad_(), normal(heads).requires_grad_()
    perm = torch.randperm(n, generator=generator) if permuted else None
    return qkv, pos, torch.tensor(balls, dtype=torch.int64), sigma, perm


def attend(qkv, pos, ball_len, sigma, perm, backend="native"):
    size = int(ball_len.max()) if len(ball_len) > 0 else 1
    args = (*qkv.unbind(1), pos, ball_len, sigma)
    return ball_attention(*args, ball_size=max(size, 1), perm=perm, backend=backend)


def gradients(out, leaves):
    weight = torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype)
    return torch.autograd.grad(out, leaves, weight)


def results(args, backend="native"):
    """The output and the gradients of q, k, v together, of positions and of sigma."""
    out = attend(*args, backend)
    return (out.detach(), *gradients(out, (args[0], args[1], args[3])))


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


def assert_equals_reference(args, eps=EPS):
    out, *grads = results(args)
    wanted, *expected = results(in_float64(args), "reference")
    rows, _, _, channels = args[0].shape
    # An output is a mean, whose error does not grow with the ball.
    assert_close(out, wanted, 16 * eps)
    # Gradients are differences of terms of order sqrt(channels). The gradient of sigma
    # adds up the errors of all rows.
    for grad, want in zip(grads[:2], expected[:2]):
        assert_close(grad, want, 16 * channels**0.5 * eps)
    assert_close(grads[2], expected[2], 8 * (rows * channels) ** 0.5 * eps)


# Sizes near those of a vector, a block of queries and a tile of keys, and one that is
# too large for cached distances.
BALLS = [[1], [2, 3], [15, 16, 17], [31, 0, 33], [64, 65], [127, 129], [200], [530]]
# Heads, channels, coordinates; channels are near vectors of 4, 8 and 16.
WIDTHS = [
    (1, 1, 3),
    (3, 4, 2),
    (2, 8, 3),
    (1, 13, 1),
    (2, 16, 3),
    (3, 32, 2),
    (1, 33, 7),
    (1, 100, 3),
]


@pytest.mark.parametrize("balls", BALLS, ids=str)
@pytest.mark.parametrize("heads, channels, dim", WIDTHS)
@pytest.mark.parametrize(
    "permuted", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_equals_reference(isa, balls, heads, channels, dim, permuted):
    assert_equals_reference(inputs(balls, heads, channels, dim, permuted=permuted))


@pytest.mark.parametrize("balls", [[2, 3], [31, 0, 33], [127, 129]], ids=str)
@pytest.mark.parametrize("channels", [3, 16, 40])
def test_bfloat16_equals_reference(isa, balls, channels):
    args = inputs(balls, 2, channels, dtype=torch.bfloat16, permuted=True)
    # Two rounding errors: of the output, from which gradients are computed, and of a
    # gradient.
    assert_equals_reference(args, eps=torch.finfo(torch.bfloat16).eps / 8)


@given(
    balls=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any),
    heads=st.integers(1, 4),
    channels=st.integers(1, 40),
    dim=st.integers(1, 5),
    permuted=st.booleans(),
)
def test_equals_reference_at_any_size(balls, heads, channels, dim, permuted):
    assert_equals_reference(inputs(balls, heads, channels, dim, permuted=permuted))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("balls", [[256], [100, 156, 30], [0, 64] * 4], ids=str)
def test_same_bits_on_any_number_of_threads(threads, isa, balls, permuted, dtype):
    args = inputs(balls, 5, 20, dtype=dtype, permuted=permuted)
    assert sum(n * n for n in balls) * 5 * 21 > 2**20  # enough for a second thread
    threads(1)
    expected = results(args)
    still = (args[0], args[1].detach(), *args[2:])  # positions without a gradient
    expected += gradients(attend(*still), (args[0], args[3]))
    for count in (2, 3):
        threads(count)
        actual = results(args) + gradients(attend(*still), (args[0], args[3]))
        for a, e in zip(actual, expected, strict=True):
            assert torch.equal(a, e)


@pytest.mark.parametrize("permuted", [False, True])
def test_packed_equals_separate(permuted):
    qkv, pos, _, sigma, _ = args = inputs([20, 7], permuted=permuted)
    leaves = (qkv, pos, sigma)
    expected = attend(*args)
    out, *_ = OPS.ball_attention_packed(*args, 20, qkv.size(-1) ** -0.5)
    assert torch.equal(out, expected)
    for a, e in zip(gradients(out, leaves), gradients(expected, leaves)):
        assert torch.equal(a, e)


@pytest.mark.parametrize("balls", [[], [0], [0, 0]], ids=str)
def test_no_rows(balls):
    args = inputs(balls)
    out, *grads = results(args)
    assert out.shape == (0, 2, 8)
    for grad, leaf in zip(grads, (args[0], args[1], args[3]), strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf))


def test_any_strides(isa):
    args = inputs([20, 7])
    expected = results(args)
    q, k, v = (t.detach() for t in args[0].unbind(1))
    heads_first = q.transpose(0, 1).contiguous().transpose(0, 1)
    channels_apart = torch.stack([k, k], dim=-1)[..., 0]
    leaves = [t.requires_grad_() for t in (heads_first, channels_apart, v.clone())]
    assert not any(t.is_contiguous() for t in leaves[:2])
    pos = torch.stack([args[1].detach()] * 2, dim=-1)[..., 0]
    out = ball_attention(*leaves, pos, args[2], args[3], ball_size=20)
    assert torch.equal(out, expected[0])
    grads = gradients(out, leaves)
    assert torch.equal(torch.stack(grads, dim=1), expected[1])


def test_gradient_without_strides():
    # The gradient of a sum is one number, expanded to the shape.
    args = inputs([20, 7])
    leaves = (args[0], args[1], args[3])
    actual = torch.autograd.grad(attend(*args).sum(), leaves)
    ones = torch.autograd.grad(attend(*args), leaves, torch.ones(27, 2, 8))
    for a, e in zip(actual, ones, strict=True):
        assert torch.equal(a, e)


def test_differences_of_float64_positions_are_taken_before_rounding(isa):
    # float32 has a spacing of 0.06 at a million.
    qkv, pos, *rest = inputs([20, 7])
    far = (pos.detach().double() + 1e6).requires_grad_()
    out, *grads = results((qkv, far, *rest))
    expected, *wanted = results((qkv, (far.detach() - 1e6).requires_grad_(), *rest))
    assert grads[1].dtype == torch.float64
    assert_close(out, expected, 4 * EPS)
    for grad, want in zip(grads, wanted, strict=True):
        assert_close(grad, want, 16 * EPS)


def test_lower_precision_of_positions_and_sigma():
    qkv, pos, ball_len, sigma, _ = inputs([20, 7])
    half = [t.detach().bfloat16().requires_grad_() for t in (pos, sigma)]
    out = attend(qkv, half[0], ball_len, half[1], None)
    exact = [t.detach().float() for t in half]
    assert torch.equal(out, attend(qkv, exact[0], ball_len, exact[1], None))
    grads = gradients(out, half)
    assert [g.dtype for g in grads] == [torch.bfloat16] * 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_in_its_ball_and_head(isa, value):
    qkv, *rest = inputs([20, 7])
    expected = attend(qkv, *rest)
    with torch.no_grad():
        qkv[3, 1, 0, 2] = value  # the key of row 3, head 0
    out = attend(qkv, *rest)
    assert not out[:20, 0].isfinite().all(-1).any() or value == float("inf")
    assert not out[:20, 0].isfinite().all()
    assert torch.equal(out[20:], expected[20:])
    assert torch.equal(out[:, 1], expected[:, 1])


def test_memory_between_forward_and_backward_is_linear_in_rows():
    args = inputs([128, 128], heads=2, channels=8)
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = attend(*args)
    assert out.requires_grad
    # Saved: q, k, v and the output; one number per head; the position; a few per ball.
    assert sum(saved.values()) <= 256 * (4 * 2 * 8 + 2 + 3) * 4 + 64


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("permuted", [False, True])
def test_second_gradients_equal_reference(permuted, packed):
    args = inputs([20, 0, 7, 1], permuted=permuted)

    def second(args, backend):
        qkv, pos, ball_len, sigma, perm = args
        scale = qkv.size(-1) ** -0.5
        if packed and backend == "native":
            args = (qkv, pos, ball_len, sigma, perm, 20, scale)
            out = torch.ops.erwin.ball_attention_packed(*args)[0]
        else:
            out = attend(*args, backend=backend)
        energy = out.square().sum()
        force, slope = torch.autograd.grad(energy, (pos, sigma), create_graph=True)
        loss = force.square().sum() + slope.square().sum()
        return torch.autograd.grad(loss, (qkv, pos, sigma))

    for actual, expected in zip(
        second(args, "native"), second(in_float64(args), "reference"), strict=True
    ):
        limit = 64 * EPS * expected.abs().max().item()
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=limit)


def test_gradient_of_some_inputs():
    qkv, pos, ball_len, sigma, _ = args = inputs([20, 7])
    wanted = results(args)
    alone = torch.autograd.grad(attend(*args), sigma, torch.ones(27, 2, 8))
    assert alone[0].shape == (2,)
    frozen = (qkv.detach(), pos.detach(), ball_len, sigma, None)
    out = attend(*frozen)
    assert torch.equal(gradients(out, (sigma,))[0], wanted[3])


def op_arguments(permuted):
    qkv, pos, ball_len, sigma, perm = inputs([20, 7], permuted=permuted)
    return qkv, (pos, ball_len, sigma, perm, 20, 0.3)


@pytest.mark.parametrize("permuted", [False, True])
def test_opcheck(permuted):
    qkv, rest = op_arguments(permuted)
    torch.library.opcheck(OPS.ball_attention_packed.default, (qkv, *rest))
    separate = [t.detach().requires_grad_() for t in qkv.unbind(1)]
    torch.library.opcheck(OPS.ball_attention.default, (*separate, *rest))


# Not the utility that differentiates: the operator's gradient is an error on purpose.
@pytest.mark.parametrize("pos_grad", [False, True])
def test_opcheck_of_gradient(pos_grad):
    qkv, rest = op_arguments(False)
    with torch.no_grad():
        out, *saved = OPS.ball_attention_packed(qkv, *rest)
        args = [t.detach() if isinstance(t, torch.Tensor) else t for t in rest]
        args = (out, out, *saved, *qkv.detach().unbind(1), *args, pos_grad)
    torch.library.opcheck(OPS.ball_attention_backward.default, args)


def test_one_graph_for_all_sizes():
    def function(qkv, pos, ball_len, sigma, perm):
        args = (*qkv.unbind(1), pos, ball_len, sigma)
        return ball_attention(*args, ball_size=32, perm=perm)

    torch.compiler.reset()
    compiled = torch.compile(
        function, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    # Sizes that are equal in the first batch are assumed to stay equal.
    for i, balls in enumerate([[20, 7, 0, 5, 9], [3, 9, 15], [5, 32]]):
        args = inputs(balls, permuted=True)
        leaves = (args[0], args[3])
        with no_recompilation(i):
            out = compiled(*args)
        expected = function(*args)
        assert torch.equal(out, expected)
        for a, e in zip(gradients(out, leaves), gradients(expected, leaves)):
            assert torch.equal(a, e)


BAD = {
    "balls of other sum": (2, lambda ball_len: ball_len + 1),
    "a negative ball": (2, lambda ball_len: ball_len.new_tensor([28, -1])),
    "a row twice": (4, lambda perm: perm.clamp(min=1)),
    "a row beyond the last": (4, lambda perm: perm + 1),
    "a negative row": (4, lambda perm: perm - 1),
}


@pytest.mark.parametrize("index, change", BAD.values(), ids=[*BAD])
def test_values_that_a_traced_graph_cannot_check(index, change):
    args = [*inputs([20, 7], permuted=True)]
    args[index] = change(args[index])
    message = "erwin_attention_(workspace|forward): invalid argument"
    with pytest.raises(RuntimeError, match=message):
        OPS.ball_attention_packed(*args, 20, 1.0)


def test_instruction_set_by_environment(monkeypatch):
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    assert _native.cpu_isa() == ISAS[-1]
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    assert _native.cpu_isa() == "baseline"
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "mmx")  # unknown to PyTorch
    assert _native.cpu_isa() == ISAS[-1]


def test_instruction_set_that_the_machine_has_not(monkeypatch):
    monkeypatch.setattr(_native, "CPU_ISAS", {**_native.CPU_ISAS, "avx9": 9})
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx9")
    assert _native.cpu_isa() == ISAS[-1]
    args = [t if t is None else t.detach() for t in inputs([20, 7])]
    monkeypatch.setattr(_native, "cpu_isa", lambda: "avx9")
    with pytest.raises(RuntimeError, match="not supported by this build"):
        attend(*args)
