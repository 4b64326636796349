"""Find the weights in a checkpoint, whoever wrote it, and tell whether they fit a module."""

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
"""Where checkpoints keep their weights, in the order in which they are looked for."""

_DEPTH = 4  # of dicts in dicts; a file can hold a dict that holds itself

# Names that only wrappers have: torch.compile, FSDP, activation checkpointing.
_WRAPPERS = re.compile(
    r'(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.'
)
_OUTER = re.compile(r'^(?:(?:module|_forward_module)\.)+')  # data parallel, averaging, DeepSpeed
_COUNTERS = ('steps', 'n_averaged')  # beside the ``module.`` of averaged models
MEMBERS = ('model.', 'net.', 'network.')
"""What a training class may call its network (Lightning)."""


def split_weights_key(path: str) -> tuple[str, str | None]:
    """Split ``PATH#KEY``, where KEY says which weights of the file are meant.

    A file whose own name holds a ``#`` is found, too.

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
    """Dotted keys of the state dicts in a checkpoint, best first; '' is the checkpoint itself.

    Args:
        value: The checkpoint.
        keys: Keys to look under; None for all.
        depth: How deep ``value`` lies.
        seen: The dicts above and before: each is looked into once.
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
    """What lies at a dotted key, or None; the parts of the key may hold dots themselves."""
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
    """A state dict without what wrappers put before its keys."""
    renamed: dict[str, Any] = {}
    averaged = any(_OUTER.match(key) for key in state)
    for key, value in state.items():
        if averaged and key in _COUNTERS:
            continue
        name = _OUTER.sub('', _WRAPPERS.sub('', key))
        if name in renamed:  # no wrapper, but a module of that name
            return dict(state)
        renamed[name] = value
    return renamed


def find_weights(
    checkpoint: Any, path: str | os.PathLike = 'the checkpoint', key: str | None = None
) -> tuple[dict[str, Any], str]:
    """Find the state dict in a checkpoint.

    It is looked for under :data:`WEIGHTS_KEYS`, in that order, in dicts in dicts, too; where
    there is none, the checkpoint itself is one. Its keys lose what wrappers put before
    them: ``module.``, ``_orig_mod.``, ``_fsdp_wrapped_module.``,
    ``_checkpoint_wrapped_module.`` and ``_forward_module.``.

    Args:
        checkpoint: What a file holds.
        path: The file, for messages.
        key: Where the weights are, with a dot between the keys of nested dicts; None to look
            for them.

    Returns:
        The state dict, and one line that says which one was taken and which were left; the
        line is empty where there was only a ``state_dict``, or the checkpoint itself.

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
    """The dotted key of the weights, and the line about it."""
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
    # Tensors beside the key, such as a best accuracy, are no other weights.
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
    """What a checkpoint has, for messages."""
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
    """The state dict in a checkpoint, as :func:`find_weights` finds it.

    Args:
        checkpoint: What a file holds.
        path: The file, for messages.
        key: Where the weights are; None to look for them.

    Raises:
        CheckpointError: There is no state dict.
    """
    return find_weights(checkpoint, path, key)[0]


def for_mmengine(checkpoint: Any, path: str, key: str | None = None) -> tuple[Any, str]:
    """A checkpoint with its weights where mmengine looks for them: under ``state_dict``.

    What mmengine wrote itself stays as it is, as its hooks exchange the averaged weights with
    the others. Of all others nothing but ``state_dict`` changes, and a bare state dict stays one.

    Args:
        checkpoint: What a file holds.
        path: The file, for messages.
        key: Where the weights are; None to look for them.

    Returns:
        The checkpoint, and the line of :func:`find_weights`.
    """
    if not isinstance(checkpoint, dict):
        return checkpoint, ''
    if key is None and next(_state_dicts(checkpoint, WEIGHTS_KEYS), None) is None:
        return checkpoint, ''  # whoever wants it knows what it is
    place, note = _find(checkpoint, path, key)
    if place == 'state_dict' and 'message_hub' in checkpoint:
        return checkpoint, note
    found = _at(checkpoint, place)
    state = _unwrapped(found)
    if state.keys() == found.keys():
        state = found  # with its _metadata
    if place:
        checkpoint['state_dict'] = state
    return checkpoint if place else state, note


def unwrap_for(
    state: Mapping[str, Tensor], fits: Callable[[str, Tensor], bool]
) -> dict[str, Tensor]:
    """A state dict without the name that a training class gives its network, if that fits better.

    Args:
        state: State dict.
        fits: Whether a key and its value have a place in the model.
    """

    def count(prefix: str) -> int:
        return sum(fits(k.removeprefix(prefix), v) for k, v in state.items())

    best = max(('', *MEMBERS), key=count)  # the first of equal ones
    return {key.removeprefix(best): value for key, value in state.items()}


def has_place(wanted: Mapping[str, Tensor]) -> Callable[[str, Tensor], bool]:
    """Whether a key and its value, as they are, have a place in a module's state dict."""
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
        minimum: Share of the module's keys that must match. At 1 there may be no other keys
            either. At least one that is more than a single number must match in any case.
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
    """Why a value of a state dict cannot be loaded, or None."""
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
    """Whether anything of a state dict fits; a single number, such as a gain, fits any network."""
    shapes = {key: _shape(value) for key, value in wanted.items() if isinstance(value, Tensor)}
    if not shapes or None in shapes.values():  # a lazy layer takes any shape
        return True
    arrays = {key: shape for key, shape in shapes.items() if shape.numel() > 1} or shapes
    return any(_shape(state.get(key)) == shape for key, shape in arrays.items())
