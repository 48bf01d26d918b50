r"""The message-passing step of Erwin's embedding."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import LayerNorm
from torch_geometric import EdgeIndex
from torch_geometric.nn import MeanAggregation, MessagePassing
from torch_geometric.typing import Adj, OptTensor, SparseTensor

from torch_geometric_erwin.nn.inits import reset_linear
from torch_geometric_erwin.nn.linear import Linear
from torch_geometric_erwin.ops.edges import Edges
from torch_geometric_erwin.ops.message import (
    mean_message,
    why_not_native,
    why_not_triton,
)
from torch_geometric_erwin.ops.registry import Functions, Registry
from torch_geometric_erwin.utils.checks import (
    check_devices,
    check_edge_attr,
    check_edges,
    check_finite,
    check_floating,
    check_int,
    check_tensor,
    check_weight,
    is_plain,
)

_STEPS = ("propagate", "message", "aggregate", "update")
_HOOKS = [
    f"_{step}_forward_{kind}"
    for step in ("propagate", "message", "aggregate")
    for kind in ("pre_hooks", "hooks")
]


class MPNNConv(MessagePassing):
    r"""The message-passing step that embeds the input in `"Erwin: A Tree-based
    Hierarchical Transformer for Large-scale Physical Systems"
    <https://arxiv.org/abs/2502.17019>`_.

    .. math::
        m_i &= \mathrm{mean}_{j \in \mathcal{N}(i)} \, \mathrm{LN} \left(
        \mathrm{GELU} \left( W_1 x_j + W_2 x_i + W_3 (p_j - p_i) + W_5 e_{ij} + b
        \right) \right)

        x'_i &= x_i + \mathrm{LN} \left( W_4 [x_i, m_i] + c \right)

    The term of the edge features :math:`e_{ij}` is there with :obj:`edge_dim` only.
    Nodes are projected before they are gathered, so the cost of an edge is
    :math:`O(C D)`. In float32 or below, a native kernel computes :math:`m_i` (on the
    CPU and, if Triton is installed, on CUDA devices of compute capability 8.0 or more)
    without allocating a tensor with the features of all edges. If edges have features
    of their own, or something changes a step of :meth:`propagate` (a subclass, a hook,
    another :obj:`aggr`, an explainer), :meth:`propagate` runs instead. Second
    derivatives always allocate such tensors.

    Args:
        channels: The number of features :math:`C`.
        dim: The number of coordinates :math:`D`.
        edge_dim: The number of features of an edge, if there are any.
        **kwargs: Further arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`, such as :obj:`flow`.

    Shapes:
        - **x:** :math:`(N, C)`; **pos:** :math:`(N, D)`; **edge_index:**
          :math:`(2, E)`; **edge_attr:** :math:`(E, F)`; **output:** :math:`(N, C)`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> conv = MPNNConv(channels=8)
        >>> edge_index = torch.tensor([[0, 1], [1, 2]])
        >>> conv(torch.rand(3, 8), torch.rand(3, 3), edge_index).shape
        torch.Size([3, 8])
    """

    _has_own_steps: ClassVar[bool] = True  # False in a subclass that changes a step

    def __init__(
        self,
        channels: int,
        dim: int = 3,
        edge_dim: Optional[int] = None,
        **kwargs: Union[str, int],
    ) -> None:
        kwargs.setdefault("aggr", "mean")
        super().__init__(**kwargs)
        self.channels = channels = check_int("channels", channels, 1)
        self.dim = dim = check_int("dim", dim, 1)
        if edge_dim is not None:
            edge_dim = check_int("edge_dim", edge_dim, 1)
        self.edge_dim = edge_dim
        self.lin_source = Linear(channels, channels, bias=False)
        self.lin_target = Linear(channels, channels)
        self.lin_offset = Linear(dim, channels, bias=False)
        self.lin_edge = (
            None if edge_dim is None else Linear(edge_dim, channels, bias=False)
        )
        self.norm_message = LayerNorm(channels)
        self.lin_update = Linear(2 * channels, channels)
        self.norm_update = LayerNorm(channels)
        self.reset_parameters()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Steps are compared when a class is created, because PyG replaces `propagate`
        # of every class, by an equal method, when its first instance is created.
        super().__init_subclass__(**kwargs)
        parent = next(base for base in cls.__mro__[1:] if issubclass(base, MPNNConv))
        same = all(getattr(cls, step) is getattr(parent, step) for step in _STEPS)
        cls._has_own_steps = parent._has_own_steps and same

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        super().reset_parameters()
        linears = (self.lin_source, self.lin_target, self.lin_offset, self.lin_update)
        for linear in linears:
            reset_linear(linear)
        if self.lin_edge is not None:
            reset_linear(self.lin_edge)
        self.norm_message.reset_parameters()
        self.norm_update.reset_parameters()

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        edge_index: Adj,
        edge_attr: OptTensor = None,
        shared: Optional[Edges] = None,
    ) -> Tensor:
        r"""Runs the forward pass of the module.

        Layers with the same edges sort them only once if all of them are given the same
        :obj:`shared=Edges(edge_index, N)`.
        """
        if not torch.jit.is_scripting():
            self._check(x, pos, edge_index, shared)
            self._check_edge_attr(x, edge_index, edge_attr)
        if edge_attr is not None and edge_attr.dim() == 1:
            edge_attr = edge_attr.view(-1, 1)
        source, target = self.lin_source(x), self.lin_target(x)
        if torch.jit.is_scripting():
            # propagate_type: (source: Tensor, target: Tensor, pos: Tensor, edge_attr: OptTensor)  # noqa: E501
            message = self.propagate(
                edge_index, source=source, target=target, pos=pos, edge_attr=edge_attr
            )
        else:
            name = MESSAGES.choose(self, source, pos, edge_index)
            args = (source, pos, edge_index, target, edge_attr, shared)
            message = MESSAGES[name].run(self, *args)
        return x + self.norm_update(self.lin_update(torch.cat([x, message], dim=-1)))

    def _check(
        self, x: Tensor, pos: Tensor, edge_index: Adj, shared: Optional[Edges]
    ) -> None:
        # PyG checks the entries of adjacency matrices, and inputs with more axes.
        for name, rows, width in (("x", x, self.channels), ("pos", pos, self.dim)):
            check_tensor(name, rows)
            check_floating(name, rows)
            if rows.dim() < 2 or rows.size(-1) != width:
                raise ValueError(
                    f"'{name}' must have shape [N, {width}] (got {[*rows.shape]})"
                )
        if x.dim() != pos.dim():
            raise ValueError(
                f"'x' and 'pos' must have as many axes (got {[*x.shape]} and "
                f"{[*pos.shape]})"
            )
        if x.dim() == 2 and x.size(0) != pos.size(0):
            raise ValueError(
                f"'pos' must have shape [{x.size(0)}, {self.dim}], a row for every one "
                f"of 'x' (got {[*pos.shape]})"
            )
        check_devices(x=x, pos=pos)
        if is_plain(self.lin_source, Linear):
            check_weight("x", x, self.lin_source.weight)
        has_values = pos.device.type == "cpu" and not torch.compiler.is_compiling()
        if shared is None and has_values and pos.dim() == 2:
            check_finite(pos)
        if not isinstance(edge_index, (Tensor, SparseTensor)):
            raise TypeError(
                "'edge_index' must be a tensor of shape [2, E] or an adjacency matrix "
                f"(got '{type(edge_index).__name__}')"
            )
        if isinstance(edge_index, Tensor) and edge_index.layout is torch.strided:
            if shared is None and x.dim() == 2:
                check_edges("edge_index", edge_index, x.size(0), int32=True)
            check_tensor("edge_index", edge_index)
            check_devices(x=x, edge_index=edge_index)
        elif isinstance(edge_index, Tensor) and x.dim() == 2:
            sizes = [x.size(0)] * 2
            if [*edge_index.shape] != sizes:
                raise ValueError(
                    "'edge_index' must have shape [2, E], or as a sparse adjacency "
                    f"matrix {sizes} (got {[*edge_index.shape]}, {edge_index.layout})"
                )

    def _check_edge_attr(
        self, x: Tensor, edge_index: Adj, edge_attr: OptTensor
    ) -> None:
        if self.lin_edge is None or self.edge_dim is None:
            if edge_attr is not None:
                raise ValueError(
                    "the layer takes no edge features, 'edge_dim=None': 'edge_attr' "
                    "must be None"
                )
            return
        if isinstance(edge_index, Tensor):
            if edge_index.layout is not torch.strided:
                raise ValueError(
                    "a layer with edge features takes them as 'edge_attr': beside it, "
                    "'edge_index' must have shape [2, E] (got a sparse matrix)"
                )
            if edge_attr is None:
                raise ValueError(
                    f"'edge_attr' is missing, the layer takes {self.edge_dim} features "
                    "of edges"
                )
            check_edge_attr("edge_attr", edge_attr, edge_index.size(1), self.edge_dim)
        if edge_attr is not None:
            check_tensor("edge_attr", edge_attr)
            check_devices(x=x, edge_attr=edge_attr)
            if is_plain(self.lin_edge, Linear):
                check_weight("edge_attr", edge_attr, self.lin_edge.weight)

    def why_not_fused(self) -> str:
        r"""Says why the kernels cannot compute this layer; empty if they can."""
        linear, norm = self.lin_offset, self.norm_message
        if not self._has_own_steps:
            return "a subclass changes a step of 'propagate'"
        if self.lin_edge is not None:
            return "it has edge features"
        if any(getattr(self, hooks) for hooks in _HOOKS):
            return "a hook is called in 'propagate'"
        if self.explain:
            return "an explainer looks at the messages"
        if self.decomposed_layers != 1:
            return f"it has decomposed_layers=1 (got {self.decomposed_layers})"
        if self.node_dim not in (-2, 0):
            return f"it has node_dim=-2 (got {self.node_dim})"
        if type(self.aggr_module) is not MeanAggregation:
            return f"it has aggr='mean' (got {self.aggr_module})"
        if not is_plain(linear, Linear) or linear.bias is not None:
            return "'lin_offset' is not the layer's own, or has hooks"
        if not is_plain(norm, LayerNorm) or norm.weight is None or norm.bias is None:
            return "'norm_message' is not the layer's own, or has hooks"
        return ""

    def fused_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        r"""Returns the weights that the kernels read."""
        norm = self.norm_message
        return self.lin_offset.weight, norm.weight, norm.bias

    def message(
        self,
        source_j: Tensor,
        target_i: Tensor,
        pos_i: Tensor,
        pos_j: Tensor,
        edge_attr: OptTensor = None,
    ) -> Tensor:
        r"""Returns the message along every edge."""
        offset = self.lin_offset((pos_j - pos_i).to(source_j.dtype))
        message = source_j + target_i + offset
        if self.lin_edge is not None:
            assert edge_attr is not None
            assert self.edge_dim is not None
            edge_attr = edge_attr.view(message.size(-2), self.edge_dim)
            message = message + self.lin_edge(edge_attr)
        return self.norm_message(F.gelu(message))

    def __repr__(self) -> str:
        edges = "" if self.edge_dim is None else f", edge_dim={self.edge_dim}"
        return f"{self.__class__.__name__}({self.channels}, dim={self.dim}{edges})"


def _why_not(
    kernels: Callable[..., str],
    conv: MPNNConv,
    source: Tensor,
    pos: Tensor,
    edge_index: Adj,
) -> str:
    reason = conv.why_not_fused()
    if reason:
        return reason
    if not isinstance(edge_index, Tensor) or isinstance(edge_index, EdgeIndex):
        return f"'edge_index' must be a tensor (got '{type(edge_index).__name__}')"
    return kernels(source, pos, edge_index, *conv.fused_weights())


def _fused(
    conv: MPNNConv,
    source: Tensor,
    pos: Tensor,
    edge_index: Tensor,
    target: Tensor,
    edge_attr: OptTensor,
    shared: Optional[Edges],
) -> Tensor:
    assert edge_attr is None
    edges = Edges(edge_index, source.size(0)) if shared is None else shared
    offset, scale, shift = (weight.float() for weight in conv.fused_weights())
    out = mean_message(
        *(source.float(), target.float(), pos, offset, scale, shift),
        *(conv.norm_message.eps, edges, conv.flow),
    )
    return out.to(source.dtype)


def _propagate(
    conv: MPNNConv,
    source: Tensor,
    pos: Tensor,
    edge_index: Adj,
    target: Tensor,
    edge_attr: OptTensor,
    shared: Optional[Edges],
) -> Tensor:
    return conv.propagate(
        edge_index, source=source, target=target, pos=pos, edge_attr=edge_attr
    )


#: The implementations of :math:`m_i`, in order of preference. Each is asked whether it
#: can serve a layer, its projected sources, positions and edges.
MESSAGES = Registry(
    "message",
    native=Functions(_fused, partial(_why_not, why_not_native)),
    triton=Functions(_fused, partial(_why_not, why_not_triton)),
    propagate=Functions(_propagate),
)
