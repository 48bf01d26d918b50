r"""Writing files completely or not at all, and reading them without running code."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pickle import UnpicklingError
from typing import Any, BinaryIO, Union
from zipfile import ZipFile

import torch


@contextmanager
def written_whole(path: Union[str, os.PathLike[str]]) -> Iterator[BinaryIO]:
    r"""Opens a file for writing that gets its name when all of it is on the disk.

    If an error, an interrupt, a full disk or the end of the process comes first, an
    earlier file of that name stays as it was. If two processes write at once, the file
    of the one that finishes last remains.

    Args:
        path: The path of the file.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with written_whole(Path(folder, "a.txt")) as file:
        ...         _ = file.write(b"all")
        ...     Path(folder, "a.txt").read_text()
        'all'
    """
    partial = f"{os.fspath(path)}.{uuid.uuid4().hex}"
    try:
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with suppress(FileNotFoundError):
            os.remove(partial)


def read_weights(file: BinaryIO) -> Any:
    r"""Reads a file of :func:`torch.save` to the CPU, without running code from it.

    PyTorch Geometric's own way to load falls back to running code that a file names,
    and PyTorch does not notice changed bytes.

    Args:
        file: The file, opened for reading.

    Raises:
        ValueError: If it is damaged, or holds more than tensors, plain values and
            classes that were declared safe.

    Example:
        >>> from io import BytesIO
        >>> read_weights(BytesIO(b"cut off"))
        Traceback (most recent call last):
        ValueError: it is damaged, or was not written by torch.save
    """
    try:
        with ZipFile(file) as archive:
            whole = archive.testzip() is None
    except MemoryError:
        raise
    except Exception:  # its class depends on where the file is damaged
        whole = False
    if not whole:
        raise ValueError("it is damaged, or was not written by torch.save")
    file.seek(0)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            "it holds an object whose class is not declared safe by "
            "torch.serialization.add_safe_globals"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # as above, for a file that was made to fail here
        raise ValueError("it holds no tensors of torch.save") from error
