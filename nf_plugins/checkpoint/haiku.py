"""Read the weights that DeepMind published, without executing anything from them."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from .numpy_pickle import DILL_GLOBALS, GLOBALS
from .safe_load import CheckpointError, CheckpointNotFoundError
from .tensors import read_archive


class _Refused(Exception):
    """The file wants something that weights do not need."""


_ALLOWED: dict[tuple[str, str], Any] = {
    **GLOBALS,
    **DILL_GLOBALS,
    ('collections', 'OrderedDict'): OrderedDict,
    ('builtins', 'dict'): dict,
    # Immutable dicts of several haiku versions.
    ('haiku._src.data_structures', 'FlatMapping'): dict,
    ('haiku._src.data_structures', 'FlatMap'): dict,
    ('haiku._src.data_structures', 'frozendict'): dict,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and plain containers, and refuses every other global."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _Refused(f'it names {module}.{name}, which weights do not need')
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused('it refers to objects outside the file')


def _flatten(tree: Any, prefix: str = '', seen: set[int] | None = None) -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    seen = set() if seen is None else seen
    if id(tree) in seen:  # a small file could otherwise expand without end
        raise _Refused('it holds one dict in two places')
    seen.add(id(tree))
    flat = {}
    for key, value in tree.items():
        if not isinstance(key, str):
            raise ValueError(f'the tree has the key {key!r}, which is not a string')
        flat.update(_flatten(value, f'{prefix}/{key}' if prefix else key, seen))
    return flat


def read_haiku(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read haiku parameters as a flat dict.

    Two formats are understood: DeepMind's published ``*_haiku.npz``, which are
    pickles of nested dicts whatever their name says, and real npz archives of flat
    arrays. Pickles are read by an unpickler that makes arrays and dicts alone.

    Args:
        path: The file.

    Returns:
        Parameter name -> array. The parts of a name are joined by dots, without
        haiku's ``~``: ``NFNet.nf_block_1.conv0.w``. Of an archive with arrays under
        ``params/`` those are taken.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CheckpointError: The file is damaged, is something else, or wants something executed.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise CheckpointNotFoundError(f'no weights at {path}')
    try:
        if zipfile.is_zipfile(path):
            tree = read_archive(path)
            if any(name.startswith('params/') for name in tree):
                tree = {k[len('params/') :]: v for k, v in tree.items() if k.startswith('params/')}
        else:
            with open(path, 'rb') as file:
                tree = _ArrayUnpickler(io.BytesIO(file.read())).load()
        if not isinstance(tree, Mapping) or not tree:
            raise ValueError('it holds no parameters')
        tree = _flatten(tree)
    except _Refused as error:
        raise CheckpointError(f'{path} is refused: {error}') from None
    except Exception as error:  # garbage can raise almost anything in an unpickler
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f'{path} is not a readable file of weights: {reason}') from None
    flat = {}
    for name, value in tree.items():
        value = np.asarray(value)
        if value.dtype.kind not in 'fiu' and value.dtype.name != 'bfloat16':
            raise CheckpointError(f'{path}: {name} is no array of numbers but of {value.dtype}')
        parts = [part for part in name.replace('/', '.').split('.') if part != '~']
        flat['.'.join(parts)] = value
    return flat
