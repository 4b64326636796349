"""Checks that the weights of a checkpoint fit a model."""

from __future__ import annotations

import os
from typing import Any

from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from nf_plugins.errors import as_usage_error, say

from .foreign import SCHEMES, adapted
from .safe_load import safe_load
from .state_dict import check_match, find_weights, has_place, split_weights_key, unwrap_for


def read_checkpoint(path: str) -> Any:
    """A checkpoint at a path, or at a place that mmengine's loaders know, such as ``timm://``."""
    if '://' in path:
        return CheckpointLoader.load_checkpoint(path, 'cpu', logger='silent')
    return safe_load(os.path.expanduser(path))


def weights_for(
    module: nn.Module, checkpoint: Any, path: str | os.PathLike, key: str | None = None
) -> tuple[dict[str, Tensor], str]:
    """The weights of a checkpoint for a module, and a line that says which, and what changed."""
    state, note = find_weights(checkpoint, path, key)
    found, change = adapted(state, module, os.fspath(path))
    note = '; '.join(filter(None, [note, change]))
    return unwrap_for(found, has_place(module.state_dict())), note


def backbone_weights(
    path: str, backbone: nn.Module, part: str = 'backbone', quiet: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights of a backbone and ``meta`` from a checkpoint of a backbone or a model.

    Args:
        path: The checkpoint, or ``PATH#KEY``.
        backbone: The backbone.
        part: Path of the part of the model that the backbone is.
        quiet: Do not print which weights of the checkpoint are taken.
    """
    with as_usage_error(f'cannot load the checkpoint {path}'):
        path, weights_key = split_weights_key(path)
        checkpoint = read_checkpoint(path)
        state, note = find_weights(checkpoint, path, weights_key)
        found, change = adapted(state, backbone, path)
        state, note = dict(found), '; '.join(filter(None, [note, change]))
        place = has_place(backbone.state_dict())
        prefix = f'{part}.' if part else ''
        state = unwrap_for(state, lambda k, v: place(k.removeprefix(prefix), v))
        own = {k: v for k, v in state.items() if k.startswith(prefix)}
        state = {k.removeprefix(prefix): v for k, v in own.items()} or state
        check_match(state, backbone, path)
    if note and not quiet:
        say(note, error=True)
    meta = checkpoint.get('meta')
    return state, meta if isinstance(meta, dict) else {}


def check_checkpoint(path: str, model: nn.Module, minimum: float = 1.0) -> None:
    """Raise a :class:`UsageError` unless a local checkpoint is readable and fits a model.

    Args:
        path: The checkpoint, or ``PATH#KEY``. Of what is not a local file, published weights
            alone are looked at; the rest (a URL) is left to mmengine.
        model: The model.
        minimum: Share of the model's keys that must be there.
    """
    if '://' in path and not path.startswith(SCHEMES):
        return
    with as_usage_error('cannot load the checkpoint'):
        path, key = split_weights_key(path)
        checkpoint = read_checkpoint(path)
        check_match(weights_for(model, checkpoint, path, key)[0], model, path, minimum)
