"""The cache of the C kernels, and what happens on machines where it cannot be used."""

import ctypes
import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from nf_plugins.functional.standardization import (
    Standardization,
    standardize,
    standardized_conv2d,
)
from nf_plugins.functional.standardization import kernels_c as kernels

ROOT = Path(__file__).parents[3]
has_compiler = pytest.mark.skipif(not shutil.which('cc'), reason='needs a C compiler')


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a process that has not looked for the kernels."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.delenv('NF_PLUGINS_NO_KERNELS', raising=False)
    monkeypatch.delenv('CC', raising=False)
    monkeypatch.setattr(kernels, '_unsaid', [True])
    kernels._library.cache_clear()
    yield tmp_path / 'cache' / 'nf_plugins'
    kernels._library.cache_clear()


def restart():
    kernels._library.cache_clear()


def no_compiler(monkeypatch):
    """From here on only the cache can give the kernels."""
    monkeypatch.setattr(kernels, '_run', lambda command: pytest.fail('compiled again'))


def works() -> bool:
    """Whether the kernels are there; the convolution must be right with and without them."""
    torch.manual_seed(0)
    x, w, scale = torch.randn(1, 4, 5, 5), torch.randn(8, 4, 3, 3), torch.randn(8)
    constants = Standardization(var_factor=36, eps=1e-4)
    out = standardized_conv2d(x, w, scale, constants)
    expected = torch.nn.functional.conv2d(x, standardize(w, scale, constants))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    return kernels.supports(w)


@has_compiler
@pytest.mark.parametrize('umask', [0o022, 0o002, 0o000, 0o077])
def test_a_later_process_takes_the_kernels_of_the_first(umask, cache, monkeypatch, caplog):
    before = os.umask(umask)
    try:
        assert works()
    finally:
        os.umask(before)
    restart()
    no_compiler(monkeypatch)
    assert works()
    (file,) = cache.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert cache.stat().st_mode & 0o777 == 0o700
    assert not caplog.records


@pytest.mark.slow
@has_compiler
@pytest.mark.parametrize('mode', [0o775, 0o777, 0o755, 0o700])
def test_an_own_folder_gets_the_mode_that_it_needs(mode, cache, monkeypatch):
    cache.mkdir(parents=True)
    cache.chmod(mode)
    assert works()
    assert cache.stat().st_mode & 0o777 == mode & 0o755
    restart()
    no_compiler(monkeypatch)
    assert works()


@has_compiler
def test_the_folder_may_be_a_link(cache, tmp_path, monkeypatch):
    (tmp_path / 'scratch').mkdir()
    cache.parent.mkdir()
    cache.symlink_to(tmp_path / 'scratch')
    assert works()
    restart()
    no_compiler(monkeypatch)
    assert works() and len(list((tmp_path / 'scratch').iterdir())) == 1


DAMAGE = dict(
    empty=lambda data: b'',
    cut=lambda data: data[:5000],
    page=lambda data: data[:4096],
    zeros=lambda data: bytes(len(data)),
    zero_page=lambda data: data[:4096] + bytes(4096) + data[8192:],
    bit=lambda data: data[:9000] + bytes([data[9000] ^ 1]) + data[9001:],
    longer=lambda data: data + b'\0',
    text=lambda data: b'no library',
)


@pytest.mark.slow
@has_compiler
@pytest.mark.parametrize('kind', DAMAGE)
def test_a_damaged_file_is_made_again(kind, cache):
    whole = kernels._cached().read_bytes()
    (file,) = cache.iterdir()
    file.write_bytes(DAMAGE[kind](whole))
    assert kernels._cached().read_bytes() == whole
    assert works()
    assert [p.read_bytes() for p in cache.iterdir()] == [whole]


@pytest.mark.slow
@has_compiler
@pytest.mark.parametrize('mode', [0o620, 0o602, 0o777])
def test_a_file_that_others_can_write_is_not_loaded(mode, cache):
    file = kernels._cached()
    file.chmod(mode)
    before = file.stat().st_ino
    again = kernels._cached()
    assert again.stat().st_mode & 0o777 == 0o600 and again.stat().st_ino != before


@pytest.mark.slow
@has_compiler
def test_a_link_of_others_is_not_followed(cache, tmp_path, monkeypatch):
    file = kernels._cached()
    elsewhere = tmp_path / 'elsewhere.so'
    shutil.move(file, elsewhere)
    file.symlink_to(elsewhere)
    assert not kernels._cached().is_symlink()
    monkeypatch.setattr(kernels.os, 'geteuid', lambda: os.getuid() + 1)
    with pytest.raises(OSError, match='belongs to another user'):
        kernels._cached()


def another_user(tmp_path, monkeypatch):
    kernels._cached()
    monkeypatch.setattr(kernels.os, 'geteuid', lambda: os.getuid() + 1)


def without_home(tmp_path, monkeypatch):
    def home():
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setattr(kernels.Path, 'home', home)


def read_only(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', '/proc/self')


def a_file_in_its_place(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))


def full_disk(tmp_path, monkeypatch):
    def fsync(handle):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(kernels.os, 'fsync', fsync)


def no_execution(tmp_path, monkeypatch):
    def load(path):
        if '/cache/' in path:
            raise OSError(f'{path}: failed to map segment from shared object')
        return cdll(path)

    cdll = ctypes.CDLL
    monkeypatch.setattr(kernels.ctypes, 'CDLL', load)


@pytest.mark.slow
@has_compiler
@pytest.mark.parametrize(
    'place',
    [another_user, without_home, read_only, a_file_in_its_place, full_disk, no_execution],
)
def test_without_a_cache_each_process_compiles(place, cache, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    monkeypatch.setattr(kernels.tempfile, 'tempdir', None)
    caplog.set_level(logging.INFO, 'nf_plugins')
    place(tmp_path, monkeypatch)
    assert works()
    (record,) = caplog.records
    assert record.levelname == 'INFO' and 'no cache for the C kernels' in record.message
    assert not list(tmp_path.glob('nf_plugins-*'))


@pytest.mark.parametrize(
    ('variables', 'why'),
    [
        (dict(CC='no-such-compiler'), "there is no C compiler 'no-such-compiler' (No such file"),
        (dict(CC='/'), "there is no C compiler '/' (Permission denied)"),
        (dict(CC='false'), "the C compiler 'false' failed: exit status 1"),
        (dict(CC='cc "'), 'No closing quotation'),
        (
            dict(CC='sh -c "echo one; echo two: error: \033[1mthree >&2; exit 1"'),
            'error: ?[1mthree',
        ),
        (dict(NF_PLUGINS_NO_KERNELS='1'), 'NF_PLUGINS_NO_KERNELS is set'),
    ],
)
def test_one_line_says_why_there_are_no_kernels(variables, why, cache, monkeypatch, caplog):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for _ in range(3):
        assert not works()
        restart()
    (record,) = caplog.records
    assert record.levelname == 'WARNING' and record.name == 'nf_plugins'
    assert record.message.startswith('nf_plugins: the C kernels are off')
    assert why in record.message and record.message.isprintable()


@pytest.mark.slow
@has_compiler
def test_many_threads_at_once(cache, caplog):
    with ThreadPoolExecutor(4) as pool:
        paths = [f.result() for f in [pool.submit(kernels._cached) for _ in range(4)]]
    assert all(p.read_bytes() == paths[0].read_bytes() for p in paths)
    assert set(cache.iterdir()) == set(paths)
    assert works()


@pytest.mark.slow
@has_compiler
@pytest.mark.parametrize('what', ['_processor', '_compiler', 'libc'])
def test_machines_with_one_home_have_a_file_each(what, cache, monkeypatch):
    first = kernels._cached()
    if what == 'libc':
        monkeypatch.setattr(kernels.platform, 'libc_ver', lambda: ('glibc', '1.0'))
    else:
        other = dict(_processor='flags: none', _compiler=['gcc'])[what]
        monkeypatch.setattr(kernels, what, lambda: other)
    second = kernels._cached()
    assert second != first and set(cache.iterdir()) == {first, second}


FORK = """
import os, signal, time, torch
from nf_plugins.functional.standardization import Standardization, kernels_c as kernels
torch.set_num_threads(2)
weight, scale = torch.randn(1024, 1200), torch.ones(1024)
assert kernels.supports(weight) and kernels._threads(weight) == 2
constants = Standardization(1200.0, 1e-4, clamp=True)
run = lambda: kernels.forward(weight, scale, torch.empty_like(weight), constants)
expected = run()
child = os.fork()
if not child:
    os._exit(7 if torch.allclose(run(), expected) else 1)
for _ in range(200):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        break
    time.sleep(0.1)
else:
    os.kill(child, signal.SIGKILL)
print(done and os.waitstatus_to_exitcode(status))
"""


@has_compiler
@pytest.mark.slow
def test_a_fork_computes_with_the_kernels(tool_env):
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', FORK],
        env=tool_env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout == '7\n'
