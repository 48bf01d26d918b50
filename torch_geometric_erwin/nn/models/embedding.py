r"""The embedding of the input."""

from typing import Optional

import torch
from torch import Tensor
from torch.nn import Module, ModuleList, Parameter
from torch_geometric.nn.inits import reset

from torch_geometric_erwin.nn.conv import MPNNConv
from torch_geometric_erwin.nn.inits import reset_linear
from torch_geometric_erwin.nn.linear import Linear
from torch_geometric_erwin.nn.pos_encoding import (
    Encoding,
    FourierEncoding,
    make_encoding,
)
from torch_geometric_erwin.ops.edges import Edges
from torch_geometric_erwin.utils.checkpoint import recompute
from torch_geometric_erwin.utils.checks import (
    check_devices,
    check_edge_attr,
    check_edges,
    check_flag,
    check_int,
    check_positions,
    check_rows,
    check_tensor,
    check_weight,
    dtype_of_weights,
    is_plain,
)


class MPNNEmbedding(torch.nn.Module):
    r"""The embedding of the input in `"Erwin: A Tree-based Hierarchical Transformer for
    Large-scale Physical Systems" <https://arxiv.org/abs/2502.17019>`_: a linear layer
    and message-passing steps.

    Without features, every node starts from the same learned vector. Messages depend
    on differences of positions; with :obj:`pos_encoding` the output depends on absolute
    positions too.

    Args:
        in_channels: The number of features of a node; zero for none.
        channels: The number of output features of a node.
        num_steps: The number of message-passing steps.
        dim: The number of coordinates :math:`D`.
        checkpoint: Whether training keeps only the input of every message-passing step
            in memory, and computes the rest again in the backward pass.
        edge_dim: The number of features of an edge; zero for none.
        pos_encoding: What makes features of absolute positions, which are added to
            those of the nodes: :obj:`"linear"`, :obj:`"fourier"`, or a callable
            (:func:`~torch_geometric_erwin.nn.pos_encoding.make_encoding`).

    Shapes:
        - **x:** :math:`(N, F)`; **pos:** :math:`(N, D)`; **edge_index:**
          :math:`(2, E)`; **edge_attr:** :math:`(E, F_e)`; **output:** :math:`(N, C)`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> embed = MPNNEmbedding(in_channels=0, channels=8, num_steps=1)
        >>> embed(None, torch.rand(3, 3), torch.tensor([[0, 1], [1, 2]])).shape
        torch.Size([3, 8])
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_steps: int,
        dim: int = 3,
        checkpoint: bool = False,
        edge_dim: int = 0,
        pos_encoding: Optional[Encoding] = None,
    ) -> None:
        super().__init__()
        self.checkpoint = check_flag("checkpoint", checkpoint)
        self.in_channels = in_channels = check_int("in_channels", in_channels, 0)
        self.channels = channels = check_int("channels", channels, 1)
        num_steps = check_int("num_steps", num_steps, 0)
        self.dim = check_int("dim", dim, 1)
        self.edge_dim = check_int("edge_dim", edge_dim, 0)
        self.start = Linear(in_channels, channels) if in_channels > 0 else None
        self.constant = Parameter(torch.empty(channels)) if in_channels == 0 else None
        self.pos_encoding = None
        if pos_encoding is not None:
            self.pos_encoding = make_encoding(pos_encoding, dim, channels)
        features = edge_dim if edge_dim > 0 else None
        self.convs = ModuleList(
            MPNNConv(channels, dim, features) for _ in range(num_steps)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        if self.start is not None:
            reset_linear(self.start)
        if self.constant is not None:
            torch.nn.init.trunc_normal_(self.constant, std=0.02)
        reset(self.pos_encoding)
        reset(self.convs)

    def forward(
        self,
        x: Optional[Tensor],
        pos: Tensor,
        edge_index: Optional[Tensor],
        edge_attr: Optional[Tensor] = None,
    ) -> Tensor:
        r"""Runs the forward pass of the module."""
        self._check(x, pos, edge_index, edge_attr)
        if self.start is not None:
            out = self.start(x)
        elif self.constant is not None:
            out = self.constant.expand(pos.size(0), -1)
        if self.pos_encoding is not None:
            out = out + self._encoded(self.pos_encoding, pos, out)
        edges = None if edge_index is None else Edges(edge_index, pos.size(0))
        for conv in self.convs:
            args = (out, pos, edge_index, edge_attr, edges)
            out = recompute(conv, *args) if self.checkpoint else conv(*args)
        return out

    def _encoded(self, encode: Module, pos: Tensor, out: Tensor) -> Tensor:
        if not isinstance(encode, FourierEncoding):  # which loses by rounded positions
            # In the dtype of its weights: that of the features is half under autocast.
            pos = pos.to(dtype_of_weights(encode, out.dtype))
        features = encode(pos)
        check_rows("pos_encoding(pos)", features, pos.size(0), self.channels)
        return features.to(out.dtype)

    def _check(
        self,
        x: Optional[Tensor],
        pos: Tensor,
        edge_index: Optional[Tensor],
        edge_attr: Optional[Tensor],
    ) -> None:
        check_tensor("pos", pos)
        check_positions("pos", pos, pos.size(0) if pos.dim() > 0 else 0, self.dim)
        if self.in_channels > 0:
            if x is None:
                raise ValueError(
                    f"'x' is missing, the layer takes {self.in_channels} features"
                )
            check_rows("x", x, pos.size(0), self.in_channels)
            check_devices(pos=pos, x=x)
            assert self.start is not None
            if is_plain(self.start, Linear):
                check_weight("x", x, self.start.weight)
        elif x is not None:
            raise ValueError("the layer takes no features: 'x' must be None")
        if edge_index is not None:
            check_edges("edge_index", edge_index, pos.size(0))
            check_devices(pos=pos, edge_index=edge_index)
        elif len(self.convs) > 0:
            raise ValueError("'edge_index' is missing, the layer passes messages")
        if edge_attr is not None:
            if self.edge_dim == 0:
                raise ValueError(
                    "the layer takes no edge features, 'edge_dim=0': 'edge_attr' must "
                    "be None"
                )
            if edge_index is None:
                raise ValueError("'edge_index' is missing beside 'edge_attr'")
            size = edge_index.size(1)
            check_edge_attr("edge_attr", edge_attr, size, self.edge_dim)
            check_devices(pos=pos, edge_attr=edge_attr)

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.in_channels}, {self.channels}, "
            f"num_steps={len(self.convs)})"
        )
