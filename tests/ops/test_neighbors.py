import numpy as np
import pytest
import torch
from compiled import no_recompilation

from torch_geometric_erwin import ball_tree
from torch_geometric_erwin.neighbors import (
    knn,
    knn_graph,
    knn_interpolate,
    radius,
    radius_graph,
)

PTR = torch.tensor([0, 5, 5, 40])


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck_of_knn(dtype, loop):
    pos = torch.rand(40, 3, dtype=dtype)
    perm = ball_tree(pos, ptr=PTR, ball_sizes=[8, 4], strides=[2]).perm
    args = (pos, PTR, perm, [8, 4], [2], 6, loop)
    torch.library.opcheck(torch.ops.erwin.knn.default, args)


@pytest.mark.parametrize("cap", [-1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck_of_radius(dtype, cap):
    pos = torch.rand(40, 3, dtype=dtype)
    perm = ball_tree(pos, ptr=PTR, ball_sizes=[8, 4], strides=[2]).perm
    args = (pos, PTR, perm, [8, 4], [2], 0.3, cap, False)
    torch.library.opcheck(torch.ops.erwin.radius.default, args)


def test_opcheck_of_no_points():
    pos, ptr = torch.rand(0, 3), torch.tensor([0, 0])
    args = (pos, ptr, torch.empty(0, dtype=torch.int64), [8], [])
    torch.library.opcheck(torch.ops.erwin.knn.default, (*args, 6, False))
    torch.library.opcheck(torch.ops.erwin.radius.default, (*args, 0.3, -1, False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(0, 6, 0), (3, 0, 9), (0, 0, 0)])
def test_opcheck_of_two_sets(sizes, dtype):
    x, y = torch.rand(40, 3, dtype=dtype), torch.rand(sum(sizes), 3, dtype=dtype)
    perm_x = ball_tree(x, ptr=PTR, ball_sizes=[8, 4], strides=[2]).perm
    ptr = torch.tensor([0, *np.cumsum(sizes)])
    perm_y = ball_tree(y, ptr=ptr, ball_sizes=16).perm
    args = (x, PTR, perm_x, [8, 4], [2], y, ptr, perm_y)
    torch.library.opcheck(torch.ops.erwin.cross_knn.default, (*args, 6))
    torch.library.opcheck(torch.ops.erwin.cross_radius.default, (*args, 0.3, 5))


@pytest.mark.parametrize("given_tree", [False, True])
@pytest.mark.parametrize("given_ptr", [False, True])
def test_compile(given_ptr, given_tree):
    def function(pos, ptr, tree):
        near = knn_graph(pos, 3, ptr=ptr, tree=tree)
        within = radius_graph(
            pos, 0.4, ptr=ptr, max_num_neighbors=5, flow="target_to_source", tree=tree
        )
        edge_index = torch.cat([near, within], dim=1)
        return edge_index, pos[edge_index[0]] - pos[edge_index[1]]

    torch.compiler.reset()
    # Generating code is not needed to find errors. In a batch no two sizes are equal by
    # accident, such as 3 axes and the ptr of 2 clouds: they would become one symbol.
    compiled = torch.compile(
        function, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    batches = [[30, 2, 8, 1, 1], [9, 3, 0, 1], [5, 0, 6, 7, 2, 3]]
    for step, sizes in enumerate(batches):
        pos = torch.rand(sum(sizes), 3)
        ptr = torch.tensor([0, *np.cumsum(sizes)]) if given_ptr else None
        tree = (
            ball_tree(pos, ptr=ptr, ball_sizes=4, strides=[2]) if given_tree else None
        )
        with no_recompilation(step):
            actual = compiled(pos, ptr, tree)
        for a, b in zip(actual, function(pos, ptr, tree), strict=True):
            assert torch.equal(a, b)


def searches(pos, ptr, tree):
    near = knn_graph(pos, 6, ptr=ptr, tree=tree)
    return torch.cat([near, radius_graph(pos, 0.5, ptr=ptr, tree=tree)], dim=1)


@pytest.fixture
def compiled():
    torch.compiler.reset()
    return torch.compile(searches, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("given_tree", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_search_refuses_positions_that_are_not_finite(
    dtype, given_tree, compiled
):
    # Values are not checked while a graph is traced; memory must stay safe.
    pos, ptr = torch.rand(200, 3, dtype=dtype), torch.tensor([0, 60, 200])
    tree = ball_tree(pos, ptr=ptr, ball_sizes=16, strides=[]) if given_tree else None
    assert torch.equal(compiled(pos, ptr, tree), searches(pos, ptr, tree))
    for value in (float("nan"), float("inf"), -float("inf")):
        pos[3::7] = value
        for call in (compiled, searches):
            with pytest.raises(ValueError, match=rf"finite \(row 3 is \[{value}, "):
                call(pos, ptr, tree)


def test_compiled_search_refuses_offsets_beyond_the_positions(compiled):
    ptr = torch.tensor([0, 60, 201])
    with pytest.raises(ValueError, match=r"number of rows 200 \(got 201\)"):
        compiled(torch.rand(200, 3), ptr, None)


NAN = float("nan")
PERM = torch.arange(40) - PTR[:-1].repeat_interleave(PTR.diff())


@pytest.mark.parametrize(
    ("pos", "ptr", "match"),
    [
        (torch.tensor([[0.0], [NAN]]).repeat(20, 1), PTR, r"row 1 is \[nan\]"),
        (torch.rand(40, 1), torch.tensor([0, 41]), r"rows 40 \(got 41\)"),
    ],
)
def test_operators_refuse_values_that_would_harm_memory(pos, ptr, match):
    args = (pos, ptr, PERM, [16], [])
    with pytest.raises(ValueError, match=match):
        torch.ops.erwin.knn(*args, 6, False)
    with pytest.raises(ValueError, match=match):
        torch.ops.erwin.radius(*args, 0.5, -1, False)


@pytest.mark.parametrize(("row", "value"), [(7, 35), (7, -1), (7, 3), (4, 5)])
def test_operators_refuse_what_is_no_permutation(row, value):
    pos, perm = torch.rand(40, 3), PERM.clone()
    torch.ops.erwin.knn(pos, PTR, perm, [16], [], 6, False)
    perm[row] = value
    with pytest.raises(RuntimeError, match="erwin_knn: invalid argument"):
        torch.ops.erwin.knn(pos, PTR, perm, [16], [], 6, False)
    with pytest.raises(RuntimeError, match="erwin_radius_count: invalid argument"):
        torch.ops.erwin.radius(pos, PTR, perm, [16], [], 0.5, -1, False)


def test_operator_refuses_a_radius_that_is_no_number():
    with pytest.raises(ValueError, match=r"'radius' must be at least 0 \(got nan\)"):
        torch.ops.erwin.radius(torch.rand(40, 3), PTR, PERM, [16], [], NAN, -1, False)


@pytest.mark.parametrize("given_tree", [False, True])
def test_compiled_searches_of_two_sets(given_tree):
    def function(x, y, ptr_x, ptr_y, tree):
        near = knn(x, y, 3, ptr_x=ptr_x, ptr_y=ptr_y, tree=tree)
        within = radius(x, y, 0.4, ptr_x=ptr_x, ptr_y=ptr_y, tree=tree)
        smooth = knn_interpolate(x, x, y, k=4, ptr_x=ptr_x, ptr_y=ptr_y, tree=tree)
        return torch.cat([near, within], dim=1), smooth

    torch.compiler.reset()
    compiled = torch.compile(
        function, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    batches = [([30, 2, 8, 1, 1], [2, 7, 1, 5, 40]), ([9, 3, 0, 1, 4], [3, 4, 5, 6, 0])]
    for step, sizes in enumerate(batches):
        x, y = (torch.rand(sum(s), 3) for s in sizes)
        ptr_x, ptr_y = (torch.tensor([0, *np.cumsum(s)]) for s in sizes)
        tree = ball_tree(x, ptr=ptr_x, ball_sizes=4) if given_tree else None
        args = x, y, ptr_x, ptr_y, tree
        with no_recompilation(step):
            actual = compiled(*args)
        for a, b in zip(actual, function(*args), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
