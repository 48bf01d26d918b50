import io
import subprocess
import sys
from functools import cache

import pytest
import torch
from clouds import ragged
from torch.export import Dim

from torch_geometric_erwin import Tree
from torch_geometric_erwin.nn import Erwin

ROWS = {0: Dim.AUTO}


def arguments(model, sizes):
    batch = ragged(sizes, dtype=torch.float32)
    tree = Tree.from_data(model.tree_transform()(batch), model.tree_config)
    args = (batch.x, batch.pos, batch.edge_index)
    return batch, args, {"ptr": batch.ptr, "tree": tree}


def dynamic_shapes(tree):
    """Makes the number of rows of all tables dynamic; a tree is a list of its parts."""
    tables = [
        tuple(ROWS for _ in part)
        for part in (tree.ball_len, tree.group_len, tree.perm_rot)
    ]
    mask = None if tree.mask is None else ROWS
    return {
        "data": ROWS,
        "pos": ROWS,
        "edge_index": {1: Dim.AUTO},
        "ptr": ROWS,
        "tree": [ROWS, ROWS, ROWS, *tables, mask],
    }


CONFIGS = {
    "balanced": {"strides": 2},
    "perfect": {"layout": "perfect"},
    "small": {"hidden_channels": [8], "enc_depths": 1, "rotate": 0.0},
    "flat": {"hidden_channels": [8, 8], "strides": 1, "rotate": 0.0},
}


@cache
def exported(config):
    """A model and its program, which must not be changed."""
    torch.manual_seed(0)
    depths = {"enc_depths": [2, 1], "dec_depths": 1, "mp_steps": 1}
    sizes = {"hidden_channels": [8, 16], "ball_sizes": 8}
    config = {**sizes, **depths, **CONFIGS[config]}
    model = Erwin(in_channels=2, out_channels=3, **config).eval()
    _, args, kwargs = arguments(model, [30, 17, 41])
    shapes = dynamic_shapes(kwargs["tree"])
    program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
    return model, program


def assert_close(out, expected):
    # float32 sums have another order.
    assert (out - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(
    "config",
    [
        "balanced",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("perfect", "flat")),
    ],
)
def test_exported_model_runs_on_other_sizes(config):
    model, program = exported(config)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer)
    for sizes in ([30, 17, 41], [21, 13, 0, 50, 1], [9, 2]):
        batch, args, kwargs = arguments(model, sizes)
        expected = model(batch)
        for run in (program.module(), loaded.module()):
            assert_close(run(*args, **kwargs), expected)


def assert_runs_in_a_new_process(load, path, model, folder):
    """A process that imports nothing but PyTorch and the package runs a program."""
    batch, args, kwargs = arguments(model, [21, 13, 0, 50, 1])
    torch.save((args, kwargs), folder / "inputs.pt")
    script = f"""
import torch, torch_geometric_erwin
args, kwargs = torch.load({str(folder / "inputs.pt")!r})
run = {load.format(repr(str(path)))}
torch.save(run(*args, **kwargs), {str(folder / "out.pt")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert_close(torch.load(folder / "out.pt"), model(batch))


def test_saved_program_runs_in_a_new_process(tmp_path):
    (model, program), path = exported("balanced"), tmp_path / "model.pt2"
    torch.export.save(program, path)
    load = "torch.export.load({}).module()"
    assert_runs_in_a_new_process(load, path, model, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_compiled_package_runs_in_a_new_process(tmp_path):
    (model, program), path = exported("small"), str(tmp_path / "model.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=path)
    load = "torch._inductor.aoti_load_package({})"
    assert_runs_in_a_new_process(load, path, model, tmp_path)
