r"""The operators ``erwin::ball_attention``: attention inside balls, and its gradient.

They read rows with any strides and through a permutation, compute scores and distances
for a few rows at a time, and return the dtype of the queries. Second derivatives are
computed by the reference implementation, which stores all scores.

The operators serve all devices: CPUs by the native library, and CUDA devices by Triton,
which is imported when the first CUDA tensor arrives.
"""

from typing import Any, Optional

import torch
from torch import Tensor

from torch_geometric_erwin import _native
from torch_geometric_erwin.ops import triton
from torch_geometric_erwin.ops.ball_attention import reference
from torch_geometric_erwin.ops.contract import Takes, implement, register_fake
from torch_geometric_erwin.ops.second_order import differentiable_grads

# 'ball_size' bounds the entries of 'ball_len', so that the device need not be read.
_BALLS = (
    "Tensor pos, Tensor ball_len, Tensor sigma, Tensor? perm, SymInt ball_size, "
    "float scale"
)
_QKV = "Tensor q, Tensor k, Tensor v"
# The forward operators return the output [N, H, d] and what the backward one needs: the
# logarithm of the sum of exponentials for every query and head [N, H] and, on CUDA
# devices, centred positions [D, N] and the ends of balls [K].
_RESULT = "(Tensor, Tensor, Tensor, Tensor)"
torch.library.define("erwin::ball_attention", f"({_QKV}, {_BALLS}) -> {_RESULT}")
# The same with one tensor [N, 3, H, d] of q, k and v. Its gradient is then one tensor,
# too, and need not be put together by a copy.
torch.library.define(
    "erwin::ball_attention_packed", f"(Tensor qkv, {_BALLS}) -> {_RESULT}"
)
# Gradients of q, k, v [N, 3, H, d], of sigma, and of pos (with no rows if not needed).
torch.library.define(
    "erwin::ball_attention_backward",
    "(Tensor grad, Tensor out, Tensor lse, Tensor centred, Tensor ends, "
    f"{_QKV}, {_BALLS}, bool pos_grad) "
    "-> (Tensor, Tensor, Tensor)",
)

_TAKES: Takes = {
    "pos": "float32|float64 [N, D]",
    "ball_len": "int64 [K]",
    "sigma": "float32 [H]",
    "perm": "int64 [N]",
    "ball_size": 1,
}
_HALF = {"CPU": "bfloat16", "CUDA": "bfloat16|float16"}


def _forward_takes(device: str) -> Takes:
    rows = f"float32|{_HALF[device]} [N, H, C]"
    return {"q": rows, "k": "q [N, H, C]", "v": "q [N, H, C]", **_TAKES}


def _packed_takes(device: str) -> Takes:
    return {"qkv": f"float32|{_HALF[device]} [N, 3, H, C]", **_TAKES}


def _backward_takes(device: str) -> Takes:
    saved = {"lse": "float32 [N, H]", "centred": "float32 [D, N]", "ends": "int64 [K]"}
    if device == "CPU":  # its kernels do not save these two
        saved.update(centred="float32 [D, 0]", ends="int64 [0]")
    rows = {"grad": "q [N, H, C]", "out": "q [N, H, C]"}
    return {**rows, **saved, **_forward_takes(device)}


class _Call:
    r"""The arguments of a native call; the object keeps their memory alive."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pos: Tensor,
        ball_len: Tensor,
        sigma: Tensor,
        perm: Optional[Tensor],
        _: int,
        scale: float,
    ) -> None:
        qkv = [_contiguous_channels(t) for t in (q, k, v)]
        pos, ball_len, sigma = (t.contiguous() for t in (pos, ball_len, sigma))
        perm = None if perm is None else perm.contiguous()
        self.tensors = (*qkv, pos, ball_len, sigma, perm)
        self.context = _native.context(q)
        self.attention = _native.Attention(
            _native.CPU_ISAS[_native.cpu_isa()],
            _native.DTYPES[q.dtype],
            _native.DTYPES[pos.dtype],
            scale,
            *q.shape,
            pos.size(1),
            ball_len.size(0),
            ball_len.data_ptr(),
            None if perm is None else perm.data_ptr(),
            pos.data_ptr(),
            sigma.data_ptr(),
            *[_native.heads(t) for t in qkv],
        )

    def call(self, name: str, backward: int, *args: object) -> None:
        first = (self.context, self.attention)
        size = _native.size_of("erwin_attention_workspace", *first, backward)
        workspace = _native.workspace(size)
        _native.call(name, *first, workspace.data_ptr(), size, *args)


def _contiguous_channels(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def _forward(q: Tensor, k: Tensor, v: Tensor, *args: Any) -> tuple[Tensor, ...]:
    out, lse, *rest = _outputs(q, *args)
    heads = _native.heads(out)
    call = _Call(q, k, v, *args)
    call.call("erwin_attention_forward", 0, heads, lse.data_ptr())
    return out, lse, *rest


@implement("erwin::ball_attention", "CPU", **_forward_takes("CPU"))
def _ball_attention_cpu(*args: Any) -> tuple[Tensor, ...]:
    return _forward(*args)


@implement("erwin::ball_attention_packed", "CPU", **_packed_takes("CPU"))
def _ball_attention_packed_cpu(qkv: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return _forward(*qkv.unbind(1), *args)


@implement("erwin::ball_attention_backward", "CPU", **_backward_takes("CPU"))
def _ball_attention_backward_cpu(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    centred: Tensor,
    ends: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    ball_len: Tensor,
    sigma: Tensor,
    perm: Optional[Tensor],
    ball_size: int,
    scale: float,
    pos_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad, out, lse = _contiguous_channels(grad), out.contiguous(), lse.contiguous()
    grads = _gradients(q, pos, sigma, pos_grad)
    grad_qkv, grad_sigma, grad_pos = grads
    _Call(q, k, v, pos, ball_len, sigma, perm, ball_size, scale).call(
        "erwin_attention_backward",
        2 if pos_grad else 1,
        _native.heads(out),
        lse.data_ptr(),
        _native.heads(grad),
        *[_native.heads(t) for t in grad_qkv.unbind(1)],
        grad_sigma.data_ptr(),
        grad_pos.data_ptr() if pos_grad else None,
    )
    return grads


@implement("erwin::ball_attention", "CUDA", **_forward_takes("CUDA"))
def _ball_attention_cuda(q: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return triton.launch("attention", "forward", q, q, *args)


@implement("erwin::ball_attention_packed", "CUDA", **_packed_takes("CUDA"))
def _ball_attention_packed_cuda(qkv: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return triton.launch("attention", "forward", qkv, *qkv.unbind(1), *args)


@implement("erwin::ball_attention_backward", "CUDA", **_backward_takes("CUDA"))
def _ball_attention_backward_cuda(
    grad: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return triton.launch("attention", "backward", grad, grad, *args)


def _outputs(
    q: Tensor, pos: Tensor, ball_len: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    on_cpu = q.device.type == "cpu"  # its kernels do not save the last two
    return (
        q.new_empty(q.shape),
        q.new_empty(q.shape[:2], dtype=torch.float32),
        pos.new_empty(pos.size(1), 0 if on_cpu else pos.size(0), dtype=torch.float32),
        ball_len.new_empty(0 if on_cpu else ball_len.size(0)),
    )


def _gradients(
    q: Tensor, pos: Tensor, sigma: Tensor, pos_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows, heads, channels = q.shape
    return (
        q.new_empty(rows, 3, heads, channels),
        sigma.new_empty(heads),
        pos.new_empty(rows if pos_grad else 0, pos.size(1), dtype=torch.float32),
    )


@register_fake("erwin::ball_attention")
def _ball_attention_fake(
    q: Tensor, k: Tensor, v: Tensor, *args: Any
) -> tuple[Tensor, ...]:
    return _outputs(q, *args)


@register_fake("erwin::ball_attention_packed")
def _ball_attention_packed_fake(qkv: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return _outputs(qkv.select(1, 0), *args)


@register_fake("erwin::ball_attention_backward")
def _ball_attention_backward_fake(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    centred: Tensor,
    ends: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    ball_len: Tensor,
    sigma: Tensor,
    perm: Optional[Tensor],
    ball_size: int,
    scale: float,
    pos_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(q, pos, sigma, pos_grad)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.ball_size, ctx.scale = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad: Optional[Tensor], packed: bool
) -> tuple[Optional[Tensor], ...]:
    *results, pos, ball_len, sigma, perm = ctx.saved_tensors
    results, qkv = results[:4], results[4:]
    if grad is None:
        return (None,) * (len(qkv) + 6)
    if torch.is_grad_enabled():  # the gradient will be differentiated again

        def function(*inputs: Any) -> Tensor:
            return reference.run(*(inputs if packed else (inputs[:3], *inputs[3:])))

        inputs = (*qkv, pos, ball_len, sigma, perm, ctx.ball_size, ctx.scale)
        return differentiable_grads(function, inputs, ctx.needs_input_grad, grad)
    pos_grad = ctx.needs_input_grad[len(qkv)]
    q, k, v = qkv[0].unbind(1) if packed else qkv
    grad_qkv, grad_sigma, grad_pos = torch.ops.erwin.ball_attention_backward(
        *(grad, *results, q, k, v, pos, ball_len, sigma, perm),
        *(ctx.ball_size, ctx.scale, pos_grad),
    )
    grads = (grad_qkv,) if packed else grad_qkv.unbind(1)
    grad_pos = grad_pos.to(pos.dtype) if pos_grad else None
    return (*grads, grad_pos, None, grad_sigma, None, None, None)


def _separate_backward(ctx: Any, grad: Optional[Tensor], *_: None) -> tuple[Any, ...]:
    return _backward(ctx, grad, packed=False)


def _packed_backward(ctx: Any, grad: Optional[Tensor], *_: None) -> tuple[Any, ...]:
    return _backward(ctx, grad, packed=True)


torch.library.register_autograd(
    "erwin::ball_attention", _separate_backward, setup_context=_save
)
torch.library.register_autograd(
    "erwin::ball_attention_packed", _packed_backward, setup_context=_save
)
