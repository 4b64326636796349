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


class ArgumentParser(argparse.ArgumentParser):
    """A parser that complains in one line, without its usage."""

    def error(self, message: str) -> None:
        raise UsageError(f'{message} (see {self.prog} --help)')


def positive(text: str) -> int:
    """The type of an argument that is a positive integer."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive integer')
    return int(text)


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
        raise UsageError(f'{about}: {text or type(error).__name__}') from error


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
    # A file's words, which may steer a terminal.
    text = ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    print(f'error: {text}', file=sys.stderr)
    return 2
