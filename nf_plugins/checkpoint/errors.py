"""Errors of checkpoints, whose messages are safe to print."""

from __future__ import annotations

import pickle


def printable(text: object, longest: int = 10_000) -> str:
    r"""One line in which nothing steers a terminal; files choose the names in messages.

    Example:
        >>> printable('a\x1b]0;b')
        'a\\x1b]0;b'
    """
    text = ' '.join(str(text)[: 2 * longest].split())
    text = ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= longest else f'{text[:longest]} ...'


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or refused because it wants more than weights need."""

    def __init__(self, message: str = '') -> None:
        super().__init__(printable(message))


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no such checkpoint."""


class Refused(pickle.UnpicklingError):
    """A file wants something that weights do not need: what, for the message."""
