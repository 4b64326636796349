"""Networks without activation normalisation for the OpenMMLab stack.

Importing the package registers everything, so ``custom_imports =
dict(imports=['nf_plugins'])`` is all that a config needs for the bare names;
the prefixed names (``type='nf_plugins.NFResNet'``) need nothing.
"""

import warnings
from importlib import import_module
from importlib.util import find_spec

from .version import __version__


def _check_stack() -> None:
    """Raise one clear ImportError when a library is missing or too old."""
    mm = "install it with `pip install 'nfplugins[mm]'` or follow requirements/mminstall.txt"
    for name, minimum, advice in (
        ('mmengine', '0.10.0', mm),
        ('mmcv', '2.0.0', mm),
        ('torch', '2.6', "install it with `pip install 'torch>=2.6'`"),  # safe globals by name
    ):
        advice = f'nf_plugins {__version__} needs {name}>={minimum}: {advice}'
        if find_spec(name) is None:
            raise ImportError(f'{advice}; it is not installed')
        found = import_module(name).__version__
        digit_version = import_module('mmengine.utils').digit_version
        if digit_version(found) < digit_version(minimum):
            raise ImportError(f'{advice}; found {found}')


_check_stack()

with warnings.catch_warnings():
    # Of mmcv-lite, about an op that nothing here needs.
    warnings.filterwarnings('ignore', 'Fail to import ``MultiScaleDeformableAttention``')
    from . import checkpoint, datasets, engine, functional, layers, models, spp
    from .layers import convert

__all__ = [
    '__version__',
    'checkpoint',
    'convert',
    'datasets',
    'engine',
    'functional',
    'layers',
    'models',
    'spp',
]
