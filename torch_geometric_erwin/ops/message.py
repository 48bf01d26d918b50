r"""The operator ``erwin::message``: the mean message into every node.

On CPUs the native library computes it, and on CUDA devices Triton, which is imported
when the first CUDA tensor arrives.
"""

from collections.abc import Sequence
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_erwin import _native
from torch_geometric_erwin.ops import dispatch, triton
from torch_geometric_erwin.ops.contract import implement, register_fake
from torch_geometric_erwin.ops.edges import Edges, check_nodes
from torch_geometric_erwin.ops.second_order import differentiable_grads
from torch_geometric_erwin.utils.rows import read_rows

_ROW = 16  # ERWIN_ROW

_ARGS = (
    "Tensor source_rows, Tensor target_rows, Tensor pos, Tensor weight, "
    "Tensor norm_weight, Tensor norm_bias, float eps, Tensor source, Tensor target, "
    "Tensor target_ptr, Tensor target_order"
)
torch.library.define(
    "erwin::message",
    f"({_ARGS}, Tensor? source_ptr, Tensor? source_order) -> Tensor",
)
torch.library.define(
    "erwin::message_backward",
    f"({_ARGS}, Tensor source_ptr, Tensor source_order, Tensor grad) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_TAKES = {
    "source_rows": "float32 [N, C]",
    "target_rows": "float32 [N, C]",
    "pos": "float32|float64 [N, D]",
    "weight": "float32 [C, D]",
    "norm_weight": "float32 [C]",
    "norm_bias": "float32 [C]",
    "source": "int64 [E]",
    "target": "int64 [E]",
    "target_ptr": "int64 [N+1]",
    "target_order": "int64 [E]",
    "source_ptr": "int64 [N+1]",
    "source_order": "int64 [E]",
}
_BACKWARD_TAKES = {**_TAKES, "grad": "float32 [N, C]"}
_ROWS = (torch.float32, torch.bfloat16, torch.float16)
_POSITIONS = (torch.float32, torch.float64)


def why_not(
    rows: Tensor, pos: Tensor, edge_index: Tensor, *weights: Optional[Tensor]
) -> str:
    r"""Says why :func:`mean_message` takes tensors on no device; empty if it may.

    Args:
        rows: The rows of the nodes, which the caller will convert to float32.
        pos: The node positions.
        edge_index: The edges.
        *weights: The weights.

    Example:
        >>> rows, pos = torch.rand(3, 4), torch.rand(3, 2)
        >>> why_not(rows, pos, torch.zeros(2, 5, dtype=torch.int32))
        "'edge_index' must be torch.int64 with shape [2, E] (got torch.int32, [2, 5])"
    """
    if edge_index.layout != torch.strided:
        return f"'edge_index' must be dense (got {edge_index.layout})"
    shape = edge_index.shape
    if edge_index.dtype != torch.int64 or len(shape) != 2 or shape[0] != 2:
        return (
            "'edge_index' must be torch.int64 with shape [2, E] (got "
            f"{edge_index.dtype}, {[*shape]})"
        )
    if rows.dim() != 2 or rows.dtype not in _ROWS:
        return (
            f"rows must be [N, C] in float32 or below (got {rows.dtype}, "
            f"{[*rows.shape]})"
        )
    if pos.dtype not in _POSITIONS:
        return f"positions must be float32 or float64 (got {pos.dtype})"
    if pos.dim() != 2 or pos.size(0) != rows.size(0):
        return f"'pos' must have {rows.size(0)} rows (got {[*pos.shape]})"
    if not rows.device == pos.device == edge_index.device:
        return "tensors are on several devices"
    return dispatch.why_not(rows, pos, edge_index, *weights)


def why_not_native(rows: Tensor, *others: Any) -> str:
    r"""Says why the native kernels cannot take tensors; empty if they can."""
    if rows.device.type != "cpu":
        return f"it runs on the CPU (got {rows.device.type})"
    return why_not(rows, *others)


def why_not_triton(rows: Tensor, *others: Any) -> str:
    r"""Says why the Triton kernels cannot take tensors; empty if they can."""
    if rows.device.type != "cuda":
        return f"it runs on CUDA devices (got {rows.device.type})"
    return why_not(rows, *others) or triton.why_not(rows.device.index)


def mean_message(
    source_rows: Tensor,
    target_rows: Tensor,
    pos: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    edges: Edges,
    flow: str = "source_to_target",
) -> Tensor:
    r"""Computes the mean over the edges into every node of
    :math:`\mathrm{LN}(\mathrm{GELU}(s_j + t_i + W (p_j - p_i)))`, in float32.

    No tensor with the features of all edges is allocated, forward or backward. The
    result has the same bits in every run and on every number of threads. Second
    derivatives are computed by PyTorch and allocate such tensors.

    Args:
        source_rows: The rows that nodes add to their outgoing messages, :math:`s`.
        target_rows: The rows that nodes add to incoming messages, :math:`t`.
        pos: The node positions, :math:`p`.
        weight: The matrix :math:`W`.
        norm_weight: The scale of the normalisation.
        norm_bias: The shift of the normalisation.
        eps: The :math:`\epsilon` of the normalisation.
        edges: The edges.
        flow: :obj:`"source_to_target"` if the nodes in the first row of
            :obj:`edge_index` send, otherwise those in the second.

    Shapes:
        - **source_rows, target_rows:** :math:`(N, C)`, float32; **pos:**
          :math:`(N, D)`, float32 or float64; **weight:** :math:`(C, D)`;
          **norm_weight, norm_bias:** :math:`(C)`; **output:** :math:`(N, C)`, zero for
          nodes without edges.

    Example:
        >>> edges = Edges(torch.tensor([[0, 1], [1, 1]]), num_nodes=3)
        >>> rows, pos, weight = torch.rand(3, 4), torch.rand(3, 2), torch.rand(4, 2)
        >>> norm = (torch.ones(4), torch.zeros(4), 1e-5)
        >>> out = mean_message(rows, rows, pos, weight, *norm, edges)
        >>> out.count_nonzero(dim=1)
        tensor([0, 4, 0])
    """
    sender = 0 if flow == "source_to_target" else 1
    source, target = edges.edge_index[sender], edges.edge_index[1 - sender]
    rows = (source_rows, target_rows, pos, weight, norm_weight, norm_bias)
    # Only a backward pass needs the edges out of every node.
    leaving = edges.by(sender) if torch.is_grad_enabled() else (None, None)
    return torch.ops.erwin.message(
        *rows, eps, source, target, *edges.by(1 - sender), *leaving
    )


def composite(
    rows: Sequence[Tensor], eps: float, source: Tensor, target: Tensor
) -> Tensor:
    r"""Computes the same by PyTorch's own operators, differentiable to any order.

    Args:
        rows: The first six arguments of :func:`mean_message`.
        eps: The :math:`\epsilon` of the normalisation.
        source: The node that sends along every edge.
        target: The node that receives.

    Shapes:
        - **source, target:** :math:`(E)`; **output:** :math:`(N, C)`.
    """
    source_rows, target_rows, pos, weight, norm_weight, norm_bias = rows
    offset = read_rows(pos, source) - read_rows(pos, target)
    offset = F.linear(offset.to(weight.dtype), weight)
    sent = read_rows(source_rows, source)
    out = F.gelu(sent + read_rows(target_rows, target) + offset)
    out = F.layer_norm(out, norm_weight.shape, norm_weight, norm_bias, eps)
    degree = torch.bincount(target, minlength=pos.size(0)).clamp(min=1)
    total = torch.zeros_like(target_rows).index_add(0, target, out)
    return total / degree[:, None].to(total.dtype)


class _Call:
    r"""The arguments of forward and backward calls; keeps their memory alive."""

    def __init__(
        self,
        source_rows: Tensor,
        target_rows: Tensor,
        pos: Tensor,
        weight: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        *edges: Optional[Tensor],
    ) -> None:
        nodes, self.channels = target_rows.shape
        num_edges = 0 if edges[0] is None else edges[0].size(0)
        self.target_rows = self.padded(target_rows)
        self.tensors = [
            *(None if t is None else t.contiguous() for t in edges),
            *(self.padded(source_rows), self.target_rows, pos.contiguous()),
            *map(self.padded, (weight.t(), norm_weight, norm_bias)),
        ]
        self.context = _native.context(pos)
        self.message = _native.Message(
            *(
                _native.CPU_ISAS[_native.cpu_isa()],
                _native.DTYPES[pos.dtype],
                eps,
                nodes,
                num_edges,
            ),
            *(self.channels, pos.size(1)),
            *(None if t is None else t.data_ptr() for t in self.tensors),
        )

    def padded(self, rows: Tensor) -> Tensor:
        r"""Returns rows padded with zeros to the length that the kernel needs."""
        return F.pad(rows, (0, -self.channels % _ROW)).contiguous()

    def cut(self, rows: Tensor) -> Tensor:
        r"""Returns rows without their padding."""
        return rows[..., : self.channels].contiguous()


@implement("erwin::message", "CPU", **_TAKES)
def _message_cpu(*args: Any) -> Tensor:
    target_rows, source, source_ptr = args[1], args[7], args[11]
    if source_ptr is None:  # otherwise they were checked when they were sorted
        check_nodes(source, target_rows.size(0))
    call = _Call(*args)
    mean = torch.empty_like(call.target_rows)
    arguments = (call.context, call.message, mean.data_ptr())
    _native.call("erwin_message_forward", *arguments)
    return call.cut(mean)


@implement("erwin::message_backward", "CPU", **_BACKWARD_TAKES)
def _message_backward_cpu(*args: Any) -> tuple[Tensor, ...]:
    call = _Call(*args[:-1])
    grad = call.padded(args[-1])
    source, target = torch.empty_like(grad), torch.empty_like(grad)
    weights = grad.new_empty(call.message.dim + 2, grad.size(1))
    size = _native.size_of("erwin_message_workspace", call.message)
    workspace = _native.workspace(size)
    _native.call(
        "erwin_message_backward",
        *(call.context, call.message, grad.data_ptr(), workspace.data_ptr(), size),
        *(source.data_ptr(), target.data_ptr(), weights.data_ptr()),
    )
    *offset, norm_weight, norm_bias = call.cut(weights)
    weight = torch.stack(offset, dim=1)
    return (
        call.cut(source),
        call.cut(target),
        weight,
        norm_weight.clone(),
        norm_bias.clone(),
    )


@implement("erwin::message", "CUDA", **_TAKES)
def _message_cuda(*args: Any) -> Tensor:
    target_rows, source, source_ptr = args[1], args[7], args[11]
    if source_ptr is None:
        check_nodes(source, target_rows.size(0))
    return triton.launch("message", "forward", args[0], *args)


@implement("erwin::message_backward", "CUDA", **_BACKWARD_TAKES)
def _message_backward_cuda(*args: Any) -> tuple[Tensor, ...]:
    return triton.launch("message", "backward", args[0], *args)


@register_fake("erwin::message")
def _message_fake(source_rows: Tensor, target_rows: Tensor, *args: Any) -> Tensor:
    return target_rows.new_empty(target_rows.shape)


@register_fake("erwin::message_backward")
def _message_backward_fake(
    source_rows: Tensor,
    target_rows: Tensor,
    pos: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *args: Any,
) -> tuple[Tensor, ...]:
    likes = (source_rows, target_rows, weight, norm_weight, norm_bias)
    return tuple(like.new_empty(like.shape) for like in likes)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.eps = inputs[6]
    ctx.save_for_backward(*inputs[:6], *inputs[7:])


def _backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:
    saved = ctx.saved_tensors
    rows, (source, target, target_ptr, target_order, *leaving) = saved[:6], saved[6:]
    if torch.is_grad_enabled():  # the gradient will be differentiated again

        def function(*rows: Tensor) -> Tensor:
            return composite(rows, ctx.eps, source, target)

        grads = differentiable_grads(function, rows, ctx.needs_input_grad[:6], grad)
        return *grads, *[None] * 7
    if leaving[0] is None:
        leaving = torch.ops.erwin.group(source, rows[0].size(0))
    grads = torch.ops.erwin.message_backward(
        *rows, ctx.eps, source, target, target_ptr, target_order, *leaving, grad
    )
    grad_source, grad_target, *grad_weights = grads
    grad_pos = None
    if ctx.needs_input_grad[2]:
        # A projected offset is added to the rows of both ends: it has their gradient.
        grad_pos = ((grad_source - grad_target) @ rows[3]).to(rows[2].dtype)
    return grad_source, grad_target, grad_pos, *grad_weights, *[None] * 7


torch.library.register_autograd(
    "erwin::message", _backward, setup_context=_setup_context
)
