r"""Blocks of one level."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Dropout, Identity, Module, ModuleList
from torch_geometric.nn.inits import reset

from torch_geometric_erwin.nn.attention import BallAttention
from torch_geometric_erwin.nn.block import Block
from torch_geometric_erwin.nn.drop_path import DropPath
from torch_geometric_erwin.nn.norm import GraphNorm
from torch_geometric_erwin.nn.swiglu import SwiGLU
from torch_geometric_erwin.tree import Level
from torch_geometric_erwin.tree.level import check_level
from torch_geometric_erwin.utils.checkpoint import recompute
from torch_geometric_erwin.utils.checks import check_flag, check_instance


class ErwinStage(torch.nn.Module):
    r"""Blocks of one level, alternating between the main and the rotated tree.

    Args:
        blocks: The blocks, modules that are called with rows and a
            :class:`~torch_geometric_erwin.Level`. The first, third, ... use the main
            tree.
        checkpoint: Whether training keeps only the inputs of every block in memory, and
            computes the rest again in the backward pass.

    Shapes:
        - **x:** :math:`(N, C)`; **output:** :math:`(N, C)`, rows of the level.

    Raises:
        ValueError: If there are no blocks.

    Example:
        >>> from torch_geometric_erwin import ball_tree
        >>> from torch_geometric_erwin.nn import ErwinBlock
        >>> pos = torch.rand(6, 3)
        >>> level, = ball_tree(pos, ball_sizes=[4]).levels(pos)
        >>> stage = ErwinStage(ErwinBlock(16, heads=2, ball_size=4) for _ in range(2))
        >>> stage(torch.rand(6, 16), level).shape
        torch.Size([6, 16])
    """

    def __init__(
        self, blocks: Iterable[torch.nn.Module], checkpoint: bool = False
    ) -> None:
        super().__init__()
        if isinstance(blocks, (str, Module)) or not isinstance(blocks, Iterable):
            kind = type(blocks).__name__
            raise TypeError(f"'blocks' must be a list of modules (got '{kind}')")
        blocks = list(blocks)
        for block in blocks:
            check_instance("blocks", block, Module, "modules")
        self.blocks = ModuleList(blocks)
        self.checkpoint = check_flag("checkpoint", checkpoint)
        if len(self.blocks) == 0:
            raise ValueError("'blocks' must hold at least one block (got none)")

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        reset(self.blocks)

    def forward(self, x: Tensor, level: Level) -> Tensor:
        r"""Runs the forward pass; without a second tree all blocks use the main one."""
        check_level("level", level)
        trees = (level, level.rotated())
        for i, block in enumerate(self.blocks):
            args = (x, trees[i % 2])
            if self.checkpoint:
                x = recompute(block, *args, is_random=_is_random(block))
            else:
                x = block(*args)
        return x

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({len(self.blocks)} x {self.blocks[0]})"


# Modules that draw no random numbers.
_STEADY = (
    *(Block, BallAttention, SwiGLU, GraphNorm, torch.nn.Linear, Identity),
    *(torch.nn.LayerNorm, torch.nn.RMSNorm),
)


def _is_random(block: torch.nn.Module) -> bool:
    # A module that is not listed above may draw random numbers.
    return any(
        module.p > 0
        if isinstance(module, (Dropout, DropPath))
        else not isinstance(module, _STEADY)
        for module in block.modules()
    )
