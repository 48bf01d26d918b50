"""Padded trees, whose sizes follow from those of the batch."""

import pytest
import torch
from comparisons import assert_same
from hypothesis import given
from hypothesis import strategies as st
from trees import ALL_SIZES, CONFIGS, offsets, random_pos

from torch_geometric_erwin import TreeConfig, ball_tree
from torch_geometric_erwin.tree.builder import build_tree


def run_sizes(levels):
    sizes = st.lists(st.integers(1, 60), max_size=2)
    return st.just([]) | st.lists(sizes, min_size=levels, max_size=levels)


@st.composite
def padded_cases(draw):
    levels = draw(st.integers(1, 4))
    config = TreeConfig(
        draw(st.lists(st.integers(1, 40), min_size=levels, max_size=levels)),
        draw(st.lists(st.integers(1, 6), min_size=levels - 1, max_size=levels - 1)),
        draw(st.sampled_from([0.0, 45.0])),
        runs=draw(run_sizes(levels)),
    )
    sizes = draw(st.lists(st.integers(0, 300), max_size=5))
    extra = draw(st.integers(0, 100)), draw(st.integers(1, 3))
    return config, sizes, extra


def assert_padded(tree, config, sizes, num_nodes, num_clouds):
    padded = tree.pad(num_nodes, num_clouds)
    rows, balls = config.padded_sizes(num_nodes, num_clouds)
    padded.validate(
        num_nodes,
        config,
        offsets([*sizes, num_nodes - sum(sizes), *[0] * (num_clouds - len(sizes) - 1)]),
    )
    assert padded.real.tolist() == [i < len(sizes) for i in range(num_clouds)]
    assert padded.level[: len(sizes)].tolist() == tree.level.tolist()
    for l in range(config.num_levels):
        assert padded.num_rows(l) == rows[l]
        assert len(padded.ball_len[l]) == balls[l]
        before = tree.num_rows(l)
        assert padded.real_rows(l).tolist() == [i < before for i in range(rows[l])]
        runs = [(tree.ball_len[l], padded.ball_len[l], config.ball_sizes[l])]
        if l > 0:
            groups = tree.group_len[l - 1], padded.group_len[l - 1]
            runs.append((*groups, config.strides[l - 1]))
        for i, size in enumerate(config.runs_of(l)):
            own, lengths = tree.runs[l][i], padded.runs[l][i]
            assert len(lengths) == config.padded_runs(l, size, rows[l], num_clouds)
            runs.append((own, lengths, size))
        for own, lengths, size in runs:
            # No run contains both real and added rows.
            assert torch.equal(lengths[: len(own)], own)
            assert all(0 <= n <= size for n in lengths.tolist())
        if config.rotate:
            perm = padded.global_perm_rot(l)
            assert torch.equal(perm[:before], tree.global_perm_rot(l))
            assert perm[before:].tolist() == [*range(before, rows[l])]


@given(padded_cases())
def test_padded_tree(case):
    config, sizes, (nodes, clouds) = case
    tree = build_tree(random_pos(sum(sizes)), offsets(sizes), config)
    assert_padded(tree, config, sizes, sum(sizes) + nodes, len(sizes) + clouds)


@pytest.mark.parametrize("balls, strides", CONFIGS, ids=str)
def test_any_cloud_is_padded_to_the_same_sizes(balls, strides):
    config = TreeConfig(balls, strides, runs=[[2, 32]] * len(balls))
    for n in ALL_SIZES:
        tree = build_tree(random_pos(n), None, config)
        for num_nodes in (n, n + 1, n + 17):
            assert_padded(tree, config, [n], num_nodes, 2)


@given(padded_cases())
def test_padded_tree_of_moved_points(case):
    config, sizes, (nodes, clouds) = case
    n = sum(sizes)
    num_nodes, num_clouds = n + nodes, len(sizes) + clouds
    pos, moved = random_pos(num_nodes), random_pos(num_nodes, seed=1)
    padded = build_tree(pos[:n], offsets(sizes), config).pad(num_nodes, num_clouds)
    expected = build_tree(moved[:n], offsets(sizes), config)
    assert_same(padded.update(moved), expected.pad(num_nodes, num_clouds))
    with pytest.raises(ValueError, match=f"for each of the tree's {num_nodes} nodes"):
        padded.update(random_pos(num_nodes + 1))


def test_what_cannot_be_padded():
    tree = ball_tree(random_pos(10), ball_sizes=4)
    with pytest.raises(ValueError, match=r"'num_clouds' must be above 1, the clouds"):
        tree.pad(20, 1)
    with pytest.raises(ValueError, match=r"'num_nodes' must be at least 10"):
        tree.pad(9, 2)
    with pytest.raises(ValueError, match="the tree is padded already"):
        tree.pad(20, 2).pad(30, 3)
    with pytest.raises(ValueError, match=r"padding needs layout='balanced'"):
        ball_tree(random_pos(10), ball_sizes=4, layout="perfect").pad(20, 2)
