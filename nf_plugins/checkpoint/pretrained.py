"""Errors of mmengine for weights of which nothing fits the model.

mmengine loads the keys that fit by name and warns about the rest. So after a file for another
network, the model still has random weights, and there is a long warning. Its ``load_from``,
``init_cfg=dict(type='Pretrained')`` and ``load_checkpoint`` all call one of two functions, which
:func:`install` replaces.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseTTAModel
from mmengine.runner import checkpoint as mm
from mmengine.runner import runner as mm_runner
from torch import Tensor, nn

from nf_plugins.errors import CheckpointError

from .foreign import adapted
from .state_dict import MEMBERS, fits_at_all, has_place, state_dict_of, unwrap_for

_last = threading.local()
_load_state_dict = mm.load_state_dict
_load_checkpoint = mm._load_checkpoint


def note_source(path: str, note: str) -> None:
    """Remember the loaded file of this thread for messages, and log which weights are taken."""
    _last.path = path
    if note:
        print_log(note, logger='current')


@functools.wraps(_load_state_dict)
def load_state_dict(
    module: nn.Module, state_dict: Mapping[str, Any], strict: bool = False, logger: Any = None
) -> None:
    """mmengine's function, for published weights, too; a CheckpointError where nothing fits."""
    inner = module.module if isinstance(module, BaseTTAModel) else module
    state_dict, change = adapted(state_dict, inner, getattr(_last, 'path', 'the checkpoint'))
    if change:
        print_log(change, logger='current')
        strict = False  # a new classifier is in no file; the backbone was checked
    wanted = mm.get_state_dict(inner)
    if not fits_at_all(state_dict, wanted):
        found = unwrap_for(state_dict, has_place(wanted))
        if fits_at_all(found, wanted):
            state_dict = found
        elif not _loads_in_its_own_way(module, state_dict):
            raise CheckpointError(_nothing_fits(state_dict, inner, wanted))
    _load_state_dict(module, state_dict, strict, logger)


def _loads_in_its_own_way(module: nn.Module, state_dict: Mapping[str, Any]) -> bool:
    """Return whether hooks of the module rename keys, so that weights are loaded nevertheless."""
    values = module.state_dict(keep_vars=True).values()
    tensors = [t for t in values if isinstance(t, Tensor) and not t.is_inference()]
    before = [tensor._version for tensor in tensors]
    arrays = {k: v for k, v in state_dict.items() if getattr(v, 'ndim', 0)}
    _load_state_dict(module, arrays, strict=False, logger='silent')
    return before != [tensor._version for tensor in tensors]


def _nothing_fits(
    state_dict: Mapping[str, Any], module: nn.Module, wanted: Mapping[str, Any]
) -> str:
    path = getattr(_last, 'path', 'the checkpoint')
    message = f'nothing of {path} fits {type(module).__name__}: it has {_some(state_dict)}, '
    message += f'the module has {_some(wanted)}'
    for key in state_dict:
        prefix = next((key[: -len(name)] for name in wanted if key.endswith(f'.{name}')), None)
        if prefix:
            return f"{message}; init_cfg=dict(prefix='{prefix}', ...) takes a part of the file"
    return message


def _some(keys: Mapping[str, Any]) -> str:
    return ', '.join([*list(keys)[:3], '...'] if len(keys) > 3 else keys) or 'no keys'


def load_with_prefix(prefix: str, filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load the keys of a checkpoint with a prefix, and remove it: ``init_cfg=dict(prefix=...)``.

    Raises:
        CheckpointError: No key has the prefix.
    """
    prefix = prefix if prefix.endswith('.') else f'{prefix}.'
    state = state_dict_of(_load_checkpoint(filename, map_location=map_location), filename)
    for outer in ('', *MEMBERS):
        part = {
            key.removeprefix(outer + prefix): value
            for key, value in state.items()
            if key.startswith(outer + prefix)
        }
        if part:
            return part
    names = ', '.join(sorted({f'{key.split(".")[0]}.' for key in state})[:5])
    raise CheckpointError(f'{filename} has nothing under the prefix {prefix!r}, but {names}')


def _load_for_runner(filename: str, map_location: Any = None, logger: Any = None) -> Any:
    """Load a checkpoint for a Runner, with the key ``state_dict``, which EMAHook needs."""
    checkpoint = _load_checkpoint(filename, map_location, logger)
    if isinstance(checkpoint, dict) and 'state_dict' not in checkpoint:
        return dict(state_dict=state_dict_of(checkpoint, filename))
    return checkpoint


def install() -> None:
    """Replace mmengine's functions that load weights into a module."""
    mm.load_state_dict = load_state_dict
    mm._load_checkpoint_with_prefix = load_with_prefix
    mm_runner._load_checkpoint = _load_for_runner
