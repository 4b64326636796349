"""Shared code of the benchmarks: the machine, the command, quiet logging, files of rows."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from mmengine.logging import MMLogger

from nf_plugins.errors import as_usage_error
from nf_plugins.utils.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    'triton',
    'timm',
    'onedl-mmengine',
    'mmengine',
    'onedl-mmpretrain',
    'mmpretrain',
    'nfplugins',
)


def machine() -> dict:
    """Describe the machine on which a result depends: processor, system, libraries."""
    found = dict(
        cpu=_processor(),
        cpus=os.cpu_count(),
        threads=torch.get_num_threads(),
        system=platform.system(),
        machine=platform.machine(),
        python=platform.python_version(),
    )
    if torch.cuda.is_available():
        found['gpu'] = torch.cuda.get_device_name()
    found['torch'] = torch.__version__
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """Return the model name of the processor, if the system knows it."""
    path = Path('/proc/cpuinfo')
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith('model name'):
            return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def command(module: str) -> str:
    """Return the command of this process, which is saved with its results."""
    return shlex.join(['python', '-m', module, *sys.argv[1:]])


def write_rows(path: Path, module: str, rows: list[dict], **more: object) -> None:
    """Write the rows of a result as JSON, a row per line, with the machine and the command.

    Args:
        path: The file.
        module: Name of the benchmark's module.
        rows: The rows.
        **more: Other values that come before the rows.
    """
    described = dict(**machine(), command=command(module))
    text = json.dumps(dict(machine=described, **more, rows=rows), indent=1)
    with as_usage_error(f'cannot write {path}'):
        atomic_write(path, re.sub(r'\n  +(?=[^{])', ' ', text) + '\n')


@contextmanager
def quiet() -> Iterator[None]:
    """Restrict mmengine's logger to errors; else it lists the settings of each parameter."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('ERROR')
    try:
        yield
    finally:
        logger.setLevel(level)
