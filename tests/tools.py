"""Run the command line tools: in this process, or in one that is forked for them.

A tool needs five seconds of CPU to import what it needs. :func:`run_apart` takes a server process
that has imported all of it once, and forks: a training of a second takes a second. What a fork
cannot show (imports, a default that is read from the environment while Python starts) needs
``python tools/NAME.py``: :func:`command`.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import numpy as np
import pytest

from .conftest import ROOT, same_instances_afterwards


def script(tool: str) -> str:
    """The file of a tool: a script in the folder ``tools``, without suffix."""
    return str(ROOT / f'tools/{tool}.py')


def command(tool: str, *args: object) -> list[str]:
    """The command that starts a tool in a fresh process, as a user does."""
    return [sys.executable, script(tool), *map(str, args)]


def run_tool(tool: str, *args: object) -> int:
    """Run a tool in this process.

    Args:
        tool: Name of a script in the folder ``tools``, without suffix, or a module of the
            benchmarks with a ``main``.
        args: The arguments of the command line.

    Returns:
        The exit status.
    """
    with (
        same_instances_afterwards(),
        mock.patch.object(sys, 'argv', [f'{tool}.py', *map(str, args)]),
        mock.patch.object(sys, 'path', [*sys.path]),
        pytest.raises(SystemExit) as stop,
    ):
        if tool.startswith('benchmarks.'):
            importlib.import_module(tool).main()
        else:
            runpy.run_path(script(tool), run_name='__main__')
    return stop.value.code or 0


class Apart:
    """A tool in a forked process. It works as :class:`subprocess.Popen`, with outputs in files.

    Args:
        tool: A script in the folder ``tools``, without suffix; or Python code with ``code=True``.
        args: The arguments of the command line.
        env: All environment variables; ``None``: those of this process.
        cwd: The working directory; ``None``: that of this process.
        code: Whether ``tool`` is code.
    """

    def __init__(
        self,
        tool: str,
        *args: object,
        env: dict[str, str] | None = None,
        cwd: str | Path | None = None,
        code: bool = False,
    ) -> None:
        self.returncode: int | None = None
        self._server = _server()
        self._outputs = tempfile.mkdtemp(dir=self._server.folder.name)
        self.pid = self._server.ask(
            program=['-c', tool] if code else ['', script(tool)],
            args=[str(arg) for arg in args],
            env=dict(os.environ if env is None else env),
            cwd=str(os.getcwd() if cwd is None else cwd),
            outputs=self._outputs,
        )

    def read(self, name: str) -> str:
        """What it has written so far.

        Args:
            name: ``'stdout'`` or ``'stderr'``.
        """
        path = Path(self._outputs, name)
        return path.read_text() if path.exists() else ''

    @property
    def output(self) -> str:
        """Both outputs so far."""
        return self.read('stdout') + self.read('stderr')

    def poll(self) -> int | None:
        """The exit status, or ``None`` while it runs."""
        if self.returncode is None:
            self.returncode, self._seconds = self._server.ask(poll=self.pid)
        return self.returncode

    @property
    def cpu_seconds(self) -> float:
        """The time that it has used so far, with that of its children that have ended."""
        if self.poll() is None:  # its id stays until then
            fields = Path(f'/proc/{self.pid}/stat').read_text().rpartition(')')[2].split()
            self._seconds = sum(map(int, fields[11:15])) / os.sysconf('SC_CLK_TCK')
        return self._seconds

    def wait(self, timeout: float = 300) -> int:
        """Wait for its end.

        Raises:
            TimeoutError: It runs longer than ``timeout`` seconds; it is killed.
        """
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.send_signal(signal.SIGKILL)
                raise TimeoutError(self.output[-2000:])
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def run_apart(
    tool: str, *args: object, timeout: float = 300, **options: object
) -> subprocess.CompletedProcess:
    """Run a tool in a forked process.

    Args:
        tool: See :class:`Apart`.
        args: The arguments of the command line.
        timeout: In seconds.
        options: ``env``, ``cwd`` and ``code`` of :class:`Apart`.

    Returns:
        As of :func:`subprocess.run`: ``returncode``, ``stdout`` and ``stderr``.
    """
    process = Apart(tool, *args, **options)
    status = process.wait(timeout)
    outputs = process.read('stdout'), process.read('stderr')
    return subprocess.CompletedProcess([tool, *map(str, args)], status, *outputs)


def run_ranks(worker: Callable[..., None], *args: str, count: int = 2) -> None:
    """Run a function of a test in forked processes, as ``torch.multiprocessing.spawn`` does.

    Args:
        worker: A function of a module; it is called with the rank and ``args``.
        args: Texts.
        count: The number of processes.
    """
    code = (
        f'import sys; from {worker.__module__} import {worker.__name__} as worker; '
        'worker(int(sys.argv[1]), *sys.argv[2:])'
    )
    processes = [Apart(code, rank, *args, code=True) for rank in range(count)]
    assert [process.wait() for process in processes] == [0] * count, processes[0].output[-2000:]


# What the tools import at any time.
IMPORTS = [
    'matplotlib.backends.backend_agg',
    'matplotlib.pyplot',
    'mmengine.runner',
    'mmpretrain.datasets',
    'mmpretrain.engine',
    'mmpretrain.evaluation',
    'mmpretrain.models',
    'mmpretrain.visualization',
    'nf_plugins.datasets',
    'nf_plugins.engine',
    'nf_plugins.spp',
    'safetensors.torch',
    'scipy.stats',
    'setuptools',
    'sklearn.datasets',
    'torch._dynamo',
    'yapf.yapflib.yapf_api',
]


class _Server:
    """The process that forks; it answers each line of JSON with another."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
        self.process = subprocess.Popen(
            [sys.executable, '-c', 'from tests.tools import serve; serve()'],
            # A fork is safe as long as there is one thread.
            env={**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        atexit.register(self.stop)

    def ask(self, **request: object) -> Any:
        self.process.stdin.write(json.dumps(request).encode() + b'\n')
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.folder.cleanup()


_server = cache(_Server)


def serve() -> None:
    """Fork for each request for a program; this is the main function of the server."""
    answers = os.dup(1)
    os.set_inheritable(answers, False)
    os.dup2(2, 1)
    for name in IMPORTS:
        with suppress(ImportError):  # the tests of what is not installed are left out
            importlib.import_module(name)
    gc.freeze()  # no child visits what all of them share
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if 'poll' in request:
            child, status, used = os.wait4(request['poll'], os.WNOHANG)
            status = os.waitstatus_to_exitcode(status) if child else None
            answer = status, used.ru_utime + used.ru_stime
        else:
            answer = os.fork()
            if answer == 0:
                os.close(answers)
                _become(**request)
        os.write(answers, json.dumps(answer).encode() + b'\n')


def _become(
    program: list[str], args: list[str], env: dict[str, str], cwd: str, outputs: str
) -> NoReturn:
    """Be a process that was started for a program."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by a background process
    np.random.seed()  # as in a fresh process, not as in the last child
    for target, name in ((0, os.devnull), (1, f'{outputs}/stdout'), (2, f'{outputs}/stderr')):
        source = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(source, target)
        os.close(source)
    option, text = program
    sys.argv = [option or text, *args]
    sys.path[0] = '' if option else os.path.dirname(text)
    status = 1
    try:
        if option:
            exec(compile(text, '<string>', 'exec'), {'__name__': '__main__'})
        else:
            runpy.run_path(text, run_name='__main__')
        status = 0
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            status = stop.code or 0
        else:
            print(stop.code, file=sys.stderr)
    except KeyboardInterrupt:  # while the tool imports
        status = 128 + signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())
    # What the interpreter does at its end, but for half a second of freeing memory.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
