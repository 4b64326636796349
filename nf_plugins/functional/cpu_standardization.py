"""The C kernels of the weight standardization, compiled where they are first used.

That takes a C compiler and less than a second; the result is kept in the user's cache
folder. Without a compiler, or with ``NF_PLUGINS_NO_KERNELS=1`` in the environment,
plain operations of PyTorch do the same, more slowly.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name('standardization.c')
_DTYPES = {torch.float32: 'float32', torch.float64: 'float64'}
# The symbols of OpenMP come from the library that PyTorch has loaded, whose threads are shared.
_OPTIONS = ('-std=c99', '-O3', '-fopenmp', '-fPIC', '-fno-math-errno')


def supports(rows: Tensor) -> bool:
    """Whether the kernels exist here and take this dtype."""
    return rows.dtype in _DTYPES and _library() is not None


@functools.cache
def _library() -> ctypes.CDLL | None:
    if os.environ.get('NF_PLUGINS_NO_KERNELS', '') not in ('', '0'):
        return None
    try:
        library = ctypes.CDLL(str(_compiled()))
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        real, flag = ctypes.c_double, ctypes.c_int
        for dtype in _DTYPES.values():
            names = ('forward', 'again', 'backward')
            forward, again, backward = (getattr(library, f'{name}_{dtype}') for name in names)
            forward.argtypes = [*[pointer] * 4, size, size, real, real, flag, real, flag]
            backward.argtypes = [*[pointer] * 6, size, size, real, flag]
            again.argtypes = [*[pointer] * 4, size, size, real, flag]
            forward.restype = again.restype = backward.restype = None
    except (OSError, subprocess.SubprocessError, AttributeError):
        return None
    return library


def _compiled() -> Path:
    """The compiled file of this source, compiler and processor; made if it is not there."""
    compiler = shlex.split(os.environ.get('CC', '') or 'cc')
    about = (_SOURCE.read_text(), compiler, _OPTIONS, platform.machine(), _processor())
    name = hashlib.sha256(repr(about).encode()).hexdigest()[:24] + '.so'
    root = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    folder = Path(root) / 'nf_plugins'
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = folder / name
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            compiled, linked = Path(work) / 'kernels.o', Path(work) / 'kernels.so'
            _run([*compiler, *_OPTIONS, '-march=native', '-c', _SOURCE, '-o', compiled])
            _run([*compiler, '-shared', compiled, '-o', linked, '-lm'])
            os.replace(linked, target)
    return target


def _run(command: list) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def _processor() -> str:
    """What `-march=native` depends on: a home folder may be shared by machines."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    return next((line for line in lines if line.startswith(('flags', 'Features'))), lines[0])


def forward(
    rows: Tensor, scale: Tensor, out: Tensor, fan: float, eps: float, clamp: bool, constant: float
) -> Tensor:
    """Fill ``out``; returns per row the mean, the factor, and the slope of the variance."""
    num, size = rows.shape
    stats = rows.new_empty(3, num)
    call = getattr(_library(), f'forward_{_DTYPES[rows.dtype]}')
    scale = scale.to(rows.dtype).contiguous()
    tensors = (x.data_ptr() for x in (rows, scale, out, stats))
    call(*tensors, num, size, fan, eps, clamp, constant, torch.get_num_threads())
    return stats


def again(rows: Tensor, scale: Tensor, out: Tensor, stats: Tensor, constant: float) -> None:
    """Fill ``out`` once more, with what :func:`forward` has returned."""
    call = getattr(_library(), f'again_{_DTYPES[rows.dtype]}')
    scale = scale.to(rows.dtype).contiguous()
    tensors = (x.data_ptr() for x in (rows, scale, out, stats))
    call(*tensors, *rows.shape, constant, torch.get_num_threads())


def backward(
    grad: Tensor, rows: Tensor, out: Tensor, scale: Tensor, stats: Tensor, constant: float
) -> Tensor:
    """Fill ``out``, which may be ``grad``, with the rows' gradient; returns the scale's."""
    num, size = rows.shape
    grad_scale = torch.empty_like(scale, dtype=rows.dtype)
    call = getattr(_library(), f'backward_{_DTYPES[rows.dtype]}')
    grad, scale = grad.to(rows.dtype), scale.to(rows.dtype).contiguous()
    tensors = (x.data_ptr() for x in (grad, rows, scale, stats, out, grad_scale))
    call(*tensors, num, size, constant, torch.get_num_threads())
    return grad_scale
