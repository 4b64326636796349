"""Networks without activation normalisation for the OpenMMLab stack.

Importing the package registers all its modules. A config that uses bare names
(``type='NFResNet'``) needs ``custom_imports = dict(imports=['nf_plugins'])``. A config that uses
prefixed names (``type='nf_plugins.NFResNet'``) needs no import.
"""

import re
import warnings
from importlib import import_module
from importlib.util import find_spec

from .utils.distributions import is_installed
from .version import __version__


def _check_stack() -> None:
    """Raise one clear ImportError when libraries are missing or too old."""
    problems, wanted = [], []
    for name, minimum, fork, original in (
        ('torch', '2.6', 'torch', 'torch'),  # has safe globals with a name
        ('mmengine', '0.10.0', 'onedl-mmengine', 'mmengine'),
        ('mmcv', '2.0.0', 'onedl-mmcv', 'mmcv-lite'),
    ):
        found = import_module(name).__version__ if find_spec(name) else None
        if found and _release(found) >= _release(minimum):
            continue
        problems.append(f'{name}>={minimum} ({f"found {found}" if found else "not installed"})')
        # Forks and originals install into the same folders, so do not advise to mix them.
        wanted.append(f"'{original if any(map(is_installed, _ORIGINALS)) else fork}>={minimum}'")
    if problems:
        raise ImportError(
            f'nf_plugins {__version__} needs {", ".join(problems)}: '
            f'pip install -U {" ".join(wanted)}'
        )


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r'\d+', version.partition('+')[0])[:3]))


_ORIGINALS = ('mmengine', 'mmcv', 'mmcv-lite')


_check_stack()

with warnings.catch_warnings():
    # mmcv-lite warns about an operator that nothing here needs.
    warnings.filterwarnings('ignore', 'Fail to import ``MultiScaleDeformableAttention``')
    from .registry import first_come

    with first_come():
        import_module('mmcv.cnn')
    from . import checkpoint, config_names, datasets, engine, functional, layers, models, spp
    from .config_names import config_path
    from .layers import convert, fold
    from .models.hub import get_model

checkpoint.install()  # mmengine reads checkpoints by our safe loaders
config_names.install()  # mmengine and mmpretrain find our configs by name

__all__ = [
    '__version__',
    'checkpoint',
    'config_path',
    'convert',
    'datasets',
    'engine',
    'fold',
    'functional',
    'get_model',
    'layers',
    'models',
    'spp',
]
