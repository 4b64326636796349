"""Measuring of time and memory for the benchmarks."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.common import ROOT

Times = dict[str, list[float]]


def interleaved(jobs: dict[str, Callable[[], None]], rounds: int, warmup: int = 1) -> Times:
    """Measure the seconds of each job in each round; a round runs all jobs in random order.

    So if the machine is slow for a minute, all jobs are slow, and no job always runs after the
    same one. The first ``warmup`` rounds are not counted.
    """
    times: Times = {name: [] for name in jobs}
    order, generator = list(jobs), random.Random(0)
    for number in range(warmup + rounds):
        generator.shuffle(order)
        for name in order:
            seconds = timed(jobs[name])
            if number >= warmup:
                times[name].append(seconds)
    return times


def timed(job: Callable[[], None]) -> float:
    """Measure the seconds of one call, including the GPU, without Python's garbage collection."""
    gc.collect()
    gc.disable()
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        start = time.perf_counter()
        job()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter() - start
    finally:
        gc.enable()


def peak_beyond(module: str, function: str, *args: str) -> float:
    """Call ``module.function(*args)`` in a new process, and return the MiB that it prints last."""
    code = f'import {module}; {module}.{function}(*{args!r})'
    # With this, freed memory goes back to the system at once. Else the peak depends on the history.
    environment = {**os.environ, 'MALLOC_MMAP_THRESHOLD_': '65536'}
    out = subprocess.run(
        [sys.executable, '-c', code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(out.stdout.split()[-1])


def forget_peak() -> None:
    """Reset the peak of the resident memory to the present value."""
    Path('/proc/self/clear_refs').write_text('5')


def memory(field: str) -> float:
    """Read a memory size of this process in MiB: VmRSS, or VmHWM for the peak (Linux)."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
