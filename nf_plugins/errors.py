"""The errors of this package, and the conversion of other exceptions into them."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(Exception):
    """Bad input of a command line tool: the message says what is wrong and what is accepted."""


@contextmanager
def as_usage_error(about: str) -> Iterator[None]:
    """Turn an exception of the block into a :class:`UsageError` that begins with ``about``.

    Example:
        >>> with as_usage_error('cannot read the config'):
        ...     raise ValueError('unexpected indent')
        Traceback (most recent call last):
        ...
        nf_plugins.errors.UsageError: cannot read the config: unexpected indent
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        # str() of a KeyError is the repr of its message.
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        text = text or type(error).__name__
        if isinstance(error, ImportError):
            text += _advice(error.name)
        raise UsageError(f'{about}: {text}') from error


DISTRIBUTIONS = {
    'mmpretrain': 'onedl-mmpretrain torchvision',
    'mmseg': 'onedl-mmsegmentation ftfy regex',
    'mmdet': 'onedl-mmdetection',
    'sklearn': 'scikit-learn',
    'pytorch_grad_cam': 'grad-cam',
} | {
    name: name
    for name in (
        'huggingface_hub',
        'pycocotools',
        'shapely',
        'terminaltables',
        'tensorboard',
        'timm',
    )
}
"""Module -> the distributions that contain it, as pip names them."""


def _advice(module: str | None) -> str:
    """Name what to install for a module that is missing."""
    if module == 'mmcv._ext':
        # Without --no-cache-dir, pip takes the wheel without operators that it has built before.
        command = 'MMCV_WITH_OPS=1 pip install --no-cache-dir --no-binary onedl-mmcv'
        command += ' --no-build-isolation --force-reinstall --no-deps onedl-mmcv'
        return f'; it needs mmcv with its compiled operators: {command}, or make ops in a checkout'
    distribution = DISTRIBUTIONS.get((module or '').partition('.')[0])
    return f'; pip install {distribution}' if distribution else ''


def printable(text: object, longest: int = 10_000) -> str:
    r"""Return a text as one line without control characters.

    Messages contain names from files, and control characters would steer the terminal.

    Example:
        >>> printable('a\x1b]0;b')
        'a\\x1b]0;b'
    """
    text = ' '.join(str(text)[: 2 * longest].split())
    text = ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= longest else f'{text[:longest]} ...'


def reason(error: Exception) -> str:
    """The first line of what an exception says, or its name."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def short(value: object) -> str:
    """Return a value as a short text for a message: its first letters, or its type."""
    if isinstance(value, (str, bytes)):
        return repr(value[:50])
    small = type(value) is int and value.bit_length() < 100
    if small or isinstance(value, (bool, float, type(None))):
        return repr(value)
    return f'a {type(value).__name__}'


def say(*words: object, error: bool = False) -> None:
    """Print words in one line without control characters, see :func:`printable`.

    Args:
        words: What to print.
        error: Print to stderr.
    """
    print(printable(' '.join(map(str, words))), file=sys.stderr if error else sys.stdout)


class CheckpointError(ValueError):
    """A checkpoint is damaged, or is refused because it asks for more than weights need."""

    def __init__(self, message: str = '') -> None:
        super().__init__(printable(message))


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no such checkpoint."""


class Refused(pickle.UnpicklingError):
    """A file asks for something that weights do not need; the message says for what."""
