import pytest
import torch
import torch.nn.functional as F
from compiled import no_recompilation

from torch_geometric_erwin.nn.linear import Linear
from torch_geometric_erwin.ops import linear as ops
from torch_geometric_erwin.ops.linear import linear, why_not
from torch_geometric_erwin.ops.registry import explain

needs_onednn = pytest.mark.skipif(
    not ops.has_onednn(), reason="this PyTorch has no oneDNN product for x86"
)
# Below and above the size up to which the BLAS is used.
SIZES = [(0, 5, 3), (1, 1, 1), (7, 3, 5), (300, 64, 64), (1000, 33, 70), (700, 70, 33)]


@pytest.fixture(autouse=True, params=["any size", "large"])
def served(request, monkeypatch):
    """With small products left to PyTorch, or computed natively too."""
    if request.param == "any size":
        monkeypatch.setattr(ops, "_SMALL", 1)


def tensors(rows, channels, out, bias=True, dtype=torch.float32):
    x = torch.randn(rows, channels, dtype=dtype)
    weight = torch.randn(out, channels, dtype=dtype) / channels**0.5
    return [
        t.requires_grad_()
        for t in (x, weight, *([torch.randn(out, dtype=dtype)] if bias else []))
    ]


def exact(args):
    return [t.detach().double().requires_grad_() for t in args]


def close(actual, expected):
    for a, e in zip(actual, expected):
        scale = e.abs().max().item() if e.numel() else 1.0
        torch.testing.assert_close(a.double(), e, rtol=0, atol=4e-6 * max(scale, 1e-30))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_equals_definition_with_gradients(size, bias):
    args = tensors(*size, bias=bias)
    wide = exact(args)
    out, expected = linear(*args), wide[0] @ wide[1].T + (wide[2] if bias else 0)
    grad = torch.randn_like(out)
    close([out], [expected])
    close(
        torch.autograd.grad(out, args, grad),
        torch.autograd.grad(expected, wide, grad.double()),
    )


@needs_onednn
@pytest.mark.parametrize("served", ["large"], indirect=True)
def test_both_products_are_taken(monkeypatch):
    products = []
    onednn = ops.product
    monkeypatch.setattr(ops, "product", lambda *a: products.append(1) or onednn(*a))
    with torch.no_grad():
        linear(*tensors(16, 16, 16))
        assert not products
        linear(*tensors(300, 64, 64))
    assert products


def test_second_derivatives():
    args = tensors(300, 64, 64)
    wide = exact(args)

    def penalty(product, x, weight, bias):
        out = product(x, weight, bias).sin().sum()
        (slope,) = torch.autograd.grad(out, x, create_graph=True)
        return slope.square().sum()

    close(
        torch.autograd.grad(penalty(linear, *args), args),
        torch.autograd.grad(penalty(F.linear, *wide), wide),
    )


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_partial_gradients(frozen):
    args = tensors(300, 64, 64)
    args[frozen].requires_grad_(False)
    linear(*args).sum().backward()
    assert [t.grad is None for t in args] == [i == frozen for i in range(3)]


def test_strided_rows():
    x = torch.randn(3, 400, 2, 64)[1, :, 1]
    weight = torch.randn(80, 64)
    torch.testing.assert_close(
        linear(x, weight).double(), x.double() @ weight.double().T, rtol=0, atol=1e-4
    )


def test_leading_dimensions():
    layer = Linear(32, 48)
    x = torch.randn(4, 5, 32)
    torch.testing.assert_close(layer(x)[3], layer(x[3]))
    assert layer(x[0, 0]).shape == (48,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_take_the_way_of_torch(dtype):
    args = tensors(300, 64, 64, dtype=dtype)
    assert why_not(*args) == f"it serves float32 (got {dtype})"
    assert torch.equal(linear(*args), F.linear(*args))


def test_autocast():
    args = tensors(300, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(*args).dtype == torch.bfloat16


def test_functional_transforms():
    layer = Linear(64, 64)
    x = torch.randn(5, 300, 64)
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))
    out, tangent = torch.func.jvp(layer, (x[0],), (torch.ones_like(x[0]),))
    torch.testing.assert_close(out, layer(x[0]))
    expected = layer.weight.sum(1).expand_as(tangent)
    torch.testing.assert_close(tangent, expected, rtol=1e-4, atol=1e-5)


def test_it_is_a_linear_layer():
    ours, torchs = Linear(4, 6), torch.nn.Linear(4, 6)
    ours.load_state_dict(torchs.state_dict())
    assert isinstance(ours, torch.nn.Linear)
    x = torch.randn(3, 4)
    torch.testing.assert_close(ours(x), torchs(x))


@needs_onednn
@pytest.mark.parametrize("size", [(7, 3, 5), (300, 64, 64)])
def test_opcheck(size):
    torch.library.opcheck(torch.ops.erwin.linear, tensors(*size))


@needs_onednn
def test_compiled_without_breaks_or_recompilation():
    layer = Linear(64, 64)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for step, rows in enumerate((300, 5, 401)):
        x = torch.randn(rows, 64, requires_grad=True)
        with no_recompilation(step):
            out = compiled(x)
        torch.testing.assert_close(out, layer(x))
        out.sum().backward()
        torch.testing.assert_close(x.grad, layer.weight.sum(0).expand_as(x))


@needs_onednn
def test_export():
    layer = Linear(64, 64)
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(
        layer, (torch.randn(300, 64),), dynamic_shapes=({0: rows},)
    )
    x = torch.randn(500, 64)
    torch.testing.assert_close(program.module()(x), layer(x))


@needs_onednn
def test_why_onednn_does_not_serve_a_call_is_said(monkeypatch):
    monkeypatch.setattr(ops, "_SMALL", 1 << 20)
    args = tensors(300, 64, 64)
    assert explain("linear", *args) == {"onednn": "", "torch": ""}
    small = tensors(30, 64, 64)
    assert "a product this small" in explain("linear", *small)["onednn"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert why_not(*args) == "autocast chooses the dtype of products"
    meta = [t.to("meta") for t in args]
    assert why_not(*meta) == "it runs on the CPU (got meta)"
    mixed = (*args[:2], args[2].double())
    assert (
        explain("swiglu", *mixed)["onednn"] == "it serves float32 (got torch.float64)"
    )
    monkeypatch.setattr(ops, "_HAS_ONEDNN", False)
    assert why_not(*args) == "this build of PyTorch has no oneDNN for x86"
    assert torch.equal(linear(*args), F.linear(*args))
