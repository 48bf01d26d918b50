"""Runs and groups have the lengths of the nodes given by the definition of the tree."""

from math import ceil, log2, prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.ball_tree import balanced, maximal, perfect
from torch_geometric.data import Batch, Data
from trees import ALL_SIZES, CONFIGS, LAYOUTS, MIXED, offsets, random_pos

from torch_geometric_erwin import Tree, TreeConfig, pad_batch
from torch_geometric_erwin.transforms import BallTree
from torch_geometric_erwin.tree.builder import build_tree
from torch_geometric_erwin.tree.partition import Partition, group_lengths

# Sizes below, between and above all ball sizes, and one larger than a cloud.
FINE_AND_COARSE = (1, 2, 4, 8, 16, 64, 1024)
ODD = (3, 5, 7, 12, 100)


def oracle_runs(sizes, config, level, run_size):
    """The lengths of the largest nodes up to a size, cloud by cloud."""
    span, lengths = prod(config.strides[:level]), []
    for n in sizes:
        if config.layout == "balanced":
            root = balanced(n, config.ball_sizes[0], config.strides)
        else:
            root = perfect(2 ** ceil(log2(n)) if n else 0)
        runs = maximal(root, lambda rows: -(-rows // span) <= run_size)
        lengths.extend(-(-run.rows // span) for run in runs)
    return lengths


def assert_equals_oracle(runs, sizes, config):
    assert len(runs) == config.num_levels
    for l, tensors in enumerate(runs):
        assert len(tensors) == len(config.runs_of(l))
        for run_size, lengths in zip(config.runs_of(l), tensors):
            assert lengths.dtype == torch.int64
            assert lengths.tolist() == oracle_runs(sizes, config, l, run_size)


def config_of(layout, ball_sizes, strides, rotate=45.0):
    sizes = FINE_AND_COARSE + (ODD if layout == "balanced" else ())
    return TreeConfig(ball_sizes, strides, rotate, layout, [sizes] * len(ball_sizes))


@pytest.mark.parametrize("sizes", [ALL_SIZES, MIXED, [0], [1], []], ids=len)
@pytest.mark.parametrize(("layout", "ball_sizes", "strides"), LAYOUTS)
def test_runs_are_the_largest_nodes_that_fit(layout, ball_sizes, strides, sizes):
    config = config_of(layout, ball_sizes, strides)
    pos, ptr = random_pos(sum(sizes)), offsets(sizes)
    tree = build_tree(pos, ptr, config)
    assert_equals_oracle(tree.runs, sizes, config)
    assert_equals_oracle(Partition.of(ptr, sum(sizes), config).runs, sizes, config)
    tree.validate(sum(sizes), config, ptr)
    for l, level in enumerate(tree.levels(pos)):
        assert [*level.runs] == [*config.runs_of(l)]
        assert all(map(torch.equal, level.runs.values(), tree.runs[l]))
        assert all(map(torch.equal, level.rotated().runs.values(), tree.runs[l]))
    # Runs as long as balls are the balls.
    for l, size in enumerate(ball_sizes):
        if size in config.runs_of(l):
            runs = tree.runs[l][config.runs_of(l).index(size)]
            assert torch.equal(runs, tree.ball_len[l])


@st.composite
def cases(draw):
    levels = draw(st.integers(1, 4))

    def numbers(most, count):
        return draw(st.lists(st.integers(1, most), min_size=count, max_size=count))

    runs = [draw(st.lists(st.integers(1, 60), max_size=3)) for _ in range(levels)]
    config = TreeConfig(numbers(40, levels), numbers(6, levels - 1), runs=runs)
    return draw(st.lists(st.integers(0, 400), max_size=4)), config


@given(cases())
def test_runs_of_any_configuration(case):
    sizes, config = case
    runs = Partition.of(offsets(sizes), sum(sizes), config).runs
    if config.runs:
        assert_equals_oracle(runs, sizes, config)
    else:
        assert runs == ()


@pytest.mark.parametrize(("layout", "ball_sizes", "strides"), LAYOUTS)
def test_runs_do_not_change_the_tree(layout, ball_sizes, strides):
    config = config_of(layout, ball_sizes, strides)
    plain = TreeConfig(ball_sizes, strides, layout=layout)
    pos, moved = (random_pos(sum(MIXED), seed=seed) for seed in (1, 2))
    tree, other = (build_tree(pos, offsets(MIXED), c) for c in (config, plain))
    assert other.runs == ()
    updated = tree.update(moved)
    assert updated.runs is tree.runs
    for tables in ("ball_len", "group_len", "perm_rot"):
        for a, b in zip(getattr(tree, tables), getattr(other, tables), strict=True):
            assert torch.equal(a, b)
    assert torch.equal(tree.perm, other.perm)
    assert torch.equal(updated.perm, other.update(moved).perm)


def clouds(sizes):
    return [Data(pos=random_pos(n, seed=i)) for i, n in enumerate(sizes)]


@pytest.mark.parametrize("rotate", [0.0, 45.0])
@pytest.mark.parametrize(("layout", "ball_sizes", "strides"), LAYOUTS)
def test_runs_are_collated_and_separated(layout, ball_sizes, strides, rotate):
    config = config_of(layout, ball_sizes, strides, rotate)
    transform = BallTree(ball_sizes, strides, rotate, layout, runs=config.runs)
    assert transform.config == config
    single = [transform(data) for data in clouds(MIXED)]
    for n, data in zip(MIXED, single):
        assert_equals_oracle(Tree.from_data(data, config).runs, [n], config)
    before = Batch.from_data_list(single)
    after = transform(Batch.from_data_list(clouds(MIXED)))
    for batch in (before, after):
        assert_equals_oracle(Tree.from_data(batch, config).runs, MIXED, config)
        Tree.from_data(batch, config).validate(sum(MIXED), config, batch.ptr)
        assert batch.run_len_0_8.dtype == torch.int32
        for data, expected in zip(batch.to_data_list(), single, strict=True):
            assert data.keys() == expected.keys()
            for name in data.keys():  # noqa: SIM118
                a, b = data[name], expected[name]
                assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        chosen = Batch.from_data_list(batch.index_select([3, 0, 6]))
        assert_equals_oracle(
            Tree.from_data(chosen, config).runs, [MIXED[i] for i in (3, 0, 6)], config
        )


@pytest.mark.parametrize(("ball_sizes", "strides"), CONFIGS)
def test_runs_are_padded(ball_sizes, strides):
    config = config_of("balanced", ball_sizes, strides)
    transform = BallTree(ball_sizes, strides, runs=config.runs)
    shapes = set()
    for sizes in ([20, 0, 13], [1], [0, 60, 9, 0], MIXED[:4], [99]):
        batch = transform(Batch.from_data_list(clouds(sizes)))
        padded = pad_batch(batch, 101, 6)
        tree = Tree.from_data(padded, config)
        tree.validate(101, config, padded.ptr)
        real = [n for n, is_real in zip(padded.ptr.diff(), tree.real) if is_real]
        assert real == sizes
        for l, tensors in enumerate(tree.runs):
            for run_size, lengths in zip(config.runs_of(l), tensors):
                expected = oracle_runs(sizes, config, l, run_size)
                assert lengths[: len(expected)].tolist() == expected
                # Added rows have runs of their own; all but the last are full.
                rest = lengths[len(expected) :].tolist()
                missing = tree.num_rows(l) - sum(expected)
                full, last = divmod(missing, run_size)
                filled = [run_size] * full + [last] * (last > 0)
                assert rest == filled + [0] * (len(rest) - len(filled))
        shapes.add(str([[t.shape for t in tensors] for tensors in tree.runs]))
        assert torch.equal(
            Tree.from_data(padded).global_perm()[: sum(sizes)],
            Tree.from_data(batch).global_perm(),
        )
    assert len(shapes) == 1


@pytest.mark.parametrize(
    ("runs", "error", "message"),
    [
        ([[8]], ValueError, r"'runs' must have 2 lists of sizes \(got \[\[8\]\]\)"),
        ([[8], [], []], ValueError, "'runs' must have 2 lists of sizes"),
        ([[8, 0], []], ValueError, r"'runs' must be at least 1 \(got 0\)"),
        ([[], [-4]], ValueError, r"'runs' must be at least 1 \(got -4\)"),
        (8, TypeError, r"'runs' must hold a list of sizes per level \(got 8\)"),
        ([8, 4], TypeError, r"must hold a list of sizes per level \(got \[8, 4\]\)"),
        ("84", TypeError, r"must hold a list of sizes per level \(got '84'\)"),
        (["8", ""], TypeError, "must hold a list of sizes per level"),
        (None, TypeError, r"must hold a list of sizes per level \(got None\)"),
        ([[8.0], []], TypeError, r"'runs' must hold integers \(got 8.0\)"),
        ([[True], []], TypeError, r"'runs' must hold integers \(got True\)"),
        ([[], [2**40]], ValueError, rf"'runs' must be at most {2**31} \(got {2**40}"),
    ],
)
def test_bad_runs(runs, error, message):
    for make in (TreeConfig, BallTree):
        with pytest.raises(error, match=message):
            make([8, 8], [2], runs=runs)


def test_runs_of_a_perfect_tree_are_powers_of_two():
    with pytest.raises(ValueError, match=r"powers of two in 'runs' \(got 12\)"):
        TreeConfig([8, 8], [2], layout="perfect", runs=[[4], [12]])


def test_runs_of_the_deepest_tree():
    # Internally, a run is requested like one more level.
    TreeConfig([8] * 16, 1, runs=[[]] * 16)
    config = TreeConfig([8] * 15, 1, runs=[[]] * 14 + [[3]])
    assert_equals_oracle(build_tree(random_pos(50), None, config).runs, [50], config)
    with pytest.raises(ValueError, match="a tree with runs has at most 15 levels"):
        build_tree(random_pos(50), None, TreeConfig([8] * 16, 1, runs=[[3]] * 16))


def test_text_of_runs():
    plain = TreeConfig([8, 4], [2])
    assert TreeConfig([8, 4], [2], runs=[[], []]) == plain
    assert TreeConfig([8, 4], [2], runs=[]) == plain
    assert str(TreeConfig([8, 4], [2], runs=[[], []])) == str(plain)
    assert "runs" not in str(plain)
    config = TreeConfig([8, 4], [2], runs=[[16, 2, 16], []])
    assert config.runs == ((2, 16), ())
    assert str(config) == f"{plain} runs=2,16|"
    assert config != plain
    assert config.numbers != plain.numbers
    assert [config.runs_of(l) for l in range(2)] == [(2, 16), ()]
    assert [plain.runs_of(l) for l in range(2)] == [(), ()]


def test_numbers_tell_configurations_apart():
    configs = [
        *(TreeConfig(8), TreeConfig(16), TreeConfig(8, [2]), TreeConfig(8, [4])),
        *(TreeConfig([8, 2], 3), TreeConfig([8, 2], 2), TreeConfig([2, 8], 2)),
        *(TreeConfig(8, rotate=angle) for angle in (0.0, -45.0, 30.000001, 30.000002)),
        TreeConfig(8, layout="perfect"),
        *(TreeConfig(8, 2 * [2], runs=runs) for runs in ([[2], [], []], [[], [2], []])),
        TreeConfig(8, [2, 2], runs=[[2, 4], [], [1]]),
    ]
    numbers = [config.numbers for config in configs]
    assert len({*numbers}) == len(configs)
    # The numbers are stored as int64.
    assert all(abs(number) < 2**63 for of_one in numbers for number in of_one)


def test_a_tree_without_the_runs_is_refused():
    pos, config = random_pos(30), TreeConfig([8, 4], [2], runs=[[2], []])
    tree = build_tree(pos, None, TreeConfig([8, 4], [2]))
    with pytest.raises(ValueError, match=r"needed is 'balls=8,4 .* runs=2\|'"):
        tree.validate(30, config)
    with pytest.raises(ValueError, match=r"needed is 'balls=8,4 .* runs=2\|'"):
        Tree.from_data(BallTree([8, 4], [2])(Data(pos=pos)), config)
    data = BallTree([8, 4], [2], runs=[[2], []])(Data(pos=pos))
    with pytest.raises(ValueError, match=r"built for 'balls=8,4 .* runs=2\|'"):
        Tree.from_data(data, tree.config)
    del data.run_len_0_2
    with pytest.raises(ValueError, match=r"the tree has no 'run_len_0_2'.*'BallTree'"):
        Tree.from_data(data, config)


@pytest.mark.parametrize("sizes", [ALL_SIZES, MIXED, [0], [1], []], ids=len)
@pytest.mark.parametrize(("layout", "ball_sizes", "strides"), LAYOUTS)
def test_group_lengths_are_those_of_the_native_tables(
    layout, ball_sizes, strides, sizes
):
    config = TreeConfig(ball_sizes, strides, 0.0, layout)
    tree = build_tree(random_pos(sum(sizes)), offsets(sizes), config)
    for l, (stride, expected) in enumerate(zip(strides, tree.group_len, strict=True)):
        actual = group_lengths(tree.level, l, stride, expected.numel())
        assert actual.dtype == torch.int64
        assert torch.equal(actual, expected)
        # In the form in which data stores them.
        actual = group_lengths(tree.level.int(), l, stride, expected.numel())
        assert torch.equal(actual.long(), expected)


@given(cases(), st.integers(0, 50), st.integers(1, 3))
def test_group_lengths_of_padded_trees(case, nodes, clouds):
    sizes, config = case
    tree = build_tree(random_pos(sum(sizes)), offsets(sizes), config)
    tree = tree.pad(sum(sizes) + nodes, len(sizes) + clouds)
    for l, (stride, expected) in enumerate(zip(config.strides, tree.group_len)):
        actual = group_lengths(tree.level, l, stride, expected.numel())
        assert torch.equal(actual, expected)
