"""What is known of single libraries: a file and a class per library.

All adapters are asked about every network. Where one answer is wanted, the adapter that was
registered last is heard first, so that a user's own comes before those here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from nf_plugins.registry import ADAPTERS

# Importing a file registers its adapter.
from . import mm, own, pytorch, timm, transformers  # noqa: F401
from .arguments import Arguments
from .base import Adapter, Expectation

__all__ = ['ADAPTERS', 'Adapter', 'Arguments', 'Expectation', 'adapters', 'first']

Answer = TypeVar('Answer')


def adapters() -> list[Adapter]:
    """Return an adapter of every kind that is registered, the last one first."""
    return [ADAPTERS[name]() for name in reversed(list(ADAPTERS))]


def first(answers: Iterable[Answer | None]) -> Answer | None:
    """Return the first answer that is not None; None where nobody has one."""
    return next((answer for answer in answers if answer is not None), None)
