"""Trees built on a GPU equal those of the CPU. Without a GPU the kernels run in the
emulator. Its blocks hold only 512 rows, so clouds of some hundred points are large."""

import warnings
from types import SimpleNamespace

import emulated
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.testing import onlyCUDA

from torch_geometric_erwin import _native, ball_tree
from torch_geometric_erwin.ops import ball_tree_cuda
from torch_geometric_erwin.ops.registry import OPERATIONS, explain
from torch_geometric_erwin.tree import TreeConfig
from torch_geometric_erwin.tree.builder import build_tree
from torch_geometric_erwin.tree.update import added_in_order

EMULATOR = emulated.Context()

pytestmark = pytest.mark.usefixtures("emulator")

# Sizes near those of a warp, and of blocks and tiles in the emulator.
SIZES = [
    [],
    [0],
    [1],
    [2, 0, 3],
    [31, 32, 33],
    [511, 512, 513],
    [127, 0, 1024, 1, 1025],
    [2049],
    [5000, 20],
]
CONFIGS = [
    TreeConfig(16),
    TreeConfig([1, 1], [1]),
    TreeConfig([32, 32, 16], [2, 2]),
    TreeConfig([100, 7, 600], [3, 2], rotate=-20.0),
    TreeConfig([1500, 1500, 2], [1, 4]),
    TreeConfig([700], rotate=0.0),
    TreeConfig([4, 4, 4], [96, 2]),
    TreeConfig([32, 16, 8], [2, 4], layout="perfect"),
    TreeConfig([2048, 1024], [2], layout="perfect", rotate=0.0),
]


def offsets(sizes):
    return torch.tensor([0, *np.cumsum(sizes)], dtype=torch.int64)


def normal(n, dim, generator):
    return torch.randn(n, dim, generator=generator, dtype=torch.float64)


def grid(n, dim, generator):
    return torch.randint(0, 3, (n, dim), generator=generator).double()


def coincident(n, dim, generator):
    return torch.full((n, dim), 1.5, dtype=torch.float64)


def signed_zeros(n, dim, generator):
    return torch.where(
        torch.rand(n, dim, generator=generator) < 0.5, 0.0, -0.0
    ).double()


def clustered(n, dim, generator):
    centre = torch.randint(0, 10, (n, 1), generator=generator).double()
    return centre + 1e-3 * normal(n, dim, generator)


def magnitudes(n, dim, generator):
    exponent = torch.randint(-30, 30, (n, dim), generator=generator).double()
    return normal(n, dim, generator) * 2**exponent


KINDS = [normal, grid, coincident, signed_zeros, clustered, magnitudes]


def positions(make, sizes, dim, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return make(sum(sizes), dim, generator).to(dtype)


def order_of(pos, ptr, tree, max_points=None):
    """The order that the kernels find for the tree's sizes."""
    config = tree.config
    return ball_tree_cuda.order(
        EMULATOR,
        pos,
        ptr,
        [tree.num_rows(l) for l in range(config.num_levels)],
        max([0, *ptr.diff().tolist()]) if max_points is None else max_points,
        list(config.ball_sizes),
        list(config.strides),
        config.rotate,
        config.layout,
    )


def assert_same_order(pos, ptr, config, **kwargs):
    tree = build_tree(pos, ptr, config)
    perm, mask, *perm_rot = order_of(pos, ptr, tree, **kwargs)
    assert torch.equal(perm, tree.perm)
    if tree.mask is not None:
        assert torch.equal(mask, tree.mask)
    assert len(perm_rot) == len(tree.perm_rot)
    for a, b in zip(perm_rot, tree.perm_rot):
        assert torch.equal(a, b)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_any_cloud_size(sizes, config):
    assert_same_order(positions(normal, sizes, 3), offsets(sizes), config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("make", KINDS)
def test_any_distribution_of_points(make, dim, dtype):
    sizes = [700, 5, 1100]
    pos = positions(make, sizes, dim, dtype)
    assert_same_order(pos, offsets(sizes), TreeConfig([32, 16], [2]))


@st.composite
def cases(draw):
    sizes = draw(st.lists(st.integers(0, 1500), max_size=3))
    levels = draw(st.integers(1, 4))
    layout = draw(st.sampled_from(["balanced", "balanced", "perfect"]))
    size = st.integers(1, 800) if layout == "balanced" else st.just(64)
    stride = st.integers(1, 5) if layout == "balanced" else st.sampled_from([1, 2, 4])
    return (
        sizes,
        TreeConfig(
            draw(st.lists(size, min_size=levels, max_size=levels)),
            draw(st.lists(stride, min_size=levels - 1, max_size=levels - 1)),
            draw(st.sampled_from([0.0, 45.0])),
            layout,
        ),
        draw(st.sampled_from(KINDS)),
        draw(st.integers(1, 4)),
        draw(st.sampled_from([torch.float32, torch.float64])),
        draw(st.integers(0, 1000)),
    )


@given(cases())
def test_any_tree(case):
    sizes, config, make, dim, dtype, seed = case
    pos = positions(make, sizes, dim, dtype, seed)
    assert_same_order(pos, offsets(sizes), config)


@pytest.mark.parametrize("make", [normal, grid])
def test_many_levels_of_large_nodes(make):
    sizes = [40_000]
    pos = positions(make, sizes, 3)
    assert_same_order(pos, offsets(sizes), TreeConfig([256, 256], [2]))


@pytest.mark.parametrize("sizes", [[3, 20], [600, 100], [0, 1300]])
def test_bounds_may_be_larger_than_the_clouds(sizes):
    # As in a CUDA graph that was captured for a larger batch.
    config, ptr = TreeConfig([32, 32, 16], [2, 2]), offsets(sizes)
    tree = build_tree(positions(normal, sizes, 3), ptr, config)
    pos = positions(normal, [sum(sizes), 5000], 3)
    padded = [n + 3000 for n in (tree.num_rows(l) for l in range(3))]
    perm, _, *perm_rot = ball_tree_cuda.order(
        *(EMULATOR, pos, ptr, padded, 5000),
        *([32, 32, 16], [2, 2], 45.0, "balanced"),
    )
    expected = ball_tree(
        pos[: sum(sizes)], ptr=ptr, ball_sizes=[32, 32, 16], strides=[2, 2]
    )
    for a, b in zip([perm, *perm_rot], [expected.perm, *expected.perm_rot]):
        assert torch.equal(a[: b.numel()], b)
        assert not a[b.numel() :].any()


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("rotate", [0.0, 45.0])
def test_on_the_host_bounds_are_filled_up(rotate, layout):
    sizes = [60, 0, 5]
    ptr, config = offsets(sizes), ([32, 16], [2], rotate, layout)
    pos = positions(normal, [65, 7], 3)
    tree = build_tree(pos[:65], ptr, TreeConfig(*config))
    bounds = [tree.num_rows(0) + 9, tree.num_rows(1) + 4]
    perm, mask, *perm_rot = ball_tree_cuda._order_on_host(pos, ptr, bounds, 72, *config)
    assert [t.numel() for t in (perm, *perm_rot)] == (
        [bounds[0], *bounds] if rotate else bounds[:1]
    )
    for a, b in zip([perm, *perm_rot], [tree.perm, *tree.perm_rot], strict=True):
        assert torch.equal(a[: b.numel()], b)
        assert not a[b.numel() :].any()
    if layout == "perfect":
        assert mask.numel() == bounds[0]
        assert torch.equal(mask[: tree.mask.numel()], tree.mask)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU raises no error")
@pytest.mark.skipif(not _native.library().erwin_has_cuda(), reason="built without CUDA")
def test_what_cuda_says_is_in_the_error():
    pos, ptr = positions(normal, [9], 3), offsets([9])
    with pytest.raises(RuntimeError, match=r"internal error \(.*CUDA.*\)"):
        ball_tree_cuda.order(
            *(_native.Context(0, 1, None), pos, ptr, [9], 9),
            *([4], [], 0.0, "balanced"),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_do_no_harm(value, dtype):
    # Values on a GPU are checked only on request.
    sizes = [1500, 40]
    pos, ptr = positions(normal, sizes, 3, dtype), offsets(sizes)
    tree = build_tree(pos, ptr, TreeConfig([32, 16], [2]))
    pos[::7, 1] = value
    perm, _, *perm_rot = order_of(pos, ptr, tree)
    for order, level in zip([perm, *perm_rot], [0, 0, 1]):
        rows = tree.level[:, level].tolist()
        for part, n in zip(order.split(rows), rows):
            assert part.sort().values.tolist() == [*range(n)]


@pytest.mark.parametrize(
    ("points", "rotate", "most"), [(10**6, 0, 40), (10**6, 45, 40)]
)
def test_workspace_per_point(points, rotate, most):
    config = TreeConfig([256] * 5, [2] * 4)
    bounds = _native.TreeBounds(1, points, points)
    for l in range(5):
        bounds.rows[l] = -(-points // 2**l)
    size = _native.size_of(
        *("erwin_tree_device_workspace", EMULATOR),
        _native.layout(config.ball_sizes, config.strides, config.layout),
        *(0, 3, _native.byref(bounds), int(rotate != 0)),
    )
    # The emulator's blocks are 8 times smaller than a GPU's, so there are 8 times as
    # many large nodes.
    assert size / points < most + 8 * 2048 * 4 / 4096


def test_dimensions_beyond_the_limit_are_refused():
    bounds = _native.TreeBounds(1, 8, 8)
    with pytest.raises(RuntimeError, match="not supported"):
        _native.size_of(
            *("erwin_tree_device_workspace", EMULATOR),
            _native.layout([4], [], "balanced"),
            *(0, ball_tree_cuda.MAX_DIM + 1, _native.byref(bounds), 0),
        )


@pytest.mark.parametrize("sizes", [[1], [0, 5, 0], [7, 1, 0, 16]])
@pytest.mark.parametrize("stride", [1, 2, 5])
def test_group_lengths(sizes, stride):
    tree = ball_tree(
        torch.rand(sum(sizes), 2), ptr=offsets(sizes), ball_sizes=4, strides=[stride]
    )
    lengths = ball_tree_cuda.group_lengths(
        *tree.level.T, tree.group_len[0].numel(), stride
    )
    assert torch.equal(lengths, tree.group_len[0])


def test_group_lengths_of_no_rows():
    rows = torch.tensor([0, 0])
    assert ball_tree_cuda.group_lengths(rows, rows, 0, 2).tolist() == []


def test_tensors_move_in_one_copy():
    tensors = [torch.arange(6).view(2, 3), torch.arange(0), torch.arange(2)]
    moved = ball_tree_cuda.to_device(tensors, torch.device("cpu"))
    for a, b in zip(moved, tensors, strict=True):
        assert torch.equal(a, b)
        assert a.untyped_storage().nbytes() == 8 * b.numel()


@pytest.mark.parametrize(
    ("has_cuda", "capability", "dim", "reason"),
    [
        (1, (8, 0), 8, None),
        (1, (9, 0), 9, "9 coordinates, the GPU takes 8"),
        (1, (7, 5), 3, "compute capability 7.5, needed is 8.0"),
        (0, (9, 0), 3, "no CUDA compiler was found"),
    ],
)
def test_what_a_gpu_cannot_do_is_told_once(
    has_cuda, capability, dim, reason, monkeypatch
):
    library = SimpleNamespace(erwin_has_cuda=lambda: has_cuda)
    monkeypatch.setattr(_native, "library", lambda: library)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    ball_tree_cuda._warn.cache_clear()
    pos = SimpleNamespace(device=torch.device("cuda"), size=lambda axis: dim)
    for name in ("ball_tree", "ball_tree_order"):
        reasons = explain(name, pos)
        assert reasons["host"] == ""
        assert reason in reasons["cuda"] if reason else reasons["cuda"] == ""
        for function in OPERATIONS[name].values():
            monkeypatch.setattr(function, "run", lambda *args, f=function: f)
    registry = ball_tree_cuda.BUILD
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = [ball_tree_cuda._run(registry, pos) for _ in range(2)]
    assert results == [registry["host" if reason else "cuda"]] * 2
    assert [reason in str(w.message) for w in caught] == [True] * (reason is not None)


def test_a_tree_of_the_host_is_no_gpu_s():
    reasons = explain("ball_tree", torch.rand(4, 3))
    assert reasons == {"cuda": "it runs on CUDA devices (got cpu)", "host": ""}


@onlyCUDA
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", KINDS)
def test_equals_cpu(make, dtype, config):
    for sizes in [*SIZES, [4095, 4096, 4097, 8193], [100_000, 3, 20_000]]:
        for dim in (1, 2, 3, 8):
            pos, ptr = positions(make, sizes, dim, dtype), offsets(sizes)
            expected = build_tree(pos, ptr, config)
            for offsets_on in ("cpu", "cuda"):
                tree = build_tree(pos.cuda(), ptr.to(offsets_on), config)
                assert_same_tree(tree, expected)
            assert_same_tree(expected.to("cuda").update(pos.cuda()), expected)


def assert_same_tree(tree, expected):
    for name in ("perm", "level", "ball_len", "group_len", "perm_rot", "mask"):
        ours, theirs = getattr(tree, name), getattr(expected, name)
        if theirs is None or isinstance(theirs, torch.Tensor):
            ours, theirs = (ours,), (theirs,)
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None and b is None) or (a.is_cuda and torch.equal(a.cpu(), b))


@onlyCUDA
@pytest.mark.parametrize("make", [normal, grid])
def test_ten_million_points(make):
    sizes = [10_000_000]
    pos, ptr = positions(make, sizes, 3), offsets(sizes)
    config = TreeConfig([256] * 5, [2] * 4)
    assert_same_tree(build_tree(pos.cuda(), ptr, config), build_tree(pos, ptr, config))


@onlyCUDA
def test_an_update_waits_for_nothing_and_can_be_captured():
    sizes = [5000, 300]
    pos = positions(normal, sizes, 3).cuda()
    config = TreeConfig([256, 256], [2])
    tree = build_tree(pos, offsets(sizes).cuda(), config)
    torch.cuda.set_sync_debug_mode("error")
    try:
        tree.update(pos)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = tree.update(pos)
    for seed in range(3):
        pos.copy_(positions(normal, sizes, 3, seed=seed))
        graph.replay()
        expected = build_tree(pos.cpu(), offsets(sizes), config)
        assert torch.equal(captured.perm.cpu(), expected.perm)
        assert torch.equal(captured.perm_rot[1].cpu(), expected.perm_rot[1])


@onlyCUDA
def test_dimensions_beyond_the_limit_go_through_the_cpu():
    ball_tree_cuda._warn.cache_clear()
    pos = torch.rand(100, 9)
    with pytest.warns(UserWarning, match="9 coordinates"):
        tree = ball_tree(pos.cuda(), ball_sizes=16)
    assert_same_tree(tree, ball_tree(pos, ball_sizes=16))


@pytest.mark.parametrize("sizes", [[], [0], [5000, 20], [31, 32, 33]], ids=str)
@pytest.mark.parametrize("config", [TreeConfig([32, 16, 9], [2, 4]), CONFIGS[3]])
def test_moved_points_of_a_padded_tree(sizes, config):
    """The kernels also get the added nodes, and more rows than those need."""
    num_nodes, num_clouds = sum(sizes) + 700, len(sizes) + 3
    pos = positions(normal, [num_nodes], 3)
    ptr = offsets(sizes)
    real = build_tree(pos[: sum(sizes)], ptr, config)
    tree = real.pad(num_nodes, num_clouds)
    ends = torch.cat([ptr, ptr.new_full((num_clouds - len(sizes),), num_nodes)])
    perm, _, *perm_rot = order_of(pos, ends, tree, max_points=num_nodes)
    for l, (actual, expected) in enumerate(
        zip([perm, *perm_rot], [tree.perm, *tree.perm_rot], strict=True)
    ):
        level = max(l - 1, 0)
        assert torch.equal(added_in_order(tree, actual, level), expected)
