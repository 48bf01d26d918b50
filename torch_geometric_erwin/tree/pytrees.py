r"""Trees and levels as nests of tensors.

They can thus be inputs of :func:`torch.compile` and :func:`torch.export`, and files
that hold them are loaded without running code.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torch_geometric_erwin.tree.config import TreeConfig
from torch_geometric_erwin.tree.level import Level
from torch_geometric_erwin.tree.tree import Tree

# Parts that most trees do not have.
_RARE = ("runs", "real", "edges", "edge_means", "edge_code")
_OF_TREE = (
    *("perm", "node_ptr", "level", "ball_len", "group_len", "perm_rot", "mask"),
    *_RARE,
)
_OF_LEVEL = (
    *("pos", "ptr", "ball_len", "offset", "offset_rot", "perm", "perm_rot"),
    *("group_len", "children", "real", "edge_index", "node", "edge_attr"),
)


def _flatten_tree(tree: Tree) -> tuple[list[Any], str]:
    # Users of `torch.export` list a dynamic shape for every part. The last parts are
    # left out where a tree has none, so that most users need not list them.
    names = [*_OF_TREE]
    for name in reversed(_RARE):
        value = getattr(tree, name)
        if isinstance(value, Tensor) or value:
            break
        names.remove(name)
    return [getattr(tree, name) for name in names], tree.config.text


def _unflatten_tree(values: Iterable[Any], config: str) -> Tree:
    return Tree(**dict(zip(_OF_TREE, values)), config=TreeConfig.parse(config))


def _flatten_level(level: Level) -> tuple[list[Any], str]:
    # Sizes are returned as text, because an exported program stores text.
    values = [getattr(level, name) for name in _OF_LEVEL]
    sizes = " ".join(map(str, (level.ball_size, *level.runs)))
    return [*values, *level.runs.values()], sizes


def _unflatten_level(values: Iterable[Any], context: str) -> Level:
    values = [*values]
    ball_size, *sizes = map(int, context.split())
    count = len(_OF_LEVEL)
    runs = dict(zip(sizes, values[count:]))
    named = dict(zip(_OF_LEVEL, values[:count]))
    return Level(**named, runs=runs, ball_size=ball_size)


def _register(
    cls: type,
    flatten: Callable[[Any], tuple[list[Any], str]],
    unflatten: Callable[[Iterable[Any], str], Any],
) -> None:
    def with_keys(value: Any) -> tuple[list[Any], str]:
        # Keys are numbers, not names, because guards of `torch.export` confuse 'perm'
        # with the beginning of 'perm_rot' (torch 2.13).
        parts, context = flatten(value)
        return [(pytree.SequenceKey(i), part) for i, part in enumerate(parts)], context

    pytree.register_pytree_node(
        cls,
        flatten,
        unflatten,
        serialized_type_name=f"torch_geometric_erwin.{cls.__name__}",
        flatten_with_keys_fn=with_keys,
    )


_register(Tree, _flatten_tree, _unflatten_tree)
_register(Level, _flatten_level, _unflatten_level)
torch.serialization.add_safe_globals([Tree, TreeConfig, Level])
