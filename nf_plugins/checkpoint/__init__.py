"""Loading of checkpoints, which are never trusted."""

import torch

from .safe_load import SAFE_GLOBALS, check_match, safe_load, state_dict_of

__all__ = ['SAFE_GLOBALS', 'check_match', 'safe_load', 'state_dict_of']

# mmengine loads weights-only first; with these known it need not unpickle its own
# checkpoints (its fork) or fail on them (the original, with torch >= 2.6).
torch.serialization.add_safe_globals(SAFE_GLOBALS)
