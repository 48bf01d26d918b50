r"""The Erwin transformer."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

import torch
from torch import Tensor
from torch.nn import GELU, Identity, ModuleList, Sequential
from torch_geometric.nn.inits import reset

from torch_geometric_erwin.nn.attention import BallAttention
from torch_geometric_erwin.nn.block import ErwinBlock
from torch_geometric_erwin.nn.inits import reset_linear
from torch_geometric_erwin.nn.linear import Linear
from torch_geometric_erwin.nn.models import reference
from torch_geometric_erwin.nn.models.embedding import MPNNEmbedding
from torch_geometric_erwin.nn.models.inputs import Inputs, unpack_inputs
from torch_geometric_erwin.nn.models.presets import preset
from torch_geometric_erwin.nn.pool import BallPooling, BallUnpooling
from torch_geometric_erwin.transforms import BallTree
from torch_geometric_erwin.tree import Tree, TreeConfig, build_tree
from torch_geometric_erwin.utils.checkpoint import recompute
from torch_geometric_erwin.utils.checks import check_int, flag_per_level, per_level
from torch_geometric_erwin.utils.rows import put_rows, take_rows
from torch_geometric_erwin.utils.storage import Nodes, read_tree

IntOrList = Union[int, Sequence[int]]


class ErwinStage(torch.nn.Module):
    r"""The blocks of one level, alternating between the main and the rotated tree.

    Args:
        depth: The number of blocks; the even ones use the main tree.
        *args: Arguments of :class:`~torch_geometric_erwin.nn.ErwinBlock`.
        checkpoint: Whether a training step keeps the inputs of every block alone, and
            computes the rest again in the backward pass.
        **kwargs: Further arguments of it.

    Shapes:
        - **x:** :math:`(N, C)`; **pos:** :math:`(N, D)`; **ball_len:** :math:`(K)`;
          **perm:** :math:`(N)`; **output:** :math:`(N, C)`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> stage = ErwinStage(2, channels=16, heads=2, ball_size=4)
        >>> x, pos, ball_len = torch.rand(6, 16), torch.rand(6, 3), torch.tensor([4, 2])
        >>> stage(x, pos, ball_len, perm=torch.tensor([0, 2, 3, 5, 1, 4])).shape
        torch.Size([6, 16])
    """

    def __init__(
        self, depth: int, *args: Any, checkpoint: bool = False, **kwargs: Any
    ) -> None:
        super().__init__()
        check_int("depth", depth, 1)
        self.checkpoint = checkpoint
        self.blocks = ModuleList(ErwinBlock(*args, **kwargs) for _ in range(depth))

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        reset(self.blocks)

    def forward(
        self, x: Tensor, pos: Tensor, ball_len: Tensor, perm: Optional[Tensor] = None
    ) -> Tensor:
        r"""Runs the forward pass; without :obj:`perm` all blocks use the main tree."""
        trees: list[Optional[Tensor]] = [None]
        if perm is not None and len(self.blocks) > 1:
            trees.append(perm)
        offsets = self._offsets(pos, ball_len, trees)
        for i, block in enumerate(self.blocks):
            tree = i % len(trees)
            args = (x, pos, ball_len, trees[tree], offsets[tree])
            x = recompute(block, *args) if self.checkpoint else block(*args)
        return x

    def _offsets(
        self, pos: Tensor, ball_len: Tensor, trees: list[Optional[Tensor]]
    ) -> list[Optional[Tensor]]:
        # Once for all blocks, unless one of them may see positions differently.
        layers = [getattr(block, "attention", None) for block in self.blocks]
        shared = [layer for layer in layers if type(layer) is BallAttention]
        if len(shared) < len(layers):
            return [None] * len(trees)
        return [shared[0].offset(pos, ball_len, perm) for perm in trees]

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({len(self.blocks)} x {self.blocks[0]})"


class Erwin(torch.nn.Module):
    r"""The Erwin transformer from `"Erwin: A Tree-based Hierarchical Transformer for
    Large-scale Physical Systems" <https://arxiv.org/abs/2502.17019>`_.

    A ball tree orders the nodes of every cloud. On each level of a U-Net, rows attend
    to the rows of their ball; every second block uses the balls of a rotated tree, so
    that balls exchange information. Between levels, groups of consecutive rows are
    pooled. The cost is linear in the number of nodes. Positions that ask for a gradient
    get one, to any order (forces as :math:`-\partial E / \partial p`); the tree does
    not depend on them smoothly and passes none on.

    The levels are those of the longest list among the arguments: one value per level
    for :obj:`hidden_channels`, :obj:`ball_sizes`, :obj:`enc_depths` and
    :obj:`enc_heads`, and one less for :obj:`strides`, :obj:`dec_depths` and
    :obj:`dec_heads`, which are in the order of the levels too. A number stands for all
    levels. Strides of 1 give flat Erwin.

    Args:
        in_channels: The number of features of a node; zero for none.
        hidden_channels: The number of features of a row, per level.
        out_channels: The number of features that come out, through a layer
            linear–GELU–linear; :obj:`None` for those of the last level without one.
        ball_sizes: The largest number of rows in a ball, per level.
        strides: The number of rows that each coarsening pools.
        enc_depths: The number of blocks, per level; the last level is the bottleneck.
        enc_heads: The number of heads, per level. (default: one per 16 channels, or as
            many more channels as it takes to divide them)
        dec_depths: The number of blocks of the decoder's levels.
        dec_heads: The number of heads of the decoder's levels. (default: as in the
            encoder)
        dim: The number of coordinates :math:`D`.
        rotate: The angle of the second tree, in degrees; zero for none. A level of
            depth 1 uses the main tree alone.
        mp_steps: The number of message-passing steps of the embedding.
        mlp_ratio: The width of the feed-forward layers.
        decode: Whether to come back to the nodes; otherwise the coarsest rows are
            returned.
        layout: :obj:`"balanced"`, or :obj:`"perfect"` to pad as the original does:
            repeated points are rows that are attended and enter statistics.
        backend: The backend of :func:`~torch_geometric_erwin.nn.ball_attention`.
        checkpoint: Whether the blocks of a level, and for level 0 the message-passing
            steps too, keep their inputs alone and compute the rest again in the
            backward pass, as one value or per level. Less memory for about a third
            more time; results are the same.

    Shapes:
        - **x:** :math:`(N, F)`; **pos:** :math:`(N, D)`, in a unit in which the extent
          of a ball is of order one; **edge_index:** :math:`(2, E)`; **ptr:**
          :math:`(G + 1)`.
        - **output:** :math:`(N, F')`, or for :obj:`decode=False` the coarsest rows
          :math:`(N_L, F')` and the cloud of each, :math:`(N_L)`.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If an argument is out of range; the message names it.

    Example:
        >>> from torch_geometric.data import Batch, Data
        >>> model = Erwin(2, [16, 32], out_channels=3, ball_sizes=8, mp_steps=0)
        >>> clouds = [Data(x=torch.rand(n, 2), pos=torch.rand(n, 3)) for n in (20, 3)]
        >>> clouds = [model.tree_transform()(data) for data in clouds]
        >>> model(Batch.from_data_list(clouds)).shape
        torch.Size([23, 3])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: IntOrList,
        out_channels: Optional[int] = None,
        *,
        ball_sizes: IntOrList,
        strides: IntOrList = 2,
        enc_depths: IntOrList = 2,
        enc_heads: Optional[IntOrList] = None,
        dec_depths: IntOrList = 2,
        dec_heads: Optional[IntOrList] = None,
        dim: int = 3,
        rotate: float = 45.0,
        mp_steps: int = 3,
        mlp_ratio: int = 4,
        decode: bool = True,
        layout: str = "balanced",
        backend: Optional[str] = None,
        checkpoint: Union[bool, Sequence[bool]] = False,
    ) -> None:
        super().__init__()
        levels = _num_levels(
            {
                "hidden_channels": (hidden_channels, 0),
                "ball_sizes": (ball_sizes, 0),
                "strides": (strides, 1),
                "enc_depths": (enc_depths, 0),
                "enc_heads": (enc_heads, 0),
                "dec_depths": (dec_depths, 1),
                "dec_heads": (dec_heads, 1),
                "checkpoint": (checkpoint, 0),
            }
        )
        hidden = per_level("hidden_channels", hidden_channels, levels)
        if enc_heads is None:
            enc_heads = [_default_heads(channels) for channels in hidden]
        enc_heads = per_level("enc_heads", enc_heads, levels)
        if dec_heads is None:
            dec_heads = enc_heads[:-1]
        dec_heads = per_level("dec_heads", dec_heads, levels - 1)
        enc_depths = per_level("enc_depths", enc_depths, levels)
        dec_depths = per_level("dec_depths", dec_depths, levels - 1)
        strides = per_level("strides", strides, levels - 1)
        for name, value, minimum in (
            ("in_channels", in_channels, 0),
            ("dim", dim, 1),
            ("mp_steps", mp_steps, 0),
            ("mlp_ratio", mlp_ratio, 1),
        ):
            check_int(name, value, minimum)
        if out_channels is not None:
            check_int("out_channels", out_channels, 1)
        for name, heads in (("enc_heads", enc_heads), ("dec_heads", dec_heads)):
            for l, (h, channels) in enumerate(zip(heads, hidden, strict=False)):
                if channels % h != 0:
                    raise ValueError(
                        f"'{name}' must divide 'hidden_channels' (got {h} heads for "
                        f"{channels} channels on level {l})"
                    )
        checkpoint = flag_per_level("checkpoint", checkpoint, levels)
        for l, stride in enumerate(strides):
            if stride == 1 and hidden[l] != hidden[l + 1]:
                raise ValueError(
                    "'hidden_channels' must not change over a stride of 1 (got "
                    f"{hidden[l]} and {hidden[l + 1]} on levels {l} and {l + 1})"
                )

        self.tree_config = TreeConfig(
            per_level("ball_sizes", ball_sizes, levels), strides, rotate, layout
        )
        self.strides = strides
        self.in_channels = in_channels
        self.hidden_channels = hidden
        self.out_channels = out_channels
        self.dim = dim
        self.mp_steps = mp_steps
        self.decode = decode

        def stage(depth: int, heads: int, level: int) -> ErwinStage:
            return ErwinStage(
                depth,
                hidden[level],
                heads,
                self.tree_config.ball_sizes[level],
                mlp_ratio,
                dim,
                checkpoint=checkpoint[level],
                backend=backend,
            )

        self.embed = MPNNEmbedding(
            in_channels, hidden[0], mp_steps, dim, checkpoint=checkpoint[0]
        )
        # The last stage of the encoder is the bottleneck.
        self.encoder = ModuleList(
            stage(enc_depths[l], enc_heads[l], l) for l in range(levels)
        )
        # A stride of 1 pools nothing; on the way up it still joins the skip connection.
        self.pools = ModuleList(
            BallPooling(hidden[l], hidden[l + 1], s, dim) if s > 1 else Identity()
            for l, s in enumerate(strides)
        )
        self.unpools = ModuleList()
        self.decoder = ModuleList()
        if decode:
            for l, s in enumerate(strides):
                self.unpools.append(BallUnpooling(hidden[l + 1], hidden[l], s, dim))
                self.decoder.append(stage(dec_depths[l], dec_heads[l], l))
        last = hidden[0] if decode else hidden[-1]
        self.head: torch.nn.Module = Identity()
        if out_channels is not None:
            self.head = Sequential(
                Linear(last, last), GELU(), Linear(last, out_channels)
            )
            self._reset_head()

    @classmethod
    def from_preset(
        cls,
        name: str,
        in_channels: int,
        out_channels: Optional[int] = None,
        **kwargs: Any,
    ) -> "Erwin":
        r"""Builds a model of a published size.

        Args:
            name: A key of :data:`~torch_geometric_erwin.nn.models.presets.PRESETS`,
                such as :obj:`"cosmology-small"`.
            in_channels: The number of features of a node.
            out_channels: The number of features that come out.
            **kwargs: Arguments that replace the preset's.

        Raises:
            ValueError: If there is no preset of that name.

        Example:
            >>> model = Erwin.from_preset("cosmology-small", 0, 3)
            >>> model.tree_config.ball_sizes
            (256, 256, 256, 256)
        """
        return cls(in_channels, out_channels=out_channels, **{**preset(name), **kwargs})

    @classmethod
    def from_reference(
        cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]
    ) -> "Erwin":
        r"""Builds the original implementation's model with its weights.

        The layout is :obj:`"perfect"`, in which repeated points are attended, as they
        are there. Data that carries the original's tree (:obj:`tree_idx`,
        :obj:`tree_mask`, :obj:`tree_idx_rot`) is used with it.

        Args:
            config: The arguments of the original's constructor.
            state_dict: Its weights.

        Raises:
            KeyError: If a weight is missing.

        Example:
            >>> config = dict(c_in=4, c_hidden=[8], ball_sizes=[8], enc_num_heads=[2],
            ...               enc_depths=[1], dec_num_heads=[], dec_depths=[],
            ...               strides=[], rotate=0, mlp_ratio=2, dimensionality=2,
            ...               mp_steps=0, decode=True)
            >>> Erwin.from_reference(config, {})
            Traceback (most recent call last):
            KeyError: 'embed.embed_fn.weight'
        """
        model = cls(**reference.convert_config(config))
        names = reference.convert_state_dict(state_dict, model)
        model.load_state_dict(names)
        return model

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        for part in (self.embed, self.encoder, self.pools, self.unpools, self.decoder):
            reset(part)
        self._reset_head()

    def _reset_head(self) -> None:
        for module in self.head.modules():
            if isinstance(module, Linear):
                reset_linear(module)

    def tree_transform(self) -> BallTree:
        r"""The transform that attaches the tree that this model needs.

        Example:
            >>> Erwin(1, [16, 16], ball_sizes=8).tree_transform().config
            TreeConfig(ball_sizes=(8, 8), strides=(2,), rotate=45.0, layout='balanced')
        """
        c = self.tree_config
        return BallTree(c.ball_sizes, c.strides, c.rotate, c.layout)

    def forward(
        self,
        x: Union[Tensor, Nodes, None],
        pos: Optional[Tensor] = None,
        edge_index: Optional[Tensor] = None,
        *,
        ptr: Optional[Tensor] = None,
        batch: Optional[Tensor] = None,
        tree: Optional[Tree] = None,
    ) -> Union[Tensor, tuple[Tensor, Tensor]]:
        r"""Runs the forward pass.

        Args:
            x: The node features, or a :class:`~torch_geometric.data.Data` or
                :class:`~torch_geometric.data.Batch` that holds everything else too.
            pos: The node positions.
            edge_index: The edges of the message-passing steps, taken as they are: one
                between two clouds connects them.
            ptr: The row offsets of the clouds. (default: one cloud)
            batch: The cloud of every node, sorted, where there are no offsets.
            tree: The tree of the nodes, whose sizes are checked, but not whether it was
                built from these positions. (default: the one that the data carries, or
                one that is built now)
        """
        inputs = unpack_inputs(
            *(x, pos, edge_index, ptr, batch),
            in_channels=self.in_channels,
            dim=self.dim,
            needs_edges=self.mp_steps > 0,
        )
        tree = self._tree(inputs, tree)
        pos = inputs.pos
        x = self.embed(inputs.x, pos, inputs.edge_index)
        perm, perm_rot = tree.global_perms(inputs.ptr)
        if tree.mask is None:
            x, pos = take_rows(x, perm), take_rows(pos, perm)
        else:  # repeated points are read more than once
            x, pos = x[perm], pos[perm]
        x = self._unet(x, pos, tree, perm_rot)
        if not self.decode:
            return self.head(x), tree.batch(len(self.encoder) - 1)
        num_nodes = inputs.pos.size(0)
        if tree.mask is None:
            return self.head(put_rows(x, perm, num_nodes))
        # The first of a point's rows answers for it.
        rows = torch.arange(perm.size(0), device=perm.device)
        first = perm.new_zeros(num_nodes)
        first = first.scatter_reduce(0, perm, rows, "amin", include_self=False)
        return self.head(take_rows(x, first))

    def _tree(self, inputs: Inputs, tree: Optional[Tree]) -> Tree:
        if tree is None and inputs.nodes is not None:
            if (
                reference.has_tree(inputs.nodes)
                and self.tree_config.layout == "perfect"
            ):
                tree = reference.read_tree(inputs.nodes, self.tree_config, inputs.ptr)
            else:
                tree = read_tree(inputs.nodes, self.tree_config)
        compiling = torch.compiler.is_compiling()
        if tree is not None:
            values = not compiling and inputs.pos.device.type == "cpu"
            num_nodes = inputs.pos.size(0)
            tree.validate(inputs.ptr, num_nodes, self.tree_config, values)
            return tree
        if compiling:
            raise ValueError(
                "a compiled model needs the tree; apply 'model.tree_transform()' to "
                "the data, or pass 'tree'"
            )
        return build_tree(inputs.pos, inputs.ptr, self.tree_config)

    def _unet(
        self, x: Tensor, pos: Tensor, tree: Tree, perm_rot: tuple[Tensor, ...]
    ) -> Tensor:
        perms = perm_rot or (None,) * len(self.encoder)
        # Rows that padding added enter no statistic.
        real: list[tuple[Tensor, ...]] = [()] * len(self.encoder)
        if tree.real is not None:
            masks = [tree.real_rows(l) for l in range(len(self.encoder))]
            real = [(mask,) for mask in masks if mask is not None]
        skips = []
        for l, stage in enumerate(self.encoder):
            x = stage(x, pos, tree.ball_len[l], perms[l])
            if l < len(self.pools):
                skips.append((x, pos))
                if self.strides[l] > 1:
                    x, pos = self.pools[l](x, pos, tree.group_len[l], *real[l + 1])
        for l in reversed(range(len(self.decoder))):
            skip, pos = skips[l]
            x = self.unpools[l](x, skip, pos, tree.group_len[l], *real[l])
            x = self.decoder[l](x, pos, tree.ball_len[l], perms[l])
        return x

    def __repr__(self) -> str:
        c = self.tree_config
        return (
            f"{self.__class__.__name__}({self.in_channels}, "
            f"{[*self.hidden_channels]}, out_channels={self.out_channels}, "
            f"ball_sizes={[*c.ball_sizes]}, strides={[*c.strides]})"
        )


def _default_heads(channels: int) -> int:
    return next(h for h in range(max(1, channels // 16), 0, -1) if channels % h == 0)


def _num_levels(arguments: dict[str, tuple[Any, int]]) -> int:
    # Per argument, its value and by how much its list is shorter than the levels.
    lengths = {
        name: len(value) + short
        for name, (value, short) in arguments.items()
        if isinstance(value, Sequence)
    }
    if not lengths:
        raise ValueError(
            "the number of levels is unknown: one of 'hidden_channels', 'ball_sizes', "
            "'strides', 'enc_depths', 'enc_heads' must be a list"
        )
    for name, length in lengths.items():
        if length < 1:
            raise ValueError(f"'{name}' must not be empty")
    return max(lengths.values())
