"""Parts of the training loop: hooks, optimizer wrappers and their constructor."""

from .agc_optim_wrapper import AGCAmpOptimWrapper, AGCOptimWrapper
from .atomic_backend import AtomicLocalBackend
from .channels_last_hook import ChannelsLastHook
from .fold_hook import FoldHook
from .optim_wrapper_constructor import NFOptimWrapperConstructor
from .sam_optim_wrapper import SAMAmpOptimWrapper, SAMOptimWrapper
from .spp_hook import SPPHook, TrainingStopped

__all__ = [
    'AGCAmpOptimWrapper',
    'AGCOptimWrapper',
    'AtomicLocalBackend',
    'ChannelsLastHook',
    'FoldHook',
    'NFOptimWrapperConstructor',
    'SAMAmpOptimWrapper',
    'SAMOptimWrapper',
    'SPPHook',
    'TrainingStopped',
]
