"""The names under which mmengine and mmpretrain find our configs.

Importing ``nf_plugins`` calls :func:`install`. From then on

- a config inherits one of ours with ``_base_ = 'nfplugins::nf_resnet/nf-resnet_digits.py'``;
- ``mmengine.hub.get_config('nfplugins::nf_resnet/nf-resnet_digits.py')`` reads one;
- ``mmpretrain.list_models('nf*')`` and ``mmpretrain.get_model`` know them.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from .utils.distributions import is_installed

PREFIXES = ('nfplugins', 'nf_plugins')
"""Prefixes of our names before ``::``: the distribution and the package."""
HUB = 'mmpretrain.apis.model'
FAMILIES = ('nf_resnet', 'nf_regnet', 'nfnet', 'pws_resnet', 'timm', 'dyt')
"""Folders of the configs of classifiers; each has a ``metafile.yml``."""


def root() -> Path:
    """Return the folder that holds ``configs``: in the installed package or in the checkout."""
    package = Path(__file__).parent
    return package / '.mim' if (package / '.mim').is_dir() else package.parent


def config_path(name: str) -> str:
    """Find the file of one of our configs.

    Args:
        name: The name of its file. ``.py``, the folder and ``nfplugins::`` can be left out.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: No config, or more than one, has this name.

    Example:
        >>> config_path('nf-resnet_digits').endswith('configs/nf_resnet/nf-resnet_digits.py')
        True
    """
    prefix, _, wanted = name.rpartition('::')
    wanted = f'/{wanted.removesuffix(".py")}.py'
    configs = root() / 'configs'
    names = [path.relative_to(configs).as_posix() for path in sorted(configs.rglob('*.py'))]
    found = (
        [n for n in names if f'/configs/{n}'.endswith(wanted)] if prefix in ('', *PREFIXES) else []
    )
    if len(found) == 1:
        return str(configs / found[0])
    close = found or difflib.get_close_matches(wanted[1:], [*names, *map(_last, names)], 3)
    # Without .py, as some tools take such a name for published weights, too.
    told = ', '.join(other.removesuffix('.py') for other in close)
    hint = f'; close names: {told}' if close else ''
    raise FileNotFoundError(f'no config of nf_plugins is named {name}{hint}')


def _last(name: str) -> str:
    return name.rpartition('/')[2]


def install() -> None:
    """Register our names with mmengine now, and with mmpretrain when it is imported."""
    packaged = (root() / 'configs').is_relative_to(Path(__file__).parent)
    for prefix in PREFIXES:
        # A checkout has no `.mim`, which the hub reads; the installed distribution has.
        # (mmengine 0.10's `is_installed` imports setuptools, which takes time and warns.)
        package = 'nfplugins' if not packaged and is_installed('nfplugins') else 'nf_plugins'
        MODULE2PACKAGE.setdefault(prefix, package)
    theirs = Config._get_cfg_path
    if getattr(theirs, '__module__', None) != __name__:

        def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
            prefix, separator, _ = cfg_path.partition('::')
            if separator and prefix in PREFIXES:
                # mmengine would add `_scope_=prefix` to every part. But the parts of a config
                # belong to the library that its default_scope names.
                return config_path(cfg_path), None
            return theirs(cfg_path, filename)

        Config._get_cfg_path = staticmethod(get_cfg_path)
    if HUB in sys.modules:
        register_models(sys.modules[HUB].ModelHub)
    elif not any(type(finder).__name__ == '_HubFinder' for finder in sys.meta_path):
        sys.meta_path.insert(0, _HubFinder())


def register_models(hub: Any) -> None:
    """Enter our classifiers into mmpretrain's ``ModelHub``."""
    if hasattr(hub, '_knows_nf_plugins'):  # it refuses a second registration
        return
    hub._knows_nf_plugins = True
    for family in FAMILIES:
        metafile = root() / 'configs' / family / 'metafile.yml'
        try:
            hub.register_model_index(metafile, config_prefix=root())
        except ValueError as error:  # another package has registered one of the names
            warnings.warn(
                f'mmpretrain does not list all models of nf_plugins: {error}', stacklevel=2
            )


class _HubFinder(MetaPathFinder):
    """Calls :func:`register_models` after mmpretrain's hub is imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != HUB:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: Any) -> None:
            execute(module)
            register_models(module.ModelHub)

        vars(spec.loader).update(exec_module=execute_and_register)
        return spec
