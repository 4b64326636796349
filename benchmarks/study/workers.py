"""Worker processes of the study, with one thread each."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict

import torch

from benchmarks.common import ROOT
from nf_plugins.errors import UsageError

from .runs import Run
from .training import attempt

COMMAND = [sys.executable, '-W', 'ignore', '-m', 'benchmarks.study', '--worker']


def work() -> None:
    """Read runs from stdin as lines of JSON and write rows to stdout, until the input ends."""
    rows = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # texts that libraries print must not be between the rows
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the study itself ends its workers
    torch.set_num_threads(1)
    for line in sys.stdin:
        rows.write(json.dumps(attempt(Run(**json.loads(line)))) + '\n')
        rows.flush()


def run_all(runs: list[Run], workers: int) -> Iterator[dict]:
    """Yield rows in the order in which the runs finish.

    The workers read from pipes. So if this process is killed, they end after their present run.
    """
    if not workers:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from (attempt(run) for run in runs)
        finally:
            torch.set_num_threads(threads)
        return
    todo: queue.SimpleQueue[Run] = queue.SimpleQueue()
    done: queue.SimpleQueue[dict | None] = queue.SimpleQueue()
    for run in runs:
        todo.put(run)
    processes = [
        subprocess.Popen(
            COMMAND, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(min(workers, len(runs)))
    ]

    def serve(process: subprocess.Popen) -> None:
        try:
            while True:
                process.stdin.write(json.dumps(asdict(todo.get_nowait())) + '\n')
                process.stdin.flush()
                line = process.stdout.readline()
                while line and not line.startswith('{'):  # a line that an import has printed
                    line = process.stdout.readline()
                done.put(json.loads(line))
        except queue.Empty:
            pass
        except (OSError, ValueError):  # the worker is gone
            done.put(None)

    try:
        for process in processes:
            threading.Thread(target=serve, args=(process,), daemon=True).start()
        for _ in runs:
            row = done.get()
            if row is None:
                raise UsageError('a worker ended early (see above); finished runs are kept')
            yield row
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
