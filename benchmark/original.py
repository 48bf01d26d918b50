r"""Erwin in the formulation of the original: the baseline of the model cases.

It reproduces what determines the cost of https://github.com/maxxxzdn/erwin, and uses
the same names of weights, so that a state dict fits both:

- clouds are padded to powers of two, and every ball is a full row of a dense view;
- attention runs through ``scaled_dot_product_attention`` with a dense bias
  :math:`\sigma_h \lVert p_i - p_j \rVert`, whose distances come from ``torch.cdist``;
- the query-key-value map has outputs (head, channel, {q, k, v}), so the channels of a
  query are three numbers apart in memory;
- the message of an edge is a layer applied to both ends and their offset, concatenated;
- a rotated block gathers its rows and scatters its output.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import (
    GELU,
    BatchNorm1d,
    LayerNorm,
    Linear,
    Module,
    ModuleList,
    Parameter,
    RMSNorm,
    Sequential,
)


class OriginalTree(NamedTuple):
    r"""The tree of a batch of padded clouds, as ``balltree-erwin`` returns it."""

    order: Tensor  # the node of the batch in every slot
    mask: Tensor  # False where a slot repeats the one before it
    rotated: Sequence[Tensor]  # for each level: rows in the rotated order


def build_tree(pos: Tensor, batch: Tensor, config: Mapping[str, Any]) -> OriginalTree:
    r"""Builds the tree with ``balltree-erwin``; ImportError where that is missing."""
    import balltree

    if config["rotate"] > 0:
        arguments = config["strides"], config["ball_sizes"], config["rotate"]
        return OriginalTree(
            *balltree.build_balltree_with_rotations(pos, batch, *arguments)
        )
    order, mask = balltree.build_balltree(pos, batch)
    return OriginalTree(order, mask, [])


class MessagePassing(Module):
    r"""Message-passing steps over edges (row → col)."""

    def __init__(self, channels: int, steps: int, dim: int) -> None:
        super().__init__()
        self.message_fns = ModuleList(
            Sequential(
                Linear(2 * channels + dim, channels), GELU(), LayerNorm(channels)
            )
            for _ in range(steps)
        )
        self.update_fns = ModuleList(
            Sequential(Linear(2 * channels, channels), LayerNorm(channels))
            for _ in range(steps)
        )

    def forward(self, x: Tensor, pos: Tensor, edge_index: Tensor) -> Tensor:
        row, col = edge_index
        offset = pos[row] - pos[col]
        for message_fn, update_fn in zip(self.message_fns, self.update_fns):
            message = message_fn(torch.cat([x[row], x[col], offset], dim=-1))
            total = torch.zeros_like(x).index_add_(0, col, message)
            count = col.new_zeros(x.size(0)).index_add_(0, col, torch.ones_like(col))
            mean = total / count.clamp(min=1).unsqueeze(1)
            x = x + update_fn(torch.cat([x, mean], dim=-1))
        return x


class Embedding(Module):
    r"""A linear map and the message-passing steps."""

    def __init__(self, in_channels: int, channels: int, steps: int, dim: int) -> None:
        super().__init__()
        self.embed_fn = Linear(in_channels, channels)
        self.mpnn = MessagePassing(channels, steps, dim) if steps > 0 else None

    def forward(self, x: Tensor, pos: Tensor, edge_index: Optional[Tensor]) -> Tensor:
        x = self.embed_fn(x)
        return x if self.mpnn is None else self.mpnn(x, pos, edge_index)


class BallAttention(Module):
    r"""Multi-head attention inside full balls, with a dense distance bias."""

    def __init__(self, channels: int, heads: int, ball_size: int, dim: int) -> None:
        super().__init__()
        self.heads, self.ball_size = heads, ball_size
        self.qkv = Linear(channels, 3 * channels)
        self.proj = Linear(channels, channels)
        self.pe_proj = Linear(dim, channels)
        self.sigma_att = Parameter(-1 + 0.01 * torch.randn(1, heads, 1, 1))

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        rows, channels = x.shape
        balls = pos.view(-1, self.ball_size, pos.size(1))
        offset = (balls - balls.mean(1, keepdim=True)).view_as(pos)
        qkv = self.qkv(x + self.pe_proj(offset))
        q, k, v = qkv.view(
            -1, self.ball_size, self.heads, channels // self.heads, 3
        ).permute(4, 0, 2, 1, 3)
        bias = self.sigma_att * torch.cdist(balls, balls).unsqueeze(1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(out.transpose(1, 2).reshape(rows, channels))


class SwiGLU(Module):
    r"""The gated feed-forward layer, with separate maps for gate and value."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.w1 = Linear(channels, hidden_channels)
        self.w2 = Linear(channels, hidden_channels)
        self.w3 = Linear(hidden_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(self.w2(x) * F.silu(self.w1(x)))


class Block(Module):
    r"""Ball attention and the feed-forward layer, each behind a norm."""

    def __init__(
        self, channels: int, heads: int, ball_size: int, mlp_ratio: int, dim: int
    ) -> None:
        super().__init__()
        self.norm1 = RMSNorm(channels)
        self.norm2 = RMSNorm(channels)
        self.BMSA = BallAttention(channels, heads, ball_size, dim)
        self.swiglu = SwiGLU(channels, mlp_ratio * channels)

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        x = x + self.BMSA(self.norm1(x), pos)
        return x + self.swiglu(self.norm2(x))


class Pooling(Module):
    r"""Concatenates the features and offsets of a group of children."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, dim: int
    ) -> None:
        super().__init__()
        self.stride = stride
        self.proj = Linear(stride * (in_channels + dim), out_channels)
        self.norm = BatchNorm1d(out_channels)

    def forward(self, x: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        groups = pos.view(-1, self.stride, pos.size(1))
        centre = groups.mean(1)
        children = x.view(centre.size(0), -1)
        x = torch.cat([children, (groups - centre[:, None]).flatten(1)], dim=-1)
        return self.norm(self.proj(x)), centre


class Unpooling(Module):
    r"""Maps a coarse row to its children and adds them to the skip connection."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, dim: int
    ) -> None:
        super().__init__()
        self.stride = stride
        self.proj = Linear(in_channels + stride * dim, stride * out_channels)
        self.norm = BatchNorm1d(out_channels)

    def forward(self, x: Tensor, skip: Tensor, pos: Tensor) -> Tensor:
        groups = pos.view(-1, self.stride, pos.size(1))
        offset = (groups - groups.mean(1, keepdim=True)).flatten(1)
        return self.norm(skip + self.proj(torch.cat([x, offset], -1)).view_as(skip))


class Stage(Module):
    r"""The blocks of a level; the odd ones see the rows in rotated order."""

    def __init__(self, depth: int, *block: int) -> None:
        super().__init__()
        self.blocks = ModuleList(Block(*block) for _ in range(depth))

    def forward(self, x: Tensor, pos: Tensor, rotated: Optional[Tensor]) -> Tensor:
        if rotated is not None:
            inverse, pos_rotated = rotated.argsort(), pos[rotated]
        for i, block in enumerate(self.blocks):
            if rotated is None or i % 2 == 0:
                x = block(x, pos)
            else:
                x = block(x[rotated], pos_rotated)[inverse]
        return x


class Original(Module):
    r"""The model, from the arguments of the original's constructor.

    Args:
        config: The arguments by name, ``c_hidden`` a width per level.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        dim, hidden = config.get("dimensionality", 3), config["c_hidden"]
        balls, self.strides = config["ball_sizes"], config["strides"]
        self.decode = config.get("decode", True)
        last = len(hidden) - 1

        def stage(kind: str, l: int) -> Stage:
            depth, heads = config[f"{kind}_depths"][l], config[f"{kind}_num_heads"][l]
            ratio = config.get("mlp_ratio", 4)
            return Stage(depth, hidden[l], heads, balls[l], ratio, dim)

        steps = config.get("mp_steps", 3)
        self.embed = Embedding(config["c_in"], hidden[0], steps, dim)
        self.encoder = ModuleList(stage("enc", l) for l in range(last))
        self.bottleneck = stage("enc", last)
        self.decoder = ModuleList()  # the coarsest stage is first
        for l, stride in enumerate(self.strides):
            if stride > 1:
                pool = Pooling(hidden[l], hidden[l + 1], stride, dim)
                self.encoder[l].pool = pool
            if self.decode:
                up = stage("dec", l)
                up.unpool = Unpooling(hidden[l + 1], hidden[l], stride, dim)
                self.decoder.insert(0, up)
        self.apply(_reset)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        batch: Tensor,
        edge_index: Optional[Tensor] = None,
        tree: Optional[OriginalTree] = None,
    ) -> Tensor:
        r"""The features of the nodes, or of the coarsest rows without a decoder."""
        if tree is None:
            tree = build_tree(pos, batch, self.config)
        rotated: list[Optional[Tensor]] = [None] * len(self.config["c_hidden"])
        rotated[: len(tree.rotated)] = tree.rotated
        x = self.embed(x, pos, edge_index)[tree.order]
        pos = pos[tree.order]
        skips = []
        for l, stage in enumerate(self.encoder):
            x = stage(x, pos, rotated[l])
            skips.append((x, pos))
            if self.strides[l] > 1:
                x, pos = stage.get_submodule("pool")(x, pos)
        x = self.bottleneck(x, pos, rotated[-1])
        if not self.decode:
            return x
        for l, stage in zip(reversed(range(len(skips))), self.decoder):
            skip, pos = skips[l]
            x = stage.get_submodule("unpool")(x, skip, pos)
            x = stage(x, pos, rotated[l])
        return x[tree.mask][tree.order[tree.mask].argsort()]


def _reset(module: Module) -> None:
    # Weights as large as in a trained network, so that every layer has an effect.
    if isinstance(module, Linear):
        torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
        torch.nn.init.zeros_(module.bias)
