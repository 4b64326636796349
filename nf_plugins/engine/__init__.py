"""Parts of the training loop."""

from .atomic_backend import AtomicLocalBackend

__all__ = ['AtomicLocalBackend']
