"""Files of the dataset: damaged, unknown, interrupted or written at the same time."""

import errno
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import passes_in_child
from torch_geometric.data import Data, HeteroData
from torch_geometric.transforms import Constant
from universes import SMALL, equal, files

from torch_geometric_erwin.datasets import CosmologyLPT
from torch_geometric_erwin.datasets.lpt import LPTSimulation

resource = pytest.importorskip("resource")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


class Command:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return CosmologyLPT(tmp_path_factory.mktemp("cosmology"), **SMALL)


@pytest.fixture
def root(dataset, tmp_path):
    """A copy that tests may damage."""
    return Path(shutil.copytree(dataset.root, tmp_path / "root"))


def file_of(root, **options):
    return Path(CosmologyLPT(root, **{**SMALL, **options}).processed_paths[0])


def pickled(marker):
    return pickle.dumps(Command(marker))


def saved(marker, **options):
    path = f"{marker}.pt"
    torch.save((Data(), {}, Command(marker)), path, **options)
    content = Path(path).read_bytes()
    os.remove(path)
    return content


HOSTILE = {
    "pickle": pickled,
    "torch.save": saved,
    "legacy torch.save": lambda m: saved(m, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=[*HOSTILE])
def test_no_file_of_a_root_runs_code(dataset, root, tmp_path, make):
    marker, path = tmp_path / "marker", file_of(root)
    content = make(marker)
    for folder in {root, path.parent.parent, path.parent, root / "raw"}:
        folder.mkdir(exist_ok=True)
        for name in ("pre_transform.pt", "pre_filter.pt", "data.pt", "data.pt.0"):
            (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"'{path}' is not used: it .*force_reload"):
        CosmologyLPT(root, **SMALL)
    assert path.read_bytes() == content  # not ours, so not changed
    with pytest.raises(ValueError, match=f"'{path}' is not used: it "):
        dataset.load(str(path))
    assert equal(CosmologyLPT(root, force_reload=True, **SMALL), dataset)
    assert equal(CosmologyLPT(root, **SMALL), dataset)
    assert not marker.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (tmp_path / "file").write_bytes(content)
        with suppress(RuntimeError):  # a plain pickle runs before it is refused
            torch.load(tmp_path / "file", weights_only=False)
    assert marker.exists()


def test_cut_off_anywhere(dataset, root):
    path = file_of(root)
    content = path.read_bytes()
    for end in (0, 1, 10, len(content) // 2, len(content) - 100, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match=f"'{path}' is not used: it is damaged"):
            CosmologyLPT(root, **SMALL)
    path.write_bytes(content)
    assert equal(CosmologyLPT(root, **SMALL), dataset)


def test_bytes_that_changed(root):
    path = file_of(root)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # in the numbers, which have no other check
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"'{path}' is not used: it is damaged"):
        CosmologyLPT(root, **SMALL)


def test_file_of_another_configuration(dataset, root):
    path, other = file_of(root), file_of(root, seed=1)
    shutil.copy(other, path)
    message = f"'{path}' is not used: it is of 'train-.*seed1', needed is .*seed0'"
    with pytest.raises(ValueError, match=message):
        CosmologyLPT(root, **SMALL)
    path.unlink()
    assert equal(CosmologyLPT(root, **SMALL), dataset)


@pytest.mark.parametrize(
    "content",
    [
        {},
        [1, 2],
        (Data().to_dict(), {}, Data),  # as PyG and earlier versions write it
        {"clouds": ({}, None, torch.Tensor)},
    ],
)
def test_file_of_another_program(root, content):
    path = file_of(root)
    torch.save(content, path)
    with pytest.raises(ValueError, match=f"'{path}' is not used: it was not written"):
        CosmologyLPT(root, **SMALL)


def test_a_folder_where_the_file_should_be(root):
    path = file_of(root)
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        CosmologyLPT(root, **SMALL)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_interrupted_generation(dataset, tmp_path, monkeypatch, error):
    haloes, calls = LPTSimulation.haloes, []

    def interrupted(self, rng, num_halos):
        calls.append(num_halos)
        if len(calls) == 3:
            raise error("stop")
        return haloes(self, rng, num_halos)

    options = {**SMALL, "num_clouds": 50, "num_workers": 1}
    with monkeypatch.context() as context:
        context.setattr(LPTSimulation, "haloes", interrupted)
        with pytest.raises(error, match="stop"):
            CosmologyLPT(tmp_path, **options)
    assert files(tmp_path) == []
    assert len(calls) < 50
    assert equal(CosmologyLPT(tmp_path, **options)[:3], dataset)


ERRORS = [KeyboardInterrupt(), MemoryError(), OSError(errno.ENOSPC, "full")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("function", ["torch.save", "os.fsync", "os.replace"])
def test_interrupted_writing(dataset, tmp_path, monkeypatch, function, error):
    def stop(*args):
        raise error

    with monkeypatch.context() as context:
        context.setattr(function, stop)
        with pytest.raises(type(error)):
            CosmologyLPT(tmp_path, **SMALL)
    assert files(tmp_path) == []
    assert equal(CosmologyLPT(tmp_path, **SMALL), dataset)
    # Files that were there before are kept.
    with monkeypatch.context() as context:
        context.setattr(function, stop)
        with pytest.raises(type(error)):
            CosmologyLPT(tmp_path, force_reload=True, **SMALL)
    assert files(tmp_path) == ["data.pt"]
    assert equal(CosmologyLPT(tmp_path, **SMALL), dataset)


@needs_fork
def test_a_disk_that_is_full(dataset, tmp_path):
    def check():
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(OSError, match="too large"):
            CosmologyLPT(tmp_path, **SMALL)
        assert files(tmp_path) == []
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert equal(CosmologyLPT(tmp_path, **SMALL), dataset)

    assert passes_in_child(check)


@pytest.mark.parametrize("content", [b"", b"half"])
def test_files_that_earlier_versions_left_half_written(dataset, root, content):
    folder = file_of(root).parent
    for name in ("pre_transform.pt", "pre_filter.pt"):
        (folder / name).write_bytes(content)
    assert equal(CosmologyLPT(root, **SMALL), dataset)


@needs_fork
@pytest.mark.parametrize("at", ["generation", "writing", "renaming"])
def test_a_process_that_is_killed(dataset, tmp_path, at):
    def kill(*args):
        os.kill(os.getpid(), signal.SIGKILL)

    def check():
        if at == "generation":
            LPTSimulation.haloes = kill
        elif at == "writing":
            os.fsync = kill
        else:
            os.replace = kill
        CosmologyLPT(tmp_path, **SMALL)

    assert not passes_in_child(check)
    assert "data.pt" not in files(tmp_path)
    assert equal(CosmologyLPT(tmp_path, **SMALL), dataset)
    assert equal(CosmologyLPT(tmp_path, **SMALL), dataset)


@needs_fork
def test_two_processes_at_once(dataset, tmp_path):
    # Neither process renames its file before both have written theirs.
    both_written = multiprocessing.get_context("fork").Barrier(2, timeout=60)
    replace = os.replace

    def check():
        os.replace = lambda *args: (both_written.wait(), replace(*args))
        assert equal(CosmologyLPT(tmp_path, **SMALL), dataset)

    with ThreadPoolExecutor(2) as executor:
        assert all(executor.map(passes_in_child, [check, check]))
    assert files(tmp_path) == ["data.pt"]
    assert equal(CosmologyLPT(tmp_path, **SMALL), dataset)


def test_two_threads_at_once(dataset, tmp_path, monkeypatch):
    replace, both_written = os.replace, threading.Barrier(2, timeout=60)
    monkeypatch.setattr("os.replace", lambda *a: (both_written.wait(), replace(*a)))
    with ThreadPoolExecutor(2) as executor:
        for writer in [
            executor.submit(CosmologyLPT, tmp_path, **SMALL) for _ in range(2)
        ]:
            assert equal(writer.result(), dataset)
    assert files(tmp_path) == ["data.pt"]


def test_a_root_that_cannot_be_written(root, dataset):
    folder = file_of(root).parent
    folder.chmod(0o555)
    assert equal(CosmologyLPT(root, **SMALL), dataset)
    folder.chmod(0o755)


def test_other_functions_are_noticed(root):
    message = r"`pre_transform` argument differs .*\(None\).*force_reload=True"
    with pytest.warns(UserWarning, match=message):
        CosmologyLPT(root, pre_transform=Constant(1.0), **SMALL)
    with pytest.warns(UserWarning, match="`pre_filter` argument differs"):
        CosmologyLPT(root, pre_filter=bool, **SMALL)
    options = {"pre_transform": Constant(1.0), "pre_filter": lambda data: True, **SMALL}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "x" in CosmologyLPT(root, force_reload=True, **options)[0]
        # The address of a function differs from run to run.
        options["pre_filter"] = lambda data: True
        assert "x" in CosmologyLPT(root, **options)[0]


def heterogeneous(data):
    return HeteroData(halo={"pos": data.pos}, name="a", number=1, flag=None)


def test_data_of_other_classes(tmp_path):
    for _ in range(2):
        made = CosmologyLPT(tmp_path, pre_transform=heterogeneous, **SMALL)
        assert isinstance(made[2], HeteroData)
        assert made[2]["halo"].pos.shape == (100, 3)
        assert (made[2].name, made[2].number) == ("a", 1)


class Unknown:
    pass


@pytest.mark.parametrize(
    "value, message",
    [
        (None, r"'pre_transform' must return data \(got None\)"),
        (Data(pos=Unknown()), "cannot be read back: it holds an object whose class"),
        (Data(pos=np.float64), "cannot be read back: it holds an object whose class"),
    ],
)
def test_transforms_whose_result_cannot_be_kept(tmp_path, value, message):
    with pytest.raises(TypeError, match=message):
        CosmologyLPT(tmp_path, pre_transform=lambda data: value, **SMALL)
    assert files(tmp_path) == []
