"""Loading of checkpoints, which are never trusted."""

from . import loader
from .errors import CheckpointError, CheckpointNotFoundError
from .inert import INERT_NAMES
from .safe_load import SAFE_GLOBALS, check_match, safe_load, state_dict_of

__all__ = [
    'INERT_NAMES',
    'SAFE_GLOBALS',
    'CheckpointError',
    'CheckpointNotFoundError',
    'check_match',
    'loader',
    'safe_load',
    'state_dict_of',
]
