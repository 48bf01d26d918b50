"""What holds for the lengths of every configuration."""

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.ball_tree import balanced, maximal

from torch_geometric_erwin import ball_tree

configs = st.integers(0, 4).flatmap(
    lambda strides: st.tuples(
        st.lists(st.integers(1, 40), min_size=strides + 1, max_size=strides + 1),
        st.lists(st.integers(1, 5), min_size=strides, max_size=strides),
    )
)


def tables(n, ball_sizes, strides):
    # Boundaries do not depend on coordinates; a line is fastest to build.
    pos = torch.arange(n, dtype=torch.float64).unsqueeze(1)
    return ball_tree(pos, ball_sizes=ball_sizes, strides=strides, rotate=0)


@given(st.integers(0, 1000), configs)
def test_invariants_of_every_configuration(n, config):
    ball_sizes, strides = config
    tree = tables(n, ball_sizes, strides)
    runs = set()
    for l, size in enumerate(ball_sizes):
        span = prod(strides[:l])
        rows = -(-n // span)
        assert tree.level[0, l] == rows == tree.num_rows(l)
        fills = tree.ball_len[l]
        assert fills.sum() == rows
        assert ((fills >= 1) & (fills <= size)).all()
        groups = [] if l == len(strides) else [tree.group_len[l]]
        for group in groups:
            assert group.sum() == rows
            assert (group[:-1] == strides[l]).all()
            assert ((group >= 1) & (group <= strides[l])).all()
        for lengths in [fills, *groups]:
            ends = (lengths.cumsum(0) * span).clamp(max=n).tolist()
            runs.update(zip([0, *ends], ends))
    # Runs are nodes of one tree, so two of them are nested or disjoint.
    open_ends = []
    for start, end in sorted(runs, key=lambda run: (run[0], -run[1])):
        while open_ends and open_ends[-1] <= start:
            open_ends.pop()
        assert not open_ends or end <= open_ends[-1]
        open_ends.append(end)


@st.composite
def dividing_configs(draw):
    """Strides whose product divides the ball size, as in all published models."""
    strides = draw(st.lists(st.integers(1, 4), max_size=3))
    size = prod(strides) * draw(st.integers(1, 8))
    levels = range(len(strides) + 1)
    doublings = [draw(st.integers(0, 3)) for _ in levels]
    ball_sizes = [size << doublings[0]]
    for l in levels[1:]:  # B_l S_l = 2^j B_0
        ball_sizes.append((ball_sizes[0] << doublings[l]) // prod(strides[:l]))
    return ball_sizes, strides


@given(st.integers(1, 20_000), dividing_configs())
def test_ball_counts_are_as_small_as_can_be(n, config):
    ball_sizes, strides = config
    tree = tables(n, ball_sizes, strides)
    for l, size in enumerate(ball_sizes):
        rows = int(tree.level[0, l])
        assert tree.ball_len[l].size(0) == -(-rows // size)
    blocks = -(-tree.ball_len[0] // prod(strides))
    assert blocks.max() - blocks.min() <= 1


@given(st.integers(1, 2_000), dividing_configs())
def test_invariants_of_the_definition(n, config):
    (size, *_), strides = config
    block = prod(strides)
    root = balanced(n, size, strides)

    def depth(node):
        if node.rows <= size:
            return 0
        left, right = node.children
        balls = len(maximal(left, lambda rows: rows <= size))
        assert balls & (balls - 1) == 0
        assert node.rows / 3 - block <= left.rows <= 2 * node.rows / 3 + block
        return 1 + max(depth(left), depth(right))

    assert depth(root) == (-(-n // size) - 1).bit_length()


@pytest.mark.parametrize(
    ("low", "high", "waste"), [(4_000, 16_000, 0.017), (16_000, 100_000, 0.004)]
)
def test_dense_view_wastes_little(low, high, waste):
    # Empty slots per point for log-uniform sizes, with balls of 256. On average half a
    # ball is empty, which gives 128 <1/n>. The numbers are exact to 0.1 %.
    sizes = np.geomspace(low, high, 51).astype(int)
    balls = [tables(n, 256, [2, 2]).ball_len[0].size(0) for n in sizes]
    assert np.mean(np.array(balls) * 256 / sizes - 1) == pytest.approx(waste, abs=5e-4)
