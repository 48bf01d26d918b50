import pytest
import torch
from clouds import ragged, randomised
from torch._subclasses import FakeTensorMode
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from torch_geometric_erwin.nn import Erwin
from torch_geometric_erwin.ops import dispatch, linear


class Quantised(torch.Tensor):
    """A weight of eight bits that supports only matrix products."""

    @staticmethod
    def __new__(cls, values, scale):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=scale.dtype)

    def __init__(self, values, scale):
        self.values, self.scale = values, scale

    @classmethod
    def of(cls, weight):
        scale = weight.abs().max() / 127
        return cls((weight / scale).round().to(torch.int8), scale)

    def dense(self):
        return self.values * self.scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].values, args[0].scale)
        if func is torch.ops.aten.t.default:
            return cls(args[0].values.t(), args[0].scale)
        if func in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default):
            return func(*(a.dense() if isinstance(a, cls) else a for a in args))
        raise NotImplementedError(f"{func}")


@pytest.mark.parametrize("small", [0, 1 << 20])
@pytest.mark.parametrize("mp_steps", [0, 2])
def test_a_model_with_quantised_weights(monkeypatch, mp_steps, small):
    monkeypatch.setattr(linear, "_SMALL", small)
    model = Erwin(2, [16, 16], 3, ball_sizes=8, mp_steps=mp_steps)
    model = randomised(model).float().eval()
    twin = randomised(Erwin(2, [16, 16], 3, ball_sizes=8, mp_steps=mp_steps)).eval()
    twin.load_state_dict(model.state_dict())
    for module, other in zip(model.modules(), twin.modules(), strict=True):
        if isinstance(module, torch.nn.Linear):
            weight = Quantised.of(module.weight.detach())
            other.weight.data.copy_(weight.dense())
            module.weight = Parameter(weight, requires_grad=False)
    batch = ragged([30, 0, 1, 9], dtype=torch.float32)
    with torch.no_grad():
        out, expected = model(batch), twin(batch.clone().apply(_in_float64))
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)


def _in_float64(t):
    return t.double() if t.is_floating_point() else t


class Own(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "tensor, reason",
    [
        (torch.ones(2), ""),
        (torch.ones(2)[::2], ""),
        (Parameter(torch.ones(2)), ""),
        (torch.ones(2).as_subclass(Own), "it reads plain tensors (got 'Own')"),
        (torch.eye(2).to_sparse(), "it reads dense tensors (got torch.sparse_coo)"),
        (torch.eye(2).to_mkldnn(), "it reads dense tensors (got torch._mkldnn)"),
        (
            torch.ones(2, device="meta"),
            "it runs on the CPU and CUDA devices (got meta)",
        ),
    ],
    ids=str,
)
def test_says_what_native_code_cannot_read(tensor, reason):
    assert dispatch.why_not(torch.ones(1), None, tensor) == reason


def test_knows_when_a_function_is_transformed():
    seen = []

    def function(x):
        seen.append(dispatch.is_transformed())
        return x.sum()

    x = torch.ones(2)
    function(x)
    torch.func.grad(function)(x)
    torch.func.vmap(function)(x[None])
    torch.func.jvp(function, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        function(x)
    assert seen == [False, True, True, True, True]


class Function(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_knows_when_an_operator_is_its_kernel():
    x = torch.ones(2)
    assert dispatch.is_eager()
    assert dispatch.is_eager(x, torch.ones(2, requires_grad=True))
    assert not dispatch.is_eager(x, Parameter(x))
    assert not dispatch.is_eager(torch._neg_view(x))
    with FakeTensorMode() as mode:
        assert not dispatch.is_eager(x)
    assert not dispatch.is_eager(mode.from_tensor(x))
    for context in (
        TorchDispatchMode(),
        Function(),
        torch.device("cpu"),
        torch.profiler.profile(),
        torch.autograd.forward_ad.dual_level(),
    ):
        with context:
            assert not dispatch.is_eager(x)
    seen = []

    def function(x):
        seen.append(dispatch.is_eager(torch.ones(2)))
        return x + 1

    torch.func.vmap(function)(x)
    torch.jit.trace(function, x, check_trace=False)
    assert not any(seen)
    assert dispatch.is_eager(x)
