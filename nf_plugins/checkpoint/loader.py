"""mmengine's ways to a checkpoint, all of which end in :func:`safe_load`.

mmengine's own loaders unpickle whatever comes over HTTP, and those of its fork also unpickle
local files that weights-only loading refuses. Importing this module replaces them, so that
``load_from``, ``resume`` and ``init_cfg=dict(type='Pretrained')`` never execute anything from
a file.
"""

from __future__ import annotations

import functools
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.fileio import get_local_path
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mm

from .inert import without_stand_ins
from .safe_load import CheckpointNotFoundError, safe_load


def load_local(filename: str, map_location: Any = 'cpu') -> Any:
    """A local file; ``~`` is the home folder."""
    return safe_load(os.path.expanduser(filename), map_location)


def load_http(filename: str, map_location: Any = 'cpu') -> Any:
    """A URL, kept in torch's cache folder; of several processes the first one downloads."""
    path = Path(torch.hub.get_dir(), 'checkpoints', os.path.basename(urlparse(filename).path))
    try:
        if is_main_process():
            _download(filename, path)
    finally:
        barrier()  # the others would wait for ever
    _download(filename, path)  # where the disk is another one
    return safe_load(path, map_location)


def _download(url: str, path: Path) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:  # the file takes its name when it is complete
            torch.hub.download_url_to_file(url, str(path), progress=os.isatty(0))
        except (OSError, ValueError) as error:
            raise CheckpointNotFoundError(f'cannot download {url}: {error}') from None


def load_remote(filename: str, map_location: Any = 'cpu') -> Any:
    """A file of one of mmengine's storage backends (``s3://``, ``petrel://``)."""
    with get_local_path(filename, dict(backend='petrel')) as path:
        return safe_load(path, map_location, name=filename)


def load_pavi(filename: str, map_location: Any = 'cpu') -> Any:
    """A model of ``pavi://``."""
    from pavi import modelcloud

    model = modelcloud.get(filename.partition('://')[2])
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, model.name)
        model.download(path)
        return safe_load(path, map_location, name=filename)


def load_zoo(filename: str, map_location: Any = 'cpu') -> Any:
    """A name in one of mmengine's lists: ``torchvision://``, ``open-mmlab://``, ``mmcls://``."""
    scheme, _, name = filename.partition('://')
    if scheme in ('torchvision', 'modelzoo'):
        known = mm.get_torchvision_models()
    elif scheme == 'mmcls':
        known = mm.get_mmcls_models()
    else:
        known = mm.get_external_models()
        name = mm.get_deprecated_model_names().get(name, name)
    if name not in known:
        raise CheckpointNotFoundError(f'no checkpoint at {filename}: the list has no {name!r}')
    if not known[name].startswith(('http://', 'https://')):
        return load_local(os.path.join(mm._get_mmengine_home(), known[name]), map_location)
    checkpoint = load_http(known[name], map_location)
    return mm._process_mmcls_checkpoint(checkpoint) if scheme == 'mmcls' else checkpoint


def _without_orders(load: Callable[..., Any]) -> Callable[..., Any]:
    """The loader, without what mmengine would run or delete, and without stand-ins.

    mmengine executes the config that a checkpoint brings along, when it resumes and for its
    inferencers; and before it saves a better checkpoint it deletes what the resumed one
    names as the best so far, be it a folder.
    """

    @functools.wraps(load)
    def loader(filename: str, map_location: Any = 'cpu') -> Any:
        checkpoint = load(filename, map_location)
        if not isinstance(checkpoint, dict):
            return checkpoint
        schedulers = checkpoint.get('param_schedulers')
        for group in schedulers.values() if isinstance(schedulers, dict) else [schedulers]:
            for index, state in enumerate(group if isinstance(group, list) else []):
                if isinstance(state, dict):
                    group[index] = without_stand_ins(state)
        meta, hub = checkpoint.get('meta'), checkpoint.get('message_hub')
        if isinstance(meta, dict):
            meta.pop('config', None)
            meta.pop('cfg', None)
        info = hub.get('runtime_info') if isinstance(hub, dict) else None
        if isinstance(info, dict):
            info.pop('cfg', None)
            for key in [key for key in info if str(key).startswith('best_ckpt')]:
                if not _is_best_beside(info[key], filename):
                    del info[key]
        return checkpoint

    return loader


def _is_best_beside(best: Any, filename: str) -> bool:
    """Whether ``best`` is the name of a best checkpoint in the folder of ``filename``."""
    if not isinstance(best, str) or not re.fullmatch(r'best_.+\.pth', os.path.basename(best)):
        return False
    here = os.path.dirname(os.path.expanduser(filename))
    return os.path.abspath(os.path.dirname(best)) == os.path.abspath(here)


LOADERS = {
    load_local: ('',),
    load_http: ('http://', 'https://'),
    load_remote: (r'(\S+\:)?s3://', r'(\S+\:)?petrel://'),
    load_pavi: ('pavi://',),
    load_zoo: ('torchvision://', 'modelzoo://', 'open-mmlab://', 'openmmlab://', 'mmcls://'),
}
"""Loader -> the prefixes of what it loads, as mmengine writes them."""

for _loader, _prefixes in LOADERS.items():
    CheckpointLoader.register_scheme(_prefixes, _without_orders(_loader), force=True)
