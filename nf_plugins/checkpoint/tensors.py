"""Weight files of torch, safetensors and numpy as one kind of dict."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping

import safetensors.torch
import torch
from torch import Tensor

from .archive import read_npz
from .errors import CheckpointError, CheckpointNotFoundError
from .safe_load import reason, safe_load, state_dict_of


def read_weights(path: str | os.PathLike) -> dict[str, Tensor]:
    """A state dict from ``.pth`` (weights-only), ``.safetensors`` or ``.npz``.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CheckpointError: The file is damaged, holds no weights, or wants something executed.
    """
    path = os.fspath(path)
    if not path.endswith('.npz'):
        return state_dict_of(safe_load(path), path)
    if not os.path.isfile(path):
        raise CheckpointNotFoundError(f'no weights at {path}')
    try:
        with open(path, 'rb') as file:
            return {name: torch.from_numpy(array) for name, array in read_npz(file).items()}
    except Exception as error:  # a damaged zip raises almost anything
        why = reason(error)
        raise CheckpointError(f'{path} is not a readable file of weights: {why}') from None


def encode_weights(
    state: Mapping[str, Tensor], path: str | os.PathLike, meta: Mapping[str, str]
) -> bytes:
    """The content of a checkpoint: of safetensors, or of mm.

    Args:
        state: State dict.
        path: Its file; ``.safetensors`` decides.
        meta: What is known about it.
    """
    if os.fspath(path).endswith('.safetensors'):
        # Each its own memory: safetensors takes no views.
        tensors = {name: value.detach().clone().contiguous() for name, value in state.items()}
        return safetensors.torch.save(tensors, metadata={'format': 'pt', **meta})
    buffer = io.BytesIO()
    torch.save(dict(meta=dict(meta), state_dict=dict(state)), buffer)
    return buffer.getvalue()
