"""Weight files of torch, safetensors and numpy as one kind of dict."""

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

    Args and errors are those of :func:`read_and_say`.
    """
    return read_and_say(path, key)[0]


def read_and_say(path: str | os.PathLike, key: str | None = None) -> tuple[dict[str, Tensor], str]:
    """Read a state dict from a file, and say which of several it is.

    Args:
        path: The file.
        key: Where in it the weights are; None to look for them.

    Returns:
        The state dict, and which one it is, as :func:`find_weights` says.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CheckpointError: The file is damaged, holds no weights, or wants something executed.
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
    """The content of a checkpoint: of safetensors, or of mm.

    Args:
        state: State dict.
        path: Its file; ``.safetensors`` decides.
        meta: What is known about it; safetensors hold its strings and numbers alone.
    """
    if os.fspath(path).endswith('.safetensors'):
        # Each its own memory: safetensors takes no views.
        tensors = {name: value.detach().clone().contiguous() for name, value in state.items()}
        texts = {k: str(v) for k, v in meta.items() if isinstance(v, (str, int, float))}
        return safetensors.torch.save(tensors, metadata={'format': 'pt', **texts})
    buffer = io.BytesIO()
    torch.save(dict(meta=dict(meta), state_dict=dict(state)), buffer)
    return buffer.getvalue()
