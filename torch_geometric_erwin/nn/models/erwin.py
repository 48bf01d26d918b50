r"""The Erwin transformer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Optional, Union

import torch
from torch import Tensor
from torch.nn import GELU, Identity, ModuleList, Sequential
from torch_geometric.nn.inits import reset

from torch_geometric_erwin.data.storage import stored_tree
from torch_geometric_erwin.nn.attention import BallAttention, Mixer, make_mixer
from torch_geometric_erwin.nn.block import Block
from torch_geometric_erwin.nn.inits import reset_linear
from torch_geometric_erwin.nn.linear import Linear
from torch_geometric_erwin.nn.models import reference
from torch_geometric_erwin.nn.models.arguments import (
    Conv,
    choices_in_words,
    conv_per_level,
    default_heads,
    make_conv,
    mixer_per_level,
    num_levels,
)
from torch_geometric_erwin.nn.models.coupling import warn_of_coupling
from torch_geometric_erwin.nn.models.embedding import MPNNEmbedding
from torch_geometric_erwin.nn.models.inputs import (
    Given,
    Inputs,
    Takes,
    unpack_inputs,
)
from torch_geometric_erwin.nn.models.presets import preset
from torch_geometric_erwin.nn.models.stage import ErwinStage
from torch_geometric_erwin.nn.models.units import LengthScaled
from torch_geometric_erwin.nn.norm import Norm, make_norm
from torch_geometric_erwin.nn.pool import BallPooling, BallUnpooling
from torch_geometric_erwin.nn.pos_encoding import Encoding
from torch_geometric_erwin.nn.swiglu import SwiGLU
from torch_geometric_erwin.transforms import BallTree
from torch_geometric_erwin.tree import Level, Tree, TreeConfig
from torch_geometric_erwin.tree.builder import build_tree
from torch_geometric_erwin.tree.fit import warn_of_order
from torch_geometric_erwin.tree.levels import levels_of
from torch_geometric_erwin.tree.reading import Nodes, edge_makers
from torch_geometric_erwin.utils.checks import (
    check_flag,
    check_int,
    flag_per_level,
    per_level,
)

IntOrList = Union[int, Sequence[int]]


class Erwin(LengthScaled):
    r"""The Erwin transformer from `"Erwin: A Tree-based Hierarchical Transformer for
    Large-scale Physical Systems" <https://arxiv.org/abs/2502.17019>`_.

    A ball tree orders the nodes of every cloud. On each level of a U-Net, rows attend
    to the rows of their ball; every second block uses the balls of a rotated tree, so
    that balls exchange information. Between levels, groups of consecutive rows are
    pooled. The cost is linear in the number of nodes. Positions that require a gradient
    get one, to any order (for forces :math:`-\partial E / \partial p`). The tree does
    not depend smoothly on positions, so it contributes nothing to the gradient.

    Layers see differences of positions only: where a cloud is makes no difference, and
    without :obj:`pos_encoding` (or positions among the features) absolute position is
    invisible to the model.

    The number of levels follows from the arguments that are lists, which must agree:
    :obj:`hidden_channels`, :obj:`ball_sizes`, :obj:`enc_depths` and :obj:`enc_heads`
    have one value per level, :obj:`strides`, :obj:`dec_depths` and :obj:`dec_heads` one
    less, from the finest level on. A number stands for all levels. With strides of 1
    nothing is pooled, as in the paper's flat Erwin.

    Args:
        in_channels: The number of features of a node; zero for none.
        hidden_channels: The number of features of a row, per level.
        out_channels: The number of output features, which a head (linear–GELU–linear)
            computes; with :obj:`None` there is no head, and the output has the features
            of the last stage.
        ball_sizes: The largest number of rows in a ball, per level.
        strides: The number of rows that each coarsening pools.
        enc_depths: The number of blocks, per level; the last level is the bottleneck.
        enc_heads: The number of heads, per level. (default: as many as divide the
            channels and leave each head 16 channels or more)
        dec_depths: The number of blocks of the decoder's levels.
        dec_heads: The number of heads of the decoder's levels. (default: as in the
            encoder)
        attention: The mixer of the blocks, by name or as a callable that makes one from
            channels, heads, ball size and :obj:`dim`
            (:func:`~torch_geometric_erwin.nn.make_mixer`); one for all, or one per
            level.
        conv: A callable that makes a :class:`~torch_geometric.nn.conv.MessagePassing`
            layer from a number of channels; one for all levels, or one or :obj:`None`
            per level. Every block adds the output of such a layer to that of its mixer.
            On level 0 it gets the given edges, on coarse levels those between rows
            (:meth:`Tree.coarse_edges <torch_geometric_erwin.Tree.coarse_edges>`) that
            the tree has, or that are computed now, except in compiled code.
        edge_dim: The number of features of an edge, for the message-passing steps and
            :obj:`conv`; zero for none.
        pos_encoding: What makes features of absolute positions, in units of
            :attr:`length_scale`, which are added to those of the nodes:
            :obj:`"linear"`, :obj:`"fourier"`
            (:class:`~torch_geometric_erwin.nn.FourierEncoding`), or a callable that
            makes a module from the dimension and a number of channels. (default: none)
        dim: The number of coordinates :math:`D`.
        rotate: The angle of the second tree, in degrees; zero for none. A level of
            depth 1 uses the main tree alone.
        mp_steps: The number of message-passing steps of the embedding.
        mlp_ratio: The width of the feed-forward layers.
        norm: The norm of coarsening and refinement, :obj:`"layer"` or :obj:`"rms"` (per
            row), :obj:`"graph"` (per cloud), :obj:`"batch"` as in the paper, or a
            callable (:func:`~torch_geometric_erwin.nn.norm.make_norm`). On the tasks
            that were measured, the default was as accurate as the paper's or better.
        block_norm: The norm of the blocks.
        dropout: The probability that an entry of a block's branch is set to zero in
            training.
        drop_path: The probability that a block's branch is left out for a whole cloud
            in training.
        decode: Whether to refine the coarsest rows to the nodes; otherwise the coarsest
            rows are returned.
        layout: :obj:`"balanced"`, or :obj:`"perfect"` to pad clouds as the original
            does, by repeated points, which count in attention and norms like others.
        distance: Whether distances in a ball are :obj:`"absolute"` or
            :obj:`"relative"` to its extent, for :obj:`attention="ball"`
            (:class:`~torch_geometric_erwin.nn.BallAttention`).
        backend: The backend of :func:`~torch_geometric_erwin.nn.ball_attention`, for
            :obj:`attention="ball"`.
        checkpoint: Whether the blocks of a level, and for level 0 the message-passing
            steps too, keep only their inputs in memory and compute the rest again in
            the backward pass; one value for all, or one per level. It saves memory and
            takes about a third more time; results are the same.

    Shapes:
        - **x:** :math:`(N, F)`; **pos:** :math:`(N, D)`, in any unit of length once
          :meth:`set_length_scale` has been called, otherwise in one in which the
          extent of a ball is of order one; **edge_index:** :math:`(2, E)`;
          **edge_attr:** :math:`(E, F_e)`; **ptr:** :math:`(G + 1)`.
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
        attention: Union[Mixer, Sequence[Mixer]] = "ball",
        conv: Union[Conv, Sequence[Optional[Conv]], None] = None,
        edge_dim: int = 0,
        pos_encoding: Optional[Encoding] = None,
        dim: int = 3,
        rotate: float = 45.0,
        mp_steps: int = 3,
        mlp_ratio: int = 4,
        norm: Norm = "layer",
        block_norm: Norm = "rms",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        decode: bool = True,
        layout: str = "balanced",
        distance: str = "absolute",
        backend: Optional[str] = None,
        checkpoint: Union[bool, Sequence[bool]] = False,
    ) -> None:
        super().__init__()
        levels = num_levels(
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
            enc_heads = [default_heads(channels) for channels in hidden]
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
            ("edge_dim", edge_dim, 0),
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
        if block_norm == "batch" and any(checkpoint):
            raise ValueError(
                "'checkpoint' computes blocks twice, so block_norm='batch' would count "
                "statistics twice: choose another norm, or checkpoint=False"
            )
        for l, stride in enumerate(strides):
            if stride == 1 and hidden[l] != hidden[l + 1]:
                raise ValueError(
                    "'hidden_channels' must not change over a stride of 1 (got "
                    f"{hidden[l]} and {hidden[l + 1]} on levels {l} and {l + 1})"
                )

        mixers = mixer_per_level(attention, levels)
        if backend is not None or distance != "absolute":
            ball = partial(BallAttention, backend=backend, distance=distance)
            if "ball" not in mixers:
                name = "distance" if backend is None else "backend"
                raise ValueError(
                    f"'{name}' is for attention='ball', which no level has"
                )
            mixers = [ball if mixer == "ball" else mixer for mixer in mixers]
        convs = conv_per_level(conv, levels)
        sizes = per_level("ball_sizes", ball_sizes, levels)
        self.strides = strides
        self.in_channels = in_channels
        self.hidden_channels = hidden
        self.out_channels = out_channels
        self.dim = dim
        self.mp_steps = mp_steps
        self.edge_dim = edge_dim
        self._passes = (
            mp_steps > 0 or convs[0] is not None,
            any(one is not None for one in convs[1:]),
        )
        self._choices = choices_in_words(
            attention=(attention, "ball"),
            conv=(conv, None),
            edge_dim=(edge_dim, 0),
            pos_encoding=(pos_encoding, None),
            norm=(norm, "layer"),
            block_norm=(block_norm, "rms"),
            distance=(distance, "absolute"),
        )
        self.decode = decode = check_flag("decode", decode)
        make_norm(block_norm, hidden[0], "block_norm")  # blocks would name it 'norm'

        def block(heads: int, l: int) -> Block:
            return Block(
                hidden[l],
                make_mixer(mixers[l], hidden[l], heads, sizes[l], dim),
                SwiGLU(hidden[l], mlp_ratio * hidden[l]),
                make_conv(convs[l], hidden[l], edge_dim),
                norm=block_norm,
                dropout=dropout,
                drop_path=drop_path,
            )

        def stage(depth: int, heads: int, l: int) -> ErwinStage:
            return ErwinStage(
                (block(heads, l) for _ in range(depth)), checkpoint=checkpoint[l]
            )

        self.embed = MPNNEmbedding(
            *(in_channels, hidden[0], mp_steps, dim, checkpoint[0]),
            edge_dim=edge_dim,
            pos_encoding=pos_encoding,
        )
        # The last stage of the encoder is the bottleneck.
        self.encoder = ModuleList(
            stage(enc_depths[l], enc_heads[l], l) for l in range(levels)
        )
        # A stride of 1 pools nothing, but the decoder still adds the skip connection.
        self.pools = ModuleList(
            BallPooling(hidden[l], hidden[l + 1], s, dim, norm) if s > 1 else Identity()
            for l, s in enumerate(strides)
        )
        self.unpools = ModuleList()
        self.decoder = ModuleList()
        if decode:
            for l, s in enumerate(strides):
                self.unpools.append(
                    BallUnpooling(hidden[l + 1], hidden[l], s, dim, norm)
                )
                self.decoder.append(stage(dec_depths[l], dec_heads[l], l))
        self.tree_config = TreeConfig(
            sizes, strides, rotate, layout, self._required_runs()
        )
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
            out_channels: The number of output features.
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

        The layout is :obj:`"perfect"`, which repeats points, as the original does. If
        data carries the original's tree (:obj:`tree_idx`, :obj:`tree_mask`,
        :obj:`tree_idx_rot`), that tree is used.

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

    def tree_transform(
        self, *, ties: str = "index", reorder: bool = False, prefix: str = ""
    ) -> BallTree:
        r"""Returns the transform that attaches the tree that this model needs.

        If the model passes messages on coarse levels, data must have its edges before,
        and their features.

        Args:
            ties: What orders nodes of equal coordinate, see
                :class:`~torch_geometric_erwin.transforms.BallTree`.
            reorder: Whether to sort the nodes themselves.
            prefix: What the names of the tree's attributes begin with.

        Example:
            >>> str(Erwin(1, [16, 16], ball_sizes=8).tree_transform().config)
            'balls=8,8 strides=2 rotate=45.0 layout=balanced'
        """
        c = self.tree_config
        sizes = (c.ball_sizes, c.strides, c.rotate, c.layout)
        return BallTree(*(*sizes, ties, c.runs, reorder, prefix), edges=self._passes[1])

    def forward(
        self,
        data: Union[Tensor, Nodes, None] = None,
        /,
        pos: Optional[Tensor] = None,
        edge_index: Optional[Tensor] = None,
        batch: Optional[Tensor] = None,
        tree: Optional[Tree] = None,
        *,
        x: Optional[Tensor] = None,
        ptr: Optional[Tensor] = None,
        edge_attr: Optional[Tensor] = None,
    ) -> Union[Tensor, tuple[Tensor, Tensor]]:
        r"""Runs the forward pass: :obj:`model(data)`, with everything else in the data,
        or :obj:`model(x, pos, edge_index, batch)`.

        What is given beside data replaces the data's own, such as in
        :obj:`model(data, x=h)`.

        Args:
            data: A :class:`~torch_geometric.data.Data` or
                :class:`~torch_geometric.data.Batch`, or the node features.
            pos: The node positions.
            edge_index: The edges of the message-passing steps. They are used as given:
                an edge between two clouds connects them.
            batch: The cloud of every node, sorted, if no offsets are given.
            tree: The tree of the nodes. Its sizes are checked, but not that it was
                built from these positions. (default: the one that the data carries, or
                one that is built now)
            x: The node features, if they are not the first argument.
            ptr: The row offsets of the clouds. (default: those of the tree, or one
                cloud)
            edge_attr: The features of the edges.
        """
        inputs = unpack_inputs(
            Given(data, pos, edge_index, batch, x, ptr, tree, edge_attr),
            Takes(
                *(self.in_channels, self.dim, self.edge_dim, self._passes[0]),
                way_out=", or set 'mp_steps=0'" if self.mp_steps > 0 else "",
            ),
            first=self.embed,
        )
        is_own = tree is None
        tree = self._tree(inputs, tree)
        if is_own and tree.edges and not (edge_index is None and edge_attr is None):
            # The data's tree has the edges of the data, and these are others.
            tree = _tree_with_edges(tree, inputs.edge_index, inputs.edge_attr)
        tree = self._with_edges(tree, inputs)
        warn_of_coupling(self, inputs.pos, tree)
        pos = self._in_units(inputs.pos)
        edges = (inputs.edge_index, inputs.edge_attr)
        x = self.embed(inputs.x, pos, *edges)
        order = tree.order(pos.size(0))
        levels = levels_of(tree, order, pos, *edges)
        self._warn_of_extents(levels[0])
        x = self._unet(order.to_rows(x), levels)
        if not self.decode:
            return self.head(x), tree.batch(len(self.encoder) - 1)
        return self.head(order.to_nodes(x))

    def _tree(self, inputs: Inputs, tree: Optional[Tree]) -> Tree:
        nodes, config = inputs.nodes, self.tree_config
        if tree is None and nodes is not None:
            if reference.has_tree(nodes) and config.layout == "perfect":
                tree = reference.read_tree(nodes, config, inputs.ptr)
            else:
                tree = stored_tree(nodes, config)
        if tree is None:
            return _built_tree(inputs.pos, inputs.ptr, self.tree_config)
        compiling = torch.compiler.is_compiling()
        values = not compiling and inputs.pos.device.type == "cpu"
        tree.validate(inputs.pos.size(0), self.tree_config, inputs.ptr, values)
        warn_of_order(tree, inputs.pos, stacklevel=6)
        return tree

    def _with_edges(self, tree: Tree, inputs: Inputs) -> Tree:
        # Returns the tree with the edges of coarse levels that layers need.
        if self._passes[1] and not tree.edges:
            if inputs.edge_index is None:
                raise ValueError(
                    "'edge_index' is missing, the model passes messages on coarse "
                    f"levels; apply the transform {edge_makers(inputs.nodes)}, "
                    "or give a tree with edges, of 'BallTree(..., edges=True)'"
                )
            return _tree_with_edges(tree, inputs.edge_index, inputs.edge_attr)
        if self.edge_dim == 0 and tree.edge_means:
            return replace(tree, edge_means=())
        if self.edge_dim > 0 and tree.edges and not tree.edge_means:
            raise ValueError(
                "the edges of the tree have no features, the model takes "
                f"edge_dim={self.edge_dim}: apply the transform that makes "
                "'edge_attr', such as 'Distance', before 'BallTree(..., edges=True)'"
            )
        for means in tree.edge_means:
            if means.size(1) != self.edge_dim:
                raise ValueError(
                    f"the edges of the tree have {means.size(1)} features, the model "
                    f"takes edge_dim={self.edge_dim}: 'tree' must be of the same "
                    "'edge_attr'"
                )
        return tree

    def _unet(self, x: Tensor, levels: Sequence[Level]) -> Tensor:
        skips = []
        for l, stage in enumerate(self.encoder):
            x = stage(x, levels[l])
            if l < len(self.pools):
                skips.append(x)
                if self.strides[l] > 1:
                    x = self.pools[l](x, levels[l + 1])
        for l in reversed(range(len(self.decoder))):
            x = self.unpools[l](x, skips[l], levels[l], levels[l + 1])
            x = self.decoder[l](x, levels[l])
        return x

    def _required_runs(self) -> list[list[int]]:
        # Returns the sizes of the runs that the mixers of every level need.
        runs: list[list[int]] = [[] for _ in self.encoder]
        for stages in (self.encoder, self.decoder):
            for own, stage in zip(runs, stages):
                for module in stage.modules():
                    own.extend(getattr(module, "required_runs", ()))
        return runs

    def __repr__(self) -> str:
        c = self.tree_config
        return (
            f"{self.__class__.__name__}({self.in_channels}, "
            f"{[*self.hidden_channels]}, out_channels={self.out_channels}, "
            f"ball_sizes={[*c.ball_sizes]}, strides={[*c.strides]}{self._choices})"
        )


_NEEDS_EDGES = (
    "a compiled model that passes messages on coarse levels needs a tree with edges; "
    "apply 'model.tree_transform()' to the data, or pass "
    "'tree=tree.with_edges(edge_index)'"
)
_NEEDS_TREE = (
    "a compiled model needs the tree; apply 'model.tree_transform()' to the data, or "
    "pass 'tree'"
)


# A compiler that may not leave the graph reports the reason as its explanation; others
# call these functions outside the graph. `torch.export` calls them with traced tensors.
@torch.compiler.disable(reason=_NEEDS_TREE)
def _built_tree(pos: Tensor, ptr: Tensor, config: TreeConfig) -> Tree:
    if torch.compiler.is_compiling():
        raise ValueError(_NEEDS_TREE)
    return build_tree(pos, ptr, config)


@torch.compiler.disable(reason=_NEEDS_EDGES)
def _tree_with_edges(
    tree: Tree, edge_index: Tensor, edge_attr: Optional[Tensor]
) -> Tree:
    if torch.compiler.is_compiling():
        raise ValueError(_NEEDS_EDGES)
    return tree.with_edges(edge_index, edge_attr)
