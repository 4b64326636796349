"""Conversion of foreign weights: each source key is used, and each number is kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nf_plugins.version import __version__

from .exact import cast_exactly, check_numbers
from .state_dict import keys_set_by_layers, unwrap_for
from .tensors import encode_weights

Rename = Callable[[str, Tensor], 'tuple[str, Tensor] | None']
"""Source name and value -> model name and value, or None for an unknown name."""


def convert(source: Mapping[str, Tensor], model: nn.Module, rename: Rename) -> dict[str, Tensor]:
    """Make a state dict for a model from foreign weights.

    Numbers are kept as in :func:`~nf_plugins.checkpoint.exact.cast_exactly`.

    Args:
        source: Foreign name -> value.
        model: The model to fill.
        rename: Function from a source name and value to a model name and value.

    Returns:
        A complete state dict.

    Raises:
        ValueError: A source key is unknown, its shape differs from the model's, two source keys
            have the same model key, a model key gets no value, or a number cannot be kept. The
            message lists all of them.
    """
    wanted = model.state_dict()
    state: dict[str, Tensor] = {}
    unused, mismatched, changed = [], [], []
    _check_all_numbers(source)

    def fits(name: str, value: Tensor) -> bool:
        renamed = rename(name, value)
        return renamed is not None and renamed[0] in wanted

    for name, value in unwrap_for(source, fits).items():
        renamed = rename(name, value)
        if renamed is None or renamed[0] not in wanted or renamed[0] in state:
            unused.append(name)
            continue
        key, value = renamed
        if value.shape != wanted[key].shape:
            shapes = f'{tuple(value.shape)} instead of {tuple(wanted[key].shape)}'
            mismatched.append(f'{name} -> {key}: {shapes}')
            state[key] = wanted[key]
            continue
        try:
            state[key] = cast_exactly(value, wanted[key].dtype).contiguous().clone()
        except ValueError as error:
            changed.append(f'{name} -> {key}: {error}')
            state[key] = wanted[key]
    for key in keys_set_by_layers(model) & wanted.keys():  # foreign weights are trained
        state.setdefault(key, torch.ones_like(wanted[key]))
    # What the mean of the images is, is the config's business and in no weight file.
    empty = [key for key in wanted if key not in state and not key.startswith('data_preprocessor')]
    problems = [
        listed(names, what)
        for what, names in (
            ('source keys have no place in the model', unused),
            ('shapes differ', mismatched),
            ('arrays would change', changed),
            ('model keys are left empty', empty),
        )
        if names
    ]
    if problems:
        raise ValueError('; '.join(problems))
    return state


def _check_all_numbers(source: Mapping[str, Tensor]) -> None:
    bad = []
    for name, value in source.items():
        try:
            check_numbers(value)
        except ValueError as error:
            bad.append(f'{name} is {error}')
    if bad:
        raise ValueError(listed(bad, 'values cannot be used'))


def listed(names: list[str], what: str) -> str:
    """How many names there are, what they are, and the first of them."""
    return f'{len(names)} {what}: {", ".join(names[:5])}{" ..." if len(names) > 5 else ""}'


def encode_converted(
    state: Mapping[str, Tensor], path: str | os.PathLike, source: str, **known: Any
) -> bytes:
    """The content of ``path`` with converted weights, and where they come from.

    Args:
        state: The weights.
        path: Their file.
        source: The file that they come from, or its published name.
        **known: More for ``meta``.
    """
    source = source if '://' in source else os.path.basename(source)
    meta = dict(source=source, converter=f'nf_plugins {__version__}', **known)
    return encode_weights(state, path, meta)
