"""C kernels of the weight standardization, compiled at their first use.

The compilation needs a C compiler and takes less than a second. The compiled file is kept in the
user's cache folder, and its name contains its checksum. If that folder cannot be used, each
process compiles its own copy. If there is no compiler, or if ``NF_PLUGINS_NO_KERNELS=1`` is set
in the environment, PyTorch's plain operations compute the same result more slowly. A line in the
log then says why.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from .formula import Standardization

_SOURCE = Path(__file__).with_name('kernels.c')
_DTYPES = {torch.float32: 'float32', torch.float64: 'float64'}
# PyTorch has loaded a library of OpenMP. The kernels use it, and so they share its threads.
_OPTIONS = ('-std=c99', '-O3', '-fopenmp', '-fPIC', '-fno-math-errno')
_PROCESS = os.getpid()
# From this number of weights on, more threads save more time than it takes to wake them.
_LARGE = 1 << 16
_logger = logging.getLogger('nf_plugins')


class _NoCompiler(Exception):
    """The kernels cannot be compiled on this machine, in any folder."""


def supports(weight: Tensor) -> bool:
    """Return whether the kernels are available and accept the dtype of a weight."""
    return weight.dtype in _DTYPES and weight.dtype in _library()


@functools.cache
def _library() -> dict[torch.dtype, tuple]:
    """Return ``forward``, ``recompute`` and ``backward`` of each dtype; empty if not available."""
    try:
        if os.environ.get('NF_PLUGINS_NO_KERNELS', '') not in ('', '0'):
            raise _NoCompiler('NF_PLUGINS_NO_KERNELS is set')
        return _functions(_loaded())
    except (_NoCompiler, OSError, AttributeError) as error:
        _say_once(f'the C kernels are off, and training on the CPU is slower: {_line(error)}')
        return {}


def _functions(library: ctypes.CDLL) -> dict[torch.dtype, tuple]:
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    real, flag = ctypes.c_double, ctypes.c_int
    arguments = dict(
        forward=[*[pointer] * 4, size, size, real, real, flag, real, flag],
        recompute=[*[pointer] * 4, size, size, real, flag],
        backward=[*[pointer] * 6, size, size, real, flag],
    )
    found = {}
    for dtype, suffix in _DTYPES.items():
        found[dtype] = tuple(getattr(library, f'{name}_{suffix}') for name in arguments)
        for function, types in zip(found[dtype], arguments.values()):
            function.argtypes, function.restype = types, None
    return found


_unsaid = [True]


def _say_once(text: str) -> None:
    """Log a warning once per process, even if two threads call this at the same time."""
    try:
        _unsaid.pop()
    except IndexError:
        return
    _logger.warning('nf_plugins: %s', text)


def _line(error: object, limit: int = 300) -> str:
    """Return a message as one line of printable characters."""
    text = ' '.join(str(error).split())[:limit]
    return ''.join(c if c.isprintable() else '?' for c in text)


def _loaded() -> ctypes.CDLL:
    """Load the kernels from the cache folder, or compile them for this process only."""
    try:
        return ctypes.CDLL(str(_cached()))
    except (OSError, RuntimeError) as error:  # no home, not ours, read-only, full, noexec
        _logger.info('nf_plugins: no cache for the C kernels: %s', _line(error))
    with tempfile.TemporaryDirectory(prefix='nf_plugins-') as folder:
        return ctypes.CDLL(str(_compile(Path(folder))))


def _cached() -> Path:
    """Return the compiled file for this source, compiler and processor; create it if needed.

    The name ends with the checksum of the content, which is compared before the file is loaded.
    Loading a file that a power cut has truncated would kill the process.
    """
    about = (_SOURCE.read_text(), _compiler(), _OPTIONS, platform.libc_ver(), _processor())
    key = hashlib.sha256(repr(about).encode()).hexdigest()[:24]
    folder = _own_folder()
    for file in folder.glob(f'{key}-*.so'):
        if _is_own(file) and file.name == _name(key, file.read_bytes()):
            return file
    with tempfile.TemporaryDirectory(dir=folder) as work:
        compiled = _compile(Path(work))
        data = compiled.read_bytes()
        compiled.unlink()  # the linker has created it with the mode of the umask
        handle = os.open(compiled, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, 'wb') as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        target = folder / _name(key, data)
        os.replace(compiled, target)
    return target


def _name(key: str, data: bytes) -> str:
    return f'{key}-{hashlib.sha256(data).hexdigest()[:24]}.so'


def _own_folder() -> Path:
    """Return the cache folder; only its owner may write to it."""
    root = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    folder = Path(root).absolute() / 'nf_plugins'
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.resolve()  # it may be a link
    if {folder.lstat().st_uid, found.stat().st_uid} != {os.geteuid()}:
        raise OSError(f'{folder} belongs to another user')
    if found.stat().st_mode & 0o022:
        found.chmod(found.stat().st_mode & 0o755)
    return found


def _is_own(path: Path) -> bool:
    """Return whether a file belongs to this user, and no other user may write to it."""
    found = path.lstat()
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _compiler() -> list[str]:
    try:
        return shlex.split(os.environ.get('CC', '') or 'cc')
    except ValueError as error:
        raise _NoCompiler(f'CC={os.environ["CC"]!r}: {error}') from error


def _compile(folder: Path) -> Path:
    """Compile the kernels in a folder."""
    compiler, compiled, linked = _compiler(), folder / 'kernels.o', folder / 'kernels.so'
    _run([*compiler, *_OPTIONS, '-march=native', '-c', _SOURCE, '-o', compiled])
    _run([*compiler, '-shared', compiled, '-o', linked, '-lm'])
    return linked


def _run(command: list) -> None:
    name = command[0]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60, text=True)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.splitlines() or [f'exit status {error.returncode}']
        about = next((line for line in lines if 'error' in line), lines[-1])
        raise _NoCompiler(f'the C compiler {name!r} failed: {about}') from error
    except subprocess.TimeoutExpired as error:
        raise _NoCompiler(f'the C compiler {name!r} took more than 60 s') from error
    except OSError as error:
        raise _NoCompiler(
            f'there is no C compiler {name!r} ({error.strerror}): install gcc, or name one in CC'
        ) from error


def _processor() -> str:
    """Describe the processor, on which ``-march=native`` depends.

    Machines with different processors may share a home folder.
    """
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    return next((line for line in lines if line.startswith(('flags', 'Features'))), lines[0])


def _threads(weight: Tensor) -> int:
    """Return the number of threads: one for a small weight, else all of them.

    OpenMP ends threads if the next loop has fewer, and has to start them again later.
    """
    if os.getpid() != _PROCESS:  # a fork does not have the threads of OpenMP; it would hang
        return 1
    return torch.get_num_threads() if weight.numel() >= _LARGE else 1


def forward(weight: Tensor, scale: Tensor, out: Tensor, constants: Standardization) -> Tensor:
    """Write the standardized weight into ``out``.

    Returns:
        The mean, the factor and the slope of the variance of each filter, ``(3, filters)``.
    """
    num = weight.shape[0]
    stats = weight.new_empty(3, num)
    call = _library()[weight.dtype][0]
    tensors = (weight.data_ptr(), scale.data_ptr(), out.data_ptr(), stats.data_ptr())
    size = weight.numel() // num
    c = constants
    call(*tensors, num, size, c.var_factor, c.eps, c.clamp, c.constant, _threads(weight))
    return stats


def recompute(weight: Tensor, scale: Tensor, out: Tensor, stats: Tensor, constant: float) -> None:
    """Write the standardized weight into ``out`` from the ``stats`` of :func:`forward`."""
    num = weight.shape[0]
    call = _library()[weight.dtype][1]
    tensors = (weight.data_ptr(), scale.data_ptr(), out.data_ptr(), stats.data_ptr())
    call(*tensors, num, weight.numel() // num, constant, _threads(weight))


def backward(
    grad: Tensor, weight: Tensor, out: Tensor, scale: Tensor, stats: Tensor, constant: float
) -> Tensor:
    """Write the gradient of the weight into ``out``, and return the gradient of the scale.

    ``out`` may be ``grad``, the gradient of the standardized weight.
    """
    num = weight.shape[0]
    grad_scale = torch.empty_like(scale)
    call = _library()[weight.dtype][2]
    tensors = (grad, weight, scale, stats, out, grad_scale)
    pointers = [x.data_ptr() for x in tensors]
    call(*pointers, num, weight.numel() // num, constant, _threads(weight))
    return grad_scale
