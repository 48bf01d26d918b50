r"""The transformer block: any mixer, then a feed-forward layer."""

from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn import Dropout, Module
from torch_geometric.nn.inits import reset

from torch_geometric_erwin.nn.attention import BallAttention
from torch_geometric_erwin.nn.conv.call import (
    call_conv,
    takes_argument,
    takes_edge_attr,
)
from torch_geometric_erwin.nn.drop_path import DropPath
from torch_geometric_erwin.nn.norm import Norm, make_norm, normalise
from torch_geometric_erwin.nn.swiglu import SwiGLU
from torch_geometric_erwin.tree import Level
from torch_geometric_erwin.tree.level import check_level
from torch_geometric_erwin.utils.checks import (
    check_call,
    check_devices,
    check_instance,
    check_int,
    check_probability,
    check_rows,
    check_weight,
    is_autocast,
)


class Block(Module):
    r"""A pre-norm transformer block on the rows of a level.

    .. math::
        x &\leftarrow x + \mathrm{Mixer}(\mathrm{Norm}(x)) +
        \mathrm{Conv}(\mathrm{Norm}(x))

        x &\leftarrow x + \mathrm{MLP}(\mathrm{Norm}(x))

    Args:
        channels: The number of features of a row.
        attention: The mixer, a module that is called with rows and their
            :class:`~torch_geometric_erwin.Level` and returns rows.
        mlp: The feed-forward layer, a module that is called with rows and returns rows.
        conv: A :class:`~torch_geometric.nn.conv.MessagePassing` layer whose output is
            added to that of the mixer. It is called with rows, the level's edges and,
            if it takes them, :obj:`pos`, :obj:`edge_attr` and :obj:`batch`. A layer
            that was built without an :obj:`edge_dim` does not get :obj:`edge_attr`.
        norm: The norms, see :func:`~torch_geometric_erwin.nn.norm.make_norm`.
        dropout: The probability that an entry of a branch is set to zero in training.
        drop_path: The probability that a branch is left out for a whole cloud in
            training.

    Shapes:
        - **x:** :math:`(N, C)`; **output:** :math:`(N, C)`.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If an argument is out of range.

    Example:
        >>> from torch_geometric_erwin import ball_tree
        >>> pos = torch.rand(20, 3)
        >>> level, = ball_tree(pos, ball_sizes=[8]).levels(pos)
        >>> block = Block(16, BallAttention(16, 2, 8), SwiGLU(16, 64), norm="graph")
        >>> block(torch.rand(20, 16), level).shape
        torch.Size([20, 16])
    """

    def __init__(
        self,
        channels: int,
        attention: Module,
        mlp: Module,
        conv: Optional[Module] = None,
        norm: Norm = "rms",
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        for name, module in (("attention", attention), ("mlp", mlp), ("conv", conv)):
            if name != "conv" or module is not None:
                check_instance(name, module, Module, "a module")
        check_call("attention", attention, "rows and their level", None, None)
        check_call("mlp", mlp, "rows alone", None)
        self.channels = channels = check_int("channels", channels, 1)
        self.norm_attention = make_norm(norm, channels)
        self.attention = attention
        self.conv = conv
        self.norm_mlp = make_norm(norm, channels)
        self.mlp = mlp
        self.dropout = Dropout(check_probability("dropout", dropout))
        self.drop_path = DropPath(check_probability("drop_path", drop_path))

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        reset(self.norm_attention)
        reset(self.attention)
        reset(self.conv)
        reset(self.norm_mlp)
        reset(self.mlp)

    def forward(self, x: Tensor, level: Level) -> Tensor:
        r"""Runs the forward pass of the module."""
        check_level("level", level)
        check_rows("x", x, level.num_rows, self.channels)
        check_devices(x=x, level=level.pos)
        weight = getattr(self.norm_attention, "weight", None)
        if isinstance(weight, Tensor):
            check_weight("x", x, weight)
        if is_autocast(x.device):  # the sums of layers are in full precision
            x = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = normalise(self.norm_attention, x, level)
        mixed = _mixed(self.attention, normed, level)
        check_rows("attention(x)", mixed, level.num_rows, self.channels)
        if self.conv is not None:
            mixed = mixed + self._messages(normed, level)
        x = x + self._dropped(mixed, level)
        return x + self._dropped(self.mlp(normalise(self.norm_mlp, x, level)), level)

    def _messages(self, x: Tensor, level: Level) -> Tensor:
        assert self.conv is not None
        if level.edge_index is None:
            raise ValueError(
                "the block passes messages, but its level has no edges: give level 0 "
                "'tree.levels(pos, edge_index)', and coarse ones a tree with edges, of "
                "'BallTree(..., edges=True)' or 'tree.with_edges(edge_index)'"
            )
        out = call_conv(
            *(self.conv, x, level.pos, level.edge_index),
            level.edge_attr if takes_edge_attr(self.conv) else None,
            batch=level.batch if takes_argument(self.conv, "batch") else None,
        )
        check_rows("conv(x)", out, level.num_rows, self.channels)
        return out

    def _dropped(self, x: Tensor, level: Level) -> Tensor:
        return self.drop_path(self.dropout(x), level)

    def __repr__(self) -> str:
        parts = [self.attention] if self.conv is None else [self.attention, self.conv]
        text = ", ".join(map(str, (self.channels, *parts)))
        return f"{self.__class__.__name__}({text})"


def _mixed(mixer: Module, x: Tensor, level: Level) -> Tensor:
    if torch.compiler.is_compiling():
        return mixer(x, level)
    try:
        return mixer(x, level)
    except KeyError as error:
        size = error.args[0] if error.args else None
        if type(size) is not int or size in level.runs:
            raise
        raise ValueError(
            f"'{type(mixer).__name__}' needs runs of {size} rows, which the tree does "
            f"not have: declare them in its class, 'required_runs = ({size},)', or "
            "build the tree with 'runs='"
        ) from error


class ErwinBlock(Block):
    r"""The transformer block from `"Erwin: A Tree-based Hierarchical Transformer for
    Large-scale Physical Systems" <https://arxiv.org/abs/2502.17019>`_: ball attention
    and a gated feed-forward layer, each after an RMS norm and added to its input.

    Args:
        channels: The number of features of a row.
        heads: The number of heads; it divides :obj:`channels`.
        ball_size: The largest number of rows in a ball.
        mlp_ratio: The width of the feed-forward layer, in multiples of
            :obj:`channels`.
        dim: The number of coordinates :math:`D`.
        backend: The backend of :func:`~torch_geometric_erwin.nn.ball_attention`.
        **kwargs: Further arguments of :class:`Block`.

    Shapes:
        - **x:** :math:`(N, C)`; **output:** :math:`(N, C)`, rows of the level.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> block = ErwinBlock(channels=16, heads=2, ball_size=4)
        >>> level = Level.build(torch.rand(6, 3), torch.tensor([4, 2]), ball_size=4)
        >>> block(torch.rand(6, 16), level).shape
        torch.Size([6, 16])
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        ball_size: int,
        mlp_ratio: int = 4,
        dim: int = 3,
        backend: Optional[str] = None,
        **kwargs: Any,
    ) -> None:
        mlp_ratio = check_int("mlp_ratio", mlp_ratio, 1)
        attention = BallAttention(channels, heads, ball_size, dim, backend)
        super().__init__(
            channels, attention, SwiGLU(channels, mlp_ratio * channels), **kwargs
        )
