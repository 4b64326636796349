"""Times and memory of jobs, for the benchmarks."""

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
    """Seconds of each job in each round; in a round the jobs run in turn, in a random order.

    So a slow minute of the machine meets all jobs, and none has always the same one in front
    of it. The first rounds warm up and do not count.
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
    """Seconds of one call, with the work of the GPU, without Python's garbage collection."""
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
    """MiB that ``module.function(*args)`` prints last, in a fresh process."""
    code = f'import {module}; {module}.{function}(*{args!r})'
    # Freed tensors go back at once, else the peak depends on the allocator's history.
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
    """Let the peak of the resident memory start again at the present one."""
    Path('/proc/self/clear_refs').write_text('5')


def memory(field: str) -> float:
    """A size of this process in MiB as Linux says it: VmRSS, or VmHWM for the peak."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
