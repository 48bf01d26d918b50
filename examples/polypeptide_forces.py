r"""Predicts the forces on the atoms of a molecular-dynamics trajectory.

Reads one molecule's trajectory, splits it by time, trains Erwin and a message-passing
network of equal size for equal steps, and compares their errors with those of the mean
force of every atom. DATA holds two files: an array file `*.npz` with `positions`
[frames, atoms, 3] in nm and `forces` [frames, atoms, 3] in kJ/mol/nm, as OpenMM gives
them, and a `*.pdb` with the same atoms in the same order.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch_geometric.transforms as T
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from training import count_parameters, fit, mpnn_of_size, predict, table

from torch_geometric_erwin.nn import Erwin
from torch_geometric_erwin.transforms import TreeKNNGraph

ANGSTROM = 10.0  # per nm


def parse_arguments() -> argparse.Namespace:
    r"""The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the files")
    parser.add_argument(
        "--steps", type=int, default=1500, help="training steps of each model"
    )
    parser.add_argument("--batch-size", type=int, default=2, help="frames in a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate")
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
    with np.load(path) as arrays:
        missing = {"positions", "forces"} - set(arrays.files)
        if missing:
            raise SystemExit(f"'{path}' lacks the array '{missing.pop()}'")
        positions, forces = (
            torch.from_numpy(arrays[name]).float() for name in ("positions", "forces")
        )
    expected = [positions.size(0), len(elements), 3]
    for name, array in (("positions", positions), ("forces", forces)):
        if [*array.shape] != expected:
            raise SystemExit(
                f"'{name}' must have shape {expected} for {len(elements)} atoms (got "
                f"{[*array.shape]})"
            )
    return positions, forces, elements


def make_frames(
    positions: Tensor, forces: Tensor, elements: list[str], transform: T.BaseTransform
) -> list[Data]:
    r"""A graph a frame: elements one-hot, positions in ångström, forces as targets."""
    kinds = sorted(set(elements))
    x = torch.nn.functional.one_hot(torch.tensor([kinds.index(e) for e in elements]))
    return [
        transform(Data(x=x.float(), pos=pos * ANGSTROM, y=force))
        for pos, force in zip(positions, forces, strict=True)
    ]


def main() -> None:
    r"""Runs the comparison."""
    args = parse_arguments()
    positions, forces, elements = read_trajectory(args.data)
    frames = len(positions)
    split = frames - round(args.test_share * frames)
    if not 0 < split < frames:
        raise SystemExit(f"--test-share {args.test_share} leaves no frames on one side")
    scale = forces[:split].std()

    torch.manual_seed(args.seed)
    erwin = Erwin(
        in_channels=len(set(elements)),
        hidden_channels=[64, 128],
        out_channels=3,
        ball_sizes=64,
        strides=4,
    )
    mpnn = mpnn_of_size(erwin, layers=4)
    transform = T.Compose([TreeKNNGraph(k=16), erwin.tree_transform()])
    data = make_frames(positions, forces / scale, elements, transform)
    print(
        f"{frames} frames of {len(elements)} atoms: the first {split} for training, "
        f"the last {frames - split} for the test",
        flush=True,
    )

    def error(prediction: Tensor) -> str:
        return f"{float((prediction - forces[split:]).abs().mean()):.1f}"

    rows = [{"model": "mean force", "parameters": "-", "s/step": "-"}]
    rows[0]["MAE [kJ/mol/nm]"] = error(forces[:split].mean(dim=0))
    for name, model in (("MPNN", mpnn), ("Erwin", erwin)):
        torch.manual_seed(args.seed)
        loader = DataLoader(data[:split], batch_size=args.batch_size, shuffle=True)
        run = fit(model, loader, args.steps, lr=args.lr, name=f"train {name}")
        out = predict(model, DataLoader(data[split:], batch_size=args.batch_size))
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
