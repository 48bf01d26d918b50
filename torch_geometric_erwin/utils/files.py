r"""Files that are whole, and that run no code."""

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
    r"""Opens a file that takes its name when all of it is on the disk.

    What had the name before keeps it if an error, an interrupt, a full disk or the end
    of the process comes first; of two that write at once, the later one has it.

    Args:
        path: The name.

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
    r"""Reads what :func:`torch.save` wrote, to the CPU, and runs no code from it.

    Loading in PyTorch Geometric falls back to running what a file asks for, and PyTorch
    does not notice bytes that have changed.

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
    except Exception:  # which one depends on where the file goes wrong
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
    except Exception as error:  # as above, of what was written to mislead
        raise ValueError("it holds no tensors of torch.save") from error
