r"""A network of message passing only, the baseline of Erwin."""

from typing import Optional, Union

import torch
from torch import Tensor
from torch.nn import GELU, Sequential

from torch_geometric_erwin.nn.inits import reset_linear
from torch_geometric_erwin.nn.linear import Linear
from torch_geometric_erwin.nn.models.embedding import MPNNEmbedding
from torch_geometric_erwin.nn.models.inputs import Given, Takes, unpack_inputs
from torch_geometric_erwin.nn.pos_encoding import Encoding
from torch_geometric_erwin.tree.reading import Nodes
from torch_geometric_erwin.utils.checks import check_int


class MPNN(torch.nn.Module):
    r"""A message-passing network, the baseline of
    :class:`~torch_geometric_erwin.nn.Erwin`, which is called in the same way. It has no
    length scale: give it positions divided by that of the model it is compared with.

    Its steps are those that embed the input in `"Erwin: A Tree-based Hierarchical
    Transformer for Large-scale Physical Systems" <https://arxiv.org/abs/2502.17019>`_.

    Args:
        in_channels: The number of features of a node; zero for none.
        hidden_channels: The number of features of the layers.
        out_channels: The number of output features of a node.
        num_layers: The number of message-passing steps.
        dim: The number of coordinates :math:`D`.
        edge_dim: The number of features of an edge; zero for none.
        pos_encoding: How absolute positions enter, see
            :class:`~torch_geometric_erwin.nn.Erwin`. (default: not at all)

    Shapes:
        - **x:** :math:`(N, F)`; **pos:** :math:`(N, D)`; **edge_index:**
          :math:`(2, E)`; **edge_attr:** :math:`(E, F_e)`; **output:** :math:`(N, F')`.

    Raises:
        ValueError: If an argument is out of range or missing.

    Example:
        >>> model = MPNN(0, 16, 3, num_layers=2)
        >>> edge_index = torch.tensor([[0, 1], [1, 2]])
        >>> model(None, torch.rand(3, 3), edge_index).shape
        torch.Size([3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        dim: int = 3,
        edge_dim: int = 0,
        pos_encoding: Optional[Encoding] = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels, 0)
        hidden_channels = check_int("hidden_channels", hidden_channels, 1)
        self.hidden_channels = hidden_channels
        self.out_channels = out_channels = check_int("out_channels", out_channels, 1)
        self.num_layers = check_int("num_layers", num_layers, 1)
        self.dim = check_int("dim", dim, 1)
        self.edge_dim = check_int("edge_dim", edge_dim, 0)
        self.embed = MPNNEmbedding(
            *(in_channels, hidden_channels, num_layers, dim),
            edge_dim=edge_dim,
            pos_encoding=pos_encoding,
        )
        self.head = Sequential(
            Linear(hidden_channels, hidden_channels),
            GELU(),
            Linear(hidden_channels, out_channels),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        self.embed.reset_parameters()
        for module in self.head:
            if isinstance(module, Linear):
                reset_linear(module)

    def forward(
        self,
        data: Union[Tensor, Nodes, None] = None,
        /,
        pos: Optional[Tensor] = None,
        edge_index: Optional[Tensor] = None,
        batch: Optional[Tensor] = None,
        *,
        x: Optional[Tensor] = None,
        ptr: Optional[Tensor] = None,
        edge_attr: Optional[Tensor] = None,
    ) -> Tensor:
        r"""Runs the forward pass; arguments as in
        :meth:`torch_geometric_erwin.nn.Erwin.forward`.
        """
        inputs = unpack_inputs(
            Given(data, pos, edge_index, batch, x, ptr, edge_attr=edge_attr),
            Takes(self.in_channels, self.dim, self.edge_dim, needs_edges=True),
            first=self.embed,
        )
        edges = (inputs.edge_index, inputs.edge_attr)
        return self.head(self.embed(inputs.x, inputs.pos, *edges))

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.in_channels}, {self.hidden_channels}, "
            f"{self.out_channels}, num_layers={self.num_layers})"
        )
