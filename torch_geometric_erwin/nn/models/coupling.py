r"""A warning if the clouds of a batch depend on one another in training."""

import warnings
from weakref import WeakSet

import torch
from torch import Tensor
from torch.nn import Module

from torch_geometric_erwin.tree import Tree
from torch_geometric_erwin.utils.checks import is_readable

_WARNED: WeakSet[Module] = WeakSet()


def warn_of_coupling(model: Module, pos: Tensor, tree: Tree) -> None:
    r"""Warns once per model if gradients of positions depend on other clouds.

    In training, a norm over all rows of a batch makes every output depend on every
    position, so that a force has contributions from other clouds.

    Args:
        model: The model.
        pos: The positions.
        tree: Their tree.

    Example:
        >>> from torch_geometric_erwin import ball_tree
        >>> pos = torch.rand(4, 3, requires_grad=True)
        >>> tree = ball_tree(pos, ptr=torch.tensor([0, 2, 4]), ball_sizes=2)
        >>> warn_of_coupling(torch.nn.LayerNorm(3), pos, tree)
    """
    if torch.compiler.is_compiling() or not (model.training and pos.requires_grad):
        return
    if model in _WARNED or not _has_clouds(tree):
        return
    norms = (torch.nn.BatchNorm1d, torch.nn.SyncBatchNorm)
    if any(isinstance(norm, norms) and norm.training for norm in model.modules()):
        _WARNED.add(model)
        warnings.warn(
            "in training, a norm over the batch makes the gradient of a cloud's "
            "positions depend on the other clouds; norm='graph' or 'layer' does not",
            stacklevel=5,  # names the line that calls the model
        )


def _has_clouds(tree: Tree) -> bool:
    # Several that have points, as far as a look at values does not wait for a GPU.
    sizes = tree.level[:, 0]
    if sizes.size(0) < 2 or not is_readable(sizes):
        return sizes.size(0) > 1
    real = sizes > 0 if tree.real is None else (sizes > 0) & tree.real
    return int(real.sum()) > 1
