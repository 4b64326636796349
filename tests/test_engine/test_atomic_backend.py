import os
import stat

import pytest
from mmengine.fileio import get_file_backend

from nf_plugins.utils import atomic_write


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
