r"""The message-passing step of Erwin's embedding."""

from typing import Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import LayerNorm, Linear
from torch_geometric.nn import MessagePassing
from torch_geometric.typing import Adj

from torch_geometric_erwin.nn.inits import reset_linear
from torch_geometric_erwin.utils.checks import check_int


class MPNNConv(MessagePassing):
    r"""The message-passing step that embeds the input in `"Erwin: A Tree-based
    Hierarchical Transformer for Large-scale Physical Systems"
    <https://arxiv.org/abs/2502.17019>`_.

    .. math::
        m_i &= \mathrm{mean}_{j \in \mathcal{N}(i)} \, \mathrm{LN} \left(
        \mathrm{GELU} \left( W_1 x_j + W_2 x_i + W_3 (p_j - p_i) + b \right) \right)

        x'_i &= x_i + \mathrm{LN} \left( W_4 [x_i, m_i] + c \right)

    Nodes are projected before they are gathered, so the cost of an edge is
    :math:`O(C D)`.

    Args:
        channels: The number of features :math:`C`.
        dim: The number of coordinates :math:`D`.
        **kwargs: Further arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`, such as :obj:`flow`.

    Shapes:
        - **x:** :math:`(N, C)`; **pos:** :math:`(N, D)`; **edge_index:**
          :math:`(2, E)`; **output:** :math:`(N, C)`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> conv = MPNNConv(channels=8)
        >>> edge_index = torch.tensor([[0, 1], [1, 2]])
        >>> conv(torch.rand(3, 8), torch.rand(3, 3), edge_index).shape
        torch.Size([3, 8])
    """

    def __init__(self, channels: int, dim: int = 3, **kwargs: Union[str, int]) -> None:
        kwargs.setdefault("aggr", "mean")
        super().__init__(**kwargs)
        self.channels = check_int("channels", channels, 1)
        self.dim = check_int("dim", dim, 1)
        self.lin_source = Linear(channels, channels, bias=False)
        self.lin_target = Linear(channels, channels)
        self.lin_offset = Linear(dim, channels, bias=False)
        self.norm_message = LayerNorm(channels)
        self.lin_update = Linear(2 * channels, channels)
        self.norm_update = LayerNorm(channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        super().reset_parameters()
        linears = (self.lin_source, self.lin_target, self.lin_offset, self.lin_update)
        for linear in linears:
            reset_linear(linear)
        self.norm_message.reset_parameters()
        self.norm_update.reset_parameters()

    def forward(self, x: Tensor, pos: Tensor, edge_index: Adj) -> Tensor:
        r"""Runs the forward pass of the module."""
        message = self.propagate(
            edge_index, source=self.lin_source(x), target=self.lin_target(x), pos=pos
        )
        return x + self.norm_update(self.lin_update(torch.cat([x, message], dim=-1)))

    def message(
        self, source_j: Tensor, target_i: Tensor, pos_i: Tensor, pos_j: Tensor
    ) -> Tensor:
        r"""The message along every edge."""
        offset = self.lin_offset((pos_j - pos_i).to(source_j.dtype))
        return self.norm_message(F.gelu(source_j + target_i + offset))

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.channels}, dim={self.dim})"
