"""Variance-preserving activations, and ``NoNorm``, an identity in the place of a norm."""

from __future__ import annotations

from typing import Any

from mmcv.cnn import build_activation_layer
from torch import Tensor, nn

from nf_plugins.functional import GAMMA, activation_name, knows_activation
from nf_plugins.registry import MODELS, class_of
from nf_plugins.utils.checks import check_config, check_number

_LAYERS = dict(
    identity=nn.Identity,
    celu=nn.CELU,
    elu=nn.ELU,
    gelu=nn.GELU,
    leaky_relu=nn.LeakyReLU,
    log_sigmoid=nn.LogSigmoid,
    relu=nn.ReLU,
    relu6=nn.ReLU6,
    selu=nn.SELU,
    sigmoid=nn.Sigmoid,
    silu=nn.SiLU,
    softsign=nn.Softsign,
    softplus=nn.Softplus,
    tanh=nn.Tanh,
)

# `norm_cfg=dict(type='NoNorm')` removes the norms of any network of the mm libraries.
MODELS.register_module('NoNorm', module=nn.Identity)


def build_activation(act_cfg: dict, inplace: bool = False) -> tuple[nn.Module, float]:
    """Build an activation and look up its variance-preserving gain.

    Args:
        act_cfg: mm config of an activation, e.g. ``dict(type='ReLU')``. The type is a name or
            a class, see :func:`nf_plugins.registry.class_of`. An activation that is not in
            :data:`nf_plugins.functional.GAMMA` needs ``gamma`` in its config.
        inplace: Let a ReLU overwrite its input. Other activations need their input in the
            backward pass and ignore this.

    Returns:
        The module, which does not apply the gain, and the gain.

    Raises:
        TypeError: ``act_cfg`` is not a config.
        ValueError: The gain of the activation is not known and not given.

    Example:
        >>> build_activation(dict(type='ReLU'))
        (ReLU(), 1.7139588594436646)
    """
    act_cfg = dict(check_config('act_cfg', act_cfg))
    gamma = act_cfg.pop('gamma', None)
    if gamma is not None:
        check_number('gamma', gamma, 'a positive number')
    name = _plain_name(act_cfg['type'])
    if gamma is None or knows_activation(name):
        name = activation_name(name)
        act_cfg['type'] = _LAYERS[name]
        gamma = GAMMA[name] if gamma is None else gamma
    act = build_activation_layer(act_cfg)
    if hasattr(act, 'inplace'):
        act.inplace = inplace and isinstance(act, nn.ReLU)
    return act, float(gamma)


def _plain_name(kind: Any) -> Any:
    """Return the name of an activation; without its path if it belongs to torch or mmcv."""
    if isinstance(kind, str) and '.' not in kind:
        return kind
    layer = class_of(kind)
    if layer is None:
        return kind
    known = layer.__module__.split('.')[0] in ('torch', 'mmcv')
    return layer.__name__ if known else f'{layer.__module__}.{layer.__qualname__}'


@MODELS.register_module()
class GammaAct(nn.Module):
    r"""Activation times its variance-preserving gain, ``act_cfg=dict(type='GammaAct')``.

    .. math:: y = \gamma\, \mathrm{act}(x), \qquad \mathrm{Var}[y] = 1 \text{ for } x \sim N(0, 1)

    Args:
        act: Type of the activation: a name or a class.
        inplace: As in :func:`build_activation`. mm's ``ConvModule`` passes it.
        **kwargs: Other arguments of the activation, or ``gamma`` to replace the official gain.

    Source: Brock et al. 2021a, section 4.1.

    Example:
        >>> import torch
        >>> GammaAct('ReLU')(torch.ones(1))
        tensor([1.7140])
    """

    def __init__(self, act: str | type = 'ReLU', inplace: bool = False, **kwargs: Any) -> None:
        super().__init__()
        self.act, self.gamma = build_activation(dict(type=act, **kwargs), inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) * self.gamma

    def extra_repr(self) -> str:
        return f'gamma={self.gamma:.4f}'
