"""How the command line tools fail: one line on stderr, exit status 2, no traceback."""

from __future__ import annotations

import argparse
import errno
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nf_plugins.checkpoint.safe_load import CheckpointError

from .checks import printable


class ArgumentParser(argparse.ArgumentParser):
    """A parser that complains in one line, without its usage."""

    def error(self, message: str) -> None:
        raise UsageError(f'{message} (see {self.prog} --help)')


def positive(text: str) -> int:
    """The type of an argument that is a positive integer."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive integer')
    return int(text)


def add_weights_key(parser: argparse.ArgumentParser) -> None:
    """Add ``--weights-key``, which says what weights of a checkpoint are meant."""
    parser.add_argument(
        '--weights-key',
        metavar='KEY',
        help='take the weights under this key of the checkpoint, such as model_ema; with a dot '
        'between the keys of nested dicts (default: the first of state_dict, model, ...)',
    )


def with_weights_key(path: str, key: str | None) -> str:
    """A checkpoint's path with the key of its weights: ``PATH#KEY``."""
    return path if key is None else f'{path}#{key}'


def say(*words: object, error: bool = False) -> None:
    """Print words in one line in which nothing steers a terminal: files choose names.

    Args:
        words: What to print.
        error: Print to stderr.
    """
    print(printable(' '.join(map(str, words))), file=sys.stderr if error else sys.stdout)


class UsageError(Exception):
    """Bad input of a command line tool: the message says what is wrong and what is accepted."""


@contextmanager
def complaint(about: str) -> Iterator[None]:
    """Turn an exception of the block into a :class:`UsageError` about ``about``.

    Example:
        >>> with complaint('cannot read the config'):
        ...     raise ValueError('unexpected indent')
        Traceback (most recent call last):
        ...
        nf_plugins.utils.cli.UsageError: cannot read the config: unexpected indent
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
} | {name: name for name in ('pycocotools', 'shapely', 'terminaltables', 'tensorboard', 'timm')}
"""Module -> what pip calls the distributions that bring it."""


def _advice(module: str | None) -> str:
    """What to install for a module that is missing."""
    if module == 'mmcv._ext':
        command = 'MMCV_WITH_OPS=1 pip install --no-binary onedl-mmcv --no-build-isolation'
        return (
            f'; it needs mmcv with its compiled operators: {command} --force-reinstall onedl-mmcv'
        )
    distribution = DISTRIBUTIONS.get((module or '').partition('.')[0])
    return f'; pip install {distribution}' if distribution else ''


def command_line(main: Callable[[], int | None]) -> Callable[[], None]:
    """Decorate a tool's ``main``: its exit status, or 2 with one line for bad input.

    Bad input is a UsageError, or a checkpoint that cannot be loaded, whoever wants it.
    A full disk stops the tool in the same way. Checkpoints are loaded weights-only while it
    runs.
    """

    @functools.wraps(main)
    def run() -> None:
        # Whoever calls torch.load in this process, mmengine included: no unpickling of code.
        name = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
        before, reported = os.environ.get(name), logging.raiseExceptions
        os.environ[name] = '1'
        logging.raiseExceptions = False  # a traceback for each line that a full disk refuses
        # Of mmcv without compiled operators, at its import.
        warnings.filterwarnings('ignore', 'Fail to import', UserWarning)
        try:
            status = main()
        except (Exception, KeyboardInterrupt) as error:
            if _interrupted(error):
                print('interrupted', file=sys.stderr)
                status = 130
            elif isinstance(error, (UsageError, CheckpointError)):
                status = _complain(error)
            elif isinstance(error, OSError) and error.errno in _FULL:
                status = _complain(f'{error}: stopped; files written before are whole')
            else:
                raise
        finally:
            logging.raiseExceptions = reported
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before
        sys.exit(status or 0)

    return run


def _interrupted(error: BaseException | None) -> bool:
    """Whether it was Ctrl-C: mmengine, for one, makes a SyntaxError of it while it formats."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _complain(error: object) -> int:
    text = ' '.join(str(error).split())
    print(f'error: {printable(text)}', file=sys.stderr)
    return 2
