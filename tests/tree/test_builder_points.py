"""Trees of points that are distributed in any way, with and without ties."""

import numpy as np
import pytest
import torch
from comparisons import assert_equals_oracle, assert_same
from distributions import (
    KINDS,
    clustered,
    coincident,
    duplicates,
    far_point,
    few_values,
    grid,
    huge,
    periodic_outliers,
    signed_zeros,
)
from oracles.ball_tree import balanced
from trees import MIXED, offsets, random_pos

from torch_geometric_erwin import ball_tree


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of the oracle
@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("dim", [1, 2, 3, 4])
@pytest.mark.parametrize("make", KINDS)
def test_any_distribution_of_points(make, dim, layout):
    # Sizes below and above those at which sorting and splitting change their method.
    sizes = [16, 17, 24, 25, 64, 65, 66, 130, 257]
    pos = torch.cat([make(n, dim) for n in sizes])
    config = {"ball_sizes": [16, 8], "strides": [2], "layout": layout}
    if make is huge:  # rotations overflow to both infinities, which the oracle lacks
        config["rotate"] = 0.0
    for dtype in [torch.float32, torch.float64]:
        assert_equals_oracle(pos.to(dtype), offsets(sizes), **config)


@pytest.mark.parametrize(
    ("n", "make"),
    [
        *[(16_384, far_point), (16_385, clustered)],
        *[(33_000, few_values), (33_000, periodic_outliers)],
    ],
)
def test_large_clouds(n, make, num_threads):
    num_threads(2)
    config = {"ball_sizes": 128, "strides": [2]}
    assert_equals_oracle(make(n, 3), offsets([n]), **config)


@pytest.mark.parametrize("n", [16_385, 32_768, 32_769, 65_535, 65_536, 65_537])
@pytest.mark.parametrize("make", KINDS)
def test_large_clouds_on_two_threads(n, make, num_threads):
    pos = make(n, 3)
    config = {"ball_sizes": 1024, "strides": [2]}
    num_threads(1)
    tree = ball_tree(pos, **config)
    num_threads(2)
    assert_same(ball_tree(pos, **config), tree)
    assert_splits(balanced(n, 1024, [2]), pos.numpy(), tree.perm.numpy())


def assert_splits(node, pos, perm):
    """Large nodes are split along their widest axis, by coordinate and index."""
    if len(perm) <= 2048:
        return
    left, right = node.children
    ids = np.sort(perm)
    with np.errstate(over="ignore"):
        axis = np.argmax(pos[ids].max(0) - pos[ids].min(0))
    expected = ids[np.argsort(pos[ids, axis], kind="stable")]
    assert np.array_equal(np.sort(perm[: left.rows]), np.sort(expected[: left.rows]))
    assert_splits(left, pos, perm[: left.rows])
    assert_splits(right, pos, perm[left.rows :])


@pytest.mark.parametrize("ties", ["index", "coordinates"])
@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("make", [coincident, duplicates, grid, signed_zeros])
def test_ties(make, layout, ties):
    ptr = offsets(MIXED)
    # On a grid, rotated coordinates and centroids of three may differ only by rounding.
    strides = [2, 2] if layout == "perfect" else [3, 2]
    for dim in [1, 2, 3]:
        pos = make(int(ptr[-1]), dim).float()
        assert_equals_oracle(
            pos, ptr, ball_sizes=4, strides=strides, layout=layout, ties=ties
        )


def test_coincident_points_keep_their_order():
    tree = ball_tree(torch.ones(21, 3), ball_sizes=4, strides=[2])
    assert torch.equal(tree.perm, torch.arange(21))
    assert all(torch.equal(p, torch.arange(p.size(0))) for p in tree.perm_rot)


def test_negative_zero_counts_as_zero():
    pos = torch.tensor([[0.0], [-0.0], [0.0], [-0.0]])
    assert ball_tree(pos, ball_sizes=1).perm.tolist() == [0, 1, 2, 3]


def test_lowest_axis_wins_a_tie_of_extents():
    pos = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert ball_tree(pos, ball_sizes=1).perm.tolist() == [0, 1]


def test_huge_finite_coordinates():
    pos = random_pos(200) / random_pos(200).abs().max() * 3e38  # sums overflow
    tree = ball_tree(pos, ball_sizes=8, strides=[2, 2])
    for rows in [tree.perm, *tree.perm_rot]:
        assert torch.equal(rows.sort().values, torch.arange(rows.size(0)))
