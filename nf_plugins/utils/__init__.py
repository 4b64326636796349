"""Small helpers."""

from .cli import (
    ArgumentParser,
    UsageError,
    add_weights_key,
    command_line,
    complaint,
    positive,
    say,
    with_weights_key,
)
from .files import atomic_write, atomic_write_all, check_writable_dir

__all__ = [
    'ArgumentParser',
    'UsageError',
    'add_weights_key',
    'atomic_write',
    'atomic_write_all',
    'check_writable_dir',
    'command_line',
    'complaint',
    'positive',
    'say',
    'with_weights_key',
]
