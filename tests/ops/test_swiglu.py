import pytest
import torch
from compiled import no_recompilation

from torch_geometric_erwin.nn import SwiGLU
from torch_geometric_erwin.ops import linear as linear_module
from torch_geometric_erwin.ops import swiglu as ops
from torch_geometric_erwin.ops.linear import has_onednn
from torch_geometric_erwin.ops.swiglu import swiglu

needs_onednn = pytest.mark.skipif(
    not has_onednn(), reason="this PyTorch has no oneDNN product for x86"
)


@pytest.fixture(autouse=True, params=["any size", "large"])
def served(request, monkeypatch):
    """With small layers left to PyTorch, or computed natively too."""
    if request.param == "any size":
        monkeypatch.setattr(linear_module, "_SMALL", 1)


@pytest.fixture(autouse=True)
def short_portions(monkeypatch):
    # A portion is 16 rows for 32 hidden features, so test sizes are near it.
    monkeypatch.setattr(ops, "_PORTION", 16 * 32)
    monkeypatch.setattr(ops, "_MIN_ROWS", 1)


def tensors(rows, channels=8, hidden=32):
    shapes = [(2 * hidden, channels), (2 * hidden,), (channels, hidden), (channels,)]
    scaled = [torch.randn(s) / s[-1] ** 0.5 for s in [(rows, channels), *shapes]]
    return [t.requires_grad_() for t in scaled]


def definition(x, weight_in, bias_in, weight_out, bias_out):
    inner = x @ weight_in.T + bias_in
    gate, value = inner[..., : inner.size(-1) // 2], inner[..., inner.size(-1) // 2 :]
    return gate / (1 + (-gate).exp()) * value @ weight_out.T + bias_out


def close(actual, expected):
    for a, e in zip(actual, expected):
        scale = e.abs().max().item() if e.numel() else 1.0
        torch.testing.assert_close(a.double(), e, rtol=0, atol=1e-5 * max(scale, 1e-30))


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 15, 16, 17, 100])
def test_equals_definition_with_gradients(rows):
    args = tensors(rows)
    wide = [t.detach().double().requires_grad_() for t in args]
    out, expected = swiglu(*args), definition(*wide)
    grad = torch.randn_like(out)
    close([out], [expected])
    close(
        torch.autograd.grad(out, args, grad),
        torch.autograd.grad(expected, wide, grad.double()),
    )


def test_second_derivatives():
    args = tensors(20)
    wide = [t.detach().double().requires_grad_() for t in args]

    def penalty(layer, x, *weights):
        out = layer(x, *weights).sin().sum()
        (slope,) = torch.autograd.grad(out, x, create_graph=True)
        return slope.square().sum()

    close(
        torch.autograd.grad(penalty(swiglu, *args), args),
        torch.autograd.grad(penalty(definition, *wide), wide),
    )


def test_portions_cover_every_row():
    for rows in (0, 1, 15, 16, 17, 33, 1000):
        x = torch.arange(rows)
        portions = [x[portion] for portion in ops._portions(x, 32)]
        assert torch.equal(torch.cat([x[:0], *portions]), x)
        assert max(map(len, portions), default=0) <= 16


def test_strided_rows_and_gradient():
    weights = tensors(20)[1:]
    x = torch.randn(40, 16)[::2, ::2].requires_grad_()
    grad = torch.randn(8, 20).T
    wide_x, *wide = (t.detach().double().requires_grad_() for t in (x, *weights))
    close(
        torch.autograd.grad(swiglu(x, *weights), x, grad),
        torch.autograd.grad(definition(wide_x, *wide), wide_x, grad.double()),
    )


@needs_onednn
def test_hidden_features_are_not_kept():
    layer, x = SwiGLU(8, 32), torch.randn(3000, 8)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.numel()) or t, lambda t: t
    ):
        layer(x)
    assert sum(saved) <= x.numel() + sum(p.numel() for p in layer.parameters())


@needs_onednn
@pytest.mark.parametrize("rows", [0, 20])
def test_opcheck(rows):
    torch.library.opcheck(torch.ops.erwin.swiglu, tensors(rows))


@needs_onednn
def test_compiled_without_breaks_or_recompilation():
    layer = SwiGLU(8, 32)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for step, rows in enumerate((20, 3, 50)):
        x = torch.randn(rows, 8)
        with no_recompilation(step):
            out = compiled(x)
        torch.testing.assert_close(out, layer(x))
        out.sum().backward()
