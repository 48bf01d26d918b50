"""Trees of nodes that moved, compared with trees that are built for them."""

import pytest
import torch
from comparisons import assert_same
from trees import offsets, random_pos

from torch_geometric_erwin import ball_tree


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("sizes", [[], [0], [1], [9, 0, 33], [5, 12, 0]])
def test_update_is_the_tree_of_moved_points(sizes, layout):
    ptr = offsets(sizes)
    pos, moved = (random_pos(int(ptr[-1]), seed=seed) for seed in (1, 2))
    config = {"ball_sizes": 8, "strides": [2], "layout": layout}
    tree, expected = (ball_tree(p, ptr=ptr, **config) for p in (pos, moved))
    for max_points in (None, max(sizes, default=0)):
        updated = tree.update(moved, max_points)
        assert_same(updated, expected)
        assert updated.config == tree.config
        assert updated.node_ptr is tree.node_ptr
        assert all(a is b for a, b in zip(updated.ball_len, tree.ball_len))


def test_update_refuses_other_nodes():
    tree = ball_tree(random_pos(10), ball_sizes=4)
    with pytest.raises(ValueError, match=r"each of the tree's 10 nodes \(got 9\)"):
        tree.update(random_pos(9))
    with pytest.raises(ValueError, match="finite"):
        tree.update(torch.full((10, 3), float("nan")))


@pytest.mark.parametrize("padded", [False, True])
def test_update_refuses_larger_clouds(padded):
    sizes, pos = [6, 10], random_pos(16)
    tree = ball_tree(pos, ptr=offsets(sizes), ball_sizes=4)
    if padded:
        sizes, pos = [6, 10, 4], random_pos(20)
        tree = tree.pad(20, 3)
    assert_same(tree.update(pos, max_points=10), tree.update(pos))
    with pytest.raises(ValueError, match=r"'max_points' must be at least 10"):
        tree.update(pos, max_points=9)
    for value, error in ((-1, ValueError), (10.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="'max_points' must be"):
            tree.update(pos, max_points=value)
    with pytest.raises(ValueError, match="'pos' is on meta, the tree is on cpu"):
        tree.update(pos.to("meta"))


def test_update_is_compiled_with_the_model():
    def function(pos, tree):
        tree = tree.update(pos)
        return pos[tree.perm] * 2.0, tree.perm_rot[1]

    torch.compiler.reset()
    compiled = torch.compile(
        function, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for n in [9, 30, 50]:
        tree = ball_tree(random_pos(n), ball_sizes=4, strides=[2])
        pos = random_pos(n, seed=1)
        for a, b in zip(compiled(pos, tree), function(pos, tree), strict=True):
            assert torch.equal(a, b)
