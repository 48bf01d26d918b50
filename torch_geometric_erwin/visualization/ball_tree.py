r"""Pictures of ball trees."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Optional

import torch
from torch import Tensor

from torch_geometric_erwin.tree import Tree
from torch_geometric_erwin.tree.tree import check_tree
from torch_geometric_erwin.utils.checks import (
    check_devices,
    check_instance,
    check_int,
    check_mask,
    check_positions,
    check_tensor,
    is_readable,
)
from torch_geometric_erwin.utils.rows import segment_ids

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def ball_of_row(tree: Tree, level: int) -> Tensor:
    r"""Returns the ball of a level that every row of level 0 belongs to.

    Args:
        tree: The tree.
        level: The level of the balls.

    Shapes:
        - **output:** :math:`(N_0)`, ascending.

    Example:
        >>> from torch_geometric_erwin import ball_tree
        >>> tree = ball_tree(torch.rand(6, 2), ball_sizes=2, strides=[2])
        >>> ball_of_row(tree, 0).tolist(), ball_of_row(tree, 1).tolist()
        ([0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 1, 1])
    """
    check_tree("tree", tree)
    level = check_int("level", level, 0, tree.config.num_levels - 1)
    tree.validate(tree.num_nodes, tree.config, values=is_readable(tree.perm))
    row = torch.arange(tree.num_rows(0), device=tree.perm.device)
    for l in range(level):
        row = segment_ids(tree.group_len[l], tree.num_rows(l))[row]
    return segment_ids(tree.ball_len[level], tree.num_rows(level))[row]


def plot_ball_tree(
    pos: Tensor,
    tree: Tree,
    level: int = 0,
    *,
    mask: Optional[Tensor] = None,
    axes: tuple[int, int] = (0, 1),
    ax: Optional["Axes"] = None,
    **kwargs: Any,
) -> "Axes":
    r"""Draws points in the colour of their ball, as in the figures of `"Erwin: A
    Tree-based Hierarchical Transformer for Large-scale Physical Systems"
    <https://arxiv.org/abs/2502.17019>`_; needs :obj:`matplotlib`.

    Args:
        pos: The node positions.
        tree: Their tree.
        level: The level of the balls.
        mask: The nodes to draw, for example those in a slice of space. (default: all)
        axes: The two coordinates to draw.
        ax: Where to draw. (default: the current axes)
        **kwargs: Further arguments of :func:`matplotlib.axes.Axes.scatter`.

    Shapes:
        - **pos:** :math:`(N, D)` with :math:`D \geq 2`; **mask:** :math:`(N)`.

    Raises:
        ValueError: If the level or the coordinates do not exist, or the tree was built
            for other nodes.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("Agg")
        >>> from torch_geometric_erwin import ball_tree
        >>> pos = torch.rand(100, 2)
        >>> ax = plot_ball_tree(pos, ball_tree(pos, ball_sizes=16))
        >>> len(ax.collections)
        1
    """
    import matplotlib.pyplot as plt

    check_tree("tree", tree)
    level = check_int("level", level, 0, tree.config.num_levels - 1)
    check_tensor("pos", pos)
    if pos.dim() != 2:
        raise ValueError(f"'pos' must have shape [N, D] (got {[*pos.shape]})")
    check_devices(pos=pos, tree=tree.perm)
    check_positions("pos", pos, *pos.shape)
    axes = _coordinates(axes, pos.size(1))
    if ax is not None and not hasattr(ax, "scatter"):
        raise TypeError(f"'ax' must be axes of matplotlib (got {ax!r})")
    if mask is not None:
        check_mask("mask", mask, pos.size(0))
        if mask.is_meta:
            raise ValueError("'mask' is on meta, it must be where it has values")
    tree.validate(pos.size(0), tree.config)
    ball = torch.empty(pos.size(0), dtype=torch.long, device=pos.device)
    ball[tree.global_perm()] = ball_of_row(tree, level)
    keep = slice(None) if mask is None else mask.cpu()
    x, y = (pos[:, axis].detach().cpu()[keep].resolve_neg() for axis in axes)
    ax = plt.gca() if ax is None else ax
    # Neighbouring balls have neighbouring numbers. Multiples of the golden ratio,
    # modulo one, give them colours that differ much.
    colour = torch.frac(ball.cpu()[keep] * 0.6180339887)
    kwargs = {"s": 4, "cmap": "hsv", "linewidths": 0, "vmin": 0, "vmax": 1, **kwargs}
    ax.scatter(x.double().numpy(), y.double().numpy(), c=colour.numpy(), **kwargs)
    ax.set_aspect("equal")
    ax.set_title(f"level {level}: {tree.ball_len[level].size(0)} balls")
    return ax


def _coordinates(axes: Sequence[int], dim: int) -> tuple[int, int]:
    check_instance("axes", axes, (tuple, list), "two coordinates")
    if len(axes) != 2:
        raise ValueError(f"'axes' must be two coordinates (got {axes})")
    for axis in axes:
        check_int("axes", axis, 0)
        if axis >= dim:
            raise ValueError(
                f"'axes' must be coordinates of 'pos' (got {axes}, there are {dim})"
            )
    return axes[0], axes[1]
