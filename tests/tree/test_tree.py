"""A tree as an object: the rows of a batch, and what copies and stores it."""

import copy
import pickle

import pytest
import torch
from comparisons import assert_same, tensors
from torch.utils import _pytree as pytree
from trees import offsets, random_pos

from torch_geometric_erwin import TreeConfig, ball_tree
from torch_geometric_erwin.tree.builder import build_tree


def test_rows_of_a_batch():
    ptr = offsets([5, 0, 3])
    pos = random_pos(8)
    tree = ball_tree(pos, ptr=ptr, ball_sizes=2, strides=[2])
    assert tree.level.tolist() == [[5, 3], [0, 0], [3, 2]]
    assert tree.num_rows(0) == 8
    assert tree.num_rows(1) == 5
    assert tree.batch(0).tolist() == [0, 0, 0, 0, 0, 2, 2, 2]
    assert tree.batch(1).tolist() == [0, 0, 0, 2, 2]
    assert tree.num_nodes == 8
    assert tree.node_ptr.tolist() == tree.ptr().tolist() == [0, 5, 5, 8]
    assert tree.ptr(1).tolist() == [0, 3, 3, 5]
    assert tree.global_perm().tolist() == [
        *tree.perm[:5].tolist(),
        *(tree.perm[5:] + 5).tolist(),
    ]
    assert tree.global_perm_rot(1).tolist() == [
        *tree.perm_rot[1][:3].tolist(),
        *(tree.perm_rot[1][3:] + 3).tolist(),
    ]


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("rotate", [0.0, 45.0])
@pytest.mark.parametrize("sizes", [[], [0], [1], [5, 0, 30, 1], [0, 16, 0]])
def test_all_rows_of_a_batch_at_once(sizes, rotate, layout):
    ptr = offsets(sizes)
    options = {"ball_sizes": 4, "strides": [2, 2], "rotate": rotate, "layout": layout}
    tree = ball_tree(random_pos(sum(sizes)), ptr=ptr, **options)
    order = tree.order()
    assert torch.equal(order.perm, tree.global_perm())
    assert len(order.perm_rot) == (3 if rotate else 0)
    for l, actual in enumerate(order.perm_rot):
        assert torch.equal(actual, tree.global_perm_rot(l))
    assert order.num_nodes == tree.num_nodes == sum(sizes)
    assert order.repeats == (layout == "perfect")
    assert tree.order(sum(sizes)).num_nodes == sum(sizes)


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("rotate", [0.0, -12.5])
@pytest.mark.parametrize("runs", [(), ([2, 8], [1])])
def test_tree_is_a_nest_of_tensors(runs, layout, rotate):
    config = TreeConfig(4, [2], rotate, layout, runs=runs)
    tree = build_tree(random_pos(20), None, config)
    leaves, spec = pytree.tree_flatten(tree)
    count = 6 + (2 if rotate else 0) + (layout == "perfect") + sum(map(len, runs))
    assert len(tensors(tree)) == count
    assert_same(pytree.tree_unflatten(leaves, spec), tree)
    paths = [pytree.keystr(path) for path, _ in pytree.tree_leaves_with_path(tree)]
    assert len(paths) == len(set(paths)) == len(leaves)
    for other in [
        copy.copy(tree),
        copy.deepcopy(tree),
        pickle.loads(pickle.dumps(tree)),
        tree.to("cpu"),
        pytree.treespec_loads(pytree.treespec_dumps(spec)).unflatten(leaves),
    ]:
        assert_same(other, tree)


def test_tree_is_loaded_as_weights_are(tmp_path):
    tree = ball_tree(random_pos(20), ball_sizes=4, strides=[2])
    torch.save(tree, tmp_path / "tree.pt")
    assert_same(torch.load(tmp_path / "tree.pt", weights_only=True), tree)
