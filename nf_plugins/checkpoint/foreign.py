"""Weights of other implementations, when a network takes them.

Files of timm and of DeepMind have other names than the networks here, classify into 1000 classes,
and see three channels. :func:`adapted` turns them into what a network takes, and says what it
changed. Weights of this package, and networks of others, stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from nf_plugins.errors import CheckpointError

from .convert import Rename, listed
from .state_dict import keys_set_by_layers, unwrap_for

SCHEMES = ('timm://', 'deepmind://')
"""What the places of published weights begin with; :mod:`nf_plugins.models.hub` reads them."""

RENAMES: list[Callable[[nn.Module, Mapping[str, Any]], Rename | None]] = []
"""What knows the names of others: the renaming for a network and a state dict, or None.

:mod:`nf_plugins.models.weight_names` adds one."""

STEM = 'stem.conv1.weight'
HEAD = 'head.fc.'


def adapted(
    state: Mapping[str, Any], module: nn.Module, path: str
) -> tuple[Mapping[str, Any], str]:
    """Published weights as a network takes them.

    - Names of timm and of DeepMind become those here.
    - A backbone alone takes the part of the backbone.
    - A classifier of another number of classes is left out.
    - The first convolution is adapted to other input channels as timm does: its three channels
      are summed for one, else repeated and scaled by 3 / channels.

    Args:
        state: State dict of a file.
        module: A classifier, another model with a backbone, or a backbone.
        path: Where the weights come from.

    Returns:
        The state dict, the same one where there is nothing to adapt, and one line that says what
        was changed; it is empty where nothing was.

    Raises:
        CheckpointError: The weights are those of another network.
    """
    rename = next(filter(None, (make(module, state) for make in RENAMES)), None)
    if rename is None and not path.startswith(SCHEMES):
        return state, ''
    found = dict(state) if rename is None else _renamed(state, rename, path)
    wanted = module.state_dict()
    if not _is_whole(wanted) and _is_whole(found):
        found = {
            key.removeprefix('backbone.'): value
            for key, value in found.items()
            if key.startswith('backbone.')
        }
    notes = [_adapt_stem(found, wanted), _adapt_head(found, wanted)]
    _check(found, module, wanted, path)
    said = '; '.join(filter(None, notes))
    return found, f'{path}: {said}' if said else ''


def _is_whole(state: Mapping[str, Any]) -> bool:
    """Whether keys are those of a model with a backbone, and not of a backbone alone."""
    return any(key.startswith('backbone.') for key in state)


def _renamed(state: Mapping[str, Any], rename: Rename, path: str) -> dict[str, Tensor]:
    found, unknown = {}, []
    for name, value in unwrap_for(state, lambda key, value: bool(rename(key, value))).items():
        pair = rename(name, value)
        if pair is None:
            unknown.append(name)
        else:
            found[pair[0]] = pair[1].contiguous()
    if unknown:
        raise CheckpointError(f'{path}: {listed(unknown, "keys have no place in the model")}')
    return found


def _adapt_stem(found: dict[str, Any], wanted: Mapping[str, Tensor]) -> str:
    """Adapt the first convolution to the input channels."""
    for key in found.keys() & wanted.keys():
        if key.endswith(STEM) and found[key].shape != wanted[key].shape:
            known, channels = found[key].shape[1], wanted[key].shape[1]
            found[key] = adapt_channels(found[key], channels)
            return f'the first convolution is adapted from {known} to {channels} channels'
    return ''


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """The weight of a first convolution for another number of input channels, as timm's.

    Example:
        >>> import torch
        >>> adapt_channels(torch.tensor([[[[1.0]], [[2.0]], [[3.0]]]]), 4).flatten()
        tensor([0.7500, 1.5000, 2.2500, 0.7500])
    """
    known = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeated = weight.repeat(1, math.ceil(channels / known), 1, 1)[:, :channels]
    return repeated * (known / channels)


def _adapt_head(found: dict[str, Any], wanted: Mapping[str, Tensor]) -> str:
    """Leave out a classifier that the network has not, or has for other classes."""
    key = f'{HEAD}weight'
    if key not in found:
        return f'the file has no classifier; {HEAD}* is initialised' if key in wanted else ''
    if key in wanted and found[key].shape == wanted[key].shape:
        return ''
    classes = len(found[key])
    for name in [name for name in found if name.startswith(HEAD)]:
        del found[name]
    if key not in wanted:
        return ''
    return f'the classifier of {classes} classes is left out; that of {len(wanted[key])} is new'


def _check(
    found: Mapping[str, Any], module: nn.Module, wanted: Mapping[str, Tensor], path: str
) -> None:
    """Raise a CheckpointError unless the weights are all that the backbone has, and no more."""
    own = {key for key in wanted if not _is_whole(wanted) or key.startswith('backbone.')}
    missing = sorted(own - found.keys() - keys_set_by_layers(module))
    surplus = [key for key in found if key not in wanted]
    shapes = [
        f'{key} ({tuple(found[key].shape)} instead of {tuple(wanted[key].shape)})'
        for key in found
        if key in wanted and found[key].shape != wanted[key].shape
    ]
    problems = [
        listed(names, what)
        for names, what in (
            (shapes, 'shapes differ'),
            (surplus, 'keys have no place in the model'),
            (missing, 'keys of the model are missing'),
        )
        if names
    ]
    if problems:
        kind = type(getattr(module, 'backbone', module)).__name__
        raise CheckpointError(f'{path} is for another network than this {kind}: {problems[0]}')
