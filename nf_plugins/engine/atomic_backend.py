"""Checkpoints that a kill cannot truncate."""

from __future__ import annotations

from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from nf_plugins.utils.files import atomic_write


class AtomicLocalBackend(LocalBackend):
    """mmengine's local files, written whole or not at all.

    Use it in the checkpoint hook:
    ``dict(type='CheckpointHook', backend_args=dict(backend='atomic_local'))``.

    Example:
        >>> from mmengine.fileio import get_file_backend
        >>> get_file_backend(backend_args=dict(backend='atomic_local')).name
        'AtomicLocalBackend'
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        atomic_write(filepath, obj)


register_backend('atomic_local', AtomicLocalBackend, force=True)
