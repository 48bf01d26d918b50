r"""Coarsening and refinement along a ball tree."""

from typing import Optional

import torch
from torch import Tensor

from torch_geometric_erwin.nn.inits import reset_linear
from torch_geometric_erwin.nn.linear import Linear
from torch_geometric_erwin.nn.norm import BatchNorm
from torch_geometric_erwin.utils.centre import centre_dense
from torch_geometric_erwin.utils.checks import (
    check_devices,
    check_int,
    check_lengths,
    check_rows,
    check_tensor,
)
from torch_geometric_erwin.utils.rows import from_dense, to_dense


def _given(mask: Optional[Tensor]) -> tuple[Tensor, ...]:
    # A norm that took the layer's place, such as SyncBatchNorm, may know no mask.
    return () if mask is None else (mask,)


class BallPooling(torch.nn.Module):
    r"""The coarsening layer from `"Erwin: A Tree-based Hierarchical Transformer for
    Large-scale Physical Systems" <https://arxiv.org/abs/2502.17019>`_.

    The features of up to :obj:`stride` consecutive rows and their positions relative to
    the rows' mean are concatenated, mapped linearly and normalised over the batch; the
    mean is the new position. A child that a group lacks counts as zero.

    Args:
        in_channels: The number of features of a row.
        out_channels: The number of features of a pooled row.
        stride: The number of rows that are pooled.
        dim: The number of coordinates :math:`D`.

    Shapes:
        - **x:** :math:`(N, C)`; **pos:** :math:`(N, D)`; **group_len:** :math:`(M)`,
          the children of every pooled row; **mask:** :math:`(M)`;
          **output:** :math:`(M, C')` and :math:`(M, D)`.

    Raises:
        ValueError: If an argument is out of range or shapes do not fit.

    Example:
        >>> pool = BallPooling(8, 16, stride=2)
        >>> x, pos = pool(torch.rand(5, 8), torch.rand(5, 3), torch.tensor([2, 2, 1]))
        >>> x.shape, pos.shape
        (torch.Size([3, 16]), torch.Size([3, 3]))
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, dim: int = 3
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels, 1)
        self.out_channels = check_int("out_channels", out_channels, 1)
        self.stride = check_int("stride", stride, 1)
        self.dim = check_int("dim", dim, 1)
        self.lin = Linear(stride * (in_channels + dim), out_channels)
        self.norm = BatchNorm(out_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        reset_linear(self.lin)
        self.norm.reset_parameters()

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        group_len: Tensor,
        mask: Optional[Tensor] = None,
    ) -> tuple[Tensor, Tensor]:
        r"""Runs the forward pass.

        :obj:`mask` excludes pooled rows from the statistics of the normalisation.
        """
        check_tensor("x", x)
        num_rows = x.size(0) if x.dim() > 0 else 0
        check_rows("x", x, num_rows, self.in_channels)
        check_rows("pos", pos, num_rows, self.dim)
        check_lengths("group_len", group_len, num_rows, self.stride)
        check_devices(x=x, pos=pos, group_len=group_len)
        children = to_dense(x, group_len, self.stride)
        offset, centre = centre_dense(pos, group_len, self.stride)
        children = torch.cat([children.flatten(1), offset.to(x.dtype).flatten(1)], -1)
        return self.norm(self.lin(children), *_given(mask)), centre

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.in_channels}, {self.out_channels}, "
            f"stride={self.stride})"
        )


class BallUnpooling(torch.nn.Module):
    r"""The refinement layer from `"Erwin: A Tree-based Hierarchical Transformer for
    Large-scale Physical Systems" <https://arxiv.org/abs/2502.17019>`_.

    A coarse row and the positions of its children relative to it are mapped linearly to
    the features of :obj:`stride` children, which are added to the skip connection and
    normalised over the batch.

    Args:
        in_channels: The number of features of a coarse row.
        out_channels: The number of features of a child.
        stride: The number of children of a coarse row.
        dim: The number of coordinates :math:`D`.

    Shapes:
        - **x:** :math:`(M, C')`; **skip:** :math:`(N, C)`; **pos:** :math:`(N, D)`, the
          children's positions; **group_len:** :math:`(M)`; **mask:** :math:`(N)`;
          **output:** :math:`(N, C)`.

    Raises:
        ValueError: If an argument is out of range or shapes do not fit.

    Example:
        >>> unpool = BallUnpooling(16, 8, stride=2)
        >>> x, skip, pos = torch.rand(3, 16), torch.rand(5, 8), torch.rand(5, 3)
        >>> unpool(x, skip, pos, torch.tensor([2, 2, 1])).shape
        torch.Size([5, 8])
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, dim: int = 3
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels, 1)
        self.out_channels = check_int("out_channels", out_channels, 1)
        self.stride = check_int("stride", stride, 1)
        self.dim = check_int("dim", dim, 1)
        self.lin = Linear(in_channels + stride * dim, stride * out_channels)
        self.norm = BatchNorm(out_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        reset_linear(self.lin)
        self.norm.reset_parameters()

    def forward(
        self,
        x: Tensor,
        skip: Tensor,
        pos: Tensor,
        group_len: Tensor,
        mask: Optional[Tensor] = None,
    ) -> Tensor:
        r"""Runs the forward pass.

        :obj:`mask` excludes children from the statistics of the normalisation.
        """
        check_tensor("skip", skip)
        num_rows = skip.size(0) if skip.dim() > 0 else 0
        check_rows("skip", skip, num_rows, self.out_channels)
        check_lengths("group_len", group_len, num_rows, self.stride)
        check_rows("x", x, group_len.size(0), self.in_channels)
        check_rows("pos", pos, num_rows, self.dim)
        check_devices(x=x, skip=skip, pos=pos, group_len=group_len)
        offset, _ = centre_dense(pos, group_len, self.stride)
        children = self.lin(torch.cat([x, offset.to(x.dtype).flatten(1)], -1))
        children = children.view(-1, self.stride, self.out_channels)
        children = from_dense(children, group_len, skip.size(0))
        return self.norm(skip + children, *_given(mask))

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.in_channels}, {self.out_channels}, "
            f"stride={self.stride})"
        )
