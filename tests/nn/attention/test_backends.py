import pytest
import torch
from torch._subclasses import FakeTensorMode

from torch_geometric_erwin import Level
from torch_geometric_erwin.nn import (
    BallAttention,
    ball_attention,
    choose_backend,
    explain_backends,
)
from torch_geometric_erwin.ops import triton as kernels
from torch_geometric_erwin.ops.ball_attention import BACKENDS, triton

Q, POS = torch.rand(6, 2, 4), torch.rand(6, 3)
MOVING = POS.clone().requires_grad_()


NO_GRADIENT = "it has no gradient to positions"
NOT_CUDA = "it runs on CUDA devices (got cpu)"


def test_explains_every_backend():
    reasons = explain_backends(Q, POS)
    assert [*reasons.items()] == [
        ("native", ""),
        ("triton", NOT_CUDA),
        ("sdpa", ""),
        ("reference", ""),
    ]


def test_explains_what_has_no_gradient_to_positions():
    reasons = explain_backends(Q, MOVING)
    assert [*reasons.items()] == [
        ("native", ""),
        ("triton", NOT_CUDA),
        ("sdpa", NO_GRADIENT),
        ("reference", ""),
    ]


def test_function_transforms_and_forward_mode_take_another_backend():
    _, q, pos = run()
    args = (torch.tensor([4, 2]), torch.full((2,), -1.0))

    def attend(q):
        return ball_attention(q, q, q, pos, *args, ball_size=4)

    expected = torch.stack([attend(q), attend(2 * q)])
    actual = torch.func.vmap(attend)(torch.stack([q, 2 * q]))
    torch.testing.assert_close(actual, expected)
    _, tangent = torch.func.jvp(attend, (q.detach(),), (torch.ones_like(q),))
    step = (attend(q + 1e-2) - attend(q - 1e-2)) / 2e-2
    torch.testing.assert_close(tangent, step, rtol=1e-2, atol=1e-3)


def test_explains_what_native_does_not_serve():
    for dtype in (torch.float64, torch.float16):
        reason = explain_backends(Q.to(dtype), POS)["native"]
        assert reason == f"it serves float32 and bfloat16 (got {dtype})"
    reason = explain_backends(Q.to("meta"), POS.to("meta"))["native"]
    assert reason == "it runs on the CPU (got meta)"


def rows(channels=32, dtype=torch.bfloat16):
    """Fake queries on a GPU, for machines that have none."""
    with FakeTensorMode():
        return torch.empty(6, 2, channels, dtype=dtype, device="cuda:0")


def places(moving=False):
    """Their fake positions."""
    with FakeTensorMode():
        return torch.empty(6, 3, device="cuda:0", requires_grad=moving)


@pytest.fixture
def gpu(monkeypatch):
    """Pretends that Triton is installed beside a GPU of this compute capability."""

    def pretend(capability, installed=True):
        monkeypatch.setattr(kernels, "find_spec", lambda name: installed or None)
        cuda = {
            "get_device_capability": lambda device: capability,
            "get_device_name": lambda device: "A GPU",
        }
        for name, value in cuda.items():
            monkeypatch.setattr(torch.cuda, name, value)

    return pretend


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("differentiable", [False, True])
def test_chooses_triton_on_a_gpu(gpu, dtype, differentiable):
    gpu((9, 0))
    assert choose_backend(rows(dtype=dtype), places(differentiable)) == "triton"


def test_explains_what_triton_does_not_serve(gpu):
    gpu((9, 0))
    assert triton.why_not(rows(128), places()) == ""
    reason = "it serves heads of 128 channels at most (got 129)"
    assert triton.why_not(rows(129), places()) == reason
    assert choose_backend(rows(129), places()) == "sdpa"
    exact = rows(dtype=torch.float64)
    reason = "it serves float32, bfloat16 and float16 (got torch.float64)"
    assert triton.why_not(exact, places()) == reason
    assert choose_backend(exact, places(moving=True)) == "reference"


def test_explains_where_triton_does_not_run(gpu):
    gpu((7, 5))
    reason = "it needs an NVIDIA GPU of compute capability 8.0 or more (got A GPU, 7.5)"
    assert triton.why_not(rows(), places()) == reason
    gpu((9, 0), installed=False)
    assert triton.why_not(rows(), places()) == "Triton is not installed"
    assert choose_backend(rows(), places()) == "sdpa"
    with pytest.raises(
        ValueError, match="'triton' cannot run: Triton is not installed"
    ):
        choose_backend(rows(), places(), wanted="triton")


def test_a_traced_graph_holds_what_the_machine_is(gpu):
    gpu((7, 5))

    def function(x):
        return x + 1 if kernels.why_not(0) else x - 1

    compiled = torch.compile(function, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(2)).tolist() == [1, 1]


def test_a_layer_for_a_gpu_can_be_made_without_one():
    layer = BallAttention(16, heads=2, ball_size=4, backend="triton")
    with pytest.raises(ValueError, match=r"'triton' cannot run: .* \(got cpu\)"):
        layer(torch.rand(6, 16), Level.build(POS, torch.tensor([4, 2]), ball_size=4))


@pytest.mark.parametrize(
    "dtype, differentiable, expected",
    [
        (torch.float32, False, "native"),
        (torch.bfloat16, False, "native"),
        (torch.float16, False, "sdpa"),
        (torch.float64, False, "sdpa"),
        (torch.float32, True, "native"),
        (torch.float64, True, "reference"),
    ],
)
def test_chooses_first_that_can_run(dtype, differentiable, expected):
    args = (Q.to(dtype), MOVING if differentiable else POS)
    reasons, chosen = explain_backends(*args), choose_backend(*args)
    assert chosen == expected
    assert chosen == next(name for name, reason in reasons.items() if not reason)


@pytest.mark.parametrize("wanted", ["native", "sdpa", "reference"])
def test_wanted_backend_is_chosen(wanted):
    assert choose_backend(Q, POS, wanted=wanted) == wanted


def test_wanted_backend_that_cannot_run():
    message = f"the backend 'sdpa' cannot run: {NO_GRADIENT}"
    with pytest.raises(ValueError, match=message):
        choose_backend(Q, MOVING, wanted="sdpa")


def test_unknown_backend():
    message = (
        r"'wanted' must be one of \['native', 'triton', 'sdpa', 'reference'\] "
        r"\(got 'flash'\)"
    )
    with pytest.raises(ValueError, match=message):
        choose_backend(Q, POS, wanted="flash")


def run(moving=True, **kwargs):
    q, pos = Q.clone().requires_grad_(), POS.clone().requires_grad_(moving)
    ball_len, sigma = torch.tensor([4, 2]), torch.full((2,), -1.0)
    out = ball_attention(q, q, q, pos, ball_len, sigma, ball_size=4, **kwargs)
    return out, q, pos


def test_ball_attention_refuses_what_the_backend_cannot():
    with pytest.raises(ValueError, match="'sdpa' cannot run"):
        run(backend="sdpa")


@pytest.mark.parametrize(
    "wanted, chosen", [(None, "native"), ("sdpa", "sdpa"), ("reference", "reference")]
)
def test_ball_attention_runs_the_chosen_backend(monkeypatch, wanted, chosen):
    calls = []
    original = BACKENDS[chosen].run

    def spy(*args):
        calls.append(chosen)
        return original(*args)

    monkeypatch.setattr(BACKENDS[chosen], "run", spy)
    run(moving=False, backend=wanted)
    assert calls == [chosen]


def test_differentiable_positions_have_second_gradients():
    out, q, pos = run()
    (force,) = torch.autograd.grad(out.square().sum(), pos, create_graph=True)
    (grad,) = torch.autograd.grad(force.square().sum(), q)
    assert grad.abs().max() > 0
