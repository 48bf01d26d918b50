"""Trees that do not fit their nodes, or were changed, are refused."""

import dataclasses
import re

import pytest
import torch
from torch.utils import _pytree as pytree
from trees import offsets, random_pos

from torch_geometric_erwin import TreeConfig, ball_tree
from torch_geometric_erwin.tree.builder import build_tree


@pytest.mark.parametrize("padded", [False, True])
def test_other_clouds_are_refused(padded):
    sizes, tree = [6, 10], ball_tree(random_pos(16), ptr=offsets([6, 10]), ball_sizes=4)
    if padded:
        sizes, tree = [6, 10, 4], tree.pad(20, 3)
    tree.validate(sum(sizes), tree.config, offsets(sizes))
    tree.validate(sum(sizes), tree.config, offsets(sizes), values=False)
    message = "'batch' or 'ptr' must be of the clouds that the tree was built for"
    for others in ([7, 9, 4], [16, 0, 4], [16, 4], [6, 10, 0, 4]):
        others = others if padded else others[:-1]
        same_number, own = len(others) == len(sizes), offsets(sizes).tolist()
        found = f": offsets {own}" if same_number else f": {len(sizes)} (got"
        with pytest.raises(ValueError, match=re.escape(message + found)):
            tree.validate(sum(sizes), tree.config, offsets(others))
        # An error that a device reports is not a ValueError.
        error = RuntimeError if same_number else ValueError
        with pytest.raises(error, match=message):
            tree.validate(sum(sizes), tree.config, offsets(others), values=False)


def without_the_last_row(tree):
    return dataclasses.replace(tree, perm=tree.perm[:-1])


def of_another_cloud(tree):
    other = build_tree(random_pos(12), offsets([5, 7]), tree.config)
    return dataclasses.replace(other, node_ptr=tree.node_ptr)


def with_a_repeated_row(tree):
    return dataclasses.replace(tree, perm=torch.tensor([0] * 6 + [0] * 6))


def with_a_row_outside(tree):
    return dataclasses.replace(tree, perm=torch.tensor([*range(6), *range(1, 7)]))


def with_filtered_balls(tree):
    return dataclasses.replace(tree, ball_len=(tree.ball_len[0][:-1], tree.ball_len[1]))


def with_filtered_groups(tree):
    return dataclasses.replace(tree, group_len=(tree.group_len[0][:-1],))


def with_a_filtered_rotation(tree):
    return dataclasses.replace(tree, perm_rot=(tree.perm_rot[0], tree.perm_rot[1][1:]))


def with_one_cloud(tree):
    return dataclasses.replace(tree, node_ptr=torch.tensor([0, 12]))


def with_offsets_of_fewer_nodes(tree):
    return dataclasses.replace(tree, node_ptr=torch.tensor([0, 6, 11]))


def with_descending_offsets(tree):
    return dataclasses.replace(tree, node_ptr=torch.tensor([0, 13, 12]))


def with_a_run_less(tree):
    return dataclasses.replace(tree, runs=((tree.runs[0][0][1:],), tree.runs[1]))


def with_other_runs(tree):
    return dataclasses.replace(tree, runs=((tree.runs[0][0].flip(0),), tree.runs[1]))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (with_one_cloud, r"'level' has shape \[2, 2\], expected \[1, 2\]"),
        (with_offsets_of_fewer_nodes, "'node_ptr' must end at the number of rows 12"),
        (with_descending_offsets, "'node_ptr' must not descend .entry 1 is 13"),
        (without_the_last_row, "'perm' has 11 entries for 12 nodes"),
        (of_another_cloud, "'level' has 5 rows on level 0 of cloud 0, not 6"),
        (with_a_repeated_row, "'perm' is not .* of cloud 0"),
        (with_a_row_outside, "'perm' is not .* of cloud 1"),
        (with_filtered_balls, "'ball_len_0' has 3 entries, expected 4"),
        (with_filtered_groups, "'perm_rot_1' has 6 entries for 5 rows"),
        (with_a_filtered_rotation, "'perm_rot_1' has 5 entries for 6 rows"),
        (with_a_run_less, "'runs_0' has 3 entries, expected 4"),
        (with_other_runs, "'runs_0' has 2 at 0, expected 4"),
    ],
)
@pytest.mark.parametrize("ptr", [None, offsets([6, 6])], ids=["own", "given"])
def test_a_stale_tree_is_refused(damage, problem, ptr):
    config = TreeConfig(4, [2], runs=[[5], [3]])
    tree = build_tree(random_pos(12), offsets([6, 6]), config)
    tree.validate(12, config, ptr)
    with pytest.raises(
        ValueError, match=f"does not fit its data: {problem}.*'BallTree'"
    ):
        damage(tree).validate(12, config, ptr)


def test_a_stale_mask_is_refused():
    tree = ball_tree(random_pos(6), ball_sizes=4, layout="perfect")
    tree.validate(6, tree.config, offsets([6]))
    stale = dataclasses.replace(tree, mask=torch.ones(8, dtype=torch.bool))
    with pytest.raises(ValueError, match="'mask' does not keep a row for every node"):
        stale.validate(6, tree.config, offsets([6]))


def damaged(tree):
    """The tree with one number of one table changed, or two of them exchanged."""
    leaves, spec = pytree.tree_flatten(tree)
    for i, table in enumerate(leaves):
        if table is None:
            continue
        for place in {0, table.numel() // 2, table.numel() - 1} - {-1}:
            flat = table.flatten().clone()
            values = [int(flat[place]) + 1, int(flat[place]) - 1, -1, 2**62, len(flat)]
            if table.dtype == torch.bool:
                values = [~flat[place]]
            for value in values:
                other = flat.clone()
                other[place] = value
                if torch.equal(flat, other):
                    continue
                new = [*leaves[:i], other.view(table.shape), *leaves[i + 1 :]]
                yield pytree.tree_unflatten(new, spec)


def across_clouds(tree):
    """The tree with a run that includes rows of two clouds; totals are unchanged."""
    for name in ("ball_len", "group_len", "runs"):
        tables, spec = pytree.tree_flatten(getattr(tree, name))
        for l, table in enumerate(tables):
            for i in range(len(table) - 1):
                moved = table.clone()
                moved[i] += 1
                moved[i + 1] -= 1
                new = [*tables[:l], moved, *tables[l + 1 :]]
                yield dataclasses.replace(
                    tree, **{name: pytree.tree_unflatten(new, spec)}
                )
    for l in range(len(tree.perm_rot)):
        ends = tree.level[:, l].cumsum(0)
        for i, end in enumerate(ends[:-1].tolist()):
            # Rows of the next cloud, counted from the start of this one.
            rows, size = tree.perm_rot[l].clone(), int(tree.level[i, l])
            if 0 < end < len(rows) and size > 0:
                rows[end - 1], rows[end] = rows[end] + size, rows[end - 1] - size
                tables = [*tree.perm_rot]
                tables[l] = rows
                yield dataclasses.replace(tree, perm_rot=tuple(tables))


@pytest.mark.parametrize("sizes", [[1], [2], [8, 9], [7, 0, 1, 30, 16], [0, 17, 17]])
@pytest.mark.parametrize(
    ("layout", "padded"), [("balanced", 0), ("balanced", 50), ("perfect", 0)]
)
@pytest.mark.parametrize("runs", [(), ([4, 16], [], [1])])
def test_no_number_of_a_tree_may_change(runs, layout, padded, sizes):
    n = sum(sizes)
    ptr, config = offsets(sizes), TreeConfig(8, [2, 2], layout=layout, runs=runs)
    tree = build_tree(random_pos(n), ptr, config)
    if padded:
        tree = tree.pad(n + padded, len(sizes) + 2)
        ptr = torch.tensor([*ptr, n + padded, n + padded])
    tree.validate(n + padded, config, ptr)
    count = 0
    for wrong in (*damaged(tree), *across_clouds(tree)):
        count += 1
        with pytest.raises(ValueError, match="does not fit its data"):
            wrong.validate(n + padded, config)
    assert count > 20


def test_shapes_are_checked_without_values():
    tree = ball_tree(random_pos(12), ptr=offsets([6, 6]), ball_sizes=4)
    other = dataclasses.replace(tree, node_ptr=offsets([5, 7]))
    for ptr in (None, offsets([5, 7])):
        other.validate(12, tree.config, ptr, values=False)
        with pytest.raises(ValueError, match=r"'level' has 6 rows .*, not 5"):
            other.validate(12, tree.config, ptr)
    with pytest.raises(ValueError, match="'perm' has 12 entries for 13 nodes"):
        tree.validate(13, tree.config, offsets([6, 7]), values=False)


def test_a_tree_for_other_ball_sizes_is_refused():
    tree = ball_tree(random_pos(12), ball_sizes=4)
    with pytest.raises(ValueError, match=r"'balls=4 .* needed is 'balls=8 .*transform"):
        tree.validate(12, TreeConfig(8, ()), offsets([12]))


MALFORMED = {
    "int32 perm": (lambda t: {"perm": t.perm.int()}, "'perm' is torch.int32"),
    "perm of two dimensions": (lambda t: {"perm": t.perm[None]}, "2 dimensions"),
    "missing level": (
        lambda t: {"ball_len": t.ball_len[:1]},
        "'ball_len' has 1 tables, expected 2",
    ),
    "no rotated tree": (
        lambda t: {"perm_rot": ()},
        "'perm_rot' has 0 tables, expected 2",
    ),
    "another device": (
        lambda t: {"level": t.level.to("meta")},
        "'level' is on meta, the nodes on cpu",
    ),
    "int32 node_ptr": (
        lambda t: {"node_ptr": t.node_ptr.int()},
        "'node_ptr' is torch.int32",
    ),
    "runs that nobody asked for": (
        lambda t: {"runs": ((t.ball_len[0],), ())},
        "'runs' has 1 tables, expected 0",
    ),
}


@pytest.mark.parametrize("change, message", MALFORMED.values(), ids=[*MALFORMED])
def test_a_malformed_tree_is_refused(change, message):
    tree = ball_tree(torch.rand(20, 3), ball_sizes=[4, 4], strides=[2])
    tree = dataclasses.replace(tree, **change(tree))
    ptr = torch.tensor([0, 20])
    with pytest.raises(ValueError, match=message):
        tree.validate(20, tree.config, ptr, values=False)
