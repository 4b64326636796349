"""Search for the weights in a checkpoint of any program, and check that they fit a module."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nf_plugins.errors import CheckpointError, short

from .exact import cast_exactly

PLAIN_KEYS = ('state_dict', 'model_state_dict', 'model', 'module', 'net', 'network', 'weights')
AVERAGED_KEYS = ('state_dict_ema', 'model_ema', 'ema_state_dict', 'ema', 'teacher')
WEIGHTS_KEYS = (*PLAIN_KEYS, *AVERAGED_KEYS, 'student')
"""Keys of the weights in checkpoints, in the order of the search."""

_DEPTH = 4  # nesting of dicts; a dict in a file can contain itself

# Name parts that only wrappers use: torch.compile, FSDP, activation checkpointing.
_WRAPPERS = re.compile(
    r'(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.'
)
_OUTER = re.compile(r'^(?:(?:module|_forward_module)\.)+')  # data parallel, averaging, DeepSpeed
_COUNTERS = ('steps', 'n_averaged')  # averaged models have these keys in addition to ``module.``
MEMBERS = ('model.', 'net.', 'network.')
"""Names that a training class may give to its network (Lightning)."""


def split_weights_key(path: str) -> tuple[str, str | None]:
    """Split ``PATH#KEY``; KEY selects the weights in the file.

    If a file with a ``#`` in its name exists, the text is its path.

    Example:
        >>> split_weights_key('https://example.org/a.pth#model_ema')
        ('https://example.org/a.pth', 'model_ema')
    """
    head, mark, key = path.rpartition('#')
    if not mark or os.path.exists(os.path.expanduser(path)):
        return path, None
    return head, key


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and all(isinstance(key, str) for key in value)
        and any(isinstance(item, Tensor) for item in value.values())
    )


def _state_dicts(
    value: Any, keys: tuple[str, ...] | None, depth: int = 0, seen: set[int] | None = None
) -> Iterator[str]:
    """Find the dotted keys of state dicts in a checkpoint, best first; '' is the checkpoint itself.

    Args:
        value: The checkpoint.
        keys: Keys to search; None: all keys.
        depth: Nesting of ``value``.
        seen: Ids of the dicts that were already searched.
    """
    seen = set() if seen is None else seen
    if not isinstance(value, Mapping) or depth > _DEPTH:
        return
    inside = () if id(value) in seen else list(value) if keys is None else keys
    seen.add(id(value))
    for key in inside:
        if isinstance(key, str) and isinstance(value.get(key), Mapping):
            for inner in _state_dicts(value[key], keys, depth + 1, seen):
                yield f'{key}.{inner}' if inner else key
    if _is_state_dict(value):
        yield ''


def _at(checkpoint: Any, key: str) -> Any:
    """Return the value at a dotted key, or None; the parts of the key may also contain dots."""
    if not key or not isinstance(checkpoint, Mapping):
        return checkpoint if not key else None
    if key in checkpoint:
        return checkpoint[key]
    parts = key.split('.')
    for count in range(len(parts) - 1, 0, -1):
        head = '.'.join(parts[:count])
        if head in checkpoint:
            return _at(checkpoint[head], '.'.join(parts[count:]))
    return None


def _unwrapped(state: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the prefixes of wrappers from the keys of a state dict."""
    renamed: dict[str, Any] = {}
    averaged = any(_OUTER.match(key) for key in state)
    for key, value in state.items():
        if averaged and key in _COUNTERS:
            continue
        name = _OUTER.sub('', _WRAPPERS.sub('', key))
        if name in renamed:  # not a wrapper: a module has this name
            return dict(state)
        renamed[name] = value
    return renamed


def find_weights(
    checkpoint: Any, path: str | os.PathLike = 'the checkpoint', key: str | None = None
) -> tuple[dict[str, Any], str]:
    """Find the state dict in a checkpoint.

    The keys in :data:`WEIGHTS_KEYS` are tried in this order, also in nested dicts. If there is
    none, the checkpoint itself is the state dict. Prefixes of wrappers are removed from its keys:
    ``module.``, ``_orig_mod.``, ``_fsdp_wrapped_module.``, ``_checkpoint_wrapped_module.`` and
    ``_forward_module.``.

    Args:
        checkpoint: The content of a file.
        path: The file, for messages.
        key: The key of the weights, with a dot between the keys of nested dicts; None to search.

    Returns:
        The state dict, and one line that says which one was taken and which others were not. The
        line is empty if there was only a ``state_dict``, or the checkpoint itself.

    Raises:
        CheckpointError: There is no state dict, or none at ``key``.

    Example:
        >>> import torch
        >>> weights = {'module.a': torch.ones(1)}
        >>> state, note = find_weights(dict(model=weights, ema={'a': torch.ones(1)}), 'x.pth')
        >>> list(state)
        ['a']
        >>> note
        "x.pth: the weights of 'model' are taken, not those of 'ema' (choose with x.pth#KEY)"
    """
    place, note = _find(checkpoint, os.fspath(path), key)
    return _unwrapped(_at(checkpoint, place)), note


def _find(checkpoint: Any, path: str, key: str | None) -> tuple[str, str]:
    """Return the dotted key of the weights, and the line about it."""
    if key is not None:
        inner = next(_state_dicts(_at(checkpoint, key), WEIGHTS_KEYS), None)
        if inner is None:
            raise CheckpointError(f'{path} holds no weights under {key!r}; {_has(checkpoint)}')
        place = f'{key}.{inner}' if inner else key
        return place, f'{path}: the weights of {place!r} are taken'
    found = list(_state_dicts(checkpoint, WEIGHTS_KEYS))
    if not found:
        kind = 'weights' if isinstance(checkpoint, Mapping) else 'state dict'
        raise CheckpointError(f'{path} holds no {kind}; {_has(checkpoint)}')
    place, *left = found
    # Single tensors in the checkpoint, such as a best accuracy, are no other weights.
    left = [name for name in left if name and not place.startswith(f'{name}.')]
    if place in ('', 'state_dict') and not left:
        return place, ''
    note = f'{path}: the weights of {place!r} are taken'
    if left:
        note += f', not those of {", ".join(map(repr, left))} (choose with {path}#KEY)'
    if 'ema_state_dict' in left and 'message_hub' in checkpoint:
        note += "; mmengine keeps the averaged weights in 'state_dict'"
    return place, note


def _has(checkpoint: Any) -> str:
    """Describe the content of a checkpoint, for messages."""
    if not isinstance(checkpoint, Mapping):
        return f'it is a {type(checkpoint).__name__}'
    others = [name for name in dict.fromkeys(_state_dicts(checkpoint, None)) if name]
    others = [name for name in others if not name.startswith(('optimizer', 'scheduler'))]
    if others:
        return f'it has some under {", ".join(map(repr, others[:5]))} (PATH#KEY takes them)'
    return f'it has the keys {", ".join(map(short, list(checkpoint)[:5])) or "of an empty dict"}'


def state_dict_of(
    checkpoint: Any, path: str | os.PathLike = 'the checkpoint', key: str | None = None
) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint, without the line of :func:`find_weights`.

    Args:
        checkpoint: The content of a file.
        path: The file, for messages.
        key: The key of the weights; None to search.

    Raises:
        CheckpointError: There is no state dict.
    """
    return find_weights(checkpoint, path, key)[0]


def for_mmengine(checkpoint: Any, path: str, key: str | None = None) -> tuple[Any, str]:
    """Move the weights of a checkpoint to ``state_dict``, where mmengine expects them.

    A checkpoint of mmengine is not changed, because its hooks exchange the averaged and the other
    weights themselves. In other checkpoints only ``state_dict`` changes. A bare state dict stays a
    bare state dict.

    Args:
        checkpoint: The content of a file.
        path: The file, for messages.
        key: The key of the weights; None to search.

    Returns:
        The checkpoint, and the line of :func:`find_weights`.
    """
    if not isinstance(checkpoint, dict):
        return checkpoint, ''
    if key is None and next(_state_dicts(checkpoint, WEIGHTS_KEYS), None) is None:
        return checkpoint, ''  # it is no checkpoint; the caller knows what to do with it
    place, note = _find(checkpoint, path, key)
    if place == 'state_dict' and 'message_hub' in checkpoint:
        return checkpoint, note
    found = _at(checkpoint, place)
    state = _unwrapped(found)
    if state.keys() == found.keys():
        state = found  # the original object has _metadata
    if place:
        checkpoint['state_dict'] = state
    return checkpoint if place else state, note


def unwrap_for(
    state: Mapping[str, Tensor], fits: Callable[[str, Tensor], bool]
) -> dict[str, Tensor]:
    """Remove the name that a training class gives its network, if more keys fit without it.

    Args:
        state: State dict.
        fits: Function that returns whether a key and its value fit the model.
    """

    def count(prefix: str) -> int:
        return sum(fits(k.removeprefix(prefix), v) for k, v in state.items())

    best = max(('', *MEMBERS), key=count)  # with equal counts, the first one
    return {key.removeprefix(best): value for key, value in state.items()}


def has_place(wanted: Mapping[str, Tensor]) -> Callable[[str, Tensor], bool]:
    """Make a function that returns whether a key and its value fit a module's state dict."""
    return lambda key, value: key in wanted and _shape(value) == _shape(wanted[key])


def _shape(value: Any) -> Any:
    return value.shape if isinstance(value, Tensor) and not is_lazy(value) else None


def check_match(
    state: Mapping[str, Tensor], module: nn.Module, path: str | os.PathLike, minimum: float = 1.0
) -> None:
    """Raise a CheckpointError unless enough of the module's keys are there in the right shapes.

    Args:
        state: State dict.
        module: The module that it is for.
        path: Where it comes from, for the message.
        minimum: Fraction of the module's keys that must match. With 1, ``state`` may not have
            other keys. In any case one tensor with more than one number must match.
    """
    wanted = module.state_dict()
    optional = keys_set_by_layers(module)
    bad = []
    for key, value in wanted.items():
        problem = _mismatch(state, key, value)
        if problem is not None and (key in state or key not in optional):
            bad.append(f'{key} ({problem})')
    surplus = [key for key in state if key not in wanted and 'data_preprocessor' not in key]
    matched = len(wanted) - len(bad)
    too_few = matched < minimum * len(wanted) or not fits_at_all(state, wanted)
    if too_few or (minimum == 1 and surplus):
        bad += [f'{key} (not in the model)' for key in surplus]
        raise CheckpointError(
            f'{path} is for another model: {matched} of {len(wanted)} keys match; '
            f'the first that do not: {", ".join(bad[:3])}'
        )


def keys_set_by_layers(module: nn.Module) -> set[str]:
    """Find the keys that layers set themselves where a state dict has none.

    A layer names them in its attribute ``keys_set_on_load``, as :class:`PWSConv2d` does.
    """
    return {
        f'{prefix}.{key}' if prefix else key
        for prefix, layer in module.named_modules(remove_duplicate=False)
        for key in getattr(layer, 'keys_set_on_load', ())
    }


def _mismatch(state: Mapping[str, Any], key: str, wanted: Tensor) -> str | None:
    """Return why a value of a state dict cannot be loaded, or None."""
    if key not in state:
        return 'missing'
    value = state[key]
    if getattr(value, 'shape', None) != wanted.shape:
        return f'shape {tuple(getattr(value, "shape", ()))} instead of {tuple(wanted.shape)}'
    try:
        cast_exactly(value, wanted.dtype)
    except ValueError as error:
        return str(error)
    return None


def fits_at_all(state: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> bool:
    """Return whether any tensor of a state dict fits.

    A tensor with a single number, such as a gain, does not count: it fits any network.
    """
    shapes = {key: _shape(value) for key, value in wanted.items() if isinstance(value, Tensor)}
    if not shapes or None in shapes.values():  # a lazy layer takes any shape
        return True
    arrays = {key: shape for key, shape in shapes.items() if shape.numel() > 1} or shapes
    return any(_shape(state.get(key)) == shape for key, shape in arrays.items())
