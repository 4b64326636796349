"""Open checkpoints without executing anything from them."""

from __future__ import annotations

import errno
import os
import pickle
import re
import threading
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import HistoryBuffer
from safetensors import safe_open

from .numpy_pickle import GLOBALS


def _history_statistic(owner: type, name: str) -> Any:
    """What ``getattr`` may do in a checkpoint: name a statistic of mmengine's log history."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is refused')
    return getattr(HistoryBuffer, name)


SAFE_GLOBALS: list = [
    HistoryBuffer,
    (_history_statistic, 'builtins.getattr'),  # HistoryBuffer pickles its methods with it
    *((value, '.'.join(name)) for name, value in GLOBALS.items()),
]
"""What a checkpoint may name beyond tensors and containers: mmengine's log history
and numpy's arrays and scalars of numbers."""


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or refused because it wants more than weights need."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no such checkpoint."""


_ALONE = threading.RLock()


@contextmanager
def _only(allowed: list) -> Iterator[None]:
    """Allow these globals and no others that somebody registered."""
    with _ALONE:  # the list is the whole process's
        before = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def safe_load(path: str | os.PathLike, map_location: Any = 'cpu', name: str | None = None) -> Any:
    """Load a checkpoint weights-only, with :data:`SAFE_GLOBALS` allowed.

    Args:
        path: A file written by ``torch.save``, or of safetensors (by its suffix).
        map_location: As in :func:`torch.load`.
        name: What messages call the file; None for ``path``.

    Returns:
        What the file holds; of safetensors the tensors as ``state_dict`` and the rest as
        ``meta``.

    Raises:
        CheckpointNotFoundError: There is no such file; it is a FileNotFoundError, too.
        CheckpointError: The file is damaged, or names something that is not allowed; it is
            a ValueError.
        OSError: The file cannot be read at all.
    """
    path = os.fspath(path)
    name = path if name is None else name
    if not os.path.isfile(path):
        raise CheckpointNotFoundError(f'no checkpoint at {name}')
    try:
        if path.endswith('.safetensors'):
            return _load_safetensors(path, map_location)
        check_sums(path)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of an unusual pickle protocol: it is read or refused
            with _only(SAFE_GLOBALS):
                return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r'GLOBAL (\S+)|(getattr\(.*\)) is refused', str(error))
        if named:
            from .advice import how_to_save  # which needs this module

            raise CheckpointError(
                f'{name} is refused: it names {named[1] or named[2]}, which weights do not need; '
                'where it can be trusted, load it there and save its weights alone: '
                + how_to_save(path)
            ) from None
        raise CheckpointError(f'{name} is not a readable checkpoint') from None
    except Exception as error:  # a damaged file can raise almost anything
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # of the disk or its rights, not of the content
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f'{name} is not a readable checkpoint: {reason}') from None


def check_sums(path: str) -> None:
    """Raise a BadZipFile if a part of a zip (checkpoint, npz) differs from its checksum."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f'its part {damaged} is damaged')


def _load_safetensors(path: str, map_location: Any) -> dict[str, Any]:
    device = 'cpu' if map_location is None or callable(map_location) else str(map_location)
    with safe_open(path, framework='pt', device=device) as file:
        state = {name: file.get_tensor(name) for name in file.keys()}
        return dict(state_dict=state, meta=file.metadata() or {})
