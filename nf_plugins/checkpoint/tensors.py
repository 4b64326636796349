"""Weight files of torch, safetensors and numpy as one kind of dict."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

from .safe_load import safe_load, state_dict_of


def read_weights(path: str | os.PathLike) -> dict[str, Tensor]:
    """A state dict from ``.pth`` (weights-only), ``.safetensors`` or ``.npz``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, holds no weights, or wants something executed.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no weights at {path}')
    try:
        if path.endswith('.safetensors'):
            from safetensors.torch import load_file

            return load_file(path)
        if path.endswith('.npz'):
            with open(path, 'rb') as file, np.load(file, allow_pickle=False) as archive:
                return {name: torch.from_numpy(archive[name]) for name in archive.files}
    except ImportError:
        raise
    except Exception as error:  # damaged zips raise almost anything, safetensors its own class
        raise ValueError(f'{path} is not a readable file of weights: {error}') from None
    return state_dict_of(safe_load(path), path)
