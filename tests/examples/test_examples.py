"""Runs the examples like a user, for a few steps."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from torch_geometric_erwin.nn import Erwin

ROOT = Path(__file__).parents[2]
TRAJECTORY = ROOT.parent / "shared" / "data"


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, ROOT / "examples" / name, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def fails(name: str, *arguments: object) -> str:
    command = [sys.executable, ROOT / "examples" / name, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    return result.stderr


def write_trajectory(folder: Path, frames: int = 10, atoms: int = 40) -> np.ndarray:
    """Tumbling pairs of atoms, 0.5 nm apart, each held together by a spring."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(frames, atoms // 2, 1, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    stretch = rng.normal(0, 0.003, (frames, atoms // 2, 1, 1))
    ends = np.array([[-0.5], [0.5]])
    center = np.indices((4, 4, atoms // 16 + 1)).reshape(3, -1).T[: atoms // 2] * 0.5
    positions = center[:, None] + ends * (0.11 + stretch) * direction
    forces = (-3e5 * 2 * ends * stretch * direction).reshape(frames, atoms, 3)
    positions = positions.reshape(frames, atoms, 3).astype(np.float32)
    np.savez(folder / "arrays.npz", positions=positions, forces=forces)
    lines = [
        f"ATOM  {i + 1:5d}  X   ALA A   1    {0:8.3f}{0:8.3f}{0:8.3f}"
        f"  1.00  0.00          {'CHNO'[i % 4]:>2}\n"
        for i in range(atoms)
    ]
    (folder / "state.pdb").write_text("".join([*lines, "END\n"]))
    return forces


def mean_absolute_errors(output: str) -> dict[str, float]:
    rows = re.findall(r"^(mean force|MPNN|Erwin) .* ([\d.]+)$", output, re.MULTILINE)
    return {name: float(value) for name, value in rows}


def test_forces_of_a_trajectory(tmp_path):
    forces = write_trajectory(tmp_path)
    out = run("polypeptide_forces.py", "--data", tmp_path, "--steps", 2)
    assert "10 frames of 40 atoms: the first 8 for training, the last 2" in out
    errors = mean_absolute_errors(out)
    assert errors.keys() == {"mean force", "MPNN", "Erwin"}
    baseline = np.abs(forces[8:] - forces[:8].mean(0)).mean()
    assert errors["mean force"] == pytest.approx(baseline, abs=0.05)
    # After two steps the model has learned nothing, but predictions have the scale of
    # the forces.
    assert 0 < errors["Erwin"] < 10 * baseline


@pytest.mark.slow
def test_forces_are_learnt(tmp_path):
    write_trajectory(tmp_path, frames=20)
    errors = mean_absolute_errors(
        run("polypeptide_forces.py", "--data", tmp_path, "--steps", 100)
    )
    # Pairs rotate, so the mean force is useless; the length of a bond tells everything.
    assert errors["MPNN"] < 0.5 * errors["mean force"]
    assert errors["Erwin"] < 0.5 * errors["mean force"]


@pytest.mark.slow
@pytest.mark.skipif(
    not (TRAJECTORY / "1hgv-traj-arrays.npz").exists(),
    reason="the measured trajectory lies beside the checkout of developers only",
)
def test_forces_of_a_measured_trajectory():
    out = run("polypeptide_forces.py", "--data", TRAJECTORY, "--steps", 3)
    assert "140 frames of 691 atoms" in out
    errors = mean_absolute_errors(out)
    assert errors["mean force"] == pytest.approx(661.0, abs=0.1)
    assert 0 < errors["Erwin"] < 6610


def test_forces_need_both_files(tmp_path):
    assert "must hold one file '*.pdb' (0 do)" in fails(
        "polypeptide_forces.py", "--data", tmp_path
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"positions": np.zeros((2, 40, 3))}, "lacks the array 'forces'"),
        (
            {"positions": np.zeros((2, 39, 3)), "forces": 0},
            "'positions' must have shape [2, 40, 3] for 40 atoms",
        ),
    ],
    ids=["no forces", "other atoms"],
)
def test_forces_need_arrays_that_fit(arrays, message, tmp_path):
    write_trajectory(tmp_path)
    np.savez(tmp_path / "arrays.npz", **arrays)
    assert message in fails("polypeptide_forces.py", "--data", tmp_path)


def test_forces_are_not_read_from_code(tmp_path):
    write_trajectory(tmp_path)
    np.savez(tmp_path / "arrays.npz", positions=np.array([print]), forces=0)
    assert "arrays.npz' holds no arrays of numbers: Object arrays" in fails(
        "polypeptide_forces.py", "--data", tmp_path
    )


def test_velocities_of_haloes(tmp_path):
    arguments = [
        *("--root", tmp_path / "data", "--out", tmp_path / "out"),
        *("--clouds", 2, "--test-clouds", 2, "--steps", 2, "--widths", 16, 16),
    ]
    out = run("cosmology_velocities.py", *arguments)
    table = (tmp_path / "out" / "table.txt").read_text()
    assert table in out
    values = json.loads((tmp_path / "out" / "table.json").read_text())
    assert all(value in table for row in values for value in row.values())
    rows = {line.split("  ")[0]: line.split() for line in table.splitlines()[2:]}
    assert rows.keys() == {"linear theory", "MPNN", "Erwin"}
    sizes = [int(rows[name][1].replace(",", "")) for name in ("MPNN", "Erwin")]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)
    assert float(rows["linear theory"][4]) > 0.3  # R²: linear theory describes the data
    checkpoint = torch.load(tmp_path / "out" / "erwin.pt", weights_only=True)
    Erwin(**checkpoint["arguments"]).load_state_dict(checkpoint["state_dict"])
    assert (tmp_path / "out" / "velocities.png").read_bytes()[:4] == b"\x89PNG"


def test_rollout():
    out = run(
        *("gravity_rollout.py", "--points", 60, "--clouds", 2),
        *("--steps", 3, "--horizon", 4, "--device", "cpu"),
    )
    errors = dict(re.findall(r"^(at rest|start|Erwin).* ([\d.]+)$", out, re.MULTILINE))
    assert errors.keys() == {"at rest", "start", "Erwin"}
    assert float(errors["at rest"]) == 1
    # After three steps the model has learned little, but points must not fly apart.
    assert float(errors["Erwin"]) < 3
    assert re.search(r"a step of 60 points on cpu: tree [\d.]+ ms", out)


def test_recorded_steps_learn_what_others_do():
    arguments = ["--clouds", 5, "--nodes", 5, 60, "--batch-size", 2, "--epochs", 2]
    out = run("cuda_graph_training.py", *arguments)
    assert ("nothing is recorded" in out) == (not torch.cuda.is_available())
    rows = re.findall(r"^(as they are|padded) .* ([\d.]+)$", out, re.MULTILINE)
    assert [name for name, _ in rows] == ["as they are", "padded"]
    # float32 sums in another order, over six steps, cause small differences.
    (apart,) = re.findall(r"differ by ([\d.]+) % at most", out)
    assert float(apart) < 0.1


def test_balls_beside_a_graph_convolution():
    out = run("hybrid_layers.py", "--points", 150, "--clouds", 8, "--steps", 2)
    rows = re.findall(r"^(GCN|GCN \+ balls)  +([\d,]+)  +[\d.]+  +([\d.]+)$", out, re.M)
    assert [name for name, *_ in rows] == ["GCN", "GCN + balls"]
    assert all(0 < float(error) < 10 for *_, error in rows)


@pytest.mark.slow
def test_balls_see_farther_than_a_graph_convolution():
    out = run("hybrid_layers.py")
    local, balls = map(float, re.findall(r"([\d.]+)$", out, re.M)[-2:])
    assert balls < 0.8 * local


def explained(*arguments: object) -> tuple[int, int, float, float]:
    """Hits, clouds, the error and that of the mean, of the explained task."""
    out = run("explain.py", *arguments)
    number = r"(\d+\.\d+)"
    ((error, mean),) = re.findall(f"test error {number}, .* has {number}", out)
    ((hits, clouds),) = re.findall(r"largest mask in (\d+) of (\d+) clouds", out)
    # Every layer has a distance, and one that attention weights.
    assert len(re.findall(rf"coder\.\S+ +\d+ +{number} +{number}$", out, re.M)) == 6
    return int(hits), int(clouds), float(error), float(mean)


def test_explanations():
    arguments = ["--clouds", 8, "--test-clouds", 4, "--steps", 2, "--epochs", 3]
    hits, clouds, error, mean = explained(*arguments)
    assert 0 <= hits <= clouds == 4
    # After two steps the model has learned nothing.
    assert 0 < error < 10 * mean


@pytest.mark.slow
def test_explanations_name_the_node_that_matters():
    hits, clouds, error, mean = explained()
    assert clouds == 32
    assert error < 0.2 * mean
    assert hits >= 20  # by chance it is one


def errors_of_parts(out: str) -> dict[tuple[str, str], float]:
    rows = re.findall(r"^(MPNN|Erwin)  +(\w+ \w+) .* ([\d.]+)$", out, re.MULTILINE)
    return {(model, parts): float(error) for model, parts, error in rows}


def test_parts_of_a_large_graph():
    out = run("large_graph.py", "--nodes", 2000, "--parts", 4, "--steps", 3)
    assert "2,000 nodes, 16,000 edges, 4 parts" in out
    errors = errors_of_parts(out)
    assert [parts for _, parts in errors] == [
        *("sorted ranges", "random nodes", "sorted ranges")
    ]
    # After three steps the models have learned little, but predictions have the scale
    # of the potential.
    assert all(0.5 < error < 3 for error in errors.values())


@pytest.mark.slow
def test_patches_teach_more_than_random_nodes():
    errors = errors_of_parts(run("large_graph.py"))
    patches = errors["Erwin", "sorted ranges"]
    assert patches < 0.8 * errors["Erwin", "random nodes"]
    assert patches < 0.8 * errors["MPNN", "sorted ranges"]
