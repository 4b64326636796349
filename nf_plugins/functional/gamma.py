"""Gains that make an activation preserve the variance of a unit Gaussian."""

from __future__ import annotations

GAMMA: dict[str, float] = {
    'identity': 1.0,
    'celu': 1.270926833152771,
    'elu': 1.2716004848480225,
    'gelu': 1.7015043497085571,
    'leaky_relu': 1.70590341091156,
    'log_sigmoid': 1.9193484783172607,
    'relu': 1.7139588594436646,
    'relu6': 1.7131484746932983,
    'selu': 1.0008515119552612,
    'sigmoid': 4.803835391998291,
    'silu': 1.7881293296813965,
    'softsign': 2.338853120803833,
    'softplus': 1.9203323125839233,
    'tanh': 1.5939117670059204,
}
r"""Activation name -> gain ``gamma`` with ``Var[gamma * act(z)] = 1`` for ``z ~ N(0, 1)``.

These are the constants of the official implementation (Brock et al. 2021a, section 4.1;
DeepMind's ``nfnets/base.py``). Its authors estimated them on samples. They differ from the
exact integral by at most about 1 %.
"""

_ALIASES = {name.replace('_', ''): name for name in GAMMA} | {'swish': 'silu'}


def knows_activation(name: str) -> bool:
    """Return whether the table has a gain for an activation, in any spelling of its name."""
    return isinstance(name, str) and name.replace('_', '').lower() in _ALIASES


def activation_name(name: str) -> str:
    """Return the canonical name of an activation from any spelling.

    Args:
        name: A name in torch's class style (``'LeakyReLU'``) or function style
            (``'leaky_relu'``); ``'Swish'`` is SiLU.

    Returns:
        The key of :data:`GAMMA`.

    Raises:
        TypeError: ``name`` is not a string.
        ValueError: There is no gain for this activation.

    Example:
        >>> activation_name('LeakyReLU')
        'leaky_relu'
    """
    if not isinstance(name, str):
        raise TypeError(f'the name of an activation must be a string, got {name!r}')
    if not knows_activation(name):
        raise ValueError(f'unknown activation {name!r}: there are gains for {", ".join(GAMMA)}')
    return _ALIASES[name.replace('_', '').lower()]


def activation_gamma(name: str) -> float:
    r"""Return the variance-preserving gain of an activation.

    .. math:: \gamma = 1 / \sqrt{\mathrm{Var}[\mathrm{act}(z)]}, \quad z \sim N(0, 1)

    For ReLU it is :math:`\sqrt{2 / (1 - 1/\pi)} \approx 1.713`.

    Args:
        name: See :func:`activation_name`.

    Returns:
        The official constant (Brock et al. 2021a, section 4.1).

    Example:
        >>> round(activation_gamma('ReLU'), 3)
        1.714
    """
    return GAMMA[activation_name(name)]
