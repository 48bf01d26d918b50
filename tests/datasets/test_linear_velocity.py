import itertools
import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from torch_geometric_erwin.datasets import fit_linear_velocity, linear_velocity


def points(num_points=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_points, 3, generator=generator, dtype=torch.float64)


def test_matches_the_sum_over_modes():
    pos, smoothing = points(), 0.08
    expected = torch.zeros_like(pos)
    # The Gaussian is below 1e-9 for more than 13 waves per box.
    for n in itertools.product(range(-13, 14), repeat=3):
        if any(n):
            k = 2 * math.pi * torch.tensor(n, dtype=pos.dtype)
            phase = pos @ k
            contrast = torch.exp(-1j * phase).mean()
            contrast = contrast * torch.exp(-0.5 * smoothing**2 * k @ k)
            wave = 1j * contrast * torch.exp(1j * phase)
            expected += wave.real[:, None] * k / (k @ k)
    actual = linear_velocity(pos, smoothing, box_size=1.0)
    # Images of the cloud-in-cell window enter as (k cell)^2 ~ (5 / 64)^2.
    assert (actual - expected).norm() < 6e-3 * expected.norm()


def test_recovers_the_displacement_of_a_lattice():
    # Points that a long wave moved have a density contrast, from which the move can be
    # computed. The lattice lies between the mesh points, where cloud-in-cell is smooth.
    lattice = torch.cartesian_prod(*[torch.arange(32, dtype=torch.float64)] * 3)
    lattice = (lattice + 0.5) / 32
    move = 1e-4 * torch.sin(2 * math.pi * lattice)
    smoothing = 0.05
    actual = linear_velocity(
        lattice + move, smoothing, amplitude=3.0, box_size=1.0, mesh_size=32
    )
    expected = 3 * math.exp(-0.5 * (2 * math.pi * smoothing) ** 2) * move
    # The relative error of linear theory is k move = 6e-4.
    assert (actual - expected).norm() < 1e-3 * expected.norm()


def test_does_not_depend_on_images_origin_or_order():
    pos = points()
    expected = linear_velocity(pos, 0.1, box_size=1.0)
    images = pos + torch.tensor([1.0, -2.0, 0.0])
    actual = linear_velocity(images, 0.1, box_size=1.0)
    torch.testing.assert_close(actual, expected)
    moved = linear_velocity(pos + 5 / 64, 0.1, box_size=1.0)  # Five cells.
    torch.testing.assert_close(moved, expected)
    actual = linear_velocity(pos.flip(0), 0.1, box_size=1.0)
    torch.testing.assert_close(actual, expected.flip(0))
    actual = linear_velocity(pos[:, [2, 0, 1]], 0.1, box_size=1.0)
    torch.testing.assert_close(actual, expected[:, [2, 0, 1]])


def test_units():
    pos = points()
    expected = linear_velocity(pos, 0.1, amplitude=7.0, box_size=1.0)
    actual = linear_velocity(250 * pos, 25.0, amplitude=7 / 250, box_size=250.0)
    torch.testing.assert_close(actual, expected)
    # The default is the box of a uniform coordinate of unit variance.
    side = math.sqrt(12)
    actual = linear_velocity(side * (pos - 0.5), 0.1 * side, amplitude=7 / side)
    torch.testing.assert_close(actual, expected, rtol=6e-3, atol=6e-3)
    assert linear_velocity(pos.float(), 0.1).dtype == torch.float32


def test_no_points():
    assert linear_velocity(torch.empty(0, 3), 0.1, mesh_size=8).shape == (0, 3)


def test_fit_recovers_what_made_the_velocities():
    clouds = []
    for seed in range(2):
        pos = points(seed=seed)
        clouds.append(Data(pos=pos, y=linear_velocity(pos, 0.2, 5.0, box_size=1.0)))
    smoothing, amplitude = fit_linear_velocity(clouds, [0.1, 0.2, 0.3], box_size=1.0)
    assert smoothing == 0.2
    assert amplitude == pytest.approx(5)


def test_fit_has_the_least_error():
    reconstruct = partial(linear_velocity, box_size=1.0, mesh_size=32)
    clouds = []
    for seed in range(2):
        pos = points(seed=seed)
        noise = points(seed=seed + 10) - 0.5
        clouds.append(Data(pos=pos, y=reconstruct(pos, 0.13) + 0.1 * noise))

    def error(smoothing, amplitude):
        return sum(
            (reconstruct(c.pos, smoothing, amplitude) - c.y).square().sum()
            for c in clouds
        )

    smoothing, amplitude = fit_linear_velocity(clouds, box_size=1.0, mesh_size=32)
    # Ten trials from 0.3 to 1.5 mean separations, 200^(-1/3).
    trials = [0.3 * 200 ** (-1 / 3) * 5 ** (i / 9) for i in range(10)]
    assert any(smoothing == pytest.approx(trial) for trial in trials)
    best = error(smoothing, amplitude)
    for factor in (0.99, 1.01):
        assert best < error(smoothing, factor * amplitude)
    for trial in trials:
        assert best <= error(trial, amplitude)


@pytest.mark.parametrize(
    "pos", [torch.rand(5, 2), torch.rand(5), torch.zeros(5, 3, dtype=torch.long)]
)
def test_bad_positions(pos):
    with pytest.raises(ValueError, match="'pos' must be a floating-point tensor"):
        linear_velocity(pos, 0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_positions_that_are_not_finite(value):
    pos = points()
    pos[3, 1] = value
    with pytest.raises(ValueError, match=r"'pos' must be finite \(row 3 is \["):
        linear_velocity(pos, 0.1)


@pytest.mark.parametrize("value", [32.0, "32", True, None])
def test_mesh_size_that_is_no_integer(value):
    message = re.escape(f"'mesh_size' must be an integer (got {value!r})")
    with pytest.raises(TypeError, match=message):
        linear_velocity(points(), 0.1, mesh_size=value)


def test_mesh_size_of_numpy():
    actual = linear_velocity(points(), 0.1, mesh_size=np.int64(16))
    assert torch.equal(actual, linear_velocity(points(), 0.1, mesh_size=16))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(["smoothing", "box_size"], [0, -1, math.inf, math.nan]),
        *itertools.product(["mesh_size"], [0, -1]),
    ],
)
def test_bad_sizes(name, value):
    options = {"smoothing": 0.1, name: value}
    message = rf"'{name}' must be (positive and finite|at least 1) \(got {value}\)"
    with pytest.raises(ValueError, match=message):
        linear_velocity(torch.rand(5, 3), **options)


def test_fit_of_nothing():
    with pytest.raises(ValueError, match="'clouds' is empty"):
        fit_linear_velocity([])
    with pytest.raises(ValueError, match="'smoothings' is empty"):
        fit_linear_velocity([Data(pos=points(), y=points())], [])


@pytest.mark.parametrize("name", ["smoothing", "amplitude", "box_size"])
@pytest.mark.parametrize("value", ["1", None, math.nan, torch.ones(1)])
def test_numbers_that_are_none(name, value):
    options = {"smoothing": 0.1, name: value}
    with pytest.raises(ValueError, match=rf"'{name}' must be .*\(got "):
        linear_velocity(points(), **options)


def test_positions_beyond_the_precision_of_a_box():
    with pytest.raises(ValueError, match="'pos' lies too far from the origin"):
        linear_velocity(1e20 * points(), 0.1)
    with pytest.raises(TypeError, match="'pos' must be a tensor"):
        linear_velocity(points().numpy(), 0.1)


def test_gradient_of_positions():
    def velocity(pos):
        return linear_velocity(pos, 0.2, box_size=1.0, mesh_size=8)

    assert torch.autograd.gradcheck(velocity, points(5).requires_grad_())


def cloud(**changes):
    return Data(**{"pos": points(20), "y": points(20) - 0.5, **changes})


@pytest.mark.parametrize(
    "data, error, message",
    [
        (cloud(y=torch.full((20, 3), math.nan)), ValueError, "'y' .* 1 must be finite"),
        (cloud(y=torch.full((20, 3), math.inf)), ValueError, "'y' .* 1 must be finite"),
        (cloud(pos=torch.full((20, 3), math.nan)), ValueError, "'pos' must be finite"),
        (cloud(y=None), ValueError, "'y' of cloud 1 .* floating-point .*None"),
        (cloud(pos=None), ValueError, "'pos' of cloud 1 .* floating-point .*None"),
        (cloud(y=points(20).long()), ValueError, "'y' of cloud 1 .* floating-point"),
        (cloud(y=points(20)[:, :1]), ValueError, r"'y' .* the shape \[20, 3\] .*1\]"),
        (cloud(y=points(1)), ValueError, r"'y' .* the shape \[20, 3\] .*\[1, 3\]"),
        (points(20), TypeError, r"must hold Data \(entry 1 is a 'Tensor'\)"),
    ],
)
def test_fit_of_bad_clouds(data, error, message):
    with pytest.raises(error, match=message):
        fit_linear_velocity([cloud(), data], mesh_size=8)


def test_fit_where_nothing_moves():
    empty = cloud(pos=torch.empty(0, 3), y=torch.empty(0, 3))
    with pytest.raises(ValueError, match="no amplitude to fit"):
        fit_linear_velocity([empty], mesh_size=8)
    with pytest.raises(ValueError, match="no amplitude to fit"):
        fit_linear_velocity([cloud()], [100.0], mesh_size=8)
    # A smoothing length that removes everything does not affect the other ones.
    assert fit_linear_velocity([cloud()], [0.3, 100.0], mesh_size=8)[0] == 0.3


def test_fit_beyond_the_range_of_float32():
    large = cloud(pos=points(20).float(), y=1e38 * (points(20).float() - 0.5))
    one = cloud(pos=points(20).float(), y=points(20).float() - 0.5)
    _, amplitude = fit_linear_velocity([large], [0.3], mesh_size=8)
    _, unit = fit_linear_velocity([one], [0.3], mesh_size=8)
    assert amplitude == pytest.approx(1e38 * unit)
