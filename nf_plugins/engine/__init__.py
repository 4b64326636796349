"""Parts of the training loop."""

from .agc_optim_wrapper import AGCAmpOptimWrapper, AGCOptimWrapper
from .atomic_backend import AtomicLocalBackend
from .fold_hook import FoldHook
from .spp_hook import SPPHook, TrainingStopped

__all__ = [
    'AGCAmpOptimWrapper',
    'AGCOptimWrapper',
    'AtomicLocalBackend',
    'FoldHook',
    'SPPHook',
    'TrainingStopped',
]
