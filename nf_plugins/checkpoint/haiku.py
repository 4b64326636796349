"""Reading of DeepMind's published weights. Nothing in a file is executed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from nf_plugins.errors import CheckpointError, CheckpointNotFoundError, Refused, reason, short

from .archive import is_archive, read_npz
from .exact import as_tensor
from .numpy_pickle import DILL_GLOBALS, GLOBALS, PickledNumberDtype
from .unpickler import Limits, SafeUnpickler

_FUNCTIONS: dict[str, Any] = {
    **{'.'.join(name): function for name, function in {**GLOBALS, **DILL_GLOBALS}.items()},
    'numpy.dtype': PickledNumberDtype,
}
"""Names that a file may contain: those of arrays and scalars of numbers, and of dicts."""

_DICTS = ('FlatMapping', 'FlatMap', 'frozendict')
"""Names of haiku's immutable dict, in several versions."""


def _read_pickle(file: BinaryIO) -> Any:
    """Unpickle numpy arrays and dicts, and refuse every other name."""
    limits = Limits(os.fstat(file.fileno()).st_size)
    unpickler = SafeUnpickler(file, _FUNCTIONS, limits, inert=False)
    for name in _DICTS:
        path = f'haiku._src.data_structures.{name}'
        unpickler.functions[path] = unpickler.functions['builtins.dict']
    return unpickler.load()


def _read_arrays(file: BinaryIO) -> dict[str, np.ndarray]:
    arrays = read_npz(file)
    params = {k.removeprefix('params/'): v for k, v in arrays.items() if k.startswith('params/')}
    return params or arrays


NAME = 1000
"""Largest number of letters in the name of a parameter."""


def _flatten(tree: Any, prefix: str = '', seen: set[int] | None = None) -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        if not isinstance(tree, (np.ndarray, np.generic, int, float)):
            raise ValueError(f'{prefix} is no array of numbers but a {type(tree).__name__}')
        return {prefix: tree}
    if len(prefix) > NAME:  # all names below begin with this prefix
        raise Refused(f'it has a name of more than {NAME} letters')
    seen = set() if seen is None else seen
    if id(tree) in seen:  # else a small file could expand without limit
        raise Refused('it holds one dict in two places')
    seen.add(id(tree))
    flat = {}
    for key, value in tree.items():
        if not isinstance(key, str):
            raise ValueError(f'the tree has the key {short(key)}, which is not a string')
        if len(key) > NAME:
            raise Refused(f'it has a name of more than {NAME} letters')
        flat.update(_flatten(value, f'{prefix}/{key}' if prefix else key, seen))
    return flat


def read_haiku(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read haiku parameters as a flat dict.

    There are two formats. DeepMind's published ``*_haiku.npz`` are pickles of nested dicts, in
    spite of their name. The other format is a real npz archive of arrays. The unpickler for the
    first format can only make arrays and dicts.

    Args:
        path: The file.

    Returns:
        Parameter name -> array. The parts of a name are joined by dots, without haiku's ``~``:
        ``NFNet.nf_block_1.conv0.w``. If an archive has arrays under ``params/``, only those are
        read.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CheckpointError: The file is damaged, is in another format, or asks for more than arrays
            and dicts.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise CheckpointNotFoundError(f'no weights at {path}')
    try:
        with open(path, 'rb') as file:
            tree = _read_arrays(file) if is_archive(file) else _read_pickle(file)
        if not isinstance(tree, Mapping) or not tree:
            raise ValueError('it holds no parameters')
        tree = _flatten(tree)
    except Refused as error:
        raise CheckpointError(f'{path} is refused: {error}') from None
    except Exception as error:  # a damaged pickle can raise almost anything
        why = reason(error)
        raise CheckpointError(f'{path} is not a readable file of weights: {why}') from None
    flat = {}
    for name, value in tree.items():
        value = np.asarray(value)
        if value.dtype.kind not in 'fiu' and value.dtype.name != 'bfloat16':
            raise CheckpointError(f'{path}: {name} is no array of numbers but of {value.dtype}')
        parts = [part for part in name.replace('/', '.').split('.') if part != '~']
        flat['.'.join(parts)] = value
    return flat


def haiku_weights(path: str | os.PathLike, key: str | None = None) -> tuple[dict[str, Tensor], str]:
    """Read haiku parameters as tensors, and say which of several they are.

    Args:
        path: The file.
        key: The dict of the file that holds them; None for ``params`` where there is one.

    Returns:
        Parameter name -> tensor, as :func:`read_haiku` names them, and the line.

    Raises:
        CheckpointError: As of :func:`read_haiku`; or there is nothing under ``key``.
    """
    arrays, note = read_haiku(path), ''
    if key is None and any(name.startswith('params.') for name in arrays):
        key = 'params'
        others = sorted({name.split('.')[0] for name in arrays} - {key})
        if others:
            note = f'{path}: the weights of {key!r} are taken, not those of {str(others)[1:-1]}'
    if key is not None:
        start = f'{key}.'
        arrays = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
        if not arrays:
            raise CheckpointError(f'{path} holds no weights under {key!r}')
    return {name: as_tensor(value) for name, value in arrays.items()}, note
