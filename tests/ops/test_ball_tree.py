import itertools
import math

import numpy as np
import pytest
import torch
from compiled import no_recompilation
from scipy.linalg import expm
from scipy.spatial.transform import Rotation
from torch.utils._python_dispatch import TorchDispatchMode

from torch_geometric_erwin import _native, ball_tree
from torch_geometric_erwin.ops import ball_tree as ops
from torch_geometric_erwin.ops import dispatch
from torch_geometric_erwin.ops.ball_tree import rotation_matrix

ANGLES = [45.0, -30.0, 10.0, 200.0]


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("rotate", [0.0, 45.0])
@pytest.mark.parametrize("strides", [[], [2, 2]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype, strides, rotate, layout):
    ball_sizes = [4] * (len(strides) + 1)
    pos, ptr = torch.rand(21, 3, dtype=dtype), torch.tensor([0, 5, 5, 21])
    torch.library.opcheck(
        torch.ops.erwin.ball_tree.default,
        (pos, ptr, ball_sizes, strides, rotate, layout),
    )


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize(
    ("ptr", "message"),
    [
        ([1, 5, 21], r"must start at 0 \(got 1\)"),
        ([0, 7, 5, 21], r"must not descend \(entry 1 is 7, entry 2 is 5\)"),
        ([0, 5, 20], r"must end at the number of rows 21 \(got 20\)"),
        ([0, 5, 32], r"must end at the number of rows 21 \(got 32\)"),
        ([0], r"must end at the number of rows 21 \(got 0\)"),
    ],
)
def test_malformed_offsets(ptr, message, layout):
    with pytest.raises(ValueError, match=message):
        torch.ops.erwin.ball_tree(
            torch.rand(21, 3), torch.tensor(ptr), [4], [], 0.0, layout
        )


def test_opcheck_of_no_points():
    pos, ptr = torch.rand(0, 3), torch.tensor([0, 0, 0])
    torch.library.opcheck(
        torch.ops.erwin.ball_tree.default, (pos, ptr, [4, 4], [2], 45.0, "balanced")
    )


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("rotate", [0.0, 45.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck_of_the_order_alone(dtype, rotate, layout):
    pos, ptr = torch.rand(21, 3, dtype=dtype), torch.tensor([0, 5, 5, 21])
    rows = ball_tree(
        pos, ptr=ptr, ball_sizes=4, strides=[2], rotate=rotate, layout=layout
    ).level.sum(0)
    torch.library.opcheck(
        torch.ops.erwin.ball_tree_order.default,
        (pos, ptr, rows.tolist(), 16, [4, 4], [2], rotate, layout),
    )


def test_the_order_alone_refuses_other_sizes():
    pos, ptr = torch.rand(21, 3), torch.tensor([0, 5, 21])
    with pytest.raises(ValueError, match=r"\[21, 11\] rows .*got \[21, 12\]"):
        torch.ops.erwin.ball_tree_order(
            pos, ptr, [21, 12], 16, [4, 4], [2], 45.0, "balanced"
        )


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("ties", ["index", "coordinates"])
def test_compile(ties, layout):
    def function(pos, ptr):
        tree = ball_tree(
            pos, ptr=ptr, ball_sizes=4, strides=[2], layout=layout, ties=ties
        )
        sorted_pos = pos[tree.global_perm()] * 2.0
        return sorted_pos, tree.perm_rot[1], tree.ball_len[1], tree.batch(1)

    torch.compiler.reset()
    # Generating code is not needed to find errors. In a batch no two sizes are equal by
    # accident, such as 3 axes and the ptr of 2 clouds: they would become one symbol.
    compiled = torch.compile(
        function, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    batches = [[9, 3, 0, 1], [30, 2, 8, 1, 1], [5, 0, 6, 7, 2, 3]]
    for step, sizes in enumerate(batches):
        ptr = torch.tensor([0, *np.cumsum(sizes)])
        pos = torch.rand(sum(sizes), 3)
        with no_recompilation(step):
            actual = compiled(pos, ptr)
        for a, b in zip(actual, function(pos, ptr), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("degrees", ANGLES)
def test_rotation_in_the_plane(degrees):
    # Row vectors are multiplied from the right, by [[c, -s], [s, c]].
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    expected = np.array([[c, -s], [s, c]])
    np.testing.assert_allclose(rotation_matrix(degrees, 2), expected, atol=1e-15)


@pytest.mark.parametrize("degrees", ANGLES)
def test_rotation_in_space_is_the_original_one(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    expected = np.array(
        [
            [c * c, s * c * (s - 1), s * (s + c * c)],
            [s * c, s * s * s + c * c, s * c * (s - 1)],
            [-s, s * c, c * c],
        ]
    )
    np.testing.assert_allclose(rotation_matrix(degrees, 3), expected, atol=1e-15)
    euler = Rotation.from_euler("ZYX", [degrees] * 3, degrees=True).as_matrix()
    np.testing.assert_allclose(rotation_matrix(degrees, 3), euler, atol=1e-15)


@pytest.mark.parametrize("degrees", ANGLES)
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7])
def test_rotation_is_orthogonal_and_proper(dim, degrees):
    rotation = rotation_matrix(degrees, dim)
    assert rotation.dtype == torch.float64
    identity = torch.eye(dim, dtype=torch.float64)
    # Rounding errors of a product of dim (dim - 1) / 2 <= 21 rotations.
    torch.testing.assert_close(rotation @ rotation.T, identity, rtol=0, atol=1e-14)
    assert float(torch.linalg.det(rotation)) == pytest.approx(1.0, abs=1e-13)
    if dim > 1:
        assert not torch.allclose(rotation, identity)


@pytest.mark.parametrize("degrees", [*ANGLES, 90.0, 180.0, -1e4])
@pytest.mark.parametrize("dim", [*range(1, 10), 33])
def test_rotation_has_the_bits_of_one_plane_after_the_other(dim, degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    expected = np.eye(dim)
    for i, j in itertools.combinations(range(dim), 2):
        turn = s if (i + j) % 2 else -s
        left, right = expected[:, [i, j]].T
        turned = left * c + right * turn, right * c - left * turn
        expected[:, i], expected[:, j] = turned
    assert rotation_matrix(degrees, dim).numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("degrees", ANGLES)
@pytest.mark.parametrize("dim", [2, 3, 4, 7])
def test_rotation_is_a_product_over_planes(dim, degrees):
    expected = np.eye(dim)
    for i, j in itertools.combinations(range(dim), 2):
        generator = np.zeros((dim, dim))
        generator[i, j], generator[j, i] = -1, 1
        angle = (-1) ** (i + j + 1) * np.radians(degrees)
        expected = expected @ expm(angle * generator)
    np.testing.assert_allclose(rotation_matrix(degrees, dim), expected, atol=1e-14)


def product_over_planes(degrees, dim):
    """The product of whole matrices in Python floats: one rounding per operation."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rows = np.eye(dim).tolist()
    for i, j in itertools.combinations(range(dim), 2):
        plane = np.eye(dim).tolist()
        sign = -1 if (i + j) % 2 == 0 else 1
        plane[i][i] = plane[j][j] = c
        plane[i][j], plane[j][i] = -sign * s, sign * s
        columns = list(zip(*plane, strict=True))
        rows = [
            [sum(a * b for a, b in zip(row, column, strict=True)) for column in columns]
            for row in rows
        ]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("degrees", [*ANGLES, 30.0, 90.0, 180.0])
@pytest.mark.parametrize("dim", [2, 3, 5])
def test_rotation_is_the_product_to_the_last_bit(dim, degrees):
    # If rotated coordinates are almost equal, trees depend on every bit of the matrix.
    expected = product_over_planes(degrees, dim)
    assert torch.equal(rotation_matrix(degrees, dim), expected)


def test_no_rotation_is_computed_without_an_angle(monkeypatch):
    def fail(degrees, dim):
        raise AssertionError(f"called for {degrees} degrees")

    module = "torch_geometric_erwin.ops.ball_tree.rotation_matrix"
    monkeypatch.setattr(module, fail)
    pos = torch.rand(20, 3)
    assert ball_tree(pos, ball_sizes=4, strides=[], rotate=0.0).perm_rot == ()
    with pytest.raises(AssertionError, match=r"called for 17\.5 degrees"):
        ball_tree(pos, ball_sizes=4, strides=[], rotate=17.5)  # used only here


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_positions_that_are_not_finite_are_refused_in_a_compiled_graph(value):
    def function(pos):
        return ball_tree(pos, ball_sizes=4, strides=[2]).perm

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    pos = torch.rand(20, 3)
    assert torch.equal(compiled(pos), function(pos))
    pos[3, 1] = value
    for call in (compiled, function):
        with pytest.raises(ValueError, match=r"'pos' must be finite \(row 3 is \["):
            call(pos)


def test_offsets_beyond_the_positions_are_refused_in_a_compiled_graph():
    def function(pos, ptr):
        return ball_tree(pos, ptr=ptr, ball_sizes=4, strides=[2]).perm

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=r"number of rows 20 \(got 21\)"):
        compiled(torch.rand(20, 3), torch.tensor([0, 21]))


def test_sum_of_opposite_infinities_counts_as_zero():
    # R = [[c, 1], [-1, c]] with a tiny c > 0 rotates the centroids (inf, 0) and
    # (inf, inf): the first coordinates become inf and inf - inf = NaN.
    far = 0.9 * torch.finfo(torch.float32).max
    pos = torch.tensor([[far, 0.0], [far, 0.0], [far, far], [far, far]])
    tree = ball_tree(pos, ball_sizes=[2, 1], strides=[2], rotate=-90.0)
    assert tree.perm.tolist() == [0, 1, 2, 3]
    assert tree.perm_rot[1].tolist() == [1, 0]


def test_no_angle_is_the_identity():
    assert torch.equal(rotation_matrix(0.0, 4), torch.eye(4, dtype=torch.float64))
    assert torch.equal(rotation_matrix(45.0, 1), torch.eye(1, dtype=torch.float64))


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("rotate", [0.0, 45.0])
@pytest.mark.parametrize("sizes", [[], [0], [1], [7, 0, 300]])
def test_the_kernel_alone_gives_what_the_operator_does(sizes, rotate, layout):
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    pos = torch.rand(sum(sizes), 3)
    args = (pos, ptr, [8, 4], [2], rotate, layout)
    assert dispatch.is_eager(pos, ptr)
    alone, operator = ops.ball_tree(*args), torch.ops.erwin.ball_tree(*args)
    for a, b in zip(alone, operator, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    memory = [t.untyped_storage().data_ptr() for t in alone if t.numel() > 0]
    assert len({*memory}) == len(memory)


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_a_mode_and_a_profile_see_the_operator():
    pos = torch.rand(30, 3)
    expected = ball_tree(pos, ball_sizes=8)
    with Seen() as seen:
        tree = ball_tree(pos, ball_sizes=8)
    assert torch.equal(tree.perm, expected.perm)
    assert seen.names.count("erwin::ball_tree") == 1
    with torch.profiler.profile() as profile:
        ball_tree(pos, ball_sizes=8)
    assert "erwin::ball_tree" in {event.key for event in profile.key_averages()}


def test_memory_that_the_host_does_not_have(monkeypatch):
    def workspace(size):
        raise RuntimeError(f"can't allocate memory: you tried to allocate {size} bytes")

    monkeypatch.setattr(_native, "workspace", workspace)
    with pytest.raises(MemoryError, match="erwin::ball_tree: can't allocate"):
        ball_tree(torch.rand(30, 3), ball_sizes=8)
