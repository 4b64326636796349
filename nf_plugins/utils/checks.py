"""Argument checks whose messages name the argument, the accepted values and the given value."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Number, Real
from typing import Any, TypeGuard

LARGEST = 2**31 - 1
"""Largest accepted size; a tensor with a longer axis does not fit into memory."""

_NUMBERS: dict[str, Callable[[float], bool]] = {
    'a finite number': lambda x: True,
    'a positive number': lambda x: x > 0,
    'at least 0': lambda x: x >= 0,
    'in [0, 1)': lambda x: 0 <= x < 1,
}


def check_choice(name: str, value: Any, choices: Iterable) -> Any:
    """Return ``value`` if it is one of ``choices``, else raise a ValueError that lists them."""
    choices = list(choices)  # compared one by one, because a value may not be hashable
    if value not in choices:
        raise ValueError(f'{name} must be one of {", ".join(map(str, choices))}, got {value!r}')
    return value


def check_type(name: str, value: Any, kind: type) -> Any:
    """Return ``value`` if it has the type ``kind``, else raise a TypeError."""
    if not isinstance(value, kind):
        raise TypeError(f'{name} must be a {kind.__name__}, got {value!r}')
    return value


def check_config(name: str, value: Any) -> Any:
    """Return ``value`` if it is the config of a module, else raise a TypeError."""
    if not isinstance(value, Mapping) or 'type' not in value:
        raise TypeError(f"{name} must be a dict with the key 'type', got {value!r}")
    return value


def check_number(name: str, value: Any, kind: str = 'a finite number') -> float:
    """Return ``value`` as a float if it is a finite number of a kind, else raise.

    Args:
        name: Name of the argument.
        value: Its value.
        kind: 'a finite number', 'a positive number', 'at least 0' or 'in [0, 1)'.

    Raises:
        TypeError: It is no number.
        ValueError: It is a number outside ``kind``, infinite or NaN.

    Example:
        >>> check_number('alpha', float('nan'), 'a positive number')
        Traceback (most recent call last):
        ...
        ValueError: alpha must be a positive number, got nan
    """
    message = f'{name} must be {kind}, got {value!r}'
    if not _is_real(value):
        raise TypeError(message)
    if not abs(value) <= sys.float_info.max or not _NUMBERS[kind](value):
        raise ValueError(message)
    return float(value)


def _is_real(value: Any) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_integer(name: str, value: Any, minimum: int = 1, maximum: int = LARGEST) -> int:
    """Return ``value`` as an int if it is an integer in a range, else raise.

    Raises:
        TypeError: It is no number.
        ValueError: It is a number but no integer, or it is outside the range.

    Example:
        >>> check_integer('groups', 0)
        Traceback (most recent call last):
        ...
        ValueError: groups must be a positive integer, got 0
    """
    kind = 'a positive integer' if minimum == 1 else f'an integer of at least {minimum}'
    message = f'{name} must be {kind}, got {value!r}'
    if not isinstance(value, Number):
        raise TypeError(message)
    if not _is_integer(value) or value < minimum:
        raise ValueError(message)
    if value > maximum:
        raise ValueError(f'{name} must be at most {maximum}, got {value!r}')
    return int(value)


def check_integers(
    name: str, values: Any, count: int, what: str = '', maximum: int = LARGEST
) -> tuple[int, ...]:
    """Return ``values`` as a tuple if they are ``count`` positive integers, else raise.

    Args:
        name: Name of the argument.
        values: Its value.
        count: The number of integers.
        what: Text for the message: what else is accepted.
        maximum: The largest accepted integer.

    Example:
        >>> check_integers('strides', (1, 2, 2, 2), 4)
        (1, 2, 2, 2)
    """
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f'{name} must be {what}a sequence of {count} integers, got {values!r}')
    if len(values) != count or not all(_is_integer(v) and v > 0 for v in values):
        raise ValueError(f'{name} must be {what}{count} positive integers, got {values!r}')
    if max(values) > maximum:
        raise ValueError(f'{name} must be at most {maximum}, got {values!r}')
    return tuple(map(int, values))


def check_pair(name: str, value: Any) -> tuple[int, int]:
    """Return a pair of positive integers, from a pair or from one integer, else raise.

    Example:
        >>> check_pair('stride', 2)
        (2, 2)
    """
    if isinstance(value, Number):
        return (check_integer(name, value),) * 2
    first, second = check_integers(name, value, 2, 'a positive integer or ')
    return first, second
