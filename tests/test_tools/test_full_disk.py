"""A disk that fills up: what is there stays whole, and the message says what happened."""

import os
import subprocess

import pytest
import torch

from nf_plugins.checkpoint import safe_load
from nf_plugins.utils.files import atomic_write, atomic_write_all

from ..tools import run_apart, run_tool
from .test_train import FEW, NF, train


def mount(*args):
    return subprocess.run(['mount', *map(str, args)], capture_output=True, check=False).returncode


@pytest.fixture
def disk(tmp_path):
    """A small disk; ``mount -o remount,size=...`` changes its size."""
    path = tmp_path / 'disk'
    path.mkdir()
    if mount('-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', path):
        pytest.skip('mounting is not allowed here')
    yield path
    subprocess.run(['umount', '--lazy', str(path)], check=True)


def test_files_on_a_full_disk(disk):
    atomic_write(disk / 'a', b'old')
    atomic_write(disk / 'b', b'old')
    big = bytes(2**20)
    with pytest.raises(OSError, match='No space left on device.*disk/a'):
        atomic_write(disk / 'a', big)
    with pytest.raises(OSError, match='No space left on device.*disk/b'):
        atomic_write_all({disk / 'a': b'new', disk / 'b': big})
    assert (disk / 'a').read_bytes() == (disk / 'b').read_bytes() == b'old'
    assert sorted(os.listdir(disk)) == ['a', 'b']


@pytest.mark.parametrize(
    ('tool', 'args'),
    [
        ('spp_analysis', [NF, '--out-dir', 'disk']),
        ('model_converters/pwsconv_to_nf', ['good.pth', 'disk/out.pth', '--config', 'small.py']),
        ('model_converters/fold', ['small.py', 'good.pth', 'disk/out.pth']),
    ],
)
def test_tools_on_a_full_disk(tool, args, disk, tmp_path, monkeypatch, capsys):
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    from .test_untrusted import SMALL

    monkeypatch.chdir(tmp_path)
    (tmp_path / 'small.py').write_text(SMALL)
    init_default_scope('mmpretrain')
    torch.save(MODELS.build(Config.fromfile('small.py').model).state_dict(), 'good.pth')
    (disk / 'spp.json').write_text('old')
    (disk / 'filling').write_bytes(bytes(disk_free(disk) - 8192))
    assert run_tool(tool, *args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: cannot write')
    assert 'No space left on device' in line
    assert sorted(os.listdir(disk)) == ['filling', 'spp.json']
    assert (disk / 'spp.json').read_text() == 'old'


def disk_free(path):
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


@pytest.mark.slow
def test_training_on_a_full_disk(disk, tmp_path):
    train(tmp_path / 'elsewhere', 1, '--cfg-options', *FEW)
    size = (tmp_path / 'elsewhere/epoch_1.pth').stat().st_size
    mount('-o', f'remount,size={2 * size + size // 2}', disk)  # two checkpoints and a half
    options = ['--cfg-options', *FEW, 'train_cfg.max_epochs=4']
    result = run_apart('train', NF, '--work-dir', disk / 'work', *options)
    assert result.returncode == 2
    (line,) = (line for line in result.stderr.splitlines() if line.startswith('error: '))
    assert 'No space left on device' in line
    assert 'epoch_3.pth' in line
    assert 'Traceback' not in result.stdout + result.stderr
    checkpoints = sorted(path.name for path in (disk / 'work').glob('*.pth'))
    assert checkpoints == ['epoch_1.pth', 'epoch_2.pth']
    assert [safe_load(disk / 'work' / name)['meta']['epoch'] for name in checkpoints] == [1, 2]

    mount('-o', f'remount,size={8 * size}', disk)
    train(disk / 'work', 4, '--resume', '--cfg-options', *FEW)
    assert safe_load(disk / 'work/epoch_4.pth')['meta']['epoch'] == 4
