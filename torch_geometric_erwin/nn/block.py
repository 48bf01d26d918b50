r"""The transformer block of Erwin."""

from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn import RMSNorm

from torch_geometric_erwin.nn.attention import BallAttention
from torch_geometric_erwin.nn.swiglu import SwiGLU
from torch_geometric_erwin.utils.checks import (
    check_devices,
    check_int,
    check_rows,
    check_tensor,
)


class ErwinBlock(torch.nn.Module):
    r"""The transformer block from `"Erwin: A Tree-based Hierarchical Transformer for
    Large-scale Physical Systems" <https://arxiv.org/abs/2502.17019>`_: ball attention
    and a gated feed-forward layer, each behind an RMS norm and added to its input.

    Args:
        channels: The number of features of a row.
        heads: The number of heads; it divides :obj:`channels`.
        ball_size: The largest number of rows in a ball.
        mlp_ratio: The width of the feed-forward layer, in multiples of
            :obj:`channels`.
        dim: The number of coordinates :math:`D`.
        **kwargs: Further arguments of
            :class:`~torch_geometric_erwin.nn.BallAttention`.

    Shapes:
        - **x:** :math:`(N, C)`; **pos:** :math:`(N, D)`; **ball_len:** :math:`(K)`;
          **perm:** :math:`(N)`; **offset:** :math:`(N, D)`; **output:**
          :math:`(N, C)`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> block = ErwinBlock(channels=16, heads=2, ball_size=4)
        >>> x, pos, ball_len = torch.rand(6, 16), torch.rand(6, 3), torch.tensor([4, 2])
        >>> block(x, pos, ball_len).shape
        torch.Size([6, 16])
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        ball_size: int,
        mlp_ratio: int = 4,
        dim: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        check_int("mlp_ratio", mlp_ratio, 1)
        self.norm_attention = RMSNorm(channels)
        self.attention = BallAttention(channels, heads, ball_size, dim, **kwargs)
        self.norm_mlp = RMSNorm(channels)
        self.mlp = SwiGLU(channels, mlp_ratio * channels)

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        for module in (self.norm_attention, self.attention, self.norm_mlp, self.mlp):
            module.reset_parameters()

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        ball_len: Tensor,
        perm: Optional[Tensor] = None,
        offset: Optional[Tensor] = None,
    ) -> Tensor:
        r"""Runs the forward pass; :obj:`perm` selects the rotated tree.

        Blocks that share balls can share the offset that
        :meth:`~torch_geometric_erwin.nn.BallAttention.offset` returns.
        """
        check_tensor("pos", pos)
        num_rows = pos.size(0) if pos.dim() > 0 else 0
        check_rows("x", x, num_rows, self.norm_mlp.weight.size(0))
        check_devices(x=x, pos=pos)
        # Under autocast the sum of the layers keeps the precision of the weights.
        x = x.to(self.norm_mlp.weight.dtype)
        # A layer in its place needs to know no offset.
        args = (
            (pos, ball_len, perm) if offset is None else (pos, ball_len, perm, offset)
        )
        x = x + self.attention(self.norm_attention(x), *args)
        return x + self.mlp(self.norm_mlp(x))

    def __repr__(self) -> str:
        a = self.attention
        return (
            f"{self.__class__.__name__}({a.channels}, heads={a.heads}, "
            f"ball_size={a.ball_size})"
        )
