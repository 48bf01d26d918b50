r"""Predicts the forces on the atoms of a molecular-dynamics trajectory.

Reads one molecule's trajectory, splits it by time, trains Erwin and a message-passing
network of the same size for the same number of steps, and compares their errors with
those of the mean force of every atom. DATA holds two files: an array file `*.npz` with
`positions` [frames, atoms, 3] in nm and `forces` [frames, atoms, 3] in kJ/mol/nm, as
OpenMM gives them, and a `*.pdb` with the same atoms in the same order.

A bond that is 2 % too long already pulls with some 600 kJ/mol/nm, too small a change
for networks to pick up from coordinates in a few hundred steps. Both models therefore
get, beside the elements, the directions to the neighbours, sorted into narrow shells of
distance. As molecules tumble, training frames are turned at random.
"""

import argparse
from pathlib import Path
from zipfile import BadZipFile

import cores  # noqa: F401  (before PyTorch)
import numpy as np
import torch
import torch_geometric.transforms as T
from torch import Tensor
from torch_geometric.data import Data, Dataset
from torch_geometric.loader import DataLoader
from training import count_parameters, fit, mpnn_of_size, predict, table

from torch_geometric_erwin.nn import Erwin
from torch_geometric_erwin.transforms import TreeRadiusGraph

# In nm. The neighbours are those over one or two covalent bonds; shells of this width
# tell single, double and aromatic bonds apart and resolve their vibrations.
CUTOFF = 0.28
SHELL_WIDTH = 0.01
SHELLS = torch.arange(9, 29) * SHELL_WIDTH


class RandomOrientation(T.BaseTransform):
    r"""Turns a frame at random, mirror images included: positions and forces."""

    def forward(self, data: Data) -> Data:
        r"""Turns a shallow copy of the frame."""
        axes, r = torch.linalg.qr(torch.randn(3, 3))
        axes = axes * r.diagonal().sign()  # makes orientations uniform
        data.pos, data.y = data.pos @ axes, data.y @ axes
        return data


class NeighborDirections(T.BaseTransform):
    r"""Appends the directions to the neighbours to the one-hot elements :obj:`data.x`.

    For every element :math:`e` and shell :math:`k`, with radius :math:`r_k` and width
    :math:`w`, these are the weighted sums of unit vectors

    .. math::
        v_{iek} = \sum_{j \in \mathcal{N}(i), e_j = e}
        \exp \left( -\frac{(r_{ij} - r_k)^2}{2 w^2} \right)
        \frac{p_j - p_i}{r_{ij}}.

    A force between pairs of atoms that depends only on their distance is a linear
    function of these vectors, up to the resolution of the shells.
    """

    def forward(self, data: Data) -> Data:
        r"""Extends the features of a shallow copy of the frame."""
        source, target = data.edge_index
        atoms, elements = data.x.shape
        offset = data.pos[source] - data.pos[target]  # [edges, 3]
        length = offset.norm(dim=-1, keepdim=True)
        weight = torch.exp(-0.5 * ((length - SHELLS) / SHELL_WIDTH) ** 2)
        direction = torch.nn.functional.normalize(offset, dim=-1)
        vectors = weight[:, :, None] * direction[:, None]  # [edges, shells, 3]
        row = target * elements + data.x.argmax(dim=-1)[source]
        sums = vectors.new_zeros(atoms * elements, *vectors.shape[1:])
        sums = sums.index_add_(0, row, vectors).view(atoms, -1)
        data.x = torch.cat([data.x, sums], dim=-1)
        return data


class Trajectory(Dataset):
    r"""The frames of a trajectory as graphs.

    Args:
        positions: Positions of the frames, in nm.
        forces: Forces, the targets, in any unit.
        elements: The element of every atom, one-hot.
        transform: Applied to a frame whenever it is read.

    Shapes:
        - **positions**, **forces:** :math:`(T, N, 3)`; **elements:** :math:`(N, E)`.
    """

    def __init__(
        self,
        positions: Tensor,
        forces: Tensor,
        elements: Tensor,
        transform: T.BaseTransform,
    ) -> None:
        super().__init__(transform=transform)
        self.positions = positions
        self.forces = forces
        self.elements = elements

    def len(self) -> int:
        r"""The number of frames."""
        return len(self.positions)

    def get(self, idx: int) -> Data:
        r"""A frame before the transform."""
        return Data(x=self.elements, pos=self.positions[idx], y=self.forces[idx])


def parse_arguments() -> argparse.Namespace:
    r"""The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the files")
    parser.add_argument(
        "--steps", type=int, default=1000, help="training steps of each model"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="frames in a step")
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate")
    parser.add_argument(
        "--test-share", type=float, default=0.2, help="of the frames, the last ones"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    return parser.parse_args()


def only_file(folder: Path, pattern: str) -> Path:
    r"""The file of a folder that matches a pattern, if there is exactly one."""
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise SystemExit(f"'{folder}' must hold one file '{pattern}' ({len(files)} do)")
    return files[0]


def read_elements(path: Path) -> list[str]:
    r"""The element of every atom, from columns 77 and 78 of a PDB file."""
    elements = []
    for line in path.read_text().splitlines():
        if line.startswith("ENDMDL"):
            break
        if line.startswith(("ATOM", "HETATM")):
            elements.append(line[76:78].strip())
            if not elements[-1]:
                raise SystemExit(f"'{path}' names no element for atom {len(elements)}")
    return elements


def read_trajectory(folder: Path) -> tuple[Tensor, Tensor, list[str]]:
    r"""Positions in nm and forces in kJ/mol/nm of all frames, and the elements."""
    elements = read_elements(only_file(folder, "*.pdb"))
    path = only_file(folder, "*.npz")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = {"positions", "forces"} - set(arrays.files)
            if missing:
                raise SystemExit(f"'{path}' lacks the array '{missing.pop()}'")
            positions, forces = (
                torch.from_numpy(arrays[name]).float()
                for name in ("positions", "forces")
            )
    except (BadZipFile, EOFError, TypeError, ValueError) as error:
        raise SystemExit(f"'{path}' holds no arrays of numbers: {error}") from error
    expected = [*positions.shape[:1], len(elements), 3]
    for name, array in (("positions", positions), ("forces", forces)):
        if [*array.shape] != expected:
            raise SystemExit(
                f"'{name}' must have shape {expected} for {len(elements)} atoms (got "
                f"{[*array.shape]})"
            )
        if not bool(torch.isfinite(array).all()):
            raise SystemExit(f"'{name}' in '{path}' must be finite")
    return positions, forces, elements


def one_hot(elements: list[str]) -> Tensor:
    r"""The elements of the atoms as features."""
    kinds = sorted(set(elements))
    kind = torch.tensor([kinds.index(element) for element in elements])
    return torch.nn.functional.one_hot(kind).float()


def main() -> None:
    r"""Runs the comparison."""
    args = parse_arguments()
    positions, forces, names = read_trajectory(args.data)
    elements = one_hot(names)
    frames = len(positions)
    split = frames - round(args.test_share * frames)
    if not 0 < split < frames:
        raise SystemExit(f"--test-share {args.test_share} leaves no frames on one side")
    scale = forces[:split].std()

    torch.manual_seed(args.seed)
    erwin = Erwin(
        in_channels=elements.size(1) * (1 + 3 * len(SHELLS)),
        hidden_channels=[96, 96],
        out_channels=3,
        ball_sizes=64,
        strides=4,
        norm="batch",  # as in the paper; docs/units.md compares others
    )
    mpnn = mpnn_of_size(erwin, layers=4)
    transforms = [
        TreeRadiusGraph(CUTOFF),
        NeighborDirections(),
        erwin.tree_transform(),
    ]
    train = Trajectory(
        positions[:split],
        forces[:split] / scale,
        elements,
        T.Compose([RandomOrientation(), *transforms]),
    )
    test = Trajectory(
        positions[split:], forces[split:] / scale, elements, T.Compose(transforms)
    )
    print(
        f"{frames} frames of {len(names)} atoms: the first {split} for training, "
        f"the last {frames - split} for the test",
        flush=True,
    )

    def error(prediction: Tensor) -> str:
        return f"{float((prediction - forces[split:]).abs().mean()):.1f}"

    rows = [{"model": "mean force", "parameters": "-", "s/step": "-"}]
    rows[0]["MAE [kJ/mol/nm]"] = error(forces[:split].mean(dim=0))
    for name, model in (("MPNN", mpnn), ("Erwin", erwin)):
        torch.manual_seed(args.seed)
        loader = DataLoader(train, batch_size=args.batch_size, shuffle=True)
        run = fit(model, loader, args.steps, lr=args.lr, name=f"train {name}")
        out = predict(model, DataLoader(test, batch_size=args.batch_size))
        rows.append(
            {
                "model": name,
                "parameters": f"{count_parameters(model):,}",
                "s/step": f"{run.seconds_per_step:.3f}",
                "MAE [kJ/mol/nm]": error(out.view(frames - split, -1, 3) * scale),
            }
        )
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
