"""Replacements of mmengine's checkpoint loaders; all of them call :func:`safe_load`.

mmengine's own loader of URLs unpickles any file. The loaders of its fork also unpickle local
files that weights-only loading has refused. :func:`install` replaces them. So ``load_from``,
``resume`` and ``init_cfg=dict(type='Pretrained')`` never execute anything from a file.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from typing import Any

from mmengine.dist import barrier, is_main_process
from mmengine.fileio import get_local_path
from mmengine.runner import CheckpointLoader, FlexibleRunner, Runner
from mmengine.runner import checkpoint as mm

from nf_plugins.errors import CheckpointNotFoundError

from . import pretrained
from .download import fetch, load_url
from .resume import cleaned, while_resuming
from .safe_load import safe_load
from .state_dict import for_mmengine, split_weights_key


def load_local(filename: str, map_location: Any = 'cpu') -> Any:
    """Load a local file; ``~`` is the home folder."""
    return safe_load(os.path.expanduser(filename), map_location)


def load_http(filename: str, map_location: Any = 'cpu') -> Any:
    """Load a URL, which is kept in torch's cache folder; only the first process downloads it."""
    try:
        if is_main_process():
            fetch(filename)
    finally:
        barrier()  # also after an error, because the other processes wait here
    return load_url(filename, map_location)


def load_remote(filename: str, map_location: Any = 'cpu') -> Any:
    """Load a file of one of mmengine's storage backends (``s3://``, ``petrel://``)."""
    with get_local_path(filename, dict(backend='petrel')) as path:
        return safe_load(path, map_location, name=filename)


def load_pavi(filename: str, map_location: Any = 'cpu') -> Any:
    """Load a model of ``pavi://``."""
    from pavi import modelcloud

    model = modelcloud.get(filename.partition('://')[2])
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, model.name)
        model.download(path)
        return safe_load(path, map_location, name=filename)


def load_zoo(filename: str, map_location: Any = 'cpu') -> Any:
    """Load a name in mmengine's lists: ``torchvision://``, ``open-mmlab://``, ``mmcls://``."""
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


def _cleaned(load: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a loader: remove the parts by which mmengine would run code or delete files."""

    @functools.wraps(load)
    def loader(filename: str, map_location: Any = 'cpu') -> Any:
        filename, key = split_weights_key(filename)
        checkpoint, note = for_mmengine(load(filename, map_location), filename, key)
        pretrained.note_source(filename, note)
        return cleaned(checkpoint, filename)

    return loader


LOADERS = {
    load_local: ('',),
    load_http: ('http://', 'https://'),
    load_remote: (r'(\S+\:)?s3://', r'(\S+\:)?petrel://'),
    load_pavi: ('pavi://',),
    load_zoo: ('torchvision://', 'modelzoo://', 'open-mmlab://', 'openmmlab://', 'mmcls://'),
}
"""Loader -> the prefixes that it handles, as mmengine registers them."""


def install() -> None:
    """Replace mmengine's loaders of checkpoints for the whole process.

    ``import nf_plugins`` calls it. Afterwards :func:`~nf_plugins.checkpoint.safe_load` reads
    every checkpoint that mmengine loads. A runner's ``resume`` takes over only known data.
    Weights of which nothing fits are an error. A second call changes nothing.
    """
    pretrained.install()
    for loader, prefixes in LOADERS.items():
        CheckpointLoader.register_scheme(prefixes, _cleaned(loader), force=True)
    for runner in (Runner, FlexibleRunner):
        if not hasattr(runner.resume, '__wrapped__'):  # once, also after a reload
            runner.resume = while_resuming(runner.resume)
