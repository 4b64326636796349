"""Small helpers."""

from .cli import ArgumentParser, UsageError, command_line, complaint, positive
from .files import atomic_write, check_writable_dir

__all__ = [
    'ArgumentParser',
    'UsageError',
    'atomic_write',
    'check_writable_dir',
    'command_line',
    'complaint',
    'positive',
]
