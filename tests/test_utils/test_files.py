"""Files of one run: all old, or all new, or some of either; never old and new ones together."""

import errno
import itertools
import multiprocessing
import os
import signal
import stat
import subprocess
import threading

import pytest

from nf_plugins.utils import files
from nf_plugins.utils.files import atomic_write, atomic_write_all

NAMES = ('a.pth', 'b.py', 'c.onnx')


def contents(folder, text):
    return {folder / name: f'{text} {name}' for name in NAMES}


def generations(folder):
    """The texts in the visible files, each of which is whole."""
    found = set()
    for path in folder.iterdir():
        if not path.name.startswith('.'):
            text, name = path.read_text().split()
            assert name == path.name
            found.add(text)
    return found


def hidden(folder):
    return list(folder.rglob('.*'))


@pytest.mark.parametrize('existing', [0, 1, 3])
@pytest.mark.parametrize('error', [OSError(errno.EPERM, 'immutable'), KeyboardInterrupt()])
def test_a_failure_at_every_step_leaves_what_was_there(existing, error, tmp_path, monkeypatch):
    for path, text in list(contents(tmp_path, 'old').items())[:existing]:
        path.write_text(text)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    rename = os.rename
    for step in range(existing + len(NAMES)):
        count = itertools.count()

        def fail(*args, step=step, count=count):
            if next(count) == step:
                raise error
            rename(*args)

        monkeypatch.setattr(os, 'rename', fail)
        with pytest.raises(type(error)):
            atomic_write_all(contents(tmp_path, 'new'))
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
    monkeypatch.setattr(os, 'rename', rename)
    atomic_write_all(contents(tmp_path, 'new'))
    assert generations(tmp_path) == {'new'}
    assert not hidden(tmp_path)


def write_and_die(folder, step, of):
    function, count = getattr(os, of), itertools.count()

    def last(*args, **kwargs):
        if next(count) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(os, of, last)
    atomic_write_all(contents(folder, 'new'))


@pytest.mark.slow
@pytest.mark.parametrize('of', ['rename', 'unlink', 'fsync'])
def test_a_kill_at_every_step_mixes_nothing(of, tmp_path):
    context = multiprocessing.get_context('fork')
    killed = 0
    for step in range(8):
        folder = tmp_path / str(step)
        folder.mkdir()
        for path, text in contents(folder, 'old').items():
            path.write_text(text)
        process = context.Process(target=write_and_die, args=(folder, step, of))
        process.start()
        process.join(60)
        killed += process.exitcode == -signal.SIGKILL
        assert len(generations(folder)) <= 1
        atomic_write_all(contents(folder, 'next'))  # nothing stands in the way
        assert generations(folder) == {'next'}
    assert killed >= 3


def test_an_immutable_file(tmp_path):
    for path, text in contents(tmp_path, 'old').items():
        path.write_text(text)
    command = ['chattr', '+i', str(tmp_path / 'b.py')]
    try:
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip('no immutable files here')
    except FileNotFoundError:
        pytest.skip('no chattr here')
    try:
        with pytest.raises(PermissionError):
            atomic_write_all(contents(tmp_path, 'new'))
        assert generations(tmp_path) == {'old'}
        assert not hidden(tmp_path)
    finally:
        subprocess.run(['chattr', '-i', str(tmp_path / 'b.py')], check=True)


def write_many(folder, text, times):
    for _ in range(times):
        atomic_write_all(contents(folder, text))


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['threads', 'processes'])
def test_two_writers_make_no_mixed_pair(kind, tmp_path):
    worker = threading.Thread
    if kind == 'processes':
        worker = multiprocessing.get_context('fork').Process
    mixed = 0
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        workers = [worker(target=write_many, args=(folder, text, 5)) for text in ('x', 'y')]
        for each in workers:
            each.start()
        for each in workers:
            each.join(60)
        mixed += len(generations(folder)) != 1
        assert sorted(os.listdir(folder)) == sorted(NAMES)
    assert mixed == 0


def test_a_folder_that_somebody_keeps_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'WAIT', 0.05)
    with files._locked([tmp_path]), pytest.raises(OSError, match='another process'):
        atomic_write_all(contents(tmp_path, 'new'))
    assert not list(tmp_path.iterdir())
    atomic_write_all(contents(tmp_path, 'new'))


def test_files_that_are_to_go(tmp_path):
    for path, text in contents(tmp_path, 'old').items():
        path.write_text(text)
    atomic_write_all(
        {tmp_path / 'a.pth': 'new a.pth', tmp_path / 'b.py': None, tmp_path / 'd': None}
    )
    assert (tmp_path / 'a.pth').read_text() == 'new a.pth'
    assert sorted(os.listdir(tmp_path)) == ['a.pth', 'c.onnx']


@pytest.mark.parametrize('mask', [0o000, 0o022, 0o027, 0o077, 0o002])
def test_the_umask_is_neither_read_nor_changed(mask, tmp_path, monkeypatch):
    before = os.umask(mask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, 'umask', None)  # to ask for it means to change it
            atomic_write(tmp_path / 'file', 'x')
            atomic_write_all({tmp_path / 'a': 'x', tmp_path / 'b': 'x'})
        for name in ('file', 'a', 'b'):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask
        (tmp_path / 'a').chmod(0o640)
        atomic_write_all({tmp_path / 'a': 'y', tmp_path / 'b': 'y'})
        assert stat.S_IMODE((tmp_path / 'a').stat().st_mode) == 0o640
    finally:
        os.umask(before)


def test_only_regular_files_are_regular(tmp_path):
    """What mmengine opens to write in a work dir: through a link, or waiting at a pipe."""
    file, link, dangling, pipe = (tmp_path / name for name in ('a', 'link', 'dangling', 'pipe'))
    files.check_regular(file)
    file.write_text('mine')
    files.check_regular(file)
    link.symlink_to(file)
    dangling.symlink_to(tmp_path / 'nowhere')
    os.mkfifo(pipe)
    for path in (link, dangling, pipe, tmp_path, '/dev/null'):
        with pytest.raises(OSError, match='is a (link|folder|special file), but'):
            files.check_regular(path)
