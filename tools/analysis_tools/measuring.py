"""Times, memory and the machine, for the benchmarks of this folder."""

from __future__ import annotations

import gc
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

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
    code = (
        f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); '
        f'import {module}; {module}.{function}(*{args!r})'
    )
    # Freed tensors go back at once, else the peak depends on the allocator's history.
    environment = {**os.environ, 'MALLOC_MMAP_THRESHOLD_': '65536'}
    out = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, env=environment
    )
    return float(out.stdout.split()[-1])


def forget_peak() -> None:
    """Let the peak of the resident memory start again at the present one."""
    Path('/proc/self/clear_refs').write_text('5')


def memory(field: str) -> float:
    """A size of this process in MiB as Linux says it: VmRSS, or VmHWM for the peak."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def machine() -> dict:
    """What a result depends on beside the code."""
    cpu = platform.processor() or platform.machine()
    if Path('/proc/cpuinfo').exists():
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
        cpu = names[0] if names else cpu
    found = dict(
        cpu=cpu,
        cpus=os.cpu_count(),
        threads=torch.get_num_threads(),
        system=platform.system(),
        python=platform.python_version(),
    )
    if torch.cuda.is_available():
        found['gpu'] = torch.cuda.get_device_name()
    found['torch'] = torch.__version__
    for package in ('triton', 'timm', 'onedl-mmpretrain', 'mmpretrain', 'nfplugins'):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
