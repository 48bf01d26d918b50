import os
from zipfile import ZipFile

import pytest
import torch
from forks import passes_in_child

from torch_geometric_erwin.utils.files import read_weights, written_whole


def test_an_error_keeps_what_was_there(tmp_path):
    path = tmp_path / "file"
    for content in (b"first", b"second"):
        with written_whole(path) as file:
            file.write(content)

    def fail():
        with written_whole(path) as file:
            file.write(b"third")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_disk_that_is_full(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "file"
    path.write_bytes(b"first")

    def check():
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limit))
        with pytest.raises((OSError, RuntimeError)), written_whole(path) as file:
            torch.save(torch.zeros(10_000), file)

    assert passes_in_child(check)
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


def test_tensors_and_plain_values_come_back(tmp_path):
    value = {"a": torch.rand(3), "b": [1, 2.5, "text", None, (True,)]}
    torch.save(value, tmp_path / "file")
    with open(tmp_path / "file", "rb") as file:
        read = read_weights(file)
    assert torch.equal(read.pop("a"), value.pop("a"))
    assert read == value


def test_an_archive_of_something_else(tmp_path):
    with ZipFile(tmp_path / "file", "w") as archive:
        archive.writestr("a.txt", "text")
    with (
        open(tmp_path / "file", "rb") as file,
        pytest.raises(ValueError, match="it holds no tensors"),
    ):
        read_weights(file)
