import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad

from torch_geometric_erwin.datasets.linear_theory import Cosmology

SCALE_FACTORS = [0.1, 0.25, 0.5, 0.8, 1.0]

# The function of another implementation, colossus 1.4.0
# (cosmology.power_spectrum.modelEisenstein98), at these wavenumbers in h/Mpc.
WAVENUMBERS = [1e-4, 0.01, 0.05, 0.07, 0.1, 0.2, 1.0, 10.0]
TRANSFER = {
    (0.3153, 0.0493, 0.6736): [
        0.9999089809555981,
        0.7828788973288514,
        0.2748341817787754,
        0.20630053172281762,
        0.13369058734389283,
        0.05620043252197304,
        0.004802198617968765,
        9.22321966747671e-05,
    ],
    (0.3, 0.1, 0.7): [
        0.999906482157576,
        0.7771463924246128,
        0.2043143829079375,
        0.1494467584424681,
        0.09793733089330109,
        0.03542660596832361,
        0.0029577410394777503,
        5.4712531932970274e-05,
    ],
}


@pytest.mark.parametrize("parameters", TRANSFER)
def test_transfer_matches_another_implementation(parameters):
    cosmology = Cosmology(*parameters)
    actual = cosmology.transfer(np.array(WAVENUMBERS))
    np.testing.assert_allclose(actual, TRANSFER[parameters], rtol=1e-12)


def test_defaults_agree_with_the_derived_parameters_of_planck():
    # Omega_b h^2, Omega_m h^2 and S_8 of the same table, up to its last digit.
    cosmology = Cosmology()
    assert cosmology.omega_b * cosmology.h**2 == pytest.approx(0.02237, abs=5e-6)
    assert cosmology.omega_m * cosmology.h**2 == pytest.approx(0.1430, abs=1e-4)
    s_8 = cosmology.sigma_8 * math.sqrt(cosmology.omega_m / 0.3)
    assert s_8 == pytest.approx(0.832, abs=1e-3)


def test_power_has_the_primordial_slope_on_large_scales():
    # 1 - T is of the order of (k / 0.02 h/Mpc)^2 log, 1e-6 here.
    low, high = Cosmology().power(np.array([1e-6, 1e-5]))
    assert math.log10(high / low) == pytest.approx(0.9649, abs=1e-5)


@pytest.mark.parametrize("sigma_8", [0.8111, 0.6])
def test_power_has_its_sigma_8(sigma_8):
    cosmology = Cosmology(sigma_8=sigma_8)

    def integrand(log_k):
        k = math.exp(log_k)
        window = 3 * (math.sin(8 * k) - 8 * k * math.cos(8 * k)) / (8 * k) ** 3
        return float(cosmology.power(k)) * window**2 * k**3 / (2 * math.pi**2)

    # Waves outside of 1e-4 to 30 h/Mpc have less than 1e-6 of the variance.
    edges = np.log(np.geomspace(1e-4, 30, 40))
    variance = sum(
        quad(integrand, low, high, epsrel=1e-8)[0] for low, high in pairwise(edges)
    )
    assert math.sqrt(variance) == pytest.approx(sigma_8, rel=1e-6)


def test_hubble_rate_and_matter_density():
    cosmology = Cosmology(omega_m=0.25)
    assert cosmology.hubble(1.0) == pytest.approx(100)
    assert cosmology.matter_density(1.0) == pytest.approx(0.25)
    # At a = 1/2: E^2 = 8/4 + 3/4.
    assert cosmology.hubble(0.5) == pytest.approx(100 * math.sqrt(2.75))
    assert cosmology.matter_density(0.5) == pytest.approx(2 / 2.75)


@pytest.mark.parametrize("a", SCALE_FACTORS)
def test_growth_in_a_universe_of_matter(a):
    cosmology = Cosmology(omega_m=1.0)
    assert cosmology.growth_factor(a) == pytest.approx(a, rel=1e-12)
    assert cosmology.growth_rate(a) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("a", SCALE_FACTORS)
def test_growth_factor_matches_quadrature_and_fit(a):
    cosmology = Cosmology()

    def growth(a):
        integral, _ = quad(lambda x: (x * cosmology.hubble(x)) ** -3, 1e-9, a)
        return cosmology.hubble(a) * integral

    # The fit of Carroll, Press and Turner (1992), good to a percent.
    def fit(a):
        omega_m = cosmology.matter_density(a)
        omega_l = 1 - omega_m
        g = omega_m ** (4 / 7) - omega_l + (1 + omega_m / 2) * (1 + omega_l / 70)
        return 2.5 * a * omega_m / g

    actual = cosmology.growth_factor(a)
    assert actual == pytest.approx(growth(a) / growth(1.0), rel=1e-7)
    assert actual == pytest.approx(fit(a) / fit(1.0), rel=0.01)


@pytest.mark.parametrize("a", SCALE_FACTORS)
def test_growth_rate_is_the_derivative_of_the_growth_factor(a):
    cosmology, step = Cosmology(), 1e-5
    above = math.log(cosmology.growth_factor(a * math.exp(step)))
    below = math.log(cosmology.growth_factor(a * math.exp(-step)))
    actual = cosmology.growth_rate(a)
    assert actual == pytest.approx((above - below) / (2 * step), rel=1e-8)
    assert actual == pytest.approx(cosmology.matter_density(a) ** 0.55, rel=0.01)
