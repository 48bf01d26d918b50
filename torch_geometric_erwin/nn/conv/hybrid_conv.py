r"""PyG's GPS layer with attention inside the balls of a tree."""

import warnings
from copy import deepcopy
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Dropout, Module, Sequential
from torch_geometric.nn import GPSConv
from torch_geometric.nn.inits import reset
from torch_geometric.typing import Adj

from torch_geometric_erwin.nn.activation import Activation, make_activation
from torch_geometric_erwin.nn.attention import BallAttention, make_mixer
from torch_geometric_erwin.nn.attention.resolver import Mixer
from torch_geometric_erwin.nn.attention.weights import node_pairs
from torch_geometric_erwin.nn.conv.call import (
    call_conv,
    check_adjacency,
    takes_argument,
)
from torch_geometric_erwin.nn.conv.gps import (
    check_attention,
    copied_norm,
    copy_attention,
)
from torch_geometric_erwin.nn.extents import far_extent
from torch_geometric_erwin.nn.linear import Linear
from torch_geometric_erwin.nn.norm import Norm, make_norm, normalise
from torch_geometric_erwin.tree import Level, Tree, ball_tree
from torch_geometric_erwin.tree.levels import levels_of
from torch_geometric_erwin.tree.tree import check_tree
from torch_geometric_erwin.utils.checks import (
    LIMIT,
    check_devices,
    check_dim,
    check_flag,
    check_instance,
    check_int,
    check_positions,
    check_probability,
    check_rows,
    check_shape,
    check_tensor,
    check_weight,
    given_ptr,
    is_autocast,
)
from torch_geometric_erwin.utils.rows import segment_ids


class HybridConv(Module):
    r"""The layer :class:`~torch_geometric.nn.conv.GPSConv` from the `"Recipe for a
    General, Powerful, Scalable Graph Transformer" <https://arxiv.org/abs/2205.12454>`_
    paper with attention inside the balls of a tree, from `"Erwin: A Tree-based
    Hierarchical Transformer for Large-scale Physical Systems"
    <https://arxiv.org/abs/2502.17019>`_, in place of attention between all nodes.

    .. math::
        h_i &= \mathrm{Norm}_1 (x_i + \mathrm{Conv}(x)_i) +
        \mathrm{Norm}_2 (x_i + \mathrm{Attention}(x)_i)

        x'_i &= \mathrm{Norm}_3 (h_i + \mathrm{MLP}(h_i))

    Residuals, norms, feed-forward layer and dropout are those of
    :class:`~torch_geometric.nn.conv.GPSConv`, and :meth:`from_gps` converts one with
    its weights. The cost of attention is :math:`O(N B)` for balls of :math:`B` nodes
    instead of :math:`O(N^2)`.

    Nodes, edges and output are in the order of the user's data. The layer orders them
    by the tree where it needs that. To build one tree for all layers, pass it as
    :obj:`tree`. Balls do not overlap, so let every second layer be one with
    :obj:`rotated=True`, whose balls contain nodes of several balls of the others.

    Args:
        channels: The number of features of a node.
        conv: Any message-passing layer with as many input and output channels, see
            :func:`~torch_geometric_erwin.nn.conv.call_conv`; or :obj:`None`.
        attention: The mixer, a name or a callable, see
            :func:`~torch_geometric_erwin.nn.make_mixer`. The level that it gets has a
            rotated tree only if :obj:`rotated` is true.
        heads: The number of heads; it divides :obj:`channels`.
        ball_size: The largest number of nodes in a ball.
        dim: The number of coordinates :math:`D`.
        rotated: Whether the balls are those of the rotated tree.
        dropout: The probability that an entry of a branch is set to zero in training.
        act: The activation: a name that PyG's :obj:`activation_resolver` knows, a
            module, a class of modules, or a function.
        act_kwargs: Further arguments of the activation.
        norm: The norms: a name, a callable or :obj:`None`, see
            :func:`~torch_geometric_erwin.nn.norm.make_norm`.
        norm_kwargs: Further arguments of the norms.
        attn_kwargs: Further arguments of the mixer. For
            :class:`~torch_geometric_erwin.nn.BallAttention`, :obj:`backend`, and
            :obj:`distance="relative"` for positions whose unit of length is arbitrary.

    Shapes:
        - **x:** :math:`(N, C)`; **pos:** :math:`(N, D)`; **edge_index:**
          :math:`(2, E)`; **batch:** :math:`(N)`; **ptr:** :math:`(G + 1)`;
          **edge_attr:** :math:`(E, *)`; **output:** :math:`(N, C)`.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If an argument is out of range.

    Example:
        >>> from torch_geometric.nn import GCNConv
        >>> from torch_geometric_erwin import knn_graph
        >>> x, pos = torch.rand(200, 16), torch.rand(200, 3)
        >>> tree = ball_tree(pos, ball_sizes=64)
        >>> layer = HybridConv(16, GCNConv(16, 16), heads=2, ball_size=64)
        >>> layer(x, pos, knn_graph(pos, k=6), tree=tree).shape
        torch.Size([200, 16])
    """

    def __init__(
        self,
        channels: int,
        conv: Optional[Module],
        attention: Mixer = "ball",
        heads: int = 1,
        ball_size: int = 128,
        *,
        dim: int = 3,
        rotated: bool = False,
        dropout: float = 0.0,
        act: Activation = "relu",
        act_kwargs: Optional[dict[str, Any]] = None,
        norm: Norm = "batch_norm",
        norm_kwargs: Optional[dict[str, Any]] = None,
        attn_kwargs: Optional[dict[str, Any]] = None,
    ) -> None:
        super().__init__()
        if conv is not None:
            check_instance("conv", conv, Module, "a module or None")
        attn_kwargs = {} if attn_kwargs is None else attn_kwargs
        check_instance("attn_kwargs", attn_kwargs, dict)
        self.channels = channels = check_int("channels", channels, 1)
        self.ball_size = ball_size = check_int("ball_size", ball_size, 1)
        self.dim = dim = check_int("dim", dim, 1)
        self.rotated = check_flag("rotated", rotated)
        self.dropout = dropout = check_probability("dropout", dropout)
        self.conv = conv
        self.attention = make_mixer(
            attention, channels, heads, ball_size, dim, **attn_kwargs
        )
        self.mlp = Sequential(
            Linear(channels, 2 * channels),
            make_activation(act, act_kwargs),
            Dropout(dropout),
            Linear(2 * channels, channels),
            Dropout(dropout),
        )
        first = None if conv is None else norm
        self.norm1 = make_norm(first, channels, kwargs=norm_kwargs)
        self.norm2 = make_norm(norm, channels, kwargs=norm_kwargs)
        self.norm3 = make_norm(norm, channels, kwargs=norm_kwargs)
        self._has_warned = False

    @classmethod
    def from_gps(
        cls, conv: GPSConv, ball_size: int = 128, dim: int = 3, rotated: bool = False
    ) -> "HybridConv":
        r"""Converts PyG's layer with its weights.

        All parts are copied, so that training one layer leaves the other as it is. The
        weights of positions, which the original does not have, are zero: on clouds that
        fit into one ball the output is that of the original. Biases that the original
        does not have are zero too.

        Args:
            conv: The layer, with :obj:`attn_type="multihead"`.
            ball_size: The largest number of nodes in a ball.
            dim: The number of coordinates :math:`D`.
            rotated: Whether the balls are those of the rotated tree.

        Raises:
            TypeError: If it is another layer.
            ValueError: If its attention has weights without a counterpart.

        Example:
            >>> from torch_geometric.nn import GCNConv, GPSConv
            >>> layer = GPSConv(16, GCNConv(16, 16), heads=2)
            >>> HybridConv.from_gps(layer, ball_size=64)
            HybridConv(16, GCNConv(16, 16), BallAttention(16, heads=2, ball_size=64))
        """
        check_instance("conv", conv, GPSConv, "a GPSConv")
        check_attention(conv.attn)
        weight = conv.attn.in_proj_weight
        layer = cls(
            conv.channels,
            deepcopy(conv.conv),
            heads=conv.heads,
            ball_size=ball_size,
            dim=dim,
            rotated=rotated,
            dropout=conv.dropout,
            act=deepcopy(conv.mlp[1]),
            norm=None,
        ).to(weight.device, weight.dtype)
        assert isinstance(layer.attention, BallAttention)
        copy_attention(conv.attn, layer.attention)
        layer.mlp.load_state_dict(conv.mlp.state_dict())
        layer.norm1 = copied_norm(conv.norm1 if conv.conv is not None else None)
        layer.norm2 = copied_norm(conv.norm2)
        layer.norm3 = copied_norm(conv.norm3)
        return layer.train(conv.training)

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        for module in self.children():
            reset(module)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        edge_index: Optional[Adj] = None,
        batch: Optional[Tensor] = None,
        tree: Optional[Tree] = None,
        *,
        ptr: Optional[Tensor] = None,
        edge_attr: Optional[Tensor] = None,
        return_attention_weights: Optional[bool] = None,
        **kwargs: Any,
    ) -> Union[Tensor, tuple[Tensor, tuple[Tensor, Tensor]]]:
        r"""Runs the forward pass of the module.

        Args:
            x: The node features.
            pos: The node positions. Ball attention compares distances with one learned
                length for all balls, see :obj:`attn_kwargs`; choose the unit of length
                such that balls have an extent of about one.
            edge_index: The edges, as :obj:`conv` takes them.
            batch: The cloud of every node, sorted.
            tree: The tree of the nodes. Its level 0 must have balls of at most
                :obj:`ball_size` nodes. Without one, every call builds its own, which
                compiled code cannot.
            ptr: The row offsets of the clouds, in place of :obj:`batch`. (default: one
                cloud, or those of the tree)
            edge_attr: The features of the edges, for :obj:`conv`.
            return_attention_weights: Whether to return the pair of the output and the
                weights with which nodes attend to the nodes of their ball: the pairs
                :math:`(2, E')` of source and target, and weights :math:`(E', H)`.
            **kwargs: Further arguments of :obj:`conv`.

        Raises:
            TypeError: If a tensor has another dtype, :obj:`conv` lacks an argument or
                does not take one that was given, or the mixer does not tell weights.
            ValueError: If a tensor or the tree does not fit.
        """
        self._check(x, pos)
        weighted = self._check_weighted(return_attention_weights)
        self._check_edges(x, edge_index, edge_attr, **kwargs)
        if tree is None:
            tree = self._tree(pos, batch, ptr)
        else:
            self._check_tree(tree, pos, batch, ptr)
        if is_autocast(x.device):  # the sums of layers are in full precision
            x = x.to(torch.promote_types(x.dtype, torch.float32))
        order = tree.order(x.size(0), levels=int(self.rotated))
        (level,) = levels_of(tree, order, pos, levels=1)
        self._warn_of_extents(level)
        clouds = _clouds(tree, level, pos)
        out = None
        if self.conv is not None:
            if batch is None and takes_argument(self.conv, "batch"):
                batch = clouds.batch
            h = call_conv(
                self.conv, x, pos, edge_index, edge_attr, batch=batch, **kwargs
            )
            check_tensor("conv(x)", h)
            check_rows("conv(x)", h, x.size(0), self.channels)
            out = normalise(self.norm1, x + self._dropped(h), clouds)
        view = level.rotated() if self.rotated else level
        rows = order.to_rows(x)
        weights = self._weights(rows, view) if weighted else None
        rows = self.attention(rows, view)
        check_rows("attention(x)", rows, level.num_rows, self.channels)
        h = x + self._dropped(order.to_nodes(rows))
        h = normalise(self.norm2, h, clouds)
        out = h if out is None else out + h
        out = normalise(self.norm3, out + self.mlp(out), clouds)
        return out if weights is None else (out, weights)

    def _weights(self, rows: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        mixer: Any = self.attention
        pairs, alpha = mixer.attention_weights(rows, level)
        return node_pairs(pairs, alpha, level)

    def _dropped(self, h: Tensor) -> Tensor:
        return F.dropout(h, self.dropout, self.training)

    def _warn_of_extents(self, level: Level) -> None:
        if torch.compiler.is_compiling() or self._has_warned:
            return
        mixer = self.attention
        if not isinstance(mixer, BallAttention):  # others may have any unit
            return
        extent = far_extent(level) if mixer.distance == "absolute" else None
        if extent is None:
            return
        warnings.warn(
            f"balls extend over about {extent:.2g}, the weights of attention suit "
            "balls of about 1: change the unit of 'pos', or use "
            "attn_kwargs={'distance': 'relative'}",
            stacklevel=5,  # names the line that calls the layer
        )
        self._has_warned = True

    def _check(self, x: Tensor, pos: Tensor) -> None:
        check_tensor("x", x)
        check_rows("x", x, x.size(0) if x.dim() > 0 else 0, self.channels)
        weight = next(self.mlp.parameters(), None)
        if weight is not None:
            check_weight("x", x, weight)
        check_tensor("pos", pos)
        check_dim("pos", pos, self.dim)
        check_positions("pos", pos, x.size(0), self.dim)
        check_devices(x=x, pos=pos)

    def _check_weighted(self, return_attention_weights: Optional[bool]) -> bool:
        if return_attention_weights is None or not check_flag(
            "return_attention_weights", return_attention_weights
        ):
            return False
        if not hasattr(self.attention, "attention_weights"):
            raise TypeError(
                "'return_attention_weights=True' needs a mixer with a method "
                f"'attention_weights(x, level)' (got {self.attention})"
            )
        return True

    def _check_edges(
        self,
        x: Tensor,
        edge_index: Optional[Adj],
        edge_attr: Optional[Tensor],
        **kwargs: Any,
    ) -> None:
        given = {"edge_attr": edge_attr, **kwargs}
        names = [name for name, value in given.items() if value is not None]
        if self.conv is None and names:
            raise TypeError(f"'conv' is None, there is none that takes '{names[0]}'")
        if edge_index is not None:
            check_adjacency("edge_index", edge_index, x)
        if edge_attr is None:
            return
        check_tensor("edge_attr", edge_attr)
        check_devices(x=x, edge_attr=edge_attr)
        is_other = edge_attr.is_floating_point() and edge_attr.dtype != x.dtype
        if is_other and not is_autocast(x.device):
            raise TypeError(
                f"'edge_attr' is {edge_attr.dtype}, 'x' is {x.dtype}: convert one of "
                "them"
            )
        if isinstance(edge_index, Tensor) and edge_index.layout is torch.strided:
            check_shape("edge_attr", edge_attr, (edge_index.size(1),))

    def _tree(
        self, pos: Tensor, batch: Optional[Tensor], ptr: Optional[Tensor]
    ) -> Tree:
        rotate = 45.0 if self.rotated else 0.0
        runs = (self._runs,) if self._runs else ()
        return _built_tree(pos, batch, ptr, self.ball_size, rotate, runs)

    def _check_tree(
        self,
        tree: Tree,
        pos: Tensor,
        batch: Optional[Tensor],
        ptr: Optional[Tensor],
    ) -> None:
        check_tree("tree", tree)
        check_devices(pos=pos, tree=tree.node_ptr)
        config = tree.config
        if config.ball_sizes[0] > self.ball_size:
            raise ValueError(
                f"'tree' must have balls of at most 'ball_size={self.ball_size}' nodes "
                f"on level 0 (got {config.ball_sizes[0]})"
            )
        if self.rotated and not config.rotate:
            raise ValueError(
                "'tree' must have a rotated tree for a layer with 'rotated=True': "
                "build it with 'rotate=45'"
            )
        if not {*self._runs} <= {*config.runs_of(0)}:
            raise ValueError(
                f"'tree' must have the runs that the mixer requires, 'runs=["
                f"{[*self._runs]}]' (got {[*config.runs_of(0)]} on level 0)"
            )
        # Values on a GPU are not read, so that the layer does not wait for it.
        values = pos.device.type == "cpu" and not torch.compiler.is_compiling()
        if values:
            ptr = given_ptr(batch, ptr, pos, tree.node_ptr.size(0) - 1)
        elif batch is not None:  # the device compares
            own = segment_ids(tree.node_ptr.diff(), pos.size(0))
            same = (batch == own).all()
            torch._assert_async(same, "'batch' is of other clouds than 'tree'")
        tree.validate(pos.size(0), config, ptr, values)

    @property
    def _runs(self) -> tuple[int, ...]:
        return tuple(getattr(self.attention, "required_runs", ()))

    def __repr__(self) -> str:
        parts = [str(self.channels), str(self.conv), str(self.attention)]
        if self.rotated:
            parts.append("rotated=True")
        return f"{self.__class__.__name__}({', '.join(parts)})"


_NEEDS_TREE = (
    "compiled code needs a tree: pass 'tree=Tree.from_data(batch)', or one that "
    "'ball_tree' built outside of it, to all layers"
)


# A compiler that may not leave the graph reports the reason as its explanation; others
# call the function outside the graph. `torch.export` calls it with traced tensors.
@torch.compiler.disable(reason=_NEEDS_TREE)
def _built_tree(
    pos: Tensor,
    batch: Optional[Tensor],
    ptr: Optional[Tensor],
    ball_size: int,
    rotate: float,
    runs: tuple[tuple[int, ...], ...],
) -> Tree:
    if torch.compiler.is_compiling():
        raise ValueError(_NEEDS_TREE)
    return ball_tree(
        pos, batch, ptr=ptr, ball_sizes=ball_size, rotate=rotate, runs=runs
    )


def _clouds(tree: Tree, level: Level, pos: Tensor) -> Level:
    # The norms see nodes, and of a level only the rows of the clouds. Those are equal
    # to the nodes of the clouds, unless the tree repeats nodes.
    if tree.mask is None:
        return level
    lengths = tree.node_ptr.diff()
    return Level(pos, tree.node_ptr, lengths, LIMIT, offset=pos, offset_rot=pos)
