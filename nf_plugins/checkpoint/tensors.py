"""Reading and writing of weights in files of torch, safetensors and numpy."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from nf_plugins.errors import CheckpointError, CheckpointNotFoundError, reason

from .archive import read_npz
from .exact import as_tensor
from .safe_load import safe_load
from .state_dict import find_weights


def read_weights(path: str | os.PathLike, key: str | None = None) -> dict[str, Tensor]:
    """Read a state dict from ``.pth`` (weights-only), ``.safetensors`` or ``.npz``.

    It has the arguments and errors of :func:`read_and_say`.
    """
    return read_and_say(path, key)[0]


def read_and_say(path: str | os.PathLike, key: str | None = None) -> tuple[dict[str, Tensor], str]:
    """Read a state dict from a file, with a line that says which one of the file it is.

    Args:
        path: The file.
        key: The key of the weights in the file; None to search.

    Returns:
        The state dict, and the line of :func:`find_weights`.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CheckpointError: The file is damaged, has no weights, or asks for something to be executed.
    """
    path = os.fspath(path)
    if not path.endswith('.npz'):
        return find_weights(safe_load(path), path, key)
    if not os.path.isfile(path):
        raise CheckpointNotFoundError(f'no weights at {path}')
    try:
        with open(path, 'rb') as file:
            arrays = {name: as_tensor(array) for name, array in read_npz(file).items()}
    except Exception as error:  # a damaged zip raises almost anything
        why = reason(error)
        raise CheckpointError(f'{path} is not a readable file of weights: {why}') from None
    return find_weights(arrays, path, key)


def encode_weights(
    state: Mapping[str, Tensor], path: str | os.PathLike, meta: Mapping[str, Any]
) -> bytes:
    """Encode a checkpoint in the format of safetensors or of the mm libraries.

    Args:
        state: State dict.
        path: Its file; the suffix ``.safetensors`` selects that format.
        meta: Data about it; in safetensors, only strings and numbers are kept.
    """
    if os.fspath(path).endswith('.safetensors'):
        # Each tensor needs its own memory, because safetensors does not accept views.
        tensors = {name: value.detach().clone().contiguous() for name, value in state.items()}
        texts = {k: str(v) for k, v in meta.items() if isinstance(v, (str, int, float))}
        return safetensors.torch.save(tensors, metadata={'format': 'pt', **texts})
    buffer = io.BytesIO()
    torch.save(dict(meta=dict(meta), state_dict=dict(state)), buffer)
    return buffer.getvalue()
