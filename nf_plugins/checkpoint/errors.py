"""Errors of checkpoints, whose messages are safe to print."""

from __future__ import annotations

import pickle
from typing import Any


def printable(text: str, longest: int = 10_000) -> str:
    """One line in which nothing steers a terminal; files choose the names in messages."""
    text = ' '.join(text[: 2 * longest].split())
    text = ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= longest else f'{text[:longest]} ...'


def short(value: Any) -> str:
    """A value in a message: its first letters, or its kind, as it may be huge when written out."""
    if isinstance(value, (str, bytes)):
        return repr(value[:50])
    small = type(value) is int and value.bit_length() < 100
    if small or isinstance(value, (bool, float, type(None))):
        return repr(value)
    return f'a {type(value).__name__}'


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or refused because it wants more than weights need."""

    def __init__(self, message: str = '') -> None:
        super().__init__(printable(message))


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no such checkpoint."""


class Refused(pickle.UnpicklingError):
    """A file wants something that weights do not need: what, for the message."""
