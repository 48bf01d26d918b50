"""The kernels of the CUDA search, in the emulator and, where there is one, on a GPU.

Results are compared with the host's search, which other tests compare with brute force.
"""

import emulated
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from test_neighbors import clouds, offsets, points
from torch.utils import _pytree as pytree

from torch_geometric_erwin import _native, ball_tree
from torch_geometric_erwin.neighbors import knn_graph, radius_graph

WARP = 32  # points of a leaf, children of a node
SIZES = [0, 1, 2, 3, WARP - 1, 0, WARP, WARP + 1, 2 * WARP + 1]

has_cuda = torch.cuda.is_available() and bool(_native.library().erwin_has_cuda())
needs_cuda = pytest.mark.skipif(not has_cuda, reason="needs a GPU and its kernels")
devices = pytest.mark.parametrize(
    "device", ["emulated", pytest.param("cuda", marks=needs_cuda)]
)


def search(device, graph, pos, value, ptr, tree, **kwargs):
    """The search by the kernels; its result on the CPU."""
    if device == "cuda":
        pos, ptr, tree = pytree.tree_map_only(
            torch.Tensor, lambda t: t.cuda(), (pos, ptr, tree)
        )
        return graph(pos, value, ptr=ptr, tree=tree, **kwargs).cpu()
    with emulated.calls(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native, "context", lambda tensor: emulated.Context())
        return graph(pos, value, ptr=ptr, tree=tree, **kwargs)


def assert_same(device, pos, ptr, tree, ks, radii, loop=False):
    for k in ks:
        expected = knn_graph(pos, k, ptr=ptr, tree=tree, loop=loop)
        actual = search(device, knn_graph, pos, k, ptr, tree, loop=loop)
        assert torch.equal(actual, expected), k
    for r, cap in radii:
        kwargs = {"loop": loop, "max_num_neighbors": cap}
        expected = radius_graph(pos, r, ptr=ptr, tree=tree, **kwargs)
        actual = search(device, radius_graph, pos, r, ptr, tree, **kwargs)
        assert torch.equal(actual, expected), (r, cap)


@devices
@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "kind", ["normal", "grid", "equal", "copies", "clustered", "far"]
)
def test_batch(kind, dim, dtype, loop, device):
    ptr = offsets(SIZES)
    pos = points(kind, int(ptr[-1]), dim, dtype)
    tree = ball_tree(pos, ptr=ptr, ball_sizes=16)
    radii = [(2.0, 5)] if loop else [(0.8, None)]
    assert_same(device, pos, ptr, tree, (1, 40) if loop else (16,), radii, loop)


# With one level of nodes above the leaves, and with none.
@devices
@pytest.mark.parametrize("size", [WARP * WARP - 1, WARP * WARP + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "kind", ["normal", pytest.param("grid", marks=pytest.mark.slow)]
)
def test_two_levels(kind, dtype, size, device):
    ptr = offsets([size, 5])
    pos = points(kind, size + 5, 3, dtype)
    tree = ball_tree(pos, ptr=ptr, ball_sizes=16)
    ks, radii = {
        torch.float32: ((33,), [(0.4, None)]),
        torch.float64: ((9,), [(1.0, 33)]),
    }[dtype]
    assert_same(device, pos, ptr, tree, ks, radii)


@devices
def test_all_of_a_cloud(device):
    # More than the 128 places of a list.
    pos, ptr = torch.rand(130, 2), torch.tensor([0, 130])
    tree = ball_tree(pos, ptr=ptr, ball_sizes=16)
    radii = [(float("inf"), None), (1e30, 129)]
    assert_same(device, pos, ptr, tree, (127, 128, 129, 10**12), radii)


@devices
def test_three_levels(device):
    # On a line few boxes are near.
    size = 33 * WARP * WARP
    pos, ptr = points("normal", size, 1, torch.float32), torch.tensor([0, size])
    tree = ball_tree(pos, ball_sizes=16)
    assert_same(device, pos, ptr, tree, [], [(0.0, None)])


@devices
def test_more_clouds_than_a_kernel_takes(device):
    sizes = [i % 7 * 3 for i in range(75)]
    ptr = offsets(sizes)
    pos = points("normal", int(ptr[-1]), 3, torch.float32)
    tree = ball_tree(pos, ptr=ptr, ball_sizes=16)
    assert_same(device, pos, ptr, tree, [7], [(0.7, None)])


@devices
@pytest.mark.parametrize("ptr", [[0], [0, 0], [0, 0, 0]])
def test_no_points(ptr, device):
    pos, ptr = torch.empty(0, 3), torch.tensor(ptr)
    assert_same(
        device, pos, ptr, ball_tree(pos, ptr=ptr, ball_sizes=16), [3], [(1.0, 2)]
    )


# With the last strides the tree is too deep, so other leaves are used for searching.
@devices
@pytest.mark.parametrize(
    ("ball_size", "strides"),
    [(1, []), (7, []), (100, [3]), (64, [2, 2]), (10, [5, 7]), (400, [5] * 4)],
)
def test_any_tree(ball_size, strides, device):
    ptr = offsets([1500, 40])
    pos = torch.rand(int(ptr[-1]), 3)
    sizes = [ball_size] * (len(strides) + 1)
    tree = ball_tree(pos, ptr=ptr, ball_sizes=sizes, strides=strides)
    assert_same(device, pos, ptr, tree, [9], [(0.1, None)])


@devices
def test_tree_of_older_positions(device):
    ptr = offsets(SIZES)
    tree = ball_tree(torch.rand(int(ptr[-1]), 3), ptr=ptr, ball_sizes=32)
    pos = torch.rand(int(ptr[-1]), 3)
    assert_same(device, pos, ptr, tree, [9], [(0.4, None)])


@devices
@given(clouds, st.integers(1, 50), st.floats(0, 3, width=32), st.booleans())
@settings(max_examples=25)
def test_random_clouds(device, cloud, k, r, loop):
    ptr, pos = cloud[0], torch.from_numpy(cloud[1])
    tree = ball_tree(pos, ptr=ptr, ball_sizes=16)
    assert_same(device, pos, ptr, tree, [k], [(r, None), (r, k)], loop)


@devices
@pytest.mark.parametrize(("row", "value"), [(7, 35), (7, -1), (7, 3), (4, 5)])
def test_no_permutation_is_an_error(row, value, device):
    pos, ptr = torch.rand(40, 3), offsets([5, 0, 35])
    tree = ball_tree(pos, ptr=ptr, ball_sizes=16)
    perm = torch.cat([torch.arange(5), torch.arange(35)])
    perm[row] = value

    def knn(pos, k, ptr, tree):
        args = (perm.to(pos.device), [16], [], k, False)
        return torch.ops.erwin.knn(pos, ptr, *args)

    def radius(pos, r, ptr, tree):
        args = (perm.to(pos.device), [16], [], r, -1, False)
        return torch.ops.erwin.radius(pos, ptr, *args)

    with pytest.raises(RuntimeError, match="erwin_knn: invalid argument"):
        search(device, knn, pos, 6, ptr, tree)
    with pytest.raises(RuntimeError, match="erwin_radius_count: invalid argument"):
        search(device, radius, pos, 0.5, ptr, tree)


@needs_cuda
@pytest.mark.parametrize("graph", [knn_graph, radius_graph])
def test_result_is_on_the_device(graph):
    pos = torch.rand(500, 3)
    for ptr in (None, offsets([200, 0, 300])):
        on_device = graph(pos.cuda(), 4, ptr=None if ptr is None else ptr.cuda())
        assert on_device.is_cuda
        assert torch.equal(on_device.cpu(), graph(pos, 4, ptr=ptr))


@needs_cuda
@pytest.mark.parametrize("graph", [knn_graph, radius_graph])
def test_search_follows_the_stream(graph):
    pos = torch.rand(20_000, 3)
    expected = graph(pos, 3 if graph is knn_graph else 0.02)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        on_device = pos.cuda(non_blocking=True)
        actual = graph(on_device, 3 if graph is knn_graph else 0.02)
    stream.synchronize()
    assert torch.equal(actual.cpu(), expected)


@needs_cuda
@pytest.mark.parametrize("graph", [knn_graph, radius_graph])
def test_bad_input_on_a_gpu(graph):
    pos = torch.rand(40, 3, device="cuda")
    with pytest.raises(ValueError, match="'ptr' is on cpu"):
        graph(pos, 1, ptr=torch.tensor([0, 40]))
    with pytest.raises(ValueError, match=r"number of rows 40 \(got 41\)"):
        graph(pos, 1, ptr=torch.tensor([0, 41], device="cuda"))
    pos[3] = np.nan
    with pytest.raises(ValueError, match=r"row 3 is \[nan"):
        graph(pos, 1)


def run(device, operator, *args):
    """An operator's result by the kernels; on the CPU."""
    if device == "cuda":
        args = pytree.tree_map_only(torch.Tensor, lambda t: t.cuda(), args)
        return operator(*args).cpu()
    with emulated.calls(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native, "context", lambda tensor: emulated.Context())
        return operator(*args)


@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["normal", "grid", "equal"])
def test_two_sets(kind, dim, dtype, device):
    # Clouds are empty in one set only, and in both; queries lie at points and far away.
    sizes, other_sizes = [1100, 0, 3, 40, 0, 33], [30, 5, 0, 60, 0, 1]
    ptr_x, ptr_y = offsets(sizes), offsets(other_sizes)
    x = points(kind, sum(sizes), dim, dtype)
    y = 1.5 * points("normal", sum(other_sizes), dim, dtype)
    y[::3] = x[: len(y[::3])]
    perm_x, perm_y = (
        ball_tree(pos, ptr=ptr, ball_sizes=16).perm
        for pos, ptr in ((x, ptr_x), (y, ptr_y))
    )
    sets = x, ptr_x, perm_x, [16], [], y, ptr_y, perm_y
    for name, args in [
        *[("cross_knn", (k,)) for k in (1, 16, 200)],
        *[("cross_radius", args) for args in [(0.4, -1), (2.0, 5), (0.0, -1)]],
    ]:
        operator = getattr(torch.ops.erwin, name)
        actual = run(device, operator, *sets, *args)
        assert torch.equal(actual, operator(*sets, *args)), (name, args)


@devices
@pytest.mark.parametrize("spoiled", ["x", "y"])
def test_an_order_of_two_sets_that_is_wrong(spoiled, device):
    x, y, ptr = torch.rand(200, 3), torch.rand(90, 3), torch.tensor([0, 200])
    perms = {"x": torch.arange(200), "y": torch.arange(90)}
    perms[spoiled][7] = perms[spoiled][60]
    args = (x, ptr, perms["x"], [16], [], y, torch.tensor([0, 90]), perms["y"], 4)
    with pytest.raises(RuntimeError, match="erwin_knn: invalid argument"):
        run(device, torch.ops.erwin.cross_knn, *args)
