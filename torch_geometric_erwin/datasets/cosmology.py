import io
import math
import os
import re
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.data.data import BaseData
from tqdm import tqdm

from torch_geometric_erwin.datasets.linear_velocity import (
    MAX_MESH,
    UNIT_BOX,
    check_positive,
)
from torch_geometric_erwin.datasets.lpt import LPTSimulation
from torch_geometric_erwin.utils.checks import LIMIT, check_choice, check_flag
from torch_geometric_erwin.utils.files import read_weights, written_whole

SPLITS = ("train", "val", "test")

# Bounds of sizes in Mpc/h and of the redshift. Beyond them, powers of wavenumbers and
# of scale factors overflow.
_SMALLEST, _LARGEST = 1e-9, 1e9


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

    Each configuration has one file, :obj:`data.pt`. It gets its name only when it is
    complete: if its generation is interrupted, or runs out of memory or disk space, it
    starts again next time. Processes may share a root. Reading the file never runs
    code. A file that is damaged, or that another configuration or program wrote, is
    refused and not changed.

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
        root (str or os.PathLike): Directory where the dataset is saved.
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
            saving. What it adds must be tensors, plain values, or of classes that
            :func:`torch.serialization.add_safe_globals` knows.
            (default: :obj:`None`)
        pre_filter (callable, optional): A function that takes a
            :class:`~torch_geometric.data.Data` object and returns whether it
            belongs in the dataset. (default: :obj:`None`)
        force_reload (bool, optional): Whether to generate the clouds again and to
            replace an existing file without reading it. (default: :obj:`False`)

    Shapes:
        - **pos:** :math:`(\mathtt{num\_halos}, 3)`, float32, within
          :math:`\pm\sqrt{3}`, highest density peak first
        - **y:** :math:`(\mathtt{num\_halos}, 3)`, float32, peculiar velocity

    Raises:
        TypeError: If :obj:`root` is not a path, if a function is not callable, or if
            :obj:`pre_transform` returns something else than data, or data that cannot
            be saved.
        ValueError: If an argument is out of range, if the density has fewer than
            :obj:`num_halos` peaks, if :obj:`pre_filter` keeps no cloud, or if an
            existing file is refused.

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
        if not isinstance(root, (str, os.PathLike)) or not str(root):
            raise TypeError(f"'root' must be the path of a folder (got {root!r})")
        check_choice("split", split, SPLITS)
        if num_clouds is None:
            num_clouds = 128 if split == "train" else 16
        if num_workers is None:
            num_workers = min(torch.get_num_threads(), 8)
        for name, value, least, most in (
            ("num_clouds", num_clouds, 1, LIMIT),
            ("num_halos", num_halos, 1, LIMIT),
            ("mesh_size", mesh_size, 8, MAX_MESH),
            ("seed", seed, 0, math.inf),
            ("num_workers", num_workers, 1, LIMIT),
        ):
            if not _is_number(value, Integral) or value < least:
                raise ValueError(
                    f"'{name}' must be an integer of at least {least} (got {value!r})"
                )
            if value > most:
                raise ValueError(f"'{name}' must be at most {most} (got {value})")
        check_positive("box_size", box_size)
        if not _SMALLEST <= box_size <= _LARGEST:
            raise ValueError(
                f"'box_size' must lie between {_SMALLEST} and {_LARGEST} Mpc/h (got "
                f"{box_size})"
            )
        if not _is_number(redshift, Real) or not 0 <= redshift < math.inf:
            raise ValueError(
                f"'redshift' must be non-negative and finite (got {redshift!r})"
            )
        if redshift > _LARGEST:
            raise ValueError(f"'redshift' must be at most {_LARGEST} (got {redshift})")
        for name, function in (
            ("transform", transform),
            ("pre_transform", pre_transform),
            ("pre_filter", pre_filter),
        ):
            if function is not None and not callable(function):
                raise TypeError(f"'{name}' must be callable (got {function!r})")

        force_reload = check_flag("force_reload", force_reload)
        self.split = split
        self.num_clouds = int(num_clouds)
        self.num_halos = int(num_halos)
        self.box_size = float(box_size)
        self.mesh_size = int(mesh_size)
        self.redshift = float(redshift) + 0.0  # -0.0 becomes 0.0: it names a folder
        self.seed = int(seed)
        self.num_workers = int(num_workers)
        super().__init__(
            os.fspath(root),
            transform,
            pre_transform,
            pre_filter,
            force_reload=force_reload,
        )
        self.load(self.processed_paths[0])

    @property
    def _configuration(self) -> str:
        # All arguments that the clouds depend on, as the name of a folder.
        return (
            f"{self.split}-{self.num_clouds}x{self.num_halos}-box{self.box_size}"
            f"-mesh{self.mesh_size}-z{self.redshift}-seed{self.seed}"
        )

    @property
    def processed_dir(self) -> str:
        return os.path.join(super().processed_dir, self._configuration)

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
        # Threads and not processes, because NumPy's Fourier transforms release the
        # global interpreter lock, and nothing has to be forked or pickled.
        with ThreadPoolExecutor(self.num_workers) as executor:
            clouds = executor.map(generate, range(self.num_clouds))
            try:
                for data in tqdm(clouds, f"CosmologyLPT {self.split}", self.num_clouds):
                    if self.pre_filter is not None and not self.pre_filter(data):
                        continue
                    if self.pre_transform is not None:
                        data = self.pre_transform(data)
                    if not isinstance(data, BaseData):
                        raise TypeError(
                            f"'pre_transform' must return data (got {data!r})"
                        )
                    data_list.append(data)
            finally:
                executor.shutdown(cancel_futures=True)
        if not data_list:
            raise ValueError(
                f"'pre_filter' keeps none of the {self.num_clouds} clouds of the "
                f"{self.split} split; at least one is needed"
            )

        data, slices = self.collate(data_list)
        record = {
            "configuration": self._configuration,
            "pre_transform": _name(self.pre_transform),
            "pre_filter": _name(self.pre_filter),
            "clouds": (data.to_dict(), slices, data.__class__),
        }
        buffer = io.BytesIO()
        torch.save(record, buffer)
        try:
            read_weights(buffer)
        except ValueError as error:
            raise TypeError(
                f"'pre_transform' returns data that cannot be read back: {error}"
            ) from error
        with written_whole(self.processed_paths[0]) as file:
            file.write(buffer.getbuffer())

    def _process(self) -> None:
        # Replaces PyG's method, which unpickles two more files and writes them after
        # the data. Unpickling can run code, and a full disk leaves the files empty.
        # Here their content is stored in the record.
        if self.force_reload or not os.path.exists(self.processed_paths[0]):
            os.makedirs(self.processed_dir, exist_ok=True)
            self.process()

    def load(self, path: str, data_cls: type[BaseData] = Data) -> None:
        r"""Loads the dataset from a file, which must be of its configuration."""
        try:
            record = self._read(path)
        except ValueError as error:
            raise ValueError(
                f"'{path}' is not used: {error}; delete it, or generate it again by "
                f"'force_reload=True'"
            ) from error
        for name in ("pre_transform", "pre_filter"):
            if record[name] != _name(getattr(self, name)):
                warnings.warn(
                    f"The `{name}` argument differs from the one used in '{path}' "
                    f"({record[name]}). Pass `force_reload=True` to apply it.",
                    stacklevel=3,
                )
        data, self.slices, data_cls = record["clouds"]
        self.data = data_cls.from_dict(data)

    def _read(self, path: str) -> dict[str, Any]:
        with open(path, "rb") as file:
            record = read_weights(file)
        match record:
            case {
                "configuration": str(configuration),
                "pre_transform": str(),
                "pre_filter": str(),
                "clouds": (dict(), _, type() as data_cls),
            } if issubclass(data_cls, BaseData):
                pass
            case _:
                raise ValueError("it was not written by this version of the package")
        if configuration != self._configuration:
            raise ValueError(
                f"it is of '{configuration}', needed is '{self._configuration}'"
            )
        return record


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _name(function: Callable[..., Any] | None) -> str:
    # The text of a function without its address, as PyG does it.
    return re.sub(r"(<.*?)\s.*(>)", r"\1\2", str(function))
