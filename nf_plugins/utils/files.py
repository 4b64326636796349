"""Atomic writes of files: a file is written completely or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path


def atomic_write(path: str | os.PathLike, data: bytes | str) -> None:
    """Write a file atomically: a reader never sees a part of it, even after a crash.

    The data are written to a temporary file beside ``path`` and flushed to the disk. Then the
    temporary file is renamed to ``path`` in one step.

    Args:
        path: The file. Its folder is created.
        data: Its whole content.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    if _is_special(path):
        path.write_bytes(_encode(data))
        return
    temporary = _unused_name(path, 'tmp')
    try:
        _stage(temporary, path, _encode(data))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_write_all(contents: Mapping[str | os.PathLike, bytes | str | None]) -> None:
    """Write files that belong together, so that old and new files are never mixed.

    All new files are written to the disk under temporary names. Then the old files get other
    names, the new files get the final names, and the old files are removed. An exception
    during this restores the old files. A process that is killed during this leaves some of the
    old files or some of the new files, never both. A second process that writes into the same
    folder waits.

    Args:
        contents: File -> its whole content, or None to remove it.

    Raises:
        OSError: A file cannot be written; all files are as before.
    """
    files = {Path(os.path.realpath(name)): data for name, data in contents.items()}
    for path in list(files):
        if _is_special(path):
            path.write_bytes(_encode(files.pop(path) or b''))
    written = {path: data for path, data in files.items() if data is not None}
    new = {path: _unused_name(path, 'tmp') for path in written}
    old = {path: _unused_name(path, 'old') for path in files}
    for path in new:
        path.parent.mkdir(parents=True, exist_ok=True)
    with _locked({path.parent for path in files}):
        _exchange(written, new, old)


def _exchange(
    written: Mapping[Path, bytes | str], new: Mapping[Path, Path], old: Mapping[Path, Path]
) -> None:
    """Replace old files by new ones, or change nothing.

    Args:
        written: File -> its content.
        new: File -> the temporary name of its content.
        old: File -> the name that the old file gets meanwhile; also for files to remove.
    """
    fresh = [path for path in new if not os.path.lexists(path)]
    staged = whole = False
    try:
        for path, temporary in new.items():
            _stage(temporary, path, _encode(written[path]))
        staged = True
        for path, aside in old.items():
            if path not in fresh:
                with suppress(FileNotFoundError):
                    os.rename(path, aside)
        for path, temporary in new.items():
            os.rename(temporary, path)
        whole = True
    finally:
        try:
            if not whole:
                _put_back(new, old, fresh if staged else [])
        finally:  # repeated if a second Ctrl-C has interrupted it
            if not whole:
                _put_back(new, old, fresh if staged else [])
            for leftover in (*new.values(), *(old.values() if whole else ())):
                with suppress(OSError):
                    os.unlink(leftover)


def _put_back(new: Mapping[Path, Path], old: Mapping[Path, Path], fresh: Iterable[Path]) -> None:
    """Give the old files their names back, and remove new files that had no old file."""
    for path, aside in old.items():
        with suppress(OSError):
            os.replace(aside, path)
    for path in fresh:
        if not new[path].exists():
            path.unlink(missing_ok=True)


def _is_special(path: Path) -> bool:
    """Return whether a path is a device or a pipe, such as /dev/stdout; raise for a folder."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, 'is a folder', os.fspath(path))
    return path.exists() and not path.is_file()


def _encode(data: bytes | str) -> bytes:
    return data.encode() if isinstance(data, str) else data


def _unused_name(path: Path, suffix: str) -> Path:
    return path.with_name(f'.{path.name[:50]}.{secrets.token_hex(6)}.{suffix}')


def _stage(temporary: Path, path: Path, data: bytes) -> None:
    """Write the temporary file that will be renamed to ``path``, with the mode of ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
        # The system applies the umask here; every other way to read the umask changes it.
        handle = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600
        )
        with os.fdopen(handle, 'wb') as file:
            if mode is not None:
                os.fchmod(handle, mode)
            file.write(data)
            file.flush()
            os.fsync(handle)
    except OSError as error:  # an error of write() does not name the file
        error.filename = os.fspath(path)
        raise


WAIT = 60.0
"""Seconds to wait for another process that writes into the same folder."""


@contextmanager
def _locked(folders: Iterable[Path]) -> Iterator[None]:
    """Lock folders against other processes and threads that use this function."""
    handles: list[int] = []
    try:
        for folder in sorted(folders):  # always the same order, so there is no deadlock
            if folder.is_dir():
                handles.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
                _lock(handles[-1], folder)
        yield
    finally:
        for handle in handles:
            os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    end = time.monotonic() + WAIT
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > end:
                text = 'another process has been writing into it for a minute'
                raise OSError(errno.EBUSY, text, os.fspath(folder)) from error
            time.sleep(0.01)
        except OSError:  # a file system without locks
            return


def check_regular(path: str | os.PathLike) -> None:
    """Raise an OSError if ``path`` exists and is no regular file; a link is not accepted."""
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        kind = 'a folder' if os.path.isdir(path) else 'a special file'
        kind = 'a link' if os.path.islink(path) else kind
        raise OSError(f'{path} is {kind}, but a file will be written there: remove it')


def check_writable_dir(path: str | os.PathLike) -> None:
    """Raise an OSError unless files can be created in ``path``; do not create it.

    Args:
        path: A folder. It may not exist yet.
    """
    folder = Path(path)
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f'{folder} is not a folder')
    with tempfile.TemporaryFile(dir=folder):
        pass
