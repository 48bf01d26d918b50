import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Cosmology:
    r"""Linear theory of structure in a flat universe of matter and a cosmological
    constant, with the power spectrum of the `"Baryonic Features in the Matter
    Transfer Function" <https://arxiv.org/abs/astro-ph/9709112>`_ paper.

    Lengths are in :math:`\mathrm{Mpc}/h` and wavenumbers in
    :math:`h/\mathrm{Mpc}`. Radiation counts in the transfer function and is
    neglected in the expansion rate, which is good to 0.1 % for :math:`z < 5`.

    Args:
        omega_m (float, optional): Density of matter today, baryons included, in
            units of the critical one. The defaults of all arguments but the
            last are table 2 (TT,TE,EE+lowE+lensing) of the `"Planck 2018
            Results. VI" <https://arxiv.org/abs/1807.06209>`_ paper.
            (default: :obj:`0.3153`)
        omega_b (float, optional): Density of baryons today, from
            :math:`\Omega_b h^2 = 0.02237`. (default: :obj:`0.0493`)
        h (float, optional): Hubble constant today in units of 100 km/s/Mpc.
            (default: :obj:`0.6736`)
        n_s (float, optional): Slope of the primordial spectrum.
            (default: :obj:`0.9649`)
        sigma_8 (float, optional): Root mean square of the linear density
            contrast today in spheres of radius 8 Mpc/h.
            (default: :obj:`0.8111`)
        t_cmb (float, optional): Temperature of the microwave background in K,
            from the `"Temperature of the Cosmic Microwave Background"
            <https://arxiv.org/abs/0911.1955>`_ paper. (default: :obj:`2.7255`)

    Example:
        >>> cosmology = Cosmology()
        >>> round(float(cosmology.growth_rate(1.0)), 3)
        0.527
        >>> cosmology.power(0.1).shape
        ()
    """

    omega_m: float = 0.3153
    omega_b: float = 0.0493
    h: float = 0.6736
    n_s: float = 0.9649
    sigma_8: float = 0.8111
    t_cmb: float = 2.7255

    def hubble(self, a: float) -> float:
        r"""Returns the Hubble rate in km/s per Mpc/h at the scale factor
        :obj:`a`: 100 today.
        """
        return 100 * math.sqrt(self.omega_m / a**3 + 1 - self.omega_m)

    def matter_density(self, a: float) -> float:
        r"""Returns :math:`\Omega_m(a)`, the density of matter in units of the
        critical one at the scale factor :obj:`a`.
        """
        return self.omega_m / a**3 * (100 / self.hubble(a)) ** 2

    def growth_factor(self, a: float) -> float:
        r"""Returns :math:`D(a)`, the linear density contrast at the scale factor
        :obj:`a` relative to today's.
        """
        return self._growth(a) / self._growth(1)

    def growth_rate(self, a: float) -> float:
        r"""Returns :math:`f(a) = \mathrm{d}\ln D/\mathrm{d}\ln a`."""
        return self.matter_density(a) * (2.5 * a / self._growth(a) - 1.5)

    def _growth(self, a: float) -> float:
        # D = 5/2 Omega_m E(a) int_0^a dx / (x E(x))^3, which tends to a in the
        # matter era. With x = a t^2 the integrand is smooth at 0, and 64 nodes
        # reach machine precision.
        node, weight = np.polynomial.legendre.leggauss(64)
        t = (node + 1) / 2
        x = a * t**2
        integrand = (x / (self.omega_m + (1 - self.omega_m) * x**3)) ** 1.5
        integral = float(np.sum(weight * integrand * a * t))
        return 2.5 * self.omega_m * self.hubble(a) / 100 * integral

    def transfer(self, k: Array | float) -> Array:
        r"""Returns the transfer function of matter (eqs. 2-24 of the paper).

        Args:
            k (numpy.ndarray): Positive wavenumbers in :math:`h/\mathrm{Mpc}`.

        Shapes:
            - **output:** the shape of :obj:`k`; tends to 1 for small :obj:`k`.
        """
        k = np.asarray(k, dtype=np.float64) * self.h  # 1/Mpc, as in the paper.
        omega_m, omega_b = self.omega_m * self.h**2, self.omega_b * self.h**2
        baryons = self.omega_b / self.omega_m
        theta = self.t_cmb / 2.7

        # Equality, the drag epoch and the sound horizon (eqs. 2-7).
        z_eq = 2.50e4 * omega_m / theta**4
        k_eq = 7.46e-2 * omega_m / theta**2
        b1 = 0.313 * omega_m**-0.419 * (1 + 0.607 * omega_m**0.674)
        b2 = 0.238 * omega_m**0.223
        z_drag = 1291 * omega_m**0.251 / (1 + 0.659 * omega_m**0.828)
        z_drag *= 1 + b1 * omega_b**b2
        r_drag = 31.5e3 * omega_b / theta**4 / z_drag
        r_eq = 31.5e3 * omega_b / theta**4 / z_eq
        sound = math.log(
            (math.sqrt(1 + r_drag) + math.sqrt(r_drag + r_eq)) / (1 + math.sqrt(r_eq))
        )
        sound *= 2 / (3 * k_eq) * math.sqrt(6 / r_eq)
        k_silk = 1.6 * omega_b**0.52 * omega_m**0.73 * (1 + (10.4 * omega_m) ** -0.95)

        q = k / (13.41 * k_eq)
        ks = k * sound

        def pressureless(alpha: float, beta: float) -> Array:  # Eqs. 19-20.
            logarithm = np.log(math.e + 1.8 * beta * q)
            c = 14.2 / alpha + 386 / (1 + 69.9 * q**1.08)
            return logarithm / (logarithm + c * q**2)

        # Cold dark matter (eqs. 10-12, 17-18).
        a1 = (46.9 * omega_m) ** 0.670 * (1 + (32.1 * omega_m) ** -0.532)
        a2 = (12.0 * omega_m) ** 0.424 * (1 + (45.0 * omega_m) ** -0.582)
        alpha_c = a1**-baryons * a2 ** -(baryons**3)
        b1 = 0.944 / (1 + (458 * omega_m) ** -0.708)
        b2 = (0.395 * omega_m) ** -0.0266
        beta_c = 1 / (1 + b1 * ((1 - baryons) ** b2 - 1))
        mix = 1 / (1 + (ks / 5.4) ** 4)
        cold = mix * pressureless(1, beta_c) + (1 - mix) * pressureless(alpha_c, beta_c)

        # Baryons (eqs. 14-15, 21-24).
        y = (1 + z_eq) / (1 + z_drag)
        root = math.sqrt(1 + y)
        g = y * (-6 * root + (2 + 3 * y) * math.log((root + 1) / (root - 1)))
        alpha_b = 2.07 * k_eq * sound * (1 + r_drag) ** -0.75 * g
        beta_b = 0.5 + baryons + (3 - 2 * baryons) * math.hypot(17.2 * omega_m, 1)
        beta_node = 8.41 * omega_m**0.435
        phase = ks / np.cbrt(1 + (beta_node / ks) ** 3)
        baryonic = pressureless(1, 1) / (1 + (ks / 5.2) ** 2)
        baryonic += alpha_b / (1 + (beta_b / ks) ** 3) * np.exp(-((k / k_silk) ** 1.4))
        baryonic *= np.sinc(phase / np.pi)  # numpy's sinc(x) is sin(pi x)/(pi x).

        return baryons * baryonic + (1 - baryons) * cold

    def power(self, k: Array | float) -> Array:
        r"""Returns the power spectrum of the linear density contrast today,
        normalised to :obj:`sigma_8`.

        Args:
            k (numpy.ndarray): Positive wavenumbers in :math:`h/\mathrm{Mpc}`.

        Shapes:
            - **output:** the shape of :obj:`k`, in :math:`(\mathrm{Mpc}/h)^3`.
        """
        # sigma^2 = int P(k) W(kR)^2 k^3/(2 pi^2) dln k with a top-hat of 8 Mpc/h.
        # The integrand falls as k^-4 beyond 1 h/Mpc and as k^4 below 0.01.
        log_k = np.linspace(math.log(1e-5), math.log(1e2), 8192)
        waves = np.exp(log_k)
        x = 8 * waves
        window = 3 * (np.sin(x) - x * np.cos(x)) / x**3
        integrand = self._shape(waves) * window**2 * waves**3 / (2 * math.pi**2)
        variance = float(np.sum(integrand)) * (log_k[1] - log_k[0])
        return self._shape(k) * (self.sigma_8**2 / variance)

    def _shape(self, k: Array | float) -> Array:
        return np.asarray(k, dtype=np.float64) ** self.n_s * self.transfer(k) ** 2


PLANCK_2018 = Cosmology()
