import itertools

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from torch_geometric_erwin import ball_tree
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


def test_opcheck_of_no_points():
    pos, ptr = torch.rand(0, 3), torch.tensor([0, 0, 0])
    torch.library.opcheck(
        torch.ops.erwin.ball_tree.default, (pos, ptr, [4, 4], [2], 45.0, "balanced")
    )


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("ties", ["index", "coordinates"])
def test_compile(ties, layout):
    def function(pos, ptr):
        tree = ball_tree(pos, ptr, ball_sizes=4, strides=[2], layout=layout, ties=ties)
        sorted_pos = pos[tree.global_perm(ptr)] * 2.0
        return sorted_pos, tree.perm_rot[1], tree.ball_len[1], tree.batch(1)

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
            ptr = torch.tensor([0, *np.cumsum(sizes)])
            pos = torch.rand(sum(sizes), 3)
            for a, b in zip(compiled(pos, ptr), function(pos, ptr), strict=True):
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
    # Rounding of a product of dim (dim - 1) / 2 <= 21 rotations.
    torch.testing.assert_close(rotation @ rotation.T, identity, rtol=0, atol=1e-14)
    assert float(torch.linalg.det(rotation)) == pytest.approx(1.0, abs=1e-13)
    if dim > 1:
        assert not torch.allclose(rotation, identity)


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


def test_no_angle_is_the_identity():
    assert torch.equal(rotation_matrix(0.0, 4), torch.eye(4, dtype=torch.float64))
    assert torch.equal(rotation_matrix(45.0, 1), torch.eye(1, dtype=torch.float64))
