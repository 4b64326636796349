"""Loading of checkpoints, which are never trusted."""

import mmengine.runner.checkpoint
import torch

from . import loader
from .safe_load import (
    SAFE_GLOBALS,
    CheckpointError,
    CheckpointNotFoundError,
    safe_load,
)
from .state_dict import WEIGHTS_KEYS, check_match, find_weights, state_dict_of

__all__ = [
    'SAFE_GLOBALS',
    'WEIGHTS_KEYS',
    'CheckpointError',
    'CheckpointNotFoundError',
    'check_match',
    'find_weights',
    'loader',
    'safe_load',
    'state_dict_of',
]

# The original mmengine fails on its own checkpoints with torch >= 2.6 unless these are
# known. Its fork brings a list of its own, which must not meet another one: torch keeps a
# set, in which two entries for one name (numpy.dtype) are taken at random.
if not hasattr(mmengine.runner.checkpoint, 'get_torch_safe_globals'):
    torch.serialization.add_safe_globals(SAFE_GLOBALS)
