import pytest
import torch

from torch_geometric_erwin.nn import (
    ball_attention,
    choose_backend,
    explain_backends,
)

Q, POS = torch.rand(6, 2, 4), torch.rand(6, 3)


def test_explains_every_backend():
    assert explain_backends(Q, POS, False) == {"sdpa": "", "reference": ""}
    reasons = explain_backends(Q, POS, True)
    assert reasons == {"sdpa": "it has no gradient to positions", "reference": ""}


@pytest.mark.parametrize("differentiable", [False, True])
def test_chooses_first_that_can_run(differentiable):
    reasons = explain_backends(Q, POS, differentiable)
    chosen = choose_backend(Q, POS, differentiable)
    assert chosen == ("reference" if differentiable else "sdpa")
    assert chosen == next(name for name, reason in reasons.items() if not reason)


@pytest.mark.parametrize("wanted", ["sdpa", "reference"])
def test_wanted_backend_is_chosen(wanted):
    assert choose_backend(Q, POS, False, wanted) == wanted


def test_wanted_backend_that_cannot_run():
    message = "the backend 'sdpa' cannot run: it has no gradient to positions"
    with pytest.raises(ValueError, match=message):
        choose_backend(Q, POS, True, "sdpa")


def test_unknown_backend():
    message = r"'backend' must be one of \['sdpa', 'reference'\] \(got 'flash'\)"
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


@pytest.mark.parametrize("wanted, chosen", [(None, "sdpa"), ("reference", "reference")])
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
