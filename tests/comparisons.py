"""Comparing trees with each other, and with those of the oracle."""

import torch
from oracles.ball_tree import ball_tree as oracle
from torch.utils import _pytree as pytree

from torch_geometric_erwin import ball_tree
from torch_geometric_erwin.ops.ball_tree import rotation_matrix


def tensors(tree):
    return [t for t in pytree.tree_leaves(tree) if t is not None]


def assert_same(a, b):
    (x, spec), (y, other) = pytree.tree_flatten(a), pytree.tree_flatten(b)
    assert spec == other  # and so are the configurations
    for s, t in zip(x, y, strict=True):
        assert s is t is None or (s.dtype == t.dtype and torch.equal(s, t))


def assert_equals_oracle(pos, ptr, **kwargs):
    tree = ball_tree(pos, ptr=ptr, **kwargs)
    config = tree.config
    keys = pos if pos.dtype == torch.float64 else pos.float()
    rotation = rotation_matrix(config.rotate, pos.size(1)).numpy()
    expected = oracle(
        keys.numpy(),
        ptr.tolist(),
        config.ball_sizes,
        config.strides,
        rotation if config.rotate else None,
        config.layout,
        kwargs.get("ties", "index"),
    )
    assert tree.perm.tolist() == expected.perm.tolist()
    assert tree.level.tolist() == expected.level.tolist()
    assert [t.tolist() for t in tree.ball_len] == expected.ball_len
    assert [t.tolist() for t in tree.group_len] == expected.group_len
    assert [t.tolist() for t in tree.perm_rot] == [
        rows.tolist() for rows in expected.perm_rot
    ]
    if config.layout == "perfect":
        assert tree.mask.tolist() == expected.mask.tolist()
    else:
        assert tree.mask is None
    assert tree.node_ptr.tolist() == ptr.tolist()
    assert tree.runs == ()
    tree.validate(pos.size(0), config, ptr)
    tree.validate(pos.size(0), config)
    return tree


def orders(cases):
    """The orders of trees, to compare them with those of another process."""
    trees = [ball_tree(pos, ptr=ptr, ball_sizes=128, strides=[2]) for pos, ptr in cases]
    return [[tree.perm, *tree.perm_rot] for tree in trees]
