"""Parts of the training loop."""

from .agc_optim_wrapper import AGCAmpOptimWrapper, AGCOptimWrapper
from .atomic_backend import AtomicLocalBackend
from .optim_wrapper_constructor import NFOptimWrapperConstructor
from .spp_hook import SPPHook, TrainingStopped

__all__ = [
    'AGCAmpOptimWrapper',
    'AGCOptimWrapper',
    'AtomicLocalBackend',
    'NFOptimWrapperConstructor',
    'SPPHook',
    'TrainingStopped',
]
