"""Error reports of the command line tools: one line on stderr, exit status 2, no traceback."""

from __future__ import annotations

import errno
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable

from mmengine.logging import MMLogger

from nf_plugins.errors import CheckpointError, UsageError, printable


def command_line(main: Callable[[], int | None]) -> Callable[[], None]:
    """Decorate the ``main`` of a tool, so that bad input gives one line and exit status 2.

    Without an error, the exit status is what ``main`` returns. Bad input is a UsageError, or a
    checkpoint that our code or mmengine's cannot load. A full disk is reported in the same way.
    While the tool runs, checkpoints are loaded weights-only.
    """

    @functools.wraps(main)
    def run() -> None:
        # For each call of torch.load in this process, also by mmengine: do not unpickle code.
        name = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
        before, reported = os.environ.get(name), logging.raiseExceptions
        os.environ[name] = '1'
        logging.raiseExceptions = False  # else a full disk gives a traceback for each log line
        # mmcv without compiled operators warns when it is imported.
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
                status = _say(f'{error}: stopped; the files written before are complete')
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


def quiet() -> None:
    """Restrict mmengine's logger to errors; else it has a line for each initialised parameter."""
    MMLogger.get_instance('mmengine').setLevel('ERROR')


def _interrupted(error: BaseException | None) -> bool:
    """Return whether Ctrl-C has caused an error.

    For instance, mmengine converts it into a SyntaxError while it formats a config.
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _say(error: object) -> int:
    print(f'error: {printable(error)}', file=sys.stderr)
    return 2
