"""Which checkpoints lie in a work dir, and under which names a training saves them."""

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
    """Where a ``CheckpointHook`` saves, and under which names.

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
        """``out_dir`` with the work dir's own name, as mmengine joins them."""
        work_dir, out_dir = os.path.abspath(self.work_dir), self.hook.out_dir
        if out_dir is None or str(out_dir) == work_dir:
            return work_dir
        return os.path.abspath(os.path.join(str(out_dir), os.path.basename(work_dir)))

    def step(self, path: str) -> int | None:
        """The epoch or iteration in a checkpoint's name, or None for another name."""
        match = re.fullmatch(self._pattern(self._template(r'0*(\d{1,18})')), real_path(path))
        return int(match[1]) if match else None

    def is_best(self, path: str, indicator: str | None = None) -> bool:
        """Whether this is a name of the best checkpoint by ``indicator`` (None: by any)."""
        what = '.+' if indicator is None else re.escape(indicator.replace('/', '_'))
        name = self._template(r'\d+').replace('/', '_')
        return re.fullmatch(self._pattern(f'best_{what}_{name}'), real_path(path)) is not None

    def files(self) -> list[str]:
        """What has the name of a checkpoint, a best one or a published copy included."""
        glob_name = ''.join(f'{glob.escape(t)}{"*" if n else ""}' for t, n in self._parts())
        found = _glob(self.folder, glob_name) + _glob(self.folder, '*.pth')
        stem, dot, extension = self._template(r'\d+').rpartition(r'\.')
        # `published_keys` puts a part of a checksum before the suffix.
        own = f'(?:best_.+_)?{stem or extension}(?:-[0-9a-f]{{8}})?' + (dot and dot + extension)
        names = '|'.join(map(self._pattern, (own, r'(?:epoch|iter)_\d+\.pth')))
        return [path for path in dict.fromkeys(found) if re.fullmatch(names, real_path(path))]

    def _parts(self) -> list[tuple[str, bool]]:
        """The template: pieces of text, and whether the number follows."""
        parsed = string.Formatter().parse(self.hook.filename_tmpl)
        return [(text, field is not None) for text, field, _, _ in parsed]

    def _template(self, number: str) -> str:
        return ''.join(f'{re.escape(text)}{number if n else ""}' for text, n in self._parts())

    def _pattern(self, name: str) -> str:
        return os.path.join(re.escape(os.path.realpath(self.folder)), name)


def named_checkpoints(names: Iterable[SavedNames]) -> list[str]:
    """What has the name of a checkpoint of these hooks."""
    return list(dict.fromkeys(path for saved in names for path in saved.files()))


def other_checkpoints(names: Iterable[SavedNames], work_dir: str) -> list[str]:
    """The ``.pth`` files of a training's folders that have other names."""
    names = list(names)
    folders = dict.fromkeys([os.path.abspath(work_dir), *(saved.folder for saved in names)])
    named = named_checkpoints(names)
    return [p for folder in folders for p in _glob(folder, '*.pth') if p not in named]


def noted_checkpoint(work_dir: str) -> str | None:
    """What ``last_checkpoint`` names, which need not exist; None without a note.

    Raises:
        CheckpointError: ``last_checkpoint`` is a folder, so that mmengine cannot write it.
    """
    note = os.path.join(work_dir, 'last_checkpoint')
    if os.path.isdir(note):
        raise CheckpointError(f'{note} is a folder; it must be a file or not be there')
    if not os.path.isfile(note):
        return None
    with open(note, 'rb') as file:
        path = file.read(10_000).decode(errors='replace').strip()
    path = path.replace('\0', '?')
    # Its name may begin with `~`, which mmengine takes as it stands.
    return os.path.abspath(path) if os.path.isfile(path) else path or None


def _glob(folder: str, name: str) -> list[str]:
    """Matching files; an OSError where the folder cannot be listed, which is not an empty one."""
    if os.path.isdir(folder):
        os.listdir(folder)
    return sorted(glob.glob(os.path.join(glob.escape(folder), name)))


def real_path(path: str) -> str:
    """A path without links among its folders; its last part may be one."""
    folder, name = os.path.split(os.path.abspath(os.path.expanduser(path)))
    return os.path.join(os.path.realpath(folder), name)
