import math
import os
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data, InMemoryDataset
from tqdm import tqdm

from torch_geometric_erwin.datasets.linear_velocity import UNIT_BOX
from torch_geometric_erwin.datasets.lpt import LPTSimulation

SPLITS = ("train", "val", "test")


class CosmologyLPT(InMemoryDataset):
    r"""Dark-matter haloes in a periodic box and their velocities: the task of the
    cosmology experiment of the `"Erwin: A Tree-based Hierarchical Transformer for
    Large-scale Physical Systems" <https://arxiv.org/abs/2502.17019>`_ paper, on
    data generated here by second-order Lagrangian perturbation theory.

    Each cloud is a universe of its own with the Planck 2018 parameters: a Gaussian
    random density with the spectrum of the `"Baryonic Features in the Matter
    Transfer Function" <https://arxiv.org/abs/astro-ph/9709112>`_ paper, whose
    highest peaks become the haloes. Cloud :math:`i` of a split depends on the seed,
    the split and :math:`i` alone. The clouds are generated on first use, which
    takes about 0.4 CPU seconds each at the default mesh and 200 MB of memory per
    thread, and are then read from :obj:`root`.

    :obj:`pos` and :obj:`y` are standardised by constants that do not depend on
    the data:

    .. math::
        \mathrm{position} = \frac{L}{2} + \mathrm{pos} \cdot
        \mathtt{position\_scale}\; \mathrm{Mpc}/h, \qquad
        \mathrm{velocity} = \mathrm{y} \cdot \mathtt{velocity\_scale}\;
        \mathrm{km/s}

    where :obj:`position_scale` :math:`= L/\sqrt{12}` is the standard deviation of
    a uniform coordinate, and :obj:`velocity_scale` that of a velocity component in
    linear theory. The box is periodic with the side :math:`\sqrt{12}` in the units
    of :obj:`pos`. There are no edges; add them by :obj:`pre_transform`.

    Args:
        root (str): Directory where the dataset is saved.
        split (str, optional): :obj:`"train"`, :obj:`"val"` or :obj:`"test"`.
            (default: :obj:`"train"`)
        num_clouds (int, optional): Number of clouds. If :obj:`None`, 128 for
            training and 16 for validation and for test. (default: :obj:`None`)
        num_halos (int, optional): Number of haloes in each cloud, at most about
            1.3 % of the mesh cells. (default: :obj:`5000`)
        box_size (float, optional): Side of the box in comoving
            :math:`\mathrm{Mpc}/h`. (default: :obj:`250.0`)
        mesh_size (int, optional): Number of mesh cells along a side.
            (default: :obj:`128`)
        redshift (float, optional): Redshift of the haloes.
            (default: :obj:`0.0`)
        seed (int, optional): Seed of all splits. (default: :obj:`0`)
        num_workers (int, optional): Number of threads that generate. The clouds do
            not depend on it. If :obj:`None`, the number of threads of PyTorch,
            but at most 8, to bound the memory. (default: :obj:`None`)
        transform (callable, optional): A function that takes a
            :class:`~torch_geometric.data.Data` object and returns a transformed
            version, applied at every access. (default: :obj:`None`)
        pre_transform (callable, optional): Such a function, applied once before
            saving. (default: :obj:`None`)
        pre_filter (callable, optional): A function that takes a
            :class:`~torch_geometric.data.Data` object and returns whether it
            belongs in the dataset. (default: :obj:`None`)
        force_reload (bool, optional): Whether to generate again.
            (default: :obj:`False`)

    Shapes:
        - **pos:** :math:`(\mathtt{num\_halos}, 3)`, float32, within
          :math:`\pm\sqrt{3}`, highest density peak first
        - **y:** :math:`(\mathtt{num\_halos}, 3)`, float32, peculiar velocity

    Raises:
        ValueError: If an argument is out of range, if the density has fewer than
            :obj:`num_halos` peaks, or if :obj:`pre_filter` keeps no cloud.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as root:
        ...     dataset = CosmologyLPT(
        ...         root, num_clouds=2, num_halos=100, box_size=60.0, mesh_size=32
        ...     )
        >>> dataset[0]
        Data(y=[100, 3], pos=[100, 3])
        >>> velocity = dataset[0].y * dataset.velocity_scale  # km/s
    """

    def __init__(
        self,
        root: str,
        split: str = "train",
        *,
        num_clouds: int | None = None,
        num_halos: int = 5000,
        box_size: float = 250.0,
        mesh_size: int = 128,
        redshift: float = 0.0,
        seed: int = 0,
        num_workers: int | None = None,
        transform: Callable[[Data], Any] | None = None,
        pre_transform: Callable[[Data], Any] | None = None,
        pre_filter: Callable[[Data], bool] | None = None,
        force_reload: bool = False,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"'split' must be one of {SPLITS} (got {split!r})")
        if num_clouds is None:
            num_clouds = 128 if split == "train" else 16
        if num_workers is None:
            num_workers = min(torch.get_num_threads(), 8)
        for name, value, least in (
            ("num_clouds", num_clouds, 1),
            ("num_halos", num_halos, 1),
            ("mesh_size", mesh_size, 8),
            ("seed", seed, 0),
            ("num_workers", num_workers, 1),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f"'{name}' must be an integer of at least {least} (got {value})"
                )
        if not 0 < box_size < math.inf:
            raise ValueError(f"'box_size' must be positive and finite (got {box_size})")
        if not 0 <= redshift < math.inf:
            raise ValueError(
                f"'redshift' must be non-negative and finite (got {redshift})"
            )

        self.split = split
        self.num_clouds = num_clouds
        self.num_halos = num_halos
        self.box_size = float(box_size)
        self.mesh_size = mesh_size
        self.redshift = float(redshift)
        self.seed = seed
        self.num_workers = num_workers
        super().__init__(
            root, transform, pre_transform, pre_filter, force_reload=force_reload
        )
        self.load(self.processed_paths[0])

    @property
    def processed_dir(self) -> str:
        # A folder for each configuration, so that PyG's record of the
        # `pre_transform` that was applied is that of the configuration too.
        return os.path.join(
            super().processed_dir,
            f"{self.split}-{self.num_clouds}x{self.num_halos}-box{self.box_size}"
            f"-mesh{self.mesh_size}-z{self.redshift}-seed{self.seed}",
        )

    @property
    def processed_file_names(self) -> str:
        return "data.pt"

    @property
    def position_scale(self) -> float:
        r"""The unit of :obj:`pos` in comoving :math:`\mathrm{Mpc}/h`."""
        return self.box_size / UNIT_BOX

    @cached_property
    def velocity_scale(self) -> float:
        r"""The unit of :obj:`y` in km/s."""
        return self._simulation().velocity_dispersion

    def _simulation(self) -> LPTSimulation:
        return LPTSimulation(self.box_size, self.mesh_size, self.redshift)

    def process(self) -> None:
        simulation = self._simulation()

        def generate(index: int) -> Data:
            key = [self.seed, SPLITS.index(self.split), index]
            rng = np.random.default_rng(np.random.SeedSequence(key))
            pos, velocity = simulation.haloes(rng, self.num_halos)
            pos = (pos - self.box_size / 2) / self.position_scale
            return Data(
                pos=torch.from_numpy(pos).float(),
                y=torch.from_numpy(velocity / self.velocity_scale).float(),
            )

        data_list = []
        # Threads, not processes: NumPy releases the lock in its transforms, and
        # nothing has to be forked or pickled.
        with ThreadPoolExecutor(self.num_workers) as executor:
            clouds = executor.map(generate, range(self.num_clouds))
            try:
                for data in tqdm(clouds, f"CosmologyLPT {self.split}", self.num_clouds):
                    if self.pre_filter is not None and not self.pre_filter(data):
                        continue
                    if self.pre_transform is not None:
                        data = self.pre_transform(data)
                    data_list.append(data)
            finally:
                executor.shutdown(cancel_futures=True)
        if not data_list:
            raise ValueError(
                f"'pre_filter' keeps none of the {self.num_clouds} clouds of the "
                f"{self.split} split; at least one is needed"
            )

        # The file takes its name only when it is complete, so an interruption or
        # another process that writes the same leaves no half of it.
        path = self.processed_paths[0]
        partial = f"{path}.{uuid.uuid4().hex}"
        try:
            self.save(data_list, partial)
            os.replace(partial, path)
        finally:
            with suppress(FileNotFoundError):
                os.remove(partial)
