"""A forked tool is as one that Python starts: the helper of the tests, tested."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ..tools import Apart, run_apart

PROGRAMS = {
    'the end': 'print("done")',
    'a status': 'import sys; print("some"); sys.exit(3)',
    'words': 'import sys; sys.exit("in words")',
    'an error': 'import sys; print("no", file=sys.stderr); 1 / 0',
    'at the end': 'import atexit; atexit.register(print, "bye"); print("hello")',
    'a signal': 'import os, signal; print("x", flush=True); os.kill(os.getpid(), signal.SIGTERM)',
    'where it is': 'import os, sys; print(os.getcwd(), sys.argv[1:], os.environ["A"], __name__)',
    'nothing to read': 'import sys; print(repr(sys.stdin.read()))',
    'workers': 'import multiprocessing as mp; print(mp.get_start_method(), mp.parent_process())',
}


@pytest.mark.slow
@pytest.mark.parametrize('name', PROGRAMS)
def test_it_ends_as_a_fresh_process(name, tmp_path):
    args, env = ['1 2', 'ü'], {**os.environ, 'A': 'b'}
    forked = run_apart(PROGRAMS[name], *args, code=True, env=env, cwd=tmp_path)
    fresh = subprocess.run(
        [sys.executable, '-c', PROGRAMS[name], *args], env=env, cwd=tmp_path,
        capture_output=True, stdin=subprocess.DEVNULL, text=True, check=False,
    )  # fmt: skip
    assert forked.returncode == fresh.returncode
    assert forked.stdout == fresh.stdout
    # A traceback has other frames.
    assert forked.stderr.splitlines()[-1:] == fresh.stderr.splitlines()[-1:]


def test_it_is_seen_and_stopped_while_it_runs():
    process = Apart('import time; print("up", flush=True); time.sleep(60)', code=True)
    end = time.monotonic() + 30
    while 'up' not in process.output:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.send_signal(signal.SIGKILL)  # nobody is there


def test_it_does_not_run_forever():
    with pytest.raises(TimeoutError, match='up'):
        run_apart('import time; print("up", flush=True); time.sleep(60)', code=True, timeout=0.5)


def test_random_numbers_are_new():
    code = 'import numpy, random, torch; print(numpy.random.rand(), random.random())'
    first, second = (run_apart(code, code=True).stdout.split() for _ in range(2))
    assert first[0] != second[0]
    assert first[1] != second[1]
