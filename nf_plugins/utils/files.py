"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


def atomic_write(path: str | os.PathLike, data: bytes | str) -> None:
    """Write a file so that a reader, or a crash, never sees a part of it.

    The data go to a temporary file beside ``path``, to the disk, and then take its
    name in one step.

    Args:
        path: The file; its folder is made.
        data: Its whole content.
    """
    atomic_write_all({path: data})


def atomic_write_all(contents: Mapping[str | os.PathLike, bytes | str]) -> None:
    """Write files that belong together: none takes its name before all are on the disk.

    Args:
        contents: File -> its whole content.
    """
    staged: list[tuple[str, Path]] = []
    try:
        for name, data in contents.items():
            data = data.encode() if isinstance(data, str) else data
            path = Path(os.path.realpath(name))  # a link stays one
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, 'is a folder', os.fspath(name))
            if path.exists() and not path.is_file():  # /dev/stdout, a pipe
                path.write_bytes(data)
            else:
                staged.append((_stage(path, data), path))
        for temporary, path in staged:
            os.replace(temporary, path)
    except BaseException:
        for temporary, _ in staged:
            Path(temporary).unlink(missing_ok=True)
        raise


def _stage(path: Path, data: bytes) -> str:
    """Write a temporary file beside ``path``, and return its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(
        prefix=f'.{path.name[:50]}.', suffix='.tmp', dir=path.parent
    )
    try:
        with os.fdopen(handle, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode if path.exists() else 0o666 & ~_umask())
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError):  # of a write, which does not say where
            error.filename = os.fspath(path)
        raise
    return temporary


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_writable_dir(path: str | os.PathLike) -> None:
    """Raise an OSError unless files can be made in ``path``, without making it.

    Args:
        path: A folder, which need not exist yet.
    """
    folder = Path(path)
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f'{folder} is not a folder')
    with tempfile.TemporaryFile(dir=folder):
        pass
