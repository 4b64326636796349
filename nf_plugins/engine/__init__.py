"""Parts of the training loop."""

from .agc_optim_wrapper import AGCAmpOptimWrapper, AGCOptimWrapper
from .atomic_backend import AtomicLocalBackend

__all__ = ['AGCAmpOptimWrapper', 'AGCOptimWrapper', 'AtomicLocalBackend']
