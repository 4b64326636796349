"""Whether the weights of a checkpoint fit a model."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import Tensor, nn

from nf_plugins.checkpoint import check_match, find_weights, safe_load
from nf_plugins.checkpoint.state_dict import has_place, split_weights_key, unwrap_for, weights_for
from nf_plugins.errors import UsageError, as_usage_error


def backbone_weights(
    path: str, backbone: nn.Module, quiet: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The backbone's weights in a checkpoint of it or of a model, and the ``meta``.

    Args:
        path: The checkpoint, or ``PATH#KEY``.
        backbone: The backbone.
        quiet: Do not say which of several weights are taken.
    """
    with as_usage_error(f'cannot load the checkpoint {path}'):
        path, weights_key = split_weights_key(path)
        checkpoint = safe_load(path)
        state, note = find_weights(checkpoint, path, weights_key)
        place = has_place(backbone.state_dict())
        state = unwrap_for(state, lambda k, v: place(k.removeprefix('backbone.'), v))
        own = {k: v for k, v in state.items() if k.startswith('backbone.')}
        state = {k.removeprefix('backbone.'): v for k, v in own.items()} or state
        check_match(state, backbone, path)
        check_plain(state, backbone, path)
    if note and not quiet:
        print(note, file=sys.stderr)
    meta = checkpoint.get('meta')
    return state, meta if isinstance(meta, dict) else {}


def check_plain(state: dict[str, Tensor], module: nn.Module, path: str) -> None:
    """Raise a :class:`UsageError` unless weights are stored as numbers that a module can take."""
    for key, own in module.state_dict().items():
        value = state.get(key)
        if value is None:
            continue
        kind = None
        if value.is_meta:
            kind = 'on the meta device, without values'
        elif value.layout != torch.strided:
            kind = f'of layout {str(value.layout).removeprefix("torch.")}'
        elif value.is_quantized:
            kind = 'quantized'
        elif value.is_complex() and not own.is_complex():
            kind = 'complex'
        if kind:
            raise UsageError(
                f'cannot load the checkpoint {path}: {key} is {kind}; save dense real weights: '
                'to_dense(), dequantize()'
            )


def check_checkpoint(path: str, model: nn.Module, minimum: float = 1.0) -> None:
    """Raise a :class:`UsageError` unless a local checkpoint is readable and fits a model.

    Args:
        path: The checkpoint, or ``PATH#KEY``; what is not a local file (a URL) is left to mmengine.
        model: The model.
        minimum: Share of the model's keys that must be there.
    """
    if '://' in path:
        return
    with as_usage_error('cannot load the checkpoint'):
        path, key = split_weights_key(path)
        checkpoint = safe_load(os.path.expanduser(path))
        check_match(weights_for(model, checkpoint, path, key)[0], model, path, minimum)
