r"""The feed-forward layer of a block."""

import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from torch_geometric_erwin.nn.inits import reset_linear
from torch_geometric_erwin.nn.linear import Linear
from torch_geometric_erwin.ops.swiglu import swiglu
from torch_geometric_erwin.utils.checks import (
    check_floating,
    check_int,
    check_tensor,
    check_weight,
    is_plain,
)


class SwiGLU(Module):
    r"""The gated feed-forward layer from `"GLU Variants Improve Transformer"
    <https://arxiv.org/abs/2002.05202>`_.

    .. math::
        x' = W_3 \left( \mathrm{SiLU}(W_1 x) \odot W_2 x \right)

    Args:
        channels: The number of features of a row.
        hidden_channels: The number of features between the linear maps.

    Shapes:
        - **x:** :math:`(*, C)`; **output:** :math:`(*, C)`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> SwiGLU(8, 32)(torch.rand(5, 8)).shape
        torch.Size([5, 8])
    """

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.channels = check_int("channels", channels, 1)
        self.hidden_channels = check_int("hidden_channels", hidden_channels, 1)
        self.lin_in = Linear(channels, 2 * hidden_channels)  # (W_1 | W_2)
        self.lin_out = Linear(hidden_channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        reset_linear(self.lin_in)
        reset_linear(self.lin_out)

    def forward(self, x: Tensor) -> Tensor:
        r"""Runs the forward pass of the module."""
        check_tensor("x", x)
        check_floating("x", x)
        if x.dim() == 0 or x.size(-1) != self.channels:
            raise ValueError(
                f"'x' must have shape [..., {self.channels}] (got {[*x.shape]})"
            )
        lin_in, lin_out = self.lin_in, self.lin_out
        if not (is_plain(lin_in, Linear) and is_plain(lin_out, Linear)):
            gate, value = lin_in(x).chunk(2, dim=-1)
            return lin_out(F.silu(gate) * value)
        check_weight("x", x, lin_in.weight)
        return swiglu(x, lin_in.weight, lin_in.bias, lin_out.weight, lin_out.bias)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.channels}, {self.hidden_channels})"
