"""Loading of checkpoints, which are never trusted."""

from .safe_load import SAFE_GLOBALS, check_match, safe_load, state_dict_of

__all__ = ['SAFE_GLOBALS', 'check_match', 'safe_load', 'state_dict_of']
