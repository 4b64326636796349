"""How the command line tools fail: one line on stderr, exit status 2, no traceback."""

from __future__ import annotations

import errno
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable

from nf_plugins.errors import CheckpointError, UsageError, printable


def command_line(main: Callable[[], int | None]) -> Callable[[], None]:
    """Decorate a tool's ``main``: its exit status, or 2 with one line for bad input.

    Bad input is a UsageError, or a checkpoint that cannot be loaded, by our code or by mmengine's.
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
                status = _say(error)
            elif isinstance(error, OSError) and error.errno in _FULL:
                status = _say(f'{error}: stopped; files written before are whole')
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


def _say(error: object) -> int:
    print(f'error: {printable(error)}', file=sys.stderr)
    return 2
