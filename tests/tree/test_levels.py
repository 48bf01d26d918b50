"""The levels that a tree gives to layers, compared with plain loops."""

import dataclasses
import io
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree
from trees import LAYOUTS, MIXED, offsets, random_pos

from torch_geometric_erwin import Level, Tree, TreeConfig, ball_tree
from torch_geometric_erwin.nn import ErwinBlock
from torch_geometric_erwin.tree.builder import build_tree
from torch_geometric_erwin.tree.levels import levels_of

each_layout = pytest.mark.parametrize(("layout", "ball_sizes", "strides"), LAYOUTS)
BATCHES = [MIXED, [0], [1], [], [0, 30]]


def tree_of(layout, ball_sizes, strides, sizes, rotate=45.0):
    pos = random_pos(sum(sizes), dtype=torch.float64)
    config = TreeConfig(ball_sizes, strides, rotate, layout)
    return pos, build_tree(pos, offsets(sizes), config)


@pytest.mark.parametrize("sizes", BATCHES, ids=str)
@each_layout
def test_nodes_to_rows_and_back(layout, ball_sizes, strides, sizes):
    _, tree = tree_of(layout, ball_sizes, strides, sizes)
    n = sum(sizes)
    start = offsets(sizes)[:-1].repeat_interleave(tree.level[:, 0])
    nodes = (tree.perm + start).tolist()  # the node of every row
    for x in (torch.arange(n), random_pos(n, 5), random_pos(n, 6).view(n, 2, 3) > 0):
        rows = tree.to_rows(x)
        assert rows.dtype == x.dtype
        assert rows.shape == (tree.num_rows(0), *x.shape[1:])
        assert torch.equal(rows, x[nodes])
        assert torch.equal(tree.to_nodes(rows), x)
    # The value of a node is that of its first row.
    first = tree.to_nodes(torch.arange(tree.num_rows(0)))
    assert first.tolist() == [nodes.index(node) for node in range(n)]


@each_layout
def test_gradients_of_rows_and_nodes(layout, ball_sizes, strides):
    _, tree = tree_of(layout, ball_sizes, strides, MIXED)
    n, rows = sum(MIXED), tree.num_rows(0)
    nodes, first = tree.global_perm(), tree.to_nodes(torch.arange(rows))
    x = random_pos(n, 2).requires_grad_()
    weight = random_pos(rows, 2, seed=1)
    (grad,) = torch.autograd.grad((tree.to_rows(x) * weight).sum(), x)
    expected = torch.zeros(n, 2).index_add(0, nodes, weight)
    torch.testing.assert_close(grad, expected)
    y, weight = random_pos(rows, 2).requires_grad_(), random_pos(n, 2, seed=1)
    (grad,) = torch.autograd.grad((tree.to_nodes(y) * weight).sum(), y)
    assert torch.equal(grad, torch.zeros(rows, 2).index_copy(0, first, weight))


def test_other_numbers_of_nodes_are_refused():
    for layout in ("balanced", "perfect"):
        tree = ball_tree(
            random_pos(12), ptr=offsets([5, 7]), ball_sizes=4, layout=layout
        )
        rows = 12 if layout == "balanced" else 16
        message = "'x' must have an entry for each of 12 nodes"
        for bad in (torch.zeros(11), torch.zeros(16, 3), torch.zeros(())):
            with pytest.raises(ValueError, match=message):
                tree.to_rows(bad)
        message = f"'rows' must have an entry for each of {rows} rows"
        for bad in (torch.zeros(11), torch.zeros(17, 3), torch.zeros(())):
            with pytest.raises(ValueError, match=message):
                tree.to_nodes(bad)
        message = "'pos' must have a row for each of the tree's 12 nodes"
        for bad in (torch.zeros(11, 3), torch.zeros(16, 3), torch.zeros(12)):
            with pytest.raises(ValueError, match=message):
                tree.levels(bad)


def test_other_devices_and_dtypes_are_refused():
    pos = random_pos(12)
    tree = ball_tree(pos, ball_sizes=4, strides=[2])
    # PyTorch would accept an index tensor without values and return arbitrary memory.
    for elsewhere, x, on in (
        (tree, pos.to("meta"), "cpu"),
        (tree.to("meta"), pos, "m"),
    ):
        for use in (elsewhere.to_rows, elsewhere.to_nodes, elsewhere.levels):
            with pytest.raises(ValueError, match=f"'tree' is on {on}"):
                use(x)
    edge_index = torch.zeros(2, 3).long()
    with pytest.raises(ValueError, match="'edge_index' is on meta, 'pos' is on cpu"):
        tree.levels(pos, edge_index.to("meta"))
    with pytest.raises(TypeError, match="'pos' must be floating-point"):
        tree.levels(pos.long())


@pytest.mark.parametrize("sizes", BATCHES, ids=str)
@each_layout
def test_offsets_and_clouds_of_rows_agree(layout, ball_sizes, strides, sizes):
    pos, tree = tree_of(layout, ball_sizes, strides, sizes)
    levels = tree.levels(pos)
    assert len(levels) == len(ball_sizes)
    for l, level in enumerate(levels):
        ends = np.cumsum([0, *tree.level[:, l].tolist()]).tolist()
        assert tree.ptr(l).tolist() == level.ptr.tolist() == ends
        clouds = [i for i, (a, b) in enumerate(pairwise(ends)) for _ in range(a, b)]
        assert tree.batch(l).tolist() == level.batch.tolist() == clouds
        assert level.num_clouds == len(sizes)
        assert level.num_rows == tree.num_rows(l) == ends[-1]
    assert torch.equal(tree.ptr(), tree.ptr(0))
    if layout == "balanced":
        assert torch.equal(tree.ptr(), tree.node_ptr)


def mean(rows):
    """The mean of a list of rows, rounded once per coordinate."""
    return [math.fsum(axis) / len(rows) for axis in zip(*rows)]


def minus(a, b):
    return [x - y for x, y in zip(a, b)]


def offsets_by_loops(pos, ball_len, perm):
    """For every row, its position minus the mean of its ball."""
    out, start = [None] * len(pos), 0
    for length in ball_len:
        rows = perm[start : start + length]
        centre = mean([pos[row] for row in rows])
        for row in rows:
            out[row] = minus(pos[row], centre)
        start += length
    return out


def means_by_loops(pos, group_len, stride):
    """Coarse positions, and those of the children relative to them."""
    coarse, children, start = [], [], 0
    for length in group_len:
        rows = pos[start : start + length]
        coarse.append(mean(rows))
        slots = [minus(row, coarse[-1]) for row in rows]
        children.append(slots + [[0.0] * len(rows[0])] * (stride - length))
        start += length
    return coarse, children


def assert_near(actual, expected):
    assert actual.dtype == torch.float64
    expected = np.array(expected, dtype=np.float64).reshape(actual.shape)
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sizes", BATCHES, ids=str)
@pytest.mark.parametrize("rotate", [0.0, 45.0])
@each_layout
def test_geometry_of_levels(layout, ball_sizes, strides, rotate, sizes):
    pos, tree = tree_of(layout, ball_sizes, strides, sizes, rotate)
    start = np.repeat(offsets(sizes)[:-1].numpy(), tree.level[:, 0].numpy())
    expected = pos.numpy()[tree.perm.numpy() + start].tolist()
    for l, level in enumerate(tree.levels(pos)):
        assert torch.equal(level.ball_len, tree.ball_len[l])
        assert level.ball_size == ball_sizes[l]
        assert level.perm is level.real is level.edge_index is None
        if l == 0:
            assert level.group_len is level.children is None
        else:
            groups = tree.group_len[l - 1]
            assert torch.equal(level.group_len, groups)
            expected, children = means_by_loops(
                expected, groups.tolist(), strides[l - 1]
            )
            assert level.children.shape == (level.num_rows, strides[l - 1], 3)
            assert_near(level.children, children)
        assert_near(level.pos, expected)
        balls, rows = level.ball_len.tolist(), [*range(level.num_rows)]
        assert_near(level.offset, offsets_by_loops(expected, balls, rows))
        if not rotate:
            assert level.perm_rot is None
            assert level.rotated() is level
            continue
        # For rotated balls, places are counted from the first row of the cloud.
        ends = np.cumsum([0, *tree.level[:, l].tolist()]).tolist()
        local = tree.perm_rot[l].tolist()
        perm = [a + row for a, b in pairwise(ends) for row in local[a:b]]
        assert level.perm_rot.tolist() == perm
        turned = offsets_by_loops(expected, balls, perm)
        assert_near(level.offset_rot, turned)
        rotated = level.rotated()
        assert_near(rotated.offset, turned)
        assert rotated.perm.tolist() == perm
        assert rotated.pos is level.pos
        assert rotated.ball_len is level.ball_len


@pytest.mark.parametrize("sizes", [[9, 0, 14], [1], [3, 0, 0, 5]], ids=str)
@pytest.mark.parametrize(
    ("layout", "ball_sizes", "strides"),
    [
        ("balanced", (4, 4, 2), (2, 3)),
        ("balanced", (5, 3), (3,)),
        ("perfect", (4, 4, 2), (2, 2)),
    ],
)
def test_gradients_of_positions(layout, ball_sizes, strides, sizes):
    pos, tree = tree_of(layout, ball_sizes, strides, sizes)

    def geometry(pos):
        levels = tree.levels(pos)
        fields = ("pos", "offset", "offset_rot", "children")
        found = [getattr(level, name) for level in levels for name in fields]
        return tuple(t for t in found if t is not None)

    assert not any(t.requires_grad for t in geometry(pos))
    pos.requires_grad_()
    assert all(t.requires_grad for t in geometry(pos))
    torch.autograd.gradcheck(geometry, (pos,))
    # Means have equal weights for all children, so everything is linear in pos.
    shifted = geometry(pos + 1.0)
    fields = ("pos", "offset", "offset_rot")
    names = [n for _ in ball_sizes for n in (*fields, "children")]
    names.remove("children")  # of level 0
    for name, a, b in zip(names, geometry(pos), shifted, strict=True):
        if name == "pos":
            assert_near(b - a, np.ones(a.shape))
        elif name != "children":
            assert_near(b - a, np.zeros(a.shape))


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
def test_edges_are_those_of_rows(layout):
    sizes = [9, 0, 14]
    pos, tree = tree_of(layout, (4, 4), (2,), sizes)
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(23, (2, 40), generator=generator)
    fine, coarse = tree.levels(pos, edge_index)
    assert coarse.edge_index is None
    assert torch.equal(tree.to_rows(torch.arange(23))[fine.edge_index], edge_index)
    nodes = tree.global_perm().tolist()
    expected = [[nodes.index(node) for node in row] for row in edge_index.tolist()]
    assert fine.edge_index.tolist() == expected


def test_levels_of_a_padded_tree():
    sizes, config = [9, 0, 14], TreeConfig((4, 3), (2,), runs=[[2], [8]])
    pos = random_pos(30, dtype=torch.float64)
    tree = build_tree(pos[:23], offsets(sizes), config)
    for level, real in zip(tree.pad(30, 5).levels(pos), tree.levels(pos[:23])):
        rows = real.num_rows
        assert level.real.tolist() == [i < rows for i in range(level.num_rows)]
        assert level.num_clouds == 5
        assert level.ptr[:4].tolist() == real.ptr.tolist()
        assert level.ptr.tolist()[4:] == [level.num_rows] * 2
        for name in ("pos", "offset", "offset_rot", "perm_rot", "group_len"):
            a, b = getattr(level, name), getattr(real, name)
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a[:rows], b, rtol=0, atol=1e-12)
        for size, lengths in real.runs.items():
            assert torch.equal(level.runs[size][: len(lengths)], lengths)


def test_a_level_is_a_nest_of_tensors():
    pos = random_pos(20)
    config = TreeConfig((8, 4), (2,), runs=[[2, 4], []])
    edge_index = torch.zeros(2, 3).long()
    for main in build_tree(pos, None, config).levels(pos, edge_index):
        for level in (main, main.rotated()):
            leaves, spec = pytree.tree_flatten(level)
            again = pytree.tree_unflatten(leaves, spec)
            assert isinstance(again, Level)
            for f in dataclasses.fields(Level):
                a, b = getattr(again, f.name), getattr(level, f.name)
                if f.name == "runs":
                    assert [*a] == [*b]
                    assert all(map(torch.equal, a.values(), b.values()))
                else:
                    assert a is b or a == b
            spec = pytree.treespec_loads(pytree.treespec_dumps(spec))
            assert spec.unflatten(leaves).ball_size == level.ball_size


@pytest.mark.parametrize("rotated", [False, True])
def test_rows_to_balls_and_back(rotated):
    pos, tree = tree_of("balanced", (8, 5), (2,), [9, 0, 14])
    for level in tree.levels(pos):
        if rotated:
            level = level.rotated()
        x = random_pos(level.num_rows, 2).view(-1, 2, 1)
        balls = level.to_balls(x)
        shape = len(level.ball_len), level.ball_size
        assert balls.shape == (*shape, 2, 1)
        rows = level.perm.tolist() if rotated else [*range(level.num_rows)]
        expected, start = np.zeros((*shape, 2, 1), np.float32), 0
        for ball, length in enumerate(level.ball_len.tolist()):
            for slot in range(length):
                expected[ball, slot] = x[rows[start + slot]].numpy()
                assert bool(level.ball_mask[ball, slot])
            assert not level.ball_mask[ball, length:].any()
            start += length
        assert np.array_equal(balls.numpy(), expected)
        assert torch.equal(level.from_balls(balls), x)


def test_a_level_of_its_own_is_that_of_a_tree():
    pos, tree = tree_of("balanced", (4,), (), [9, 0, 14])
    (expected,) = tree.levels(pos)
    level = Level.build(
        expected.pos,
        tree.ball_len[0],
        ball_size=4,
        ptr=tree.ptr(),
        perm_rot=expected.perm_rot,
    )
    for name in ("pos", "ptr", "ball_len", "offset", "offset_rot", "perm_rot"):
        assert torch.equal(getattr(level, name), getattr(expected, name))
    for name in ("perm", "group_len", "children", "real", "edge_index"):
        assert getattr(level, name) is None
    assert Level.build(pos, tree.ball_len[0], ball_size=4).ptr.tolist() == [0, 23]


BAD_LEVELS = {
    "positions of one dimension": (
        {"pos": torch.zeros(5)},
        ValueError,
        r"'pos' must have shape \[N, D\] \(got \[5\]\)",
    ),
    "other rows": (
        {"ball_len": torch.tensor([4, 2])},
        ValueError,
        "'ball_len'",
    ),
    "a larger ball": ({"ball_len": torch.tensor([5])}, ValueError, "'ball_len'"),
    "no size": ({"ball_size": 0}, ValueError, "'ball_size' must be at least 1"),
    "other offsets": (
        {"ptr": torch.tensor([0, 4])},
        ValueError,
        "'ptr' must end at the number of rows 5",
    ),
    "no permutation": (
        {"perm_rot": torch.tensor([0, 1, 2, 3, 3])},
        ValueError,
        "'perm_rot'",
    ),
    "int32 lengths": (
        {"ball_len": torch.tensor([4, 1]).int()},
        ValueError,
        "'ball_len' must be int64",
    ),
    "integer positions": ({"pos": torch.zeros(5, 3).int()}, TypeError, "'pos'"),
}


@pytest.mark.parametrize("change, error, message", BAD_LEVELS.values(), ids=BAD_LEVELS)
def test_bad_levels(change, error, message):
    given = {"pos": torch.rand(5, 3), "ball_len": torch.tensor([4, 1]), "ball_size": 4}
    Level.build(**given)
    with pytest.raises(error, match=message):
        Level.build(**{**given, **change})


def test_parts_of_a_tree_by_name():
    # The second positional field is the offsets of the clouds among nodes.
    names = [f.name for f in dataclasses.fields(Tree)]
    assert names[:3] == ["perm", "node_ptr", "level"]


EDGES = {
    "another dtype": (lambda e: e.int(), TypeError, "must be int64"),
    "another shape": (lambda e: e.t(), ValueError, r"shape \[2, E\] \(got \[3, 2\]"),
    "no tensor": (lambda e: e.tolist(), TypeError, "must be a tensor"),
    "too large": (lambda e: e + 20, ValueError, r"one of 20 nodes \(got 2\d\)"),
    "negative": (lambda e: e - 1, ValueError, r"one of 20 nodes \(got -1\)"),
    "released": (lambda e: released(e), ValueError, "memory of 'edge_index' has 0"),
}


def released(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize(("change", "error", "message"), EDGES.values(), ids=[*EDGES])
def test_bad_edges(change, error, message):
    pos = torch.rand(20, 3)

    def edges():
        return change(torch.tensor([[0, 1, 2], [3, 4, 5]]))

    with pytest.raises(error, match=message):
        ball_tree(pos, ball_sizes=[8]).levels(pos, edges())
    with pytest.raises(error, match=message):
        Level.build(pos, torch.tensor([8, 8, 4]), ball_size=8, edge_index=edges())


def test_a_level_is_exported_and_saved():
    pos = torch.rand(20, 3)
    (level,) = ball_tree(pos, ball_sizes=[8], runs=[[4]]).levels(pos)
    block = make_block()
    x = torch.rand(20, 8)
    program = torch.export.export(block, (x, level))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    torch.testing.assert_close(loaded(x, level), block(x, level))
    buffer = io.BytesIO()
    torch.save(level, buffer)
    buffer.seek(0)
    same = torch.load(buffer)
    assert torch.equal(same.runs[4], level.runs[4])
    assert torch.equal(block(x, same), block(x, level))


def make_block():
    torch.manual_seed(0)
    return ErwinBlock(8, heads=2, ball_size=8)


def test_balls_of_another_shape_are_refused():
    level = Level.build(torch.rand(4, 1), torch.tensor([3, 1]), ball_size=3)
    for rows in (2, 6):
        with pytest.raises(ValueError, match=r"'x' must have shape \[4, \.\.\.\]"):
            level.to_balls(torch.rand(rows, 2))
    for shape in ((2, 1, 5), (2,), (3, 3, 5)):
        with pytest.raises(ValueError, match=r"'y' must have shape \[2, 3, \.\.\.\]"):
            level.from_balls(torch.rand(shape))


def test_balls_that_cross_clouds_are_refused():
    pos, ptr = torch.rand(6, 3), torch.tensor([0, 3, 6])
    with pytest.raises(ValueError, match="must end a ball where clouds end, at row 3"):
        Level.build(pos, torch.tensor([4, 2]), ball_size=4, ptr=ptr)
    perm = torch.tensor([0, 1, 3, 2, 4, 5])
    with pytest.raises(ValueError, match=r"keep rows in their cloud \(got row 3 at"):
        Level.build(pos, torch.tensor([3, 3]), ball_size=4, ptr=ptr, perm_rot=perm)


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
def test_levels_compile(layout):
    def positions(tree, pos):
        return tree.levels(pos)[1].pos, tree.to_rows(pos)

    # The backend does not generate code, which would take longest and tests nothing
    # here.
    compiled = torch.compile(
        positions, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for n in (30, 21, 45):
        pos = torch.rand(n, 3)
        tree = ball_tree(pos, ball_sizes=8, strides=[2], layout=layout)
        for one, other in zip(compiled(tree, pos), positions(tree, pos), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("rotated", [0, 1, None])
def test_some_of_the_levels(layout, rotated):
    pos = torch.rand(50, 3, dtype=torch.float64)
    ptr = torch.tensor([0, 20, 20, 50])
    tree = ball_tree(pos, ptr=ptr, ball_sizes=8, strides=[2, 2], layout=layout)
    whole, order = tree.order(), tree.order(50, levels=rotated)
    assert torch.equal(order.perm, whole.perm)
    assert len(order.perm_rot) == (3 if rotated is None else rotated)
    assert all(map(torch.equal, order.perm_rot, whole.perm_rot))
    expected = levels_of(tree, whole, pos)
    for count in (1, 2, 3):
        levels = levels_of(tree, whole, pos, levels=count)
        assert len(levels) == count
        for own, right in zip(levels, expected):
            for a, b in zip(pytree.tree_leaves(own), pytree.tree_leaves(right)):
                assert (a is None and b is None) or torch.equal(a, b)
    (flat,) = levels_of(tree, tree.order(levels=0), pos, levels=1)
    assert flat.perm_rot is None
    assert flat.rotated() is flat
