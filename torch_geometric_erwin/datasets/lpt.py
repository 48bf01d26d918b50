import math

import numpy as np
from numpy.typing import NDArray

from torch_geometric_erwin.datasets.linear_theory import PLANCK_2018, Cosmology

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]


class LPTSimulation:
    r"""Haloes of second-order Lagrangian perturbation theory in a periodic box,
    after the `"Perturbative Lagrangian Approach to Gravitational Instability"
    <https://arxiv.org/abs/astro-ph/9406013>`_ paper.

    A Gaussian random density contrast :math:`\delta` (today's linear one, smoothed
    with a Gaussian of half a mesh cell) moves the matter at :math:`\mathbf{q}` to
    :math:`\mathbf{q} + \mathbf{s}` with the peculiar velocity :math:`\mathbf{v}`,

    .. math::
        \mathbf{s} &= D_1 \boldsymbol{\psi}_1 + D_2 \boldsymbol{\psi}_2, \qquad
        \nabla \cdot \boldsymbol{\psi}_1 = -\delta, \qquad
        \nabla \cdot \boldsymbol{\psi}_2 = \sum_{i<j}
        \phi_{,ii} \phi_{,jj} - \phi_{,ij}^2

        \mathbf{v} &= a H \left( f_1 D_1 \boldsymbol{\psi}_1 +
        f_2 D_2 \boldsymbol{\psi}_2 \right)

    with :math:`\nabla^2 \phi = \delta`,
    :math:`D_2 = -\frac{3}{7} D_1^2 \Omega_m(a)^{-1/143}` and
    :math:`f_2 = 2 \Omega_m(a)^{6/11}`. Haloes are the highest peaks of
    :math:`\delta`, as in the `"Statistics of Peaks of Gaussian Random Fields"
    <https://doi.org/10.1086/164143>`_ paper, moved this way.

    Args:
        box_size (float): Side of the box in comoving :math:`\mathrm{Mpc}/h`.
        mesh_size (int): Number of mesh cells along a side.
        redshift (float, optional): Redshift of the haloes.
            (default: :obj:`0.0`)
        cosmology (Cosmology, optional): The universe.
            (default: :obj:`PLANCK_2018`)

    Example:
        >>> simulation = LPTSimulation(box_size=100.0, mesh_size=16)
        >>> pos, velocity = simulation.haloes(np.random.default_rng(0), 10)
        >>> pos.shape, velocity.shape
        ((10, 3), (10, 3))
    """

    def __init__(
        self,
        box_size: float,
        mesh_size: int,
        redshift: float = 0.0,
        cosmology: Cosmology = PLANCK_2018,
    ) -> None:
        self.box_size = box_size
        self.mesh_size = mesh_size

        a = 1 / (1 + redshift)
        omega_m, growth = cosmology.matter_density(a), cosmology.growth_factor(a)
        # The displacement per unit of the two fields of `flow`, and the velocity
        # in km/s per Mpc/h of that displacement.
        self._growth = (growth, 3 / 7 * growth**2 * omega_m ** (-1 / 143))
        self._rate = (
            a * cosmology.hubble(a) * cosmology.growth_rate(a),
            a * cosmology.hubble(a) * 2 * omega_m ** (6 / 11),
        )

        # Integer wave vectors; the last axis holds the half that numpy's real
        # transform keeps. All modes of a shell |n| share one amplitude.
        full = np.fft.fftfreq(mesh_size, 1 / mesh_size)
        half = np.fft.rfftfreq(mesh_size, 1 / mesh_size)
        n = (full[:, None, None], full[None, :, None], half[None, None, :])
        fundamental = 2 * math.pi / box_size
        self._k = tuple(fundamental * component for component in n)
        shell = (n[0] ** 2 + n[1] ** 2 + n[2] ** 2).astype(np.int64)

        k = fundamental * np.sqrt(np.arange(1, shell.max() + 1))
        # A Gaussian of half a cell gives about one peak in 70 mesh points. With a
        # narrower one, peaks are the noise of single cells; with a wider one, there are
        # few peaks and they move with a smooth flow.
        smoothing = 0.5 * box_size / mesh_size
        variance = np.zeros(shell.max() + 1)  # of a mode of the contrast, by shell
        variance[1:] = cosmology.power(k) / box_size**3
        variance[1:] *= np.exp(-((k * smoothing) ** 2))
        self._amplitude = np.sqrt(variance)[shell] * mesh_size**1.5
        # Nyquist modes are left out: each is its own conjugate, so that its gradient is
        # not real.
        for component in n:
            self._amplitude *= 2 * np.abs(component) < mesh_size
        self._inverse_k2 = np.zeros(shell.shape)
        self._inverse_k2[shell > 0] = 1 / (fundamental**2 * shell[shell > 0])

    @property
    def velocity_dispersion(self) -> float:
        r"""The standard deviation of one component of the linear velocity on this
        mesh, :math:`a H f D (\sum_\mathbf{k} P(k) / (3 k^2 V))^{1/2}`, in km/s.
        """
        power = self._amplitude**2 / self.mesh_size**3 * self._inverse_k2
        # Modes with 0 < k_z < Nyquist stand for their conjugates too.
        total = 2 * power.sum() - power[:, :, 0].sum()
        return self._rate[0] * self._growth[0] * math.sqrt(total / 3)

    def density(self, rng: np.random.Generator) -> ComplexArray:
        r"""Draws the modes of a density contrast.

        Args:
            rng (numpy.random.Generator): The source of its white noise.

        Shapes:
            - **output:** :math:`(M, M, \lfloor M/2 \rfloor + 1)`, the transform
              :func:`numpy.fft.rfftn` of the contrast on the mesh.
        """
        noise = rng.standard_normal((self.mesh_size,) * 3)
        return np.fft.rfftn(noise) * self._amplitude

    def to_mesh(self, modes: ComplexArray) -> Array:
        r"""Returns the field on the mesh, :math:`(M, M, M)`, of its modes."""
        return np.fft.irfftn(modes, s=(self.mesh_size,) * 3, axes=(0, 1, 2))

    def second_order_source(self, density: ComplexArray) -> ComplexArray:
        r"""Returns the modes of :math:`\sum_{i<j} \phi_{,ii} \phi_{,jj} -
        \phi_{,ij}^2`, given and returned in the layout of :meth:`density`.
        """
        k, potential = self._k, density * self._inverse_k2
        xx, yy, zz = (self.to_mesh(potential * k[i] ** 2) for i in range(3))
        source = xx * yy + (xx + yy) * zz
        del xx, yy, zz
        for i, j in ((0, 1), (0, 2), (1, 2)):
            source -= self.to_mesh(potential * (k[i] * k[j])) ** 2
        return np.fft.rfftn(source)

    def flow(
        self, density: ComplexArray, source: ComplexArray, axis: int
    ) -> tuple[Array, Array]:
        r"""Returns one component of displacement and velocity on the mesh.

        Args:
            density (numpy.ndarray): The modes of the density contrast.
            source (numpy.ndarray): Its :meth:`second_order_source`.
            axis (int): The component, 0 to 2.

        Shapes:
            - **output:** displacement :math:`(M, M, M)` in comoving
              :math:`\mathrm{Mpc}/h`, and velocity :math:`(M, M, M)` in km/s.
        """
        # The curl-free field of divergence -delta has the modes i k delta / k^2. The
        # same formula holds for the second order, because `_growth` is -D_2, not D_2.
        inverse_divergence = 1j * self._k[axis] * self._inverse_k2
        first = self.to_mesh(density * inverse_divergence) * self._growth[0]
        second = self.to_mesh(source * inverse_divergence) * self._growth[1]
        return first + second, self._rate[0] * first + self._rate[1] * second

    def haloes(self, rng: np.random.Generator, num_halos: int) -> tuple[Array, Array]:
        r"""Draws a box of haloes, highest peak first.

        Args:
            rng (numpy.random.Generator): The source of randomness.
            num_halos (int): Number of haloes.

        Shapes:
            - **output:** positions :math:`(N, 3)` in comoving
              :math:`\mathrm{Mpc}/h` in :math:`[0, L]`, and peculiar velocities
              :math:`(N, 3)` in km/s.

        Raises:
            ValueError: If the density has fewer than :obj:`num_halos` peaks.
        """
        density = self.density(rng)
        peaks = density_peaks(self.to_mesh(density))
        if len(peaks) < num_halos:
            raise ValueError(
                f"'num_halos' is {num_halos}, but the density on a mesh of "
                f"'mesh_size' {self.mesh_size} has only {len(peaks)} peaks; use "
                f"fewer haloes or a finer mesh"
            )
        cells = peaks[:num_halos]
        source = self.second_order_source(density)
        pos = cells * (self.box_size / self.mesh_size)
        velocity = np.empty_like(pos)
        for axis in range(3):
            displacement, speed = self.flow(density, source, axis)
            pos[:, axis] += interpolate(displacement, cells)
            velocity[:, axis] = interpolate(speed, cells)
        return pos % self.box_size, velocity


def density_peaks(density: Array) -> Array:
    r"""Returns where a periodic field exceeds its 26 neighbors, highest first.

    Args:
        density (numpy.ndarray): The field on its mesh, :math:`(M, M, M)`.

    Shapes:
        - **output:** :math:`(P, 3)`, in cells: mesh points moved by at most half
          a cell, along each axis to the top of the parabola through the peak
          and its two neighbors.
    """
    highest = density
    for axis in range(3):
        highest = np.maximum(
            highest,
            np.maximum(np.roll(highest, 1, axis), np.roll(highest, -1, axis)),
        )
    index = np.argwhere(density == highest)
    height = density[tuple(index.T)]
    order = np.argsort(-height, kind="stable")
    index, height = index[order], height[order]

    peaks = index.astype(np.float64)
    for axis in range(3):
        step = np.zeros(3, dtype=np.int64)
        step[axis] = 1
        below = density[tuple(((index - step) % density.shape).T)]
        above = density[tuple(((index + step) % density.shape).T)]
        peaks[:, axis] += 0.5 * (above - below) / (2 * height - above - below)
    return peaks


def interpolate(field: Array, cells: Array) -> Array:
    r"""Interpolates a periodic field trilinearly.

    Args:
        field (numpy.ndarray): The field on its mesh, :math:`(M, M, M)`.
        cells (numpy.ndarray): Positions :math:`(N, 3)` in cells.

    Shapes:
        - **output:** :math:`(N,)`.
    """
    corner = np.floor(cells)
    upper = cells - corner
    low = corner.astype(np.int64)
    value = np.zeros(len(cells))
    for shift in np.ndindex(2, 2, 2):
        weight = np.where(shift, upper, 1 - upper).prod(axis=1)
        value += weight * field[tuple(((low + shift) % field.shape).T)]
    return value
