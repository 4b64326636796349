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


def supports(weight: Tensor) -> bool:
    """Whether the kernels exist here and take this dtype."""
    return weight.dtype in _DTYPES and _library() is not None


@functools.cache
def _library() -> dict[torch.dtype, tuple] | None:
    """The functions ``forward``, ``again`` and ``backward`` of each dtype."""
    if os.environ.get('NF_PLUGINS_NO_KERNELS', '') not in ('', '0'):
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    real, flag = ctypes.c_double, ctypes.c_int
    arguments = dict(
        forward=[*[pointer] * 4, size, size, real, real, flag, real, flag],
        again=[*[pointer] * 4, size, size, real, flag],
        backward=[*[pointer] * 6, size, size, real, flag],
    )
    try:
        library = ctypes.CDLL(str(_compiled()))
        found = {}
        for dtype, suffix in _DTYPES.items():
            found[dtype] = tuple(getattr(library, f'{name}_{suffix}') for name in arguments)
            for function, types in zip(found[dtype], arguments.values()):
                function.argtypes, function.restype = types, None
    except (OSError, subprocess.SubprocessError, AttributeError, ValueError, RuntimeError):
        return None  # no compiler, no home, not ours
    return found


def _compiled() -> Path:
    """The compiled file of this source, compiler and processor; made if it is not there."""
    compiler = shlex.split(os.environ.get('CC', '') or 'cc')
    about = (_SOURCE.read_text(), compiler, _OPTIONS, platform.machine(), _processor())
    name = hashlib.sha256(repr(about).encode()).hexdigest()[:24] + '.so'
    root = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    folder = Path(root).absolute() / 'nf_plugins'
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = folder / name
    if not all(map(_is_own, (folder, target) if target.exists() else (folder,))):
        raise OSError(f'{folder} is not ours alone')
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            compiled, linked = Path(work) / 'kernels.o', Path(work) / 'kernels.so'
            _run([*compiler, *_OPTIONS, '-march=native', '-c', _SOURCE, '-o', compiled])
            _run([*compiler, '-shared', compiled, '-o', linked, '-lm'])
            os.replace(linked, target)
    return target


def _is_own(path: Path) -> bool:
    """Whether nobody else can have put something there."""
    found = path.lstat()
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _run(command: list) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def _processor() -> str:
    """What `-march=native` depends on: a home folder may be shared by machines."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    return next((line for line in lines if line.startswith(('flags', 'Features'))), lines[0])


def _threads(weight: Tensor) -> int:
    """Memory is the limit, so more than one pays for large weights alone, if at all."""
    return min(torch.get_num_threads(), 1 + (weight.numel() >> 19))


def forward(
    weight: Tensor, scale: Tensor, out: Tensor, fan: float, eps: float, clamp: bool, constant: float
) -> Tensor:
    """Fill ``out``; returns per filter the mean, the factor, and the slope of the variance."""
    num = weight.shape[0]
    stats = weight.new_empty(3, num)
    call = _library()[weight.dtype][0]
    tensors = (weight.data_ptr(), scale.data_ptr(), out.data_ptr(), stats.data_ptr())
    size = weight.numel() // num
    call(*tensors, num, size, fan, eps, clamp, constant, _threads(weight))
    return stats


def again(weight: Tensor, scale: Tensor, out: Tensor, stats: Tensor, constant: float) -> None:
    """Fill ``out`` once more, with what :func:`forward` has returned."""
    num = weight.shape[0]
    call = _library()[weight.dtype][1]
    tensors = (weight.data_ptr(), scale.data_ptr(), out.data_ptr(), stats.data_ptr())
    call(*tensors, num, weight.numel() // num, constant, _threads(weight))


def backward(
    grad: Tensor, weight: Tensor, out: Tensor, scale: Tensor, stats: Tensor, constant: float
) -> Tensor:
    """Fill ``out``, which may be ``grad``, with the weight's gradient; returns the scale's."""
    num = weight.shape[0]
    grad_scale = torch.empty_like(scale)
    call = _library()[weight.dtype][2]
    tensors = (grad, weight, scale, stats, out, grad_scale)
    pointers = [x.data_ptr() for x in tensors]
    call(*pointers, num, weight.numel() // num, constant, _threads(weight))
    return grad_scale
