import os
import stat

import pytest
from mmengine.fileio import get_file_backend

from nf_plugins.utils.files import atomic_write, atomic_write_all


def test_backend_writes_through_the_checkpoint_hooks_interface(tmp_path):
    path = tmp_path / 'new folder' / 'epoch_1.pth'
    backend = get_file_backend(str(path), backend_args=dict(backend='atomic_local'))
    backend.put(b'content', str(path))
    assert path.read_bytes() == b'content'
    assert [p.name for p in path.parent.iterdir()] == ['epoch_1.pth']
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'file'
    atomic_write(path, 'old')

    def no_space(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', no_space)
    with pytest.raises(OSError, match='No space left'):
        atomic_write(path, 'new')
    assert path.read_text() == 'old'
    assert os.listdir(tmp_path) == ['file']


def test_links_devices_folders_and_modes(tmp_path):
    (tmp_path / 'file').write_text('old')
    (tmp_path / 'file').chmod(0o600)
    (tmp_path / 'link').symlink_to('file')
    atomic_write(tmp_path / 'link', 'new')
    assert (tmp_path / 'link').is_symlink()
    assert (tmp_path / 'file').read_text() == 'new'
    assert stat.S_IMODE((tmp_path / 'file').stat().st_mode) == 0o600
    atomic_write('/dev/null', 'nothing')
    assert stat.S_ISCHR(os.stat('/dev/null').st_mode)
    (tmp_path / 'folder').mkdir()
    with pytest.raises(IsADirectoryError, match='folder'):
        atomic_write_all({tmp_path / 'file': 'newer', tmp_path / 'folder': 'x'})
    assert (tmp_path / 'file').read_text() == 'new'
    long = 'é' * 120 + '.json'  # 245 bytes of the 255 that a name may have
    atomic_write(tmp_path / 'made' / long, 'x')
    assert os.listdir(tmp_path / 'made') == [long]
