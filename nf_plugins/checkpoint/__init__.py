"""Safe loading of checkpoints. A checkpoint is never trusted."""

from nf_plugins.errors import CheckpointError, CheckpointNotFoundError

from . import loader
from .inert import INERT_NAMES
from .loader import install
from .safe_load import SAFE_GLOBALS, safe_load
from .state_dict import WEIGHTS_KEYS, check_match, find_weights, state_dict_of

__all__ = [
    'INERT_NAMES',
    'SAFE_GLOBALS',
    'WEIGHTS_KEYS',
    'CheckpointError',
    'CheckpointNotFoundError',
    'check_match',
    'find_weights',
    'install',
    'loader',
    'safe_load',
    'state_dict_of',
]
