import itertools
import math

import numpy as np
import pytest
from scipy.spatial import cKDTree

from torch_geometric_erwin.datasets.linear_theory import Cosmology
from torch_geometric_erwin.datasets.lpt import (
    LPTSimulation,
    density_peaks,
    interpolate,
)

BOX = 250.0  # Mpc/h
MESH = 32
UNIT = 2 * math.pi / BOX  # The fundamental wavenumber.


def wave_vectors(mesh=MESH, box=BOX):
    """The wave vectors of the full transform. [3, M, M, M]"""
    n = np.fft.fftfreq(mesh, 1 / mesh)
    return 2 * math.pi / box * np.stack(np.meshgrid(n, n, n, indexing="ij"))


def mesh_points(mesh=MESH, box=BOX):
    """Where the mesh points are, in Mpc/h. [3, M, M, M]"""
    x = np.arange(mesh) * box / mesh
    return np.stack(np.meshgrid(x, x, x, indexing="ij"))


def derivative(field, axis):
    return np.fft.ifftn(1j * wave_vectors(len(field))[axis] * np.fft.fftn(field)).real


def flow(simulation, density, source):
    """All three components of displacement and velocity. [3, M, M, M] each"""
    parts = [simulation.flow(density, source, axis) for axis in range(3)]
    return tuple(np.stack(part) for part in zip(*parts))


@pytest.fixture(scope="module")
def simulation():
    return LPTSimulation(BOX, MESH)


@pytest.fixture
def density(simulation):
    return simulation.density(np.random.default_rng(0))


def test_spectrum_of_the_density_is_the_input(simulation):
    seeds = 16
    power = sum(
        np.abs(simulation.density(np.random.default_rng(seed))) ** 2
        for seed in range(seeds)
    )
    # Modes with 0 < k_z < Nyquist are independent, and none below Nyquist is cut off.
    # Each power has an exponential distribution around its mean.
    k = np.sqrt((wave_vectors() ** 2).sum(axis=0))[:, :, 1 : MESH // 2]
    inside = k < UNIT * MESH / 2
    k, power = k[inside], power[:, :, 1 : MESH // 2][inside] / seeds
    smooth = np.exp(-((k * 0.5 * BOX / MESH) ** 2))
    ratio = power / (Cosmology().power(k) * smooth * MESH**6 / BOX**3)

    shell = np.rint(k / UNIT).astype(int)
    count = np.bincount(shell)[1:]
    mean = np.bincount(shell, ratio)[1:] / count
    deviation = (mean - 1) * np.sqrt(count * seeds)
    assert len(deviation) == MESH // 2
    assert np.abs(deviation).max() < 3.5
    # The sum of 16 squared standard deviations: 5 % and 95 % are 8 and 26.
    assert 4 < (deviation**2).sum() < 32


@pytest.mark.parametrize("mesh", [MESH, MESH - 1])
def test_density_is_a_real_field_of_zero_mean(mesh):
    simulation = LPTSimulation(BOX, mesh)
    density = simulation.density(np.random.default_rng(0))
    field = simulation.to_mesh(density)
    assert field.shape == (mesh,) * 3
    np.testing.assert_allclose(
        np.fft.rfftn(field), density, atol=1e-12 * np.abs(density).max()
    )
    assert density[0, 0, 0] == 0


def test_first_order_displacement_undoes_the_density(simulation, density):
    displacement, _ = flow(simulation, density, 0 * density)
    divergence = sum(derivative(displacement[axis], axis) for axis in range(3))
    field = simulation.to_mesh(density)
    np.testing.assert_allclose(divergence, -field, atol=1e-11 * np.abs(field).max())


def test_displacement_is_curl_free(simulation, density):
    source = simulation.second_order_source(density)
    displacement, velocity = flow(simulation, density, source)
    for field in (displacement, velocity):
        scale = np.abs(derivative(field[0], 0)).max()
        for i, j in ((0, 1), (1, 2), (2, 0)):
            # The product of fields in the source reaches the Nyquist modes, which
            # have no gradient: compare the modes below them.
            curl = np.fft.rfftn(derivative(field[j], i) - derivative(field[i], j))
            cut = slice(1, MESH // 2)
            curl = curl[cut, cut, cut] / MESH**3
            assert np.abs(curl).max() < 1e-12 * scale


@pytest.mark.parametrize("vector", [(1, 0, 0), (2, -1, 3)])
def test_plane_wave_has_no_second_order(simulation, vector):
    phase = UNIT * np.tensordot(vector, mesh_points(), axes=1)
    source = simulation.second_order_source(np.fft.rfftn(np.cos(phase)))
    assert np.abs(simulation.to_mesh(source)).max() < 1e-12


def test_second_order_source_matches_the_kernel(simulation):
    # In second-order theory the source of two modes is half of 1 - cos^2 of the
    # angle between them, summed over all ordered pairs.
    rng = np.random.default_rng(0)
    vectors = UNIT * rng.integers(-4, 5, size=(4, 3))
    vectors = np.concatenate([vectors, -vectors])
    weight = rng.standard_normal(4) + 1j * rng.standard_normal(4)
    weight = np.concatenate([weight, weight.conj()])

    waves = np.exp(1j * np.tensordot(vectors, mesh_points(), axes=1))
    field = np.tensordot(weight, waves, axes=1).real
    expected = np.zeros_like(field)
    for (p, a, u), (q, b, v) in itertools.product(
        zip(vectors, weight, waves), repeat=2
    ):
        cosine = p @ q / math.sqrt((p @ p) * (q @ q))
        expected += (0.5 * (1 - cosine**2) * a * b * u * v).real

    source = simulation.to_mesh(simulation.second_order_source(np.fft.rfftn(field)))
    np.testing.assert_allclose(source, expected, atol=1e-12 * np.abs(expected).max())


# Planck 2018, computed by hand except the integrals f and D. Today: f = 0.52739 and
# f_2 = 2 * 0.3153^(6/11) = 1.06565. At redshift 1: Omega_m = 0.78650, a H = 89.542
# km/s per Mpc/h, f = 0.87685, f_2 = 2 * 0.78650^(6/11) = 1.75444 and D = 0.60666.
@pytest.mark.parametrize(
    "redshift, growth, first, second, omega_m",
    [
        (0.0, 1.0, 100 * 0.52739, 100 * 1.06565, 0.3153),
        (1.0, 0.60666, 89.542 * 0.87685, 89.542 * 1.75444, 0.78650),
    ],
)
def test_flow_of_crossed_waves(redshift, growth, first, second, omega_m):
    # delta = A cos(k x) + B cos(2 k y), for which the source is the product of the
    # two: everything is known in closed form, in Mpc/h and km/s.
    simulation = LPTSimulation(BOX, MESH, redshift)
    x, y, _ = UNIT * mesh_points()
    a, b = 0.3, -0.2
    density = np.fft.rfftn(a * np.cos(x) + b * np.cos(2 * y))
    displacement, velocity = flow(
        simulation, density, simulation.second_order_source(density)
    )

    one = [-a * np.sin(x) / UNIT, -b * np.sin(2 * y) / (2 * UNIT), 0 * x]
    # psi_2 = grad phi_2 with phi_2 = -A B cos(k x) cos(2 k y) / (5 k^2).
    two = [
        a * b * np.sin(x) * np.cos(2 * y) / (5 * UNIT),
        2 * a * b * np.cos(x) * np.sin(2 * y) / (5 * UNIT),
        0 * x,
    ]
    one = growth * np.stack(one)
    two = -3 / 7 * growth**2 * omega_m ** (-1 / 143) * np.stack(two)
    # The constants above have five digits.
    scale = np.abs(one).max()
    np.testing.assert_allclose(displacement, one + two, atol=2e-5 * scale)
    np.testing.assert_allclose(
        velocity, first * one + second * two, atol=2e-5 * first * scale
    )


def test_collapse_of_a_spherical_peak():
    # In a universe of matter, second-order perturbation theory gives the density
    # 1 + delta + 17/21 delta^2 where the tidal field vanishes.
    simulation = LPTSimulation(BOX, MESH, cosmology=Cosmology(omega_m=1.0))
    delta = 3e-4
    field = delta / 3 * np.cos(UNIT * mesh_points()).sum(axis=0)
    density = np.fft.rfftn(field)
    displacement, _ = flow(simulation, density, simulation.second_order_source(density))
    jacobian = np.eye(3)
    for i, j in itertools.product(range(3), repeat=2):
        jacobian[i, j] += derivative(displacement[i], j)[0, 0, 0]
    second = (1 / np.linalg.det(jacobian) - 1 - delta) / delta**2
    # The third order adds a relative error of the order of delta.
    assert second == pytest.approx(17 / 21, abs=1e-3)


def test_velocity_dispersion_is_the_sum_over_modes():
    mesh, redshift = 9, 0.5
    simulation = LPTSimulation(BOX, mesh, redshift)
    cosmology, a = Cosmology(), 1 / 1.5
    total = 0.0
    for n in itertools.product(range(-4, 5), repeat=3):
        if any(n):
            k = UNIT * math.hypot(*n)
            smooth = math.exp(-((k * 0.5 * BOX / mesh) ** 2))
            total += float(cosmology.power(k)) * smooth / (3 * k**2 * BOX**3)
    rate = a * cosmology.hubble(a) * cosmology.growth_rate(a)
    expected = rate * cosmology.growth_factor(a) * math.sqrt(total)
    assert simulation.velocity_dispersion == pytest.approx(expected, rel=1e-12)


def test_velocities_have_zero_mean_and_the_closed_form_dispersion(simulation):
    seeds, variance = 24, []
    for seed in range(seeds):
        density = simulation.density(np.random.default_rng(seed))
        _, velocity = flow(simulation, density, 0 * density)
        assert np.abs(velocity.mean(axis=(1, 2, 3))).max() < 1e-10
        variance.append((velocity**2).mean())
    error = np.std(variance) / math.sqrt(seeds)
    assert abs(np.mean(variance) - simulation.velocity_dispersion**2) < 3 * error


def test_number_and_velocity_of_peaks():
    # The statistics of peaks of Gaussian fields (Bardeen et al. 1986): 0.016 peaks
    # per cube of R_*, and velocities that the zero gradient lowers by gamma_v. The
    # smoothing of two cells resolves the peaks; the amplitude leaves no second order.
    mesh, seeds = 64, 4
    simulation = LPTSimulation(BOX, mesh, cosmology=Cosmology(sigma_8=1e-4))
    k2 = (wave_vectors(mesh) ** 2).sum(axis=0)[:, :, : mesh // 2 + 1]
    smooth = np.exp(-0.5 * k2 * (2 * BOX / mesh) ** 2)
    moment = dict.fromkeys((-1, 0, 1, 2), 0.0)
    found, ratio = 0, []
    for seed in range(seeds):
        density = simulation.density(np.random.default_rng(seed)) * smooth
        power = np.abs(density) ** 2
        power[:, :, 1 : mesh // 2] *= 2
        k2[0, 0, 0] = 1  # This mode has no power, so the value does not matter.
        for order in moment:
            moment[order] += (power * k2**order).sum() / mesh**6
        cells = density_peaks(simulation.to_mesh(density))
        found += len(cells)
        _, velocity = flow(simulation, density, 0 * density)
        at_peaks = np.mean([interpolate(v, cells) ** 2 for v in velocity])
        gamma = power.sum() / math.sqrt((power / k2).sum() * (power * k2).sum())
        ratio.append(at_peaks / (velocity**2).mean() / (1 - gamma**2))

    constant = (29 - 6 * math.sqrt(6)) / (5**1.5 * 2 * (2 * math.pi) ** 2)
    r_star = math.sqrt(3 * moment[1] / moment[2])
    expected = seeds * constant * BOX**3 / r_star**3
    assert found == pytest.approx(expected, abs=4 * math.sqrt(expected))
    # There are about 700 peaks per box, and neighbouring peaks move together.
    assert np.mean(ratio) == pytest.approx(1, abs=0.05)


def test_peaks_are_located_within_a_cell():
    mesh, top = 16, np.array([3.3, 12.8, 6.0])
    x = np.stack(np.meshgrid(*[np.arange(mesh)] * 3, indexing="ij"), axis=-1)
    field = np.cos(2 * math.pi * (x - top) / mesh).sum(axis=-1)
    # The parabola through a cosine of 16 cells is off by less than 0.01.
    np.testing.assert_allclose(density_peaks(field), [top], atol=0.01)


def test_peaks_are_periodic_and_sorted_by_height(simulation, density):
    field = simulation.to_mesh(density)
    peaks = density_peaks(field)
    nearest = tuple(np.rint(peaks).astype(int).T % MESH)
    assert (np.diff(field[nearest]) <= 0).all()
    shifted = density_peaks(np.roll(field, (5, -7, 20), axis=(0, 1, 2)))
    gap = (shifted - peaks - (5, -7, 20) + MESH / 2) % MESH - MESH / 2
    assert np.abs(gap).max() < 1e-9


def test_interpolation_is_trilinear_and_periodic():
    rng = np.random.default_rng(0)
    field = rng.standard_normal((8, 8, 8))
    np.testing.assert_array_equal(
        interpolate(field, np.array([[1.0, 2.0, 3.0], [-1.0, 8.0, 15.0]])),
        [field[1, 2, 3], field[7, 0, 7]],
    )
    i, j, k = np.ogrid[:8, :8, :8]
    cells = rng.uniform(0, 7, size=(20, 3))
    x, y, z = cells.T
    np.testing.assert_allclose(
        interpolate((1 + i) * (2 - j) * (k + 0.5), cells),
        (1 + x) * (2 - y) * (z + 0.5),
    )


def test_haloes_are_moved_peaks(simulation):
    pos, velocity = simulation.haloes(np.random.default_rng(3), 50)
    density = simulation.density(np.random.default_rng(3))
    cells = density_peaks(simulation.to_mesh(density))[:50]
    displacement, speed = flow(
        simulation, density, simulation.second_order_source(density)
    )
    moved = cells.T * BOX / MESH + [interpolate(d, cells) for d in displacement]
    np.testing.assert_allclose(pos, moved.T % BOX)
    np.testing.assert_allclose(velocity.T, [interpolate(v, cells) for v in speed])


def test_haloes_are_clustered():
    pos, _ = LPTSimulation(BOX, 64).haloes(np.random.default_rng(0), 1000)
    assert pos.min() >= 0
    assert pos.max() <= BOX
    tree, radius = cKDTree(pos % BOX, boxsize=BOX), 10.0
    pairs = tree.count_neighbors(tree, radius) - 1000
    random = 1000 * 999 * 4 / 3 * math.pi * radius**3 / BOX**3
    assert pairs > random + 10 * math.sqrt(random)


def test_too_many_haloes():
    with pytest.raises(ValueError, match=r"'num_halos' is 900.*'mesh_size' 16 has"):
        LPTSimulation(BOX, 16).haloes(np.random.default_rng(0), 900)
