"""Drop-path (stochastic depth)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nf_plugins.utils.checks import check_number


@torch.fx.wrap
def sample_mask(x: Tensor, keep: float) -> Tensor:
    """Draw one number per sample, ``(N, 1, ...)``: 1 with probability ``keep``, else 0."""
    return x.new_empty([x.shape[0]] + [1] * (x.dim() - 1)).bernoulli_(keep)


class DropPath(nn.Module):
    r"""Drop the whole branch of a sample with probability ``drop_prob`` in training.

    Args:
        drop_prob: Probability.
        scale_by_keep: Divide the kept branches by ``1 - drop_prob``. mmcv's and timm's
            ``DropPath`` do this. The official normalizer-free networks do not (DeepMind's
            ``nfnets/base.py``).

    Example:
        >>> import torch
        >>> DropPath(0.5).eval()(torch.ones(1))
        tensor([1.])
    """

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = False) -> None:
        super().__init__()
        self.drop_prob = check_number('drop_prob', drop_prob, 'in [0, 1)')
        self.scale_by_keep = scale_by_keep

    def mask(self, x: Tensor) -> Tensor | None:
        """Draw the factor of each sample, ``(N, 1, ...)``; None if nothing is dropped."""
        if not self.training or self.drop_prob == 0:
            return None
        keep = 1 - self.drop_prob
        mask = sample_mask(x, keep)
        return mask / keep if self.scale_by_keep else mask

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask(x)
        return x if mask is None else x * mask

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob:.3g}, scale_by_keep={self.scale_by_keep}'
