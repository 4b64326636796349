"""Parameter groups of normalizer-free networks."""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIMIZERS
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from nf_plugins.layers import PWSConv2d, ScaledWSConv2d
from nf_plugins.layers.dyt import PointwiseNorm
from nf_plugins.models.backbones.fixup_resnet import FixupBlock, FixupResNet
from nf_plugins.models.backbones.nf_block import NFBlock
from nf_plugins.registry import OPTIM_WRAPPER_CONSTRUCTORS, class_of
from nf_plugins.utils.checks import check_number

GAINS: tuple[tuple[type[nn.Module], str], ...] = (
    (ScaledWSConv2d, 'gain'),
    (PWSConv2d, 'alpha'),
    (NFBlock, 'skip_gain'),
    (FixupBlock, 'scale'),
)
"""Class of a module -> name of its gain."""
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, PointwiseNorm)


def parameter_kind(module: nn.Module, name: str) -> str:
    """Return the kind of a parameter, from the module that holds it.

    Returns:
        'gain' (a gain of ScaledWS, PWS, SkipInit or Fixup), 'norm' (weight or bias of a norm, of
        DyT or Derf), 'bias' or 'weight'.

    Example:
        >>> parameter_kind(ScaledWSConv2d(3, 4, 3), 'gain')
        'gain'
    """
    if any(isinstance(module, kind) and name == gain for kind, gain in GAINS):
        return 'gain'
    if isinstance(module, NORMS):
        return 'norm'
    scalar_bias = isinstance(module, (FixupBlock, FixupResNet)) and name.startswith('bias')
    return 'bias' if name == 'bias' or scalar_bias else 'weight'


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class NFOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Constructor of optimizer wrappers without weight decay of gains, biases and norms.

    mmengine's constructor uses names, and the longest matching key of ``custom_keys`` decides.
    So ``custom_keys={'backbone': dict(lr_mult=0.1)}`` would give all parameters of the backbone
    the full weight decay. This constructor finds gains, biases and norms by the modules that hold
    them. Only the options below set their weight decay; the keys still set their learning rate.

    Use it with ``optim_wrapper=dict(constructor='nf_plugins.NFOptimWrapperConstructor',
    optimizer=..., paramwise_cfg=dict(...))``.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper.
        paramwise_cfg: Options of mmengine's ``DefaultOptimWrapperConstructor``, and these:

            - ``gain_decay_mult``, ``bias_decay_mult``, ``norm_decay_mult``: factors of the
              weight decay; 0 by default. A gain is the gain of ScaledWS, the alpha of PWS, the
              SkipInit gain or the scale of Fixup.
            - ``layer_decay_rate``: ratio of the learning rates of a layer and of the next layer.
              The model or its backbone needs ``get_layer_depth``.
            - ``verbose``: log the settings of each parameter, not only the number of parameters.

    Raises:
        TypeError, ValueError: A factor is no number, or is negative.
        ValueError: ``layer_decay_rate`` is given, and the model has no ``get_layer_depth``.

    Source: the parameter groups of DeepMind's ``nfnets/experiment.py``.

    Example:
        >>> model = nn.Sequential(ScaledWSConv2d(3, 4, 3))
        >>> cfg = dict(optimizer=dict(type='SGD', lr=0.1, weight_decay=0.01))
        >>> groups = NFOptimWrapperConstructor(cfg)(model).optimizer.param_groups
        >>> [(tuple(g['params'][0].shape), g['weight_decay']) for g in groups]
        [((4, 3, 3, 3), 0.01), ((4,), 0.0), ((4,), 0.0)]
    """

    base_wd: float | None
    DECAY_MULTS = dict(gain_decay_mult=0.0, bias_decay_mult=0.0, norm_decay_mult=0.0)

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        options = {**self.DECAY_MULTS, **(paramwise_cfg or {})}
        self.decay_mults = {
            name.removesuffix('_decay_mult'): check_number(name, options.pop(name), 'at least 0')
            for name in self.DECAY_MULTS
        }
        self.layer_decay_rate = options.pop('layer_decay_rate', None)
        if self.layer_decay_rate is not None:
            check_number('layer_decay_rate', self.layer_decay_rate, 'a positive number')
        self.verbose = options.pop('verbose', False)
        super().__init__(optim_wrapper_cfg, options)
        if self.layer_decay_rate is not None:
            check_number('the lr of the optimizer', self.base_lr, 'at least 0')
        self.paramwise_cfg = options or {'custom_keys': {}}  # with {} mmengine makes no groups
        if self.base_wd is None:
            self.base_wd = _default_weight_decay(self.optimizer_cfg['type'])

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs: Any
    ) -> None:
        """Add the parameters of a model to the groups; mmengine calls this for each submodule."""
        if prefix:
            super().add_params(params, module, prefix, **kwargs)
            return
        with _quiet():
            super().add_params(params, module, prefix, **kwargs)
        names = {id(p): name for name, p in module.named_parameters()}
        kinds = {
            id(p): parameter_kind(child, name)
            for child in module.modules()
            for name, p in child.named_parameters(recurse=False)
        }
        for group in params:
            (param,) = group['params']
            mult = self.decay_mults.get(kinds[id(param)])
            if mult is not None and self.base_wd is not None:
                group['weight_decay'] = self.base_wd * mult
            if self.layer_decay_rate is not None:
                group.update(self._layer_lr(module, names[id(param)], group))
            for key in group.keys() - {'params'} if self.verbose else ():
                _log(f'paramwise_options -- {names[id(param)]}:{key}={group[key]}')
        counts = Counter(kinds[id(group['params'][0])] for group in params)
        mults = {'weight': 1.0, **self.decay_mults}
        text = ', '.join(f'{n} of kind {k} (decay x {mults[k]:g})' for k, n in counts.items())
        frozen = sum(not p.requires_grad for p in module.parameters())
        _log(f'trained parameters: {text}; frozen: {frozen}; weight decay: {self.base_wd}')

    def _layer_lr(self, model: nn.Module, name: str, group: dict) -> dict[str, Any]:
        """Compute the learning rate of a parameter from the depth of its layer."""
        backbone = getattr(model, 'backbone', None)
        of_model, of_backbone = (
            getattr(module, 'get_layer_depth', None) for module in (model, backbone)
        )
        if of_model is not None:
            depth, layers = of_model(name)
        elif of_backbone is not None:
            depth, layers = of_backbone(name, 'backbone.')
        else:
            raise ValueError(
                f'layer_decay_rate={self.layer_decay_rate} needs a model whose backbone has '
                f'get_layer_depth, got a {type(model).__name__}'
            )
        scale = self.layer_decay_rate ** (layers - depth - 1)
        return dict(lr=group.get('lr', self.base_lr) * scale, lr_scale=scale, layer_id=depth)


def _default_weight_decay(optimizer: Any) -> float | None:
    """Return the default weight decay of an optimizer, for a config that gives none."""
    parameters = inspect.signature(class_of(optimizer, OPTIMIZERS) or object).parameters
    default = getattr(parameters.get('weight_decay'), 'default', None)
    return default if isinstance(default, (int, float)) else None


def _log(text: str) -> None:
    print_log(text, logger='current')


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress mmengine's log lines about single parameters; there are hundreds."""

    def is_other(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not (text.startswith('paramwise_options') or 'requires_grad=False' in text)

    logger = MMLogger.get_current_instance()
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
