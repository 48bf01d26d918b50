import pytest
import torch

from torch_geometric_erwin.nn import (
    ball_attention,
    choose_backend,
    explain_backends,
)

Q, POS = torch.rand(6, 2, 4), torch.rand(6, 3)


NO_GRADIENT = "it has no gradient to positions"


def test_explains_every_backend():
    reasons = explain_backends(Q, POS, False)
    assert [*reasons.items()] == [("native", ""), ("sdpa", ""), ("reference", "")]


def test_explains_what_has_no_gradient_to_positions():
    reasons = explain_backends(Q, POS, True)
    assert [*reasons.items()] == [
        ("native", ""),
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
        reason = explain_backends(Q.to(dtype), POS, False)["native"]
        assert reason == f"it serves float32 and bfloat16 (got {dtype})"
    reason = explain_backends(Q.to("meta"), POS.to("meta"), False)["native"]
    assert reason == "it runs on the CPU (got meta)"


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
    reasons = explain_backends(Q.to(dtype), POS, differentiable)
    chosen = choose_backend(Q.to(dtype), POS, differentiable)
    assert chosen == expected
    assert chosen == next(name for name, reason in reasons.items() if not reason)


@pytest.mark.parametrize("wanted", ["native", "sdpa", "reference"])
def test_wanted_backend_is_chosen(wanted):
    assert choose_backend(Q, POS, False, wanted) == wanted


def test_wanted_backend_that_cannot_run():
    message = f"the backend 'sdpa' cannot run: {NO_GRADIENT}"
    with pytest.raises(ValueError, match=message):
        choose_backend(Q, POS, True, "sdpa")


def test_unknown_backend():
    message = (
        r"'backend' must be one of \['native', 'sdpa', 'reference'\] \(got 'flash'\)"
    )
    with pytest.raises(ValueError, match=message):
        choose_backend(Q, POS, False, "flash")


def run(**kwargs):
    q, pos = Q.clone().requires_grad_(), POS.clone().requires_grad_()
    ball_len, sigma = torch.tensor([4, 2]), torch.full((2,), -1.0)
    out = ball_attention(q, q, q, pos, ball_len, sigma, ball_size=4, **kwargs)
    return out, q, pos


def test_ball_attention_refuses_what_the_backend_cannot():
    with pytest.raises(ValueError, match="'sdpa' cannot run"):
        run(differentiable_pos=True, backend="sdpa")


@pytest.mark.parametrize(
    "wanted, chosen", [(None, "native"), ("sdpa", "sdpa"), ("reference", "reference")]
)
def test_ball_attention_runs_the_chosen_backend(monkeypatch, wanted, chosen):
    from torch_geometric_erwin.nn.attention.backends import BACKENDS

    calls = []
    original = BACKENDS[chosen].run

    def spy(*args):
        calls.append(chosen)
        return original(*args)

    monkeypatch.setattr(BACKENDS[chosen], "run", spy)
    run(backend=wanted)
    assert calls == [chosen]


def test_differentiable_positions_have_second_gradients():
    out, q, pos = run(differentiable_pos=True)
    (force,) = torch.autograd.grad(out.square().sum(), pos, create_graph=True)
    (grad,) = torch.autograd.grad(force.square().sum(), q)
    assert grad.abs().max() > 0
