"""Checkpoints in a work dir, and the names under which a training saves them."""

from __future__ import annotations

import glob
import os
import re
import string
from collections.abc import Iterable
from dataclasses import dataclass

from mmengine.hooks import CheckpointHook

from nf_plugins.errors import CheckpointError


@dataclass(frozen=True)
class SavedNames:
    """Folder and file names of a ``CheckpointHook``.

    Args:
        hook: The hook.
        work_dir: The work dir of its runner.

    Example:
        >>> names = SavedNames(CheckpointHook(filename_tmpl='ckpt_{:03d}.pth'), '/tmp/w')
        >>> names.step('/tmp/w/ckpt_007.pth')
        7
        >>> names.is_best('/tmp/w/best_acc_top1_ckpt_007.pth', 'acc/top1')
        True
    """

    hook: CheckpointHook
    work_dir: str

    @property
    def folder(self) -> str:
        """The folder: ``out_dir`` joined with the name of the work dir, as mmengine does it."""
        work_dir, out_dir = os.path.abspath(self.work_dir), self.hook.out_dir
        if out_dir is None or str(out_dir) == work_dir:
            return work_dir
        return os.path.abspath(os.path.join(str(out_dir), os.path.basename(work_dir)))

    def step(self, path: str) -> int | None:
        """Return the epoch or iteration in a checkpoint's name, or None for another name."""
        match = re.fullmatch(self._pattern(self._template(r'0*(\d{1,18})')), real_path(path))
        return int(match[1]) if match else None

    def is_best(self, path: str, indicator: str | None = None) -> bool:
        """Return whether a name is that of a best checkpoint by ``indicator`` (None: by any)."""
        what = '.+' if indicator is None else re.escape(indicator.replace('/', '_'))
        name = self._template(r'\d+').replace('/', '_')
        return re.fullmatch(self._pattern(f'best_{what}_{name}'), real_path(path)) is not None

    def files(self) -> list[str]:
        """List the files with names of checkpoints, including best ones and published copies."""
        glob_name = ''.join(f'{glob.escape(t)}{"*" if n else ""}' for t, n in self._parts())
        found = _glob(self.folder, glob_name) + _glob(self.folder, '*.pth')
        stem, dot, extension = self._template(r'\d+').rpartition(r'\.')
        # `published_keys` puts a part of a checksum before the suffix.
        own = f'(?:best_.+_)?{stem or extension}(?:-[0-9a-f]{{8}})?' + (dot and dot + extension)
        names = '|'.join(map(self._pattern, (own, r'(?:epoch|iter)_\d+\.pth')))
        return [path for path in dict.fromkeys(found) if re.fullmatch(names, real_path(path))]

    def _parts(self) -> list[tuple[str, bool]]:
        """Split the template into pieces of text, each with whether the number follows."""
        parsed = string.Formatter().parse(self.hook.filename_tmpl)
        return [(text, field is not None) for text, field, _, _ in parsed]

    def _template(self, number: str) -> str:
        return ''.join(f'{re.escape(text)}{number if n else ""}' for text, n in self._parts())

    def _pattern(self, name: str) -> str:
        return os.path.join(re.escape(os.path.realpath(self.folder)), name)


def named_checkpoints(names: Iterable[SavedNames]) -> list[str]:
    """List the files with names of checkpoints of these hooks."""
    return list(dict.fromkeys(path for saved in names for path in saved.files()))


def other_checkpoints(names: Iterable[SavedNames], work_dir: str) -> list[str]:
    """List the ``.pth`` files with other names in the folders of a training."""
    names = list(names)
    folders = dict.fromkeys([os.path.abspath(work_dir), *(saved.folder for saved in names)])
    named = named_checkpoints(names)
    return [p for folder in folders for p in _glob(folder, '*.pth') if p not in named]


def noted_checkpoint(work_dir: str) -> str | None:
    """Return the path in ``last_checkpoint``, which may not exist; None without such a file.

    Raises:
        CheckpointError: ``last_checkpoint`` is a folder, so mmengine could not write it.
    """
    note = os.path.join(work_dir, 'last_checkpoint')
    if os.path.isdir(note):
        raise CheckpointError(f'{note} is a folder; it must be a file or not be there')
    if not os.path.isfile(note):
        return None
    with open(note, 'rb') as file:
        path = file.read(10_000).decode(errors='replace').strip()
    path = path.replace('\0', '?')
    # The name may begin with `~`, which mmengine does not expand.
    return os.path.abspath(path) if os.path.isfile(path) else path or None


def _glob(folder: str, name: str) -> list[str]:
    """List matching files; raise an OSError if the folder cannot be listed."""
    if os.path.isdir(folder):
        os.listdir(folder)
    return sorted(glob.glob(os.path.join(glob.escape(folder), name)))


def real_path(path: str) -> str:
    """Resolve the links among the folders of a path; the last part may stay a link."""
    folder, name = os.path.split(os.path.abspath(os.path.expanduser(path)))
    return os.path.join(os.path.realpath(folder), name)
