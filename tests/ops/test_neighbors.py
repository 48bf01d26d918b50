import numpy as np
import pytest
import torch

from torch_geometric_erwin import ball_tree
from torch_geometric_erwin.neighbors import knn_graph, radius_graph

PTR = torch.tensor([0, 5, 5, 40])


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck_of_knn(dtype, loop):
    pos = torch.rand(40, 3, dtype=dtype)
    perm = ball_tree(pos, PTR, ball_sizes=[8, 4], strides=[2]).perm
    args = (pos, PTR, perm, [8, 4], [2], 6, loop)
    torch.library.opcheck(torch.ops.erwin.knn.default, args)


@pytest.mark.parametrize("cap", [-1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck_of_radius(dtype, cap):
    pos = torch.rand(40, 3, dtype=dtype)
    perm = ball_tree(pos, PTR, ball_sizes=[8, 4], strides=[2]).perm
    args = (pos, PTR, perm, [8, 4], [2], 0.3, cap, False)
    torch.library.opcheck(torch.ops.erwin.radius.default, args)


def test_opcheck_of_no_points():
    pos, ptr = torch.rand(0, 3), torch.tensor([0, 0])
    args = (pos, ptr, torch.empty(0, dtype=torch.int64), [8], [])
    torch.library.opcheck(torch.ops.erwin.knn.default, (*args, 6, False))
    torch.library.opcheck(torch.ops.erwin.radius.default, (*args, 0.3, -1, False))


@pytest.mark.parametrize("given_tree", [False, True])
@pytest.mark.parametrize("given_ptr", [False, True])
def test_compile(given_ptr, given_tree):
    def function(pos, ptr, tree):
        near = knn_graph(pos, 3, ptr, tree=tree)
        within = radius_graph(
            pos, 0.4, ptr, max_num_neighbors=5, flow="target_to_source", tree=tree
        )
        edge_index = torch.cat([near, within], dim=1)
        return edge_index, pos[edge_index[0]] - pos[edge_index[1]]

    torch.compiler.reset()
    # What can break is seen without lowering to code. No batch has two sizes that are
    # equal by accident, as 3 axes and the ptr of 2 clouds: they would be one symbol.
    with torch._dynamo.config.patch(
        recompile_limit=1, fail_on_recompile_limit_hit=True
    ):
        compiled = torch.compile(
            function, fullgraph=True, dynamic=True, backend="aot_eager"
        )
        for sizes in [[9, 3, 0, 1], [30, 2, 8, 1, 1], [5, 0, 6, 7, 2, 3]]:
            pos = torch.rand(sum(sizes), 3)
            ptr = torch.tensor([0, *np.cumsum(sizes)]) if given_ptr else None
            tree = (
                ball_tree(pos, ptr, ball_sizes=4, strides=[2]) if given_tree else None
            )
            expected = function(pos, ptr, tree)
            for a, b in zip(compiled(pos, ptr, tree), expected, strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 3, 4])
def test_unchecked_positions_that_are_not_finite_give_edges_within_the_cloud(
    dim, dtype
):
    # Values are not checked while a graph is traced; memory must stay safe.
    pos, ptr = torch.rand(200, dim, dtype=dtype), torch.tensor([0, 60, 200])
    pos[::3] = float("nan")
    pos[1::5] = -float("inf")
    pos[2::7] = float("inf")
    perm = torch.cat([torch.arange(60), torch.arange(140)])
    knn = torch.ops.erwin.knn(pos, ptr, perm, [16], [], 6, False)
    assert knn.size(1) == 6 * 200
    for edge_index in (
        knn,
        torch.ops.erwin.radius(pos, ptr, perm, [16], [], 0.5, -1, False),
        torch.ops.erwin.radius(pos, ptr, perm, [16], [], float("nan"), 9, True),
    ):
        assert bool(((edge_index >= 0) & (edge_index < 200)).all())
        assert bool(((edge_index[0] < 60) == (edge_index[1] < 60)).all())
