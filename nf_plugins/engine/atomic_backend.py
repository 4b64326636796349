"""File backend that writes checkpoints atomically."""

from __future__ import annotations

from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from nf_plugins.utils.files import atomic_write


class AtomicLocalBackend(LocalBackend):
    """Backend for local files that writes a file completely or not at all.

    So a checkpoint is not truncated if the process is killed. Use it in the checkpoint hook:
    ``dict(type='CheckpointHook', backend_args=dict(backend='atomic_local'))``.

    Example:
        >>> from mmengine.fileio import get_file_backend
        >>> get_file_backend(backend_args=dict(backend='atomic_local')).name
        'AtomicLocalBackend'
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        atomic_write(filepath, obj)


register_backend('atomic_local', AtomicLocalBackend, force=True)
