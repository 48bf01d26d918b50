import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from oracles import neighbors as oracle
from scipy.spatial import cKDTree

from torch_geometric_erwin import ball_tree, knn, knn_graph, radius, radius_graph

# At most 16 points are in a leaf of the search. Clouds are empty in one set or in both.
SIZES_X = [0, 1, 2, 15, 16, 17, 0, 40, 0, 90, 3]
SIZES_Y = [4, 0, 1, 16, 17, 15, 0, 50, 3, 33, 1]


def offsets(sizes):
    return torch.tensor([0, *np.cumsum(sizes)]).long()


def pair(kind, sizes_x, sizes_y, dim, dtype):
    """Two sets of points, some of them at the same places."""
    generator = torch.Generator().manual_seed(dim)
    x, y = (
        torch.randn(sum(sizes), dim, dtype=dtype, generator=generator)
        for sizes in (sizes_x, sizes_y)
    )
    if kind == "grid":  # ties, coincident points
        x, y = x.round(), y.round()
    elif kind == "copies":
        y[: len(x)] = x[: len(y)]
        y[1::2] = y[::2][: len(y[1::2])].clone()
    elif kind == "apart":  # all points of one set are on one side of the other
        y = y + 10.0
    elif kind == "point":
        x = x[:1].expand(len(x), dim)
    return x, y


def assert_same(x, y, ptr_x, ptr_y, ks, radii, **kwargs):
    sets = (x.numpy(), ptr_x.tolist(), y.numpy(), ptr_y.tolist())
    clouds = {"ptr_x": ptr_x, "ptr_y": ptr_y, **kwargs}
    for k in ks:
        expected = oracle.edges(oracle.cross_knn(*sets, k))
        actual = knn(x, y, k, **clouds)
        assert np.array_equal(actual.flip(0).numpy(), expected), k
    for r, cap in radii:
        expected = oracle.edges(oracle.cross_radius(*sets, r, cap))
        actual = radius(x, y, r, max_num_neighbors=cap, **clouds)
        assert np.array_equal(actual.flip(0).numpy(), expected), (r, cap)


RADII = [(0.0, None), (0.8, None), (2.0, 5), (2.0, 60), (30.0, None), (30.0, 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["normal", "grid", "copies", "apart", "point"])
def test_batch_against_brute_force(kind, dim, dtype):
    x, y = pair(kind, SIZES_X, SIZES_Y, dim, dtype)
    ptr_x, ptr_y = offsets(SIZES_X), offsets(SIZES_Y)
    assert_same(x, y, ptr_x, ptr_y, (1, 6, 16, 500), RADII)


@pytest.mark.parametrize(
    ("strides", "ball_sizes"), [([2, 2], 8), ([3], 32), ([], 200), ([5, 3, 2], 16)]
)
def test_a_given_tree(strides, ball_sizes):
    x, y = pair("normal", SIZES_X, SIZES_Y, 3, torch.float32)
    ptr_x, ptr_y = offsets(SIZES_X), offsets(SIZES_Y)
    sizes = [ball_sizes] * (len(strides) + 1)
    tree = ball_tree(x, ptr=ptr_x, ball_sizes=sizes, strides=strides)
    assert_same(x, y, ptr_x, ptr_y, (1, 9, 500), RADII[1:4], tree=tree)
    # Its clouds are those of `x`.
    expected = knn(x, y, 4, ptr_x=ptr_x, ptr_y=ptr_y)
    assert torch.equal(knn(x, y, 4, ptr_y=ptr_y, tree=tree), expected)


@pytest.mark.parametrize("n", [0, 1, 2, 15, 16, 17, 300])
@pytest.mark.parametrize("m", [0, 1, 2, 15, 16, 17, 700])
def test_one_cloud(n, m):
    x, y = pair("normal", [n], [m], 3, torch.float32)
    assert_same(x, y, offsets([n]), offsets([m]), (1, 20), RADII[1:4])
    assert torch.equal(knn(x, y, 5), knn(x, y, 5, ptr_x=offsets([n])))


def test_points_of_the_set_itself():
    for dtype in (torch.float32, torch.float64):
        x, _ = pair("grid", [500], [1], 3, dtype)
        assert torch.equal(knn(x, x, 9).flip(0), knn_graph(x, 9, loop=True))
        for cap in (None, 4):
            graph = radius_graph(x, 1.0, loop=True, max_num_neighbors=cap)
            assert torch.equal(radius(x, x, 1.0, max_num_neighbors=cap).flip(0), graph)


def test_arguments_in_the_order_of_pyg():
    x, y = pair("normal", [3, 0, 9], [2, 4, 5], 2, torch.float32)
    batch_x, batch_y = torch.tensor([0] * 3 + [2] * 9), torch.tensor([0] * 2 + [1] * 4)
    batch_y = torch.cat([batch_y, torch.full((5,), 2)])
    clouds = {"ptr_x": offsets([3, 0, 9]), "ptr_y": offsets([2, 4, 5])}
    assert torch.equal(knn(x, y, 2, batch_x, batch_y), knn(x, y, 2, **clouds))
    expected = radius(x, y, 0.9, max_num_neighbors=3, **clouds)
    assert torch.equal(radius(x, y, 0.9, batch_x, batch_y, 3), expected)


@pytest.mark.parametrize("given_x", ["batch", "ptr", "tree"])
@pytest.mark.parametrize("given_y", ["batch", "ptr"])
@pytest.mark.parametrize(
    ("sizes_x", "sizes_y"),
    [([4, 0], [3, 2]), ([3, 2], [4, 0]), ([0, 5, 0], [0, 0, 2]), ([0, 0], [0, 0])],
)
def test_clouds_that_are_empty_at_the_end(sizes_x, sizes_y, given_x, given_y):
    if "batch" in (given_x, given_y) and sum(sizes_x) + sum(sizes_y) == 0:
        pytest.skip("no assignment tells how many empty clouds there are")
    x, y = pair("normal", sizes_x, sizes_y, 2, torch.float32)
    ptr_x, ptr_y = offsets(sizes_x), offsets(sizes_y)
    expected = knn(x, y, 3, ptr_x=ptr_x, ptr_y=ptr_y)
    kwargs = {}
    for name, given_, ptr in (("x", given_x, ptr_x), ("y", given_y, ptr_y)):
        if given_ == "batch":
            clouds = torch.arange(len(ptr) - 1)
            kwargs[f"batch_{name}"] = clouds.repeat_interleave(ptr.diff())
        elif given_ == "ptr":
            kwargs[f"ptr_{name}"] = ptr
        else:
            kwargs["tree"] = ball_tree(x, ptr=ptr_x, ball_sizes=4)
    assert torch.equal(knn(x, y, 3, **kwargs), expected)


@pytest.mark.parametrize("dim", [2, 3])
def test_against_scipy(dim):
    generator = np.random.default_rng(0)
    x, y = generator.random((20_000, dim)), generator.random((3000, dim))
    distance, index = cKDTree(x).query(y, 7)
    to, of = knn(torch.from_numpy(x), torch.from_numpy(y), 7)
    assert np.array_equal(of.view(-1, 7).numpy(), index)
    found = np.linalg.norm(x[of] - y[to], axis=1).reshape(-1, 7)
    assert np.allclose(found, distance)


@pytest.mark.parametrize(("n", "m"), [(9000, 40), (40, 9000), (6000, 5000)])
def test_results_for_every_number_of_threads(n, m):
    x, y = pair("grid", [n], [m], 3, torch.float32)
    x, y = x + 0.01 * x.sin(), y * 1.1
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append((knn(x, y, 9), radius(x, y, 0.4, max_num_neighbors=20)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_memory_that_is_not_contiguous_and_half_precision():
    x, y = torch.rand(3, 80).T, torch.rand(60, 6)[:, ::2]
    assert torch.equal(knn(x, y, 4), knn(x.contiguous(), y.contiguous(), 4))
    for dtype in (torch.float16, torch.bfloat16):
        half = x.to(dtype), y.to(dtype)
        exact = [t.float() for t in half]
        assert torch.equal(knn(*half, 4), knn(*exact, 4))
        assert torch.equal(radius(*half, 0.2), radius(*exact, 0.2))


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=5),
    st.integers(1, 4),
    st.integers(1, 50),
    st.floats(0, 3, width=32),
    st.integers(0, 10**6),
)
def test_a_cloud_does_not_depend_on_the_others(sizes, dim, k, r, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes_x, sizes_y = zip(*sizes, strict=True) if sizes else ((), ())
    x, y = (
        torch.randn(sum(s), dim, generator=generator).mul(4).round().div(4)
        for s in (sizes_x, sizes_y)
    )
    ptr_x, ptr_y = offsets(sizes_x), offsets(sizes_y)
    alone = [torch.empty(2, 0).long()], [torch.empty(2, 0).long()]
    for a, b, c, d in zip(ptr_x, ptr_x[1:], ptr_y, ptr_y[1:], strict=False):
        first = torch.stack([c, a])[:, None]
        alone[0].append(knn(x[a:b], y[c:d], k) + first)
        alone[1].append(radius(x[a:b], y[c:d], r) + first)
    clouds = {"ptr_x": ptr_x, "ptr_y": ptr_y}
    assert torch.equal(knn(x, y, k, **clouds), torch.cat(alone[0], dim=1))
    assert torch.equal(radius(x, y, r, **clouds), torch.cat(alone[1], dim=1))


X, Y = torch.zeros(4, 3), torch.zeros(5, 3)


@pytest.mark.parametrize(
    ("error", "match", "kwargs"),
    [
        (TypeError, "'x' must be a tensor", {"x": [[0.0]]}),
        (TypeError, "'y' must be a tensor", {"y": None}),
        (ValueError, r"'x' must have shape \[N, D\]", {"x": torch.zeros(4)}),
        (ValueError, r"'y' must have shape \[N, D\]", {"y": torch.zeros(4)}),
        (TypeError, "'y' must be floating-point", {"y": Y.long()}),
        (TypeError, "same dtype .*float32 and torch.float64", {"y": Y.double()}),
        (TypeError, "same dtype .*float16 and torch.float32", {"x": X.half()}),
        (ValueError, "same number of coordinates .*3 and 2", {"y": Y[:, :2]}),
        (ValueError, "'y' is on meta, 'x' is on cpu", {"y": Y.to("meta")}),
        (ValueError, r"'x' must be finite \(row 0", {"x": X / 0}),
        (ValueError, r"'y' must be finite \(row 0", {"y": Y / 0}),
        (
            ValueError,
            "'x' and 'y' have an extent of 2e.20",
            {"x": X - 1e20, "y": Y + 1e20},
        ),
        (ValueError, "'batch_x' must have an entry", {"batch_x": torch.tensor([0, 4])}),
        (ValueError, "'batch_y' must have an entry", {"batch_y": torch.tensor([0, 4])}),
        (ValueError, "'ptr_x' must end at .* 4", {"ptr_x": torch.tensor([0, 5])}),
        (ValueError, "'ptr_y' must end at .* 5", {"ptr_y": torch.tensor([0, 4])}),
        (
            ValueError,
            "'x' has 2 clouds, 'y' has 1: both must have as many",
            {"ptr_x": torch.tensor([0, 4, 4])},
        ),
        (
            ValueError,
            "'x' has 1 clouds, 'y' has 3",
            {"batch_y": torch.tensor([0, 0, 1, 2, 2])},
        ),
        (
            ValueError,
            "'batch_y' and 'ptr_y' say the same",
            {"batch_y": torch.zeros(5).long(), "ptr_y": torch.tensor([0, 5])},
        ),
        (TypeError, "'tree' must be a Tree", {"tree": torch.arange(4)}),
        (ValueError, "4 nodes", {"tree": ball_tree(Y, ball_sizes=4)}),
        (
            ValueError,
            "layout='balanced'",
            {"tree": ball_tree(X, ball_sizes=4, layout="perfect")},
        ),
    ],
)
@pytest.mark.parametrize("search", [knn, radius])
def test_bad_input(search, error, match, kwargs):
    kwargs = dict(kwargs)
    with pytest.raises(error, match=match):
        search(kwargs.pop("x", X), kwargs.pop("y", Y), 1, **kwargs)


@pytest.mark.parametrize("k", [0, -1, 2.0, "3", None])
def test_bad_numbers(k):
    with pytest.raises((TypeError, ValueError), match="'k' must be"):
        knn(X, Y, k)
    if k is not None:
        with pytest.raises((TypeError, ValueError), match="'max_num_neighbors' must"):
            radius(X, Y, 1.0, max_num_neighbors=k)
    for r in (-1.0, float("nan"), "1"):
        with pytest.raises((TypeError, ValueError), match="'r' must"):
            radius(X, Y, r)
