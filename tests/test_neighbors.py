from contextlib import contextmanager
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra import numpy as hnp
from instruction_sets import computed_with
from oracles import neighbors as oracle
from scipy.spatial import cKDTree

from torch_geometric_erwin import ball_tree
from torch_geometric_erwin.neighbors import knn_graph, radius_graph

LEAF = 16  # points at which the search stops
SIZES = [0, 1, 2, 3, LEAF - 1, LEAF, LEAF + 1, 2 * LEAF, 2 * LEAF + 1, 100]


def offsets(sizes):
    return torch.tensor([0, *np.cumsum(sizes)])


def points(kind, size, dim, dtype):
    generator = torch.Generator().manual_seed(size + dim)
    pos = torch.randn(size, dim, dtype=dtype, generator=generator)
    if kind == "grid":  # ties, coincident points, both zeros
        pos = pos.round()
        assert bool((pos.eq(0) & pos.signbit()).any())
    elif kind == "equal":
        pos = pos[:1].expand(size, dim)
    elif kind == "copies":
        pos = pos[: size // 3 + 1].repeat(3, 1)[:size]
    elif kind == "clustered":
        pos = pos[: size // 20 + 1].repeat(20, 1)[:size] + 1e-3 * pos
    elif kind == "far":  # far from the origin, rounding leaves few distinct distances
        pos = 1000.0 + 1e-3 * pos
    return pos


def assert_knn(pos, ptr, k, loop, **kwargs):
    expected = oracle.edges(oracle.knn(pos.numpy(), ptr.tolist(), k, loop))
    actual = knn_graph(pos, k, ptr=ptr, loop=loop, **kwargs)
    assert np.array_equal(actual.numpy(), expected)


def assert_radius(pos, ptr, r, cap, loop, **kwargs):
    expected = oracle.edges(oracle.radius(pos.numpy(), ptr.tolist(), r, cap, loop))
    actual = radius_graph(pos, r, ptr=ptr, loop=loop, max_num_neighbors=cap, **kwargs)
    assert np.array_equal(actual.numpy(), expected)


@contextmanager
def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(
    "kind", ["normal", "grid", "equal", "copies", "clustered", "far"]
)
def test_batch_against_brute_force(kind, dim, dtype, loop):
    ptr = offsets(SIZES)
    pos = points(kind, int(ptr[-1]), dim, dtype)
    for k in (1, 6, 16, 40):
        assert_knn(pos, ptr, k, loop)
    for r, cap in [(0.0, None), (0.002, None), (0.8, None), (2.0, None), (2.0, 5)]:
        assert_radius(pos, ptr, r, cap, loop)


@pytest.mark.parametrize("size", SIZES)
def test_one_cloud_without_ptr(size):
    pos, ptr = torch.rand(size, 3), torch.tensor([0, size])
    assert torch.equal(knn_graph(pos, 6), knn_graph(pos, 6, ptr=ptr))
    assert torch.equal(radius_graph(pos, 0.3), radius_graph(pos, 0.3, ptr=ptr))


@pytest.mark.parametrize("ptr", [[0], [0, 0], [0, 0, 0]])
def test_no_points(ptr):
    pos, ptr = torch.empty(0, 3), torch.tensor(ptr)
    assert knn_graph(pos, 3, ptr=ptr).shape == (2, 0)
    assert radius_graph(pos, 1.0, ptr=ptr).shape == (2, 0)


def test_large_cloud_against_brute_force():
    pos, ptr = torch.rand(700, 3), torch.tensor([0, 700])
    assert_knn(pos, ptr, 16, False)
    assert_knn(pos, ptr, 200, False)  # more than a few leaves each
    assert_radius(pos, ptr, 0.2, None, False)
    assert_radius(pos, ptr, 0.5, 32, False)


# Groups of 16 leaves share a walk through the tree.
@pytest.mark.parametrize("size", [16 * LEAF + i for i in (-1, 0, 1, LEAF)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["normal", "grid"])
def test_cloud_of_about_one_group(kind, dtype, size):
    ptr = offsets([size, 5, size])
    pos = points(kind, 2 * size + 5, 3, dtype)
    # Numbers near the widths of vectors and lists, and all points.
    for k in (2, 3, 7, 8, 9, 17, 31, 32, 33, 65, size - 1):
        assert_knn(pos, ptr, k, False)
    for r, cap in [(0.3, None), (0.7, 8), (100.0, None), (100.0, 33)]:
        assert_radius(pos, ptr, r, cap, False)


# With a cap, the search sorts all points of few leaves, or searches the nearest in
# many.
@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "dim"), [("normal", 1), ("normal", 5), ("grid", 3), ("copies", 3)]
)
def test_every_cap(kind, dim, dtype, loop):
    sizes = [LEAF * 20 + 5, 1, 0, 2, LEAF * 3]  # more leaves than a group
    ptr = offsets(sizes)
    pos = points(kind, int(ptr[-1]), dim, dtype)
    for r in (0.0, 0.4, 1.0, 100.0):
        within = oracle.radius(pos.numpy(), ptr.tolist(), r, None, loop)
        for cap in (1, 2, 7, 8, 9, 20, 21, 31, 64, sizes[0] - 2, sizes[0] - 1, 1000):
            expected = oracle.edges([near[:cap] for near in within])
            actual = radius_graph(pos, r, ptr=ptr, loop=loop, max_num_neighbors=cap)
            assert np.array_equal(actual.numpy(), expected), (r, cap)


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("r", [0.05, 0.15, 100.0, float("inf")])
def test_a_cap_keeps_the_nearest_of_an_uncapped_search(r, number):
    # Numbers near the cap and far above it, with ties, in more leaves than a list
    # holds.
    pos = (torch.rand(20_000, 3, generator=torch.Generator()) * 64).round() / 64
    cap = 9
    with threads(number):
        capped = radius_graph(pos, r, max_num_neighbors=cap)
        if r >= 100:
            assert torch.equal(capped, knn_graph(pos, cap))
            return
        source, target = radius_graph(pos, r)
    degree = torch.bincount(target, minlength=len(pos))
    assert bool((degree < cap).any()) == (r == 0.05)
    place = torch.arange(len(target)) - (degree.cumsum(0) - degree)[target]
    kept = place < cap
    assert torch.equal(capped, torch.stack([source[kept], target[kept]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_coincident_points_than_a_list_of_leaves_takes(dtype):
    # Of points at the same distance, those with the lowest indices come first.
    size, k = 20_000, 5
    edge_index = knn_graph(torch.ones(size, 2, dtype=dtype), k)
    expected = torch.arange(k).repeat(size, 1)
    expected[:k] = torch.arange(k) + (torch.arange(k) >= torch.arange(k)[:, None]).int()
    assert torch.equal(edge_index[0].view(size, k), expected)


def test_flushed_denormals_keep_the_order():
    pos, ptr = points("copies", 300, 3, torch.float32), torch.tensor([0, 300])
    try:
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor does not flush denormals")
        edge_index = knn_graph(pos, 12, ptr=ptr), radius_graph(pos, 0.8, ptr=ptr)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(edge_index[0], knn_graph(pos, 12, ptr=ptr))
    assert torch.equal(edge_index[1], radius_graph(pos, 0.8, ptr=ptr))


def searches(positions, ptr):
    graphs = []
    for pos in positions:
        graphs += [knn_graph(pos, k, ptr=ptr) for k in (1, 6, 16, 100)]
        graphs += [radius_graph(pos, r, ptr=ptr) for r in (0.3, 1.0)]
        graphs += [radius_graph(pos, 1.0, ptr=ptr, max_num_neighbors=7)]
    return graphs


# This process uses the best one; a level that the processor lacks changes nothing.
@pytest.mark.parametrize("level", ["default", "avx2"])
def test_same_bits_with_every_instruction_set(level, tmp_path):
    ptr = offsets([*SIZES, 600])
    positions = [
        points(kind, int(ptr[-1]), dim, dtype)
        for kind in ("normal", "grid")
        for dim in (1, 2, 3, 5)
        for dtype in (torch.float32, torch.float64)
    ]
    args = (positions, ptr)
    found = computed_with(level, tmp_path / "args", "test_neighbors", "searches", *args)
    for actual, expected in zip(found, searches(*args), strict=True):
        assert torch.equal(actual, expected)


def test_k_beyond_the_cloud_takes_all():
    pos, ptr = torch.rand(50, 2), torch.tensor([0, 7, 7, 8, 50])
    for k in (42, 43, 10**12):
        assert_knn(pos, ptr, k, False)
        assert_knn(pos, ptr, k, True)


def test_infinite_radius_takes_all():
    edge_index = radius_graph(torch.rand(30, 3), float("inf"), loop=True)
    assert edge_index.size(1) == 30 * 30


@pytest.mark.parametrize(
    ("dtype", "dim", "extent"),
    # The root of the largest number over dim is 1.8447e19 (float32, 1-D), 1.0650e19
    # (float32, 3-D), 1.3408e154 (float64, 1-D).
    [
        (torch.float32, 1, 1.844e19),
        (torch.float32, 3, 1.065e19 - 1e15),
        (torch.float64, 1, 1.34e154),
    ],
)
def test_extent_whose_square_overflows(dtype, dim, extent):
    sides = torch.tensor([0.0, -0.5, 0.5], dtype=dtype)[:, None].expand(3, dim)
    pos = sides * extent
    assert knn_graph(pos, 1).tolist() == [[1, 0, 0], [0, 1, 2]]
    assert radius_graph(pos, 0.6 * dim**0.5 * extent).size(1) == 4
    for far in (sides * (1.001 * extent), sides * 2 * torch.finfo(dtype).max):
        for graph in (knn_graph, radius_graph):
            with pytest.raises(ValueError, match=rf"extent of .* \(times {dim} axes\)"):
                graph(far.nan_to_num(), 1)


def test_radius_whose_square_overflows_takes_all():
    assert radius_graph(torch.rand(30, 3), 1e30).size(1) == 30 * 29


@pytest.mark.parametrize("kind", [int, np.int64, np.int32, np.uint8])
def test_numpy_integers(kind):
    pos = torch.rand(40, 3)
    assert torch.equal(knn_graph(pos, kind(5)), knn_graph(pos, 5))
    capped = radius_graph(pos, kind(1), max_num_neighbors=kind(3))
    assert torch.equal(capped, radius_graph(pos, 1.0, max_num_neighbors=3))


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16])
def test_numpy_floats(kind):
    pos = torch.rand(40, 3)
    assert torch.equal(radius_graph(pos, kind(0.5)), radius_graph(pos, 0.5))


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_against_scipy(dim):
    rng = np.random.default_rng(dim)
    pos = rng.random((2000, dim))  # in general position: no two distances are equal
    tree = cKDTree(pos)
    edge_index = knn_graph(torch.from_numpy(pos), 9)
    nearest = tree.query(pos, 10)[1]
    assert np.array_equal(nearest[:, 0], np.arange(2000))
    assert np.array_equal(edge_index[0].view(2000, 9).numpy(), nearest[:, 1:])
    assert np.array_equal(edge_index[1].numpy(), np.arange(2000).repeat(9))

    r = 0.5 * (0.02 ** (1 / dim))
    pairs = tree.query_pairs(r, output_type="ndarray")
    expected = {tuple(p) for p in np.concatenate([pairs, pairs[:, ::-1]]).tolist()}
    edges = radius_graph(torch.from_numpy(pos), r).T.tolist()
    assert len(edges) == len(expected) > 2000
    assert {tuple(edge) for edge in edges} == expected


@pytest.mark.parametrize(
    ("ball_sizes", "strides"),
    [(1, []), (7, []), (100, [3]), (64, [2, 2]), (256, [4, 2, 2]), (10, [5, 7])],
)
def test_any_balanced_tree_gives_the_same(ball_sizes, strides):
    ptr = offsets(SIZES)
    pos = torch.rand(int(ptr[-1]), 3)
    tree = ball_tree(
        pos, ptr=ptr, ball_sizes=[ball_sizes] * (len(strides) + 1), strides=strides
    )
    assert_knn(pos, ptr, 9, False, tree=tree)
    assert_radius(pos, ptr, 0.4, None, False, tree=tree)
    # The tree contains the offsets of the clouds.
    assert torch.equal(knn_graph(pos, 9, tree=tree), knn_graph(pos, 9, ptr=ptr))
    assert torch.equal(
        radius_graph(pos, 0.4, tree=tree), radius_graph(pos, 0.4, ptr=ptr)
    )


def test_tree_of_older_positions_gives_the_same():
    # A tree only changes the order in which points are searched.
    ptr = offsets(SIZES)
    tree = ball_tree(torch.rand(int(ptr[-1]), 3), ptr=ptr, ball_sizes=32)
    pos = torch.rand(int(ptr[-1]), 3)
    assert_knn(pos, ptr, 9, False, tree=tree)
    assert_radius(pos, ptr, 0.4, None, False, tree=tree)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_same_bits_on_every_number_of_threads(number):
    ptr = offsets([*SIZES, 2000])
    pos = (torch.rand(int(ptr[-1]), 3) * 20).round() / 20
    with threads(3):
        expected = knn_graph(pos, 12, ptr=ptr), radius_graph(pos, 0.15, ptr=ptr)
    with threads(number):
        assert torch.equal(knn_graph(pos, 12, ptr=ptr), expected[0])
        assert torch.equal(radius_graph(pos, 0.15, ptr=ptr), expected[1])


def test_flow_swaps_the_rows():
    pos = torch.rand(40, 3)
    for graph, value in [(knn_graph, 5), (radius_graph, 0.4)]:
        edge_index = graph(pos, value)
        swapped = graph(pos, value, flow="target_to_source")
        assert not torch.equal(edge_index, swapped)
        assert torch.equal(edge_index[[1, 0]], swapped)
        assert swapped.is_contiguous()


def test_loop_excludes_the_node_and_not_its_copies():
    pos = torch.zeros(3, 2)
    assert knn_graph(pos, 1).tolist() == [[1, 0, 0], [0, 1, 2]]
    assert knn_graph(pos, 1, loop=True).tolist() == [[0, 0, 0], [0, 1, 2]]
    assert radius_graph(pos, 0.0).tolist() == [[1, 2, 0, 2, 0, 1], [0, 0, 1, 1, 2, 2]]


def test_views_and_half_precision():
    pos = torch.rand(3, 200).T  # not contiguous
    assert torch.equal(knn_graph(pos, 5), knn_graph(pos.contiguous(), 5))
    half = pos.half()
    assert torch.equal(knn_graph(half, 5), knn_graph(half.float(), 5))
    assert torch.equal(radius_graph(half, 0.1), radius_graph(half.float(), 0.1))


def test_positions_that_need_a_gradient():
    pos = torch.rand(20, 3, requires_grad=True)
    assert torch.equal(knn_graph(pos, 3), knn_graph(pos.detach(), 3))


coordinates = st.floats(-4, 4, width=32) | st.integers(-2, 2).map(float)
clouds = st.lists(st.integers(0, 40), min_size=1, max_size=4).flatmap(
    lambda sizes: st.tuples(
        st.just(offsets(sizes)),
        st.integers(1, 4).flatmap(
            lambda dim: hnp.arrays(np.float32, (sum(sizes), dim), elements=coordinates)
        ),
    )
)


@given(clouds, st.integers(1, 50), st.booleans())
def test_no_left_out_point_is_nearer(cloud, k, loop):
    ptr, pos = cloud
    edge_index = knn_graph(torch.from_numpy(pos), k, ptr=ptr, loop=loop)
    for start, stop in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True):
        distances = oracle.squared_distances(pos[start:stop], pos[start:stop])
        for i in range(stop - start):
            sources = edge_index[0, edge_index[1] == start + i].numpy() - start
            others = np.setdiff1d(np.arange(stop - start), [] if loop else [i])
            left_out = np.setdiff1d(others, sources)
            assert len(set(sources.tolist())) == len(sources) == min(k, len(others))
            assert np.isin(sources, others).all()
            if len(left_out) > 0:
                assert distances[i, sources].max() <= distances[i, left_out].min()


@given(clouds, st.floats(0, 3, width=32))
def test_radius_graph_is_symmetric(cloud, r):
    ptr, pos = cloud
    edges = radius_graph(torch.from_numpy(pos), r, ptr=ptr).T.tolist()
    assert {(s, t) for s, t in edges} == {(t, s) for s, t in edges}


@given(clouds, st.integers(1, 20), st.floats(0, 3, width=32))
def test_cloud_alone_equals_cloud_in_a_batch(cloud, k, r):
    ptr, pos = cloud[0], torch.from_numpy(cloud[1])
    for graph, value in [(knn_graph, k), (radius_graph, r)]:
        alone = [
            graph(pos[start:stop], value) + start
            for start, stop in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True)
        ]
        assert torch.equal(graph(pos, value, ptr=ptr), torch.cat(alone, dim=1))


@pytest.mark.parametrize("given_tree", [False, True])
@pytest.mark.parametrize("sizes", [[5, 0, 0, 9], [0, 3], [14], [4, 3, 0], []])
def test_clouds_given_as_pyg_does(sizes, given_tree):
    ptr, pos = offsets(sizes), torch.rand(sum(sizes), 2)
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes).long())
    tree = ball_tree(pos, ptr=ptr, ball_sizes=4) if given_tree else None
    for graph, value in [(knn_graph, 3), (radius_graph, 0.4)]:
        expected = graph(pos, value, ptr=ptr, loop=True, tree=tree)
        assert torch.equal(graph(pos, value, batch, True, tree=tree), expected)
    capped = radius_graph(
        pos, 0.4, None, False, 2, "target_to_source", ptr=ptr, tree=tree
    )
    expected = radius_graph(pos, 0.4, ptr=ptr, max_num_neighbors=2).flip(0)
    assert torch.equal(capped, expected)
    near = knn_graph(pos, 2, None, False, "target_to_source", ptr=ptr, tree=tree)
    assert torch.equal(near, knn_graph(pos, 2, ptr=ptr).flip(0))


def test_a_compiled_search_takes_the_clouds_of_its_tree():
    torch.compiler.reset()
    compiled = torch.compile(knn_graph, fullgraph=True, backend="aot_eager")
    for sizes in ([5, 9, 0], [3, 0, 6]):
        ptr, pos = offsets(sizes), torch.rand(sum(sizes), 2)
        batch = torch.arange(3).repeat_interleave(torch.tensor(sizes))
        tree = ball_tree(pos, ptr=ptr, ball_sizes=4)
        actual = compiled(pos, 2, batch, tree=tree)
        assert torch.equal(actual, knn_graph(pos, 2, ptr=ptr))


POS = torch.zeros(4, 3)
TREE = ball_tree(POS, ball_sizes=4)


@pytest.mark.parametrize(
    ("error", "match", "kwargs"),
    [
        (TypeError, "'pos' must be a tensor", {"pos": [[0.0]]}),
        (ValueError, r"shape \[N, D\] \(got \[4\]\)", {"pos": torch.zeros(4)}),
        (TypeError, "floating-point .*int64", {"pos": torch.zeros(4, 3).long()}),
        (
            ValueError,
            "on the CPU or a CUDA device .*got meta",
            {"pos": torch.zeros(4, 3, device="meta")},
        ),
        (
            ValueError,
            r"row 1 is \[nan\]",
            {"pos": torch.tensor([[0.0], [float("nan")]])},
        ),
        (
            ValueError,
            r"row 0 is \[-inf\]",
            {"pos": torch.tensor([[-float("inf")], [0.0]])},
        ),
        (
            ValueError,
            "entry for each of 4 rows .got 2.; .* given as 'ptr='",
            {"batch": torch.tensor([0, 4])},
        ),
        (
            ValueError,
            "'batch' and 'ptr' say the same",
            {"batch": torch.zeros(4).long(), "ptr": torch.tensor([0, 4])},
        ),
        (
            ValueError,
            r"'batch' or 'ptr' must be of the clouds .*: 1 \(got 2\)",
            {"tree": TREE, "batch": torch.tensor([0, 0, 1, 1])},
        ),
        (TypeError, "'ptr' .*int32", {"ptr": torch.tensor([0, 4]).int()}),
        (ValueError, r"'ptr' .*got \[1, 2\]", {"ptr": torch.tensor([[0, 4]])}),
        (ValueError, r"start at 0 \(got 1\)", {"ptr": torch.tensor([1, 4])}),
        (ValueError, "entry 1 is 3, entry 2 is 2", {"ptr": torch.tensor([0, 3, 2, 4])}),
        (ValueError, r"4 \(got 5\)", {"ptr": torch.tensor([0, 5])}),
        (ValueError, "source_to_target.*'sideways'", {"flow": "sideways"}),
        (TypeError, "'tree' must be a Tree .*Tensor", {"tree": torch.arange(4)}),
        (
            ValueError,
            "layout='balanced' .*'perfect'",
            {"tree": ball_tree(POS, ball_sizes=4, strides=[], layout="perfect")},
        ),
        (
            ValueError,
            "5 entries for 4 nodes",
            {"tree": ball_tree(torch.zeros(5, 3), ball_sizes=4, strides=[])},
        ),
        (
            ValueError,
            r"'batch' or 'ptr' must be of the clouds .*: 1 \(got 2\)",
            {"tree": TREE, "ptr": torch.tensor([0, 0, 4])},
        ),
        (
            ValueError,
            r"'batch' or 'ptr' must be of .*: offsets \[0, 1, 4\] \(got \[0, 3, 4\]\)",
            {
                "tree": ball_tree(POS, ptr=torch.tensor([0, 1, 4]), ball_sizes=4),
                "ptr": torch.tensor([0, 3, 4]),
            },
        ),
        (ValueError, "'tree' is on meta, 'pos' is on cpu", {"tree": TREE.to("meta")}),
        (
            ValueError,
            "'ptr' is on cpu, 'tree' is on meta",
            {"tree": TREE.to("meta"), "ptr": torch.tensor([0, 4])},
        ),
        (
            TypeError,
            "'node_ptr' must be a tensor",
            {"tree": replace(TREE, node_ptr=[0, 4])},
        ),
        (
            ValueError,
            "'level' is a 'list', expected a tensor",
            {"tree": replace(TREE, level=[[4]])},
        ),
    ],
)
@pytest.mark.parametrize("graph", [knn_graph, radius_graph])
def test_bad_input(graph, error, match, kwargs):
    pos = kwargs.get("pos", POS)
    kwargs = {name: value for name, value in kwargs.items() if name != "pos"}
    with pytest.raises(error, match=match):
        graph(pos, 1, **kwargs)


@pytest.mark.parametrize(
    ("error", "match", "k"),
    [
        (ValueError, r"'k' must be at least 1 \(got 0\)", 0),
        (TypeError, r"'k' must be an integer \(got 2.0\)", 2.0),
        (TypeError, r"'k' must be an integer \(got True\)", True),
        (TypeError, r"'k' must be an integer \(got .*2.0\)", np.float64(2.0)),
        (TypeError, r"'k' must be an integer \(got '5'\)", "5"),
    ],
)
def test_bad_k(error, match, k):
    with pytest.raises(error, match=match):
        knn_graph(POS, k)


NOT_NEGATIVE = "'r' must be a number that is not negative"


@pytest.mark.parametrize(
    ("error", "match", "r", "cap"),
    [
        (ValueError, rf"{NOT_NEGATIVE} \(got -0.5\)", -0.5, None),
        (ValueError, rf"{NOT_NEGATIVE} \(got nan\)", float("nan"), None),
        (TypeError, r"'r' must be a number \(got '1'\)", "1", None),
        (TypeError, r"'r' must be a number \(got True\)", True, None),
        (TypeError, r"'r' must be a number \(got 1j\)", 1j, None),
        (ValueError, r"'max_num_neighbors' .*at least 1 \(got 0\)", 1.0, 0),
        (TypeError, r"'max_num_neighbors' must be an integer \(got 2.5\)", 1.0, 2.5),
    ],
)
def test_bad_radius(error, match, r, cap):
    with pytest.raises(error, match=match):
        radius_graph(POS, r, max_num_neighbors=cap)
