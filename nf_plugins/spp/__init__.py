"""Signal propagation plots: trace -> record -> plot."""

from .profile import BlockSignal, SignalProfile, profiles_to_csv
from .record import analyze
from .trace import find_blocks

__all__ = ['BlockSignal', 'SignalProfile', 'analyze', 'find_blocks', 'profiles_to_csv']
