"""Small helpers."""

from .cli import ArgumentParser, UsageError, command_line, complaint, positive
from .files import atomic_write, atomic_write_all, check_writable_dir

__all__ = [
    'ArgumentParser',
    'UsageError',
    'atomic_write',
    'atomic_write_all',
    'check_writable_dir',
    'command_line',
    'complaint',
    'positive',
]
