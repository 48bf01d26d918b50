r"""Coarsening and refinement along a ball tree."""

import torch
from torch import Tensor
from torch_geometric.nn.inits import reset

from torch_geometric_erwin.nn.inits import reset_linear
from torch_geometric_erwin.nn.linear import Linear
from torch_geometric_erwin.nn.norm import Norm, make_norm, normalise
from torch_geometric_erwin.nn.norm.saved import keep_batch_norm
from torch_geometric_erwin.tree import Level
from torch_geometric_erwin.tree.level import check_level
from torch_geometric_erwin.utils.checks import (
    check_devices,
    check_int,
    check_lengths,
    check_rows,
    check_tensor,
    check_weight,
    is_plain,
)
from torch_geometric_erwin.utils.rows import from_dense, to_dense


def _groups(
    level: Level, stride: int, dim: int, num_rows: int
) -> tuple[Tensor, Tensor]:
    # Returns the numbers of children of a coarse level's rows, and their offsets.
    check_level("coarse", level)
    if level.group_len is None or level.children is None:
        raise ValueError(
            "'coarse' must have the children of its rows (got the finest level of a "
            "tree: it has no groups)"
        )
    if level.children.shape != (level.num_rows, stride, dim):
        raise ValueError(
            f"the layer pools {stride} rows with {dim} coordinates, 'coarse.children' "
            f"must have shape [{level.num_rows}, {stride}, {dim}] (got "
            f"{[*level.children.shape]})"
        )
    check_lengths("coarse.group_len", level.group_len, num_rows, stride)
    if level.group_len.size(0) != level.num_rows:
        raise ValueError(
            f"'coarse.group_len' must have shape [{level.num_rows}] (got "
            f"{[*level.group_len.shape]})"
        )
    return level.group_len, level.children


class BallPooling(torch.nn.Module):
    r"""The coarsening layer from `"Erwin: A Tree-based Hierarchical Transformer for
    Large-scale Physical Systems" <https://arxiv.org/abs/2502.17019>`_.

    The features of up to :obj:`stride` consecutive rows and their positions relative to
    the rows' mean are concatenated, mapped linearly and normalised. If a group has
    fewer rows, the missing entries are zero.

    Args:
        in_channels: The number of features of a row.
        out_channels: The number of features of a pooled row.
        stride: The number of rows that are pooled.
        dim: The number of coordinates :math:`D`.
        norm: The norm, :obj:`"batch"` in the paper; see
            :func:`~torch_geometric_erwin.nn.norm.make_norm`.

    Shapes:
        - **x:** :math:`(N, C)`, rows of the finer level; **output:** :math:`(M, C')`,
          rows of the coarse one.

    Raises:
        ValueError: If an argument is out of range or shapes do not fit.

    Example:
        >>> from torch_geometric_erwin import ball_tree
        >>> pos = torch.rand(5, 3)
        >>> fine, coarse = ball_tree(pos, ball_sizes=4, strides=[2]).levels(pos)
        >>> BallPooling(8, 16, stride=2)(torch.rand(5, 8), coarse).shape
        torch.Size([3, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        dim: int = 3,
        norm: Norm = "layer",
    ) -> None:
        super().__init__()
        self.in_channels = in_channels = check_int("in_channels", in_channels, 1)
        self.out_channels = out_channels = check_int("out_channels", out_channels, 1)
        self.stride = stride = check_int("stride", stride, 1)
        self.dim = dim = check_int("dim", dim, 1)
        self.lin = Linear(stride * (in_channels + dim), out_channels)
        self.norm = make_norm(norm, out_channels)
        if norm == "layer":
            self.register_load_state_dict_pre_hook(keep_batch_norm)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        reset_linear(self.lin)
        reset(self.norm)

    def forward(self, x: Tensor, coarse: Level) -> Tensor:
        r"""Pools the rows of the finer level into those of the coarse one."""
        check_tensor("x", x)
        num_rows = x.size(0) if x.dim() > 0 else 0
        check_rows("x", x, num_rows, self.in_channels)
        lengths, offset = _groups(coarse, self.stride, self.dim, num_rows)
        check_devices(x=x, coarse=offset, group_len=lengths)
        if is_plain(self.lin, Linear):
            check_weight("x", x, self.lin.weight)
        children = to_dense(x, lengths, self.stride)
        children = torch.cat([children.flatten(1), offset.to(x.dtype).flatten(1)], -1)
        return normalise(self.norm, self.lin(children), coarse)

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
    normalised.

    Args:
        in_channels: The number of features of a coarse row.
        out_channels: The number of features of a child.
        stride: The number of children of a coarse row.
        dim: The number of coordinates :math:`D`.
        norm: The norm, :obj:`"batch"` in the paper; see
            :func:`~torch_geometric_erwin.nn.norm.make_norm`.

    Shapes:
        - **x:** :math:`(M, C')`, rows of the coarse level; **skip** and **output:**
          :math:`(N, C)`, rows of the finer one.

    Raises:
        ValueError: If an argument is out of range or shapes do not fit.

    Example:
        >>> from torch_geometric_erwin import ball_tree
        >>> pos = torch.rand(5, 3)
        >>> fine, coarse = ball_tree(pos, ball_sizes=4, strides=[2]).levels(pos)
        >>> unpool = BallUnpooling(16, 8, stride=2)
        >>> unpool(torch.rand(3, 16), torch.rand(5, 8), fine, coarse).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        dim: int = 3,
        norm: Norm = "layer",
    ) -> None:
        super().__init__()
        self.in_channels = in_channels = check_int("in_channels", in_channels, 1)
        self.out_channels = out_channels = check_int("out_channels", out_channels, 1)
        self.stride = stride = check_int("stride", stride, 1)
        self.dim = dim = check_int("dim", dim, 1)
        self.lin = Linear(in_channels + stride * dim, stride * out_channels)
        self.norm = make_norm(norm, out_channels)
        if norm == "layer":
            self.register_load_state_dict_pre_hook(keep_batch_norm)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        reset_linear(self.lin)
        reset(self.norm)

    def forward(self, x: Tensor, skip: Tensor, fine: Level, coarse: Level) -> Tensor:
        r"""Refines the rows of the coarse level and adds them to those of the finer."""
        check_level("fine", fine)
        lengths, offset = _groups(coarse, self.stride, self.dim, fine.num_rows)
        check_rows("x", x, coarse.num_rows, self.in_channels)
        check_rows("skip", skip, fine.num_rows, self.out_channels)
        check_devices(x=x, skip=skip, coarse=offset, group_len=lengths, fine=fine.pos)
        if is_plain(self.lin, Linear):
            check_weight("x", x, self.lin.weight)
            check_weight("skip", skip, self.lin.weight)
        children = self.lin(torch.cat([x, offset.to(x.dtype).flatten(1)], -1))
        children = children.view(-1, self.stride, self.out_channels)
        children = from_dense(children, lengths, fine.num_rows)
        return normalise(self.norm, skip + children, fine)

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.in_channels}, {self.out_channels}, "
            f"stride={self.stride})"
        )
