"""Loading of checkpoints without executing anything from them."""

from __future__ import annotations

import errno
import os
from typing import Any

import torch

from nf_plugins.errors import CheckpointError, CheckpointNotFoundError, Refused, reason

from .advice import how_to_save
from .haiku import haiku_weights
from .safetensors_file import read_safetensors
from .torch_file import read_torch
from .values import FUNCTIONS

SAFE_GLOBALS: list = [(function, name) for name, function in FUNCTIONS.items()]
"""Names that a checkpoint may contain in addition to tensors. An entry is an object, or
``(object, 'module.name')``, as in :func:`torch.serialization.add_safe_globals`. The listed
functions make checked values of numpy, Python and mmengine. An object that you append is called
as it is."""

BLOCKED_MODULES = ('os', 'posix', 'nt', 'sys')
"""Modules whose names are always refused, even if they are registered (as in PyTorch)."""


def safe_load(path: str | os.PathLike, map_location: Any = 'cpu', name: str | None = None) -> Any:
    """Load a checkpoint as data, without calling anything that it names.

    Tensors, containers, numbers, strings, numpy's arrays, paths and times are loaded as they are.
    Other functions, classes and objects that are known to be harmless become stand-ins
    (:mod:`nf_plugins.checkpoint.inert`). Real objects are made of classes that are registered with
    :func:`torch.serialization.add_safe_globals` or appended to :data:`SAFE_GLOBALS`.

    Args:
        path: A file written by ``torch.save``, or by its suffix of safetensors or of numpy
            and haiku (``.npz``).
        map_location: As in :func:`torch.load`.
        name: What messages call the file; None for ``path``.

    Returns:
        What the file holds; of safetensors the tensors as ``state_dict`` and the rest as
        ``meta``; of ``.npz`` the tensors as ``state_dict``.

    Raises:
        CheckpointNotFoundError: There is no such file; it is a FileNotFoundError, too.
        CheckpointError: The file is damaged, or asks for something that is not allowed; it is
            a ValueError.
        OSError: The file cannot be read at all.
    """
    path = os.fspath(path)
    name = path if name is None else name
    if not os.path.isfile(path):
        raise CheckpointNotFoundError(f'no checkpoint at {name}')
    if path.endswith('.npz'):
        return dict(state_dict=haiku_weights(path)[0])
    try:
        with open(path, 'rb') as file:
            if path.endswith('.safetensors'):
                return read_safetensors(file, map_location)
            return read_torch(file, map_location, _registered())
    except Refused as error:
        raise CheckpointError(
            f'{name} is refused: {error}; where it can be trusted, load it there and save its '
            f'weights alone: {how_to_save(path)}'
        ) from None
    except Exception as error:  # a damaged file can raise almost anything
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # an error of the disk or of permissions, not of the content
        raise CheckpointError(f'{name} is not a readable checkpoint: {reason(error)}') from None


def _registered() -> dict[str, Any]:
    """Return ``module.name`` -> the object that the user trusts, from PyTorch's list and ours."""
    ours = [entry for entry in SAFE_GLOBALS if entry not in _BUILT_IN]
    found = {}
    for entry in (*torch.serialization.get_safe_globals(), *ours):
        value, name = entry if isinstance(entry, tuple) else (entry, None)
        name = name or f'{value.__module__}.{value.__qualname__}'
        if name.partition('.')[0] not in BLOCKED_MODULES:
            found[name] = value
    return found


_BUILT_IN = tuple(SAFE_GLOBALS)
