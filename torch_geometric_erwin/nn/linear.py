r"""The linear layer of this package."""

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_erwin.ops.linear import linear


class Linear(torch.nn.Linear):
    r"""A :class:`torch.nn.Linear` whose float32 products on a CPU oneDNN computes.

    It has the parameters and results of :class:`torch.nn.Linear`, and does the same as
    that for anything but plain float32 tensors on a CPU.

    Args:
        in_features: The number of features of a row.
        out_features: The number of output features of a row.
        **kwargs: Further arguments of :class:`torch.nn.Linear`.

    Shapes:
        - **input:** :math:`(*, C)`; **output:** :math:`(*, C')`.

    Example:
        >>> Linear(8, 4)(torch.rand(5, 8)).shape
        torch.Size([5, 4])
    """

    def forward(self, input: Tensor) -> Tensor:
        r"""Runs the forward pass of the module."""
        if torch.jit.is_scripting():
            return F.linear(input, self.weight, self.bias)
        else:
            return linear(input, self.weight, self.bias)
