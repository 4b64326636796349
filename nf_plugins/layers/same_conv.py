"""Convolution with a padding that depends on the size of the input."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from torch import Tensor

from nf_plugins.functional import pad_same


class SameConv2d(Conv2dAdaptivePadding):
    """Ordinary convolution with TF-style SAME padding for any stride.

    ``torch.jit.trace``, ``torch.fx``, ``torch.export`` and the ONNX exporters record it so that
    the result is right for every size of the input. This is not true of mmcv's class. Its
    ``padding`` is ``'same'``. So a tool that builds a :class:`torch.nn.Conv2d` from its
    attributes gets an error if the stride is not 1, and not a different padding.

    Args:
        *args: As ``Conv2dAdaptivePadding`` of mmcv.
        **kwargs: As ``Conv2dAdaptivePadding`` of mmcv.

    Shape:
        - Input: ``(N, C, H, W)``.
        - Output: ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.

    Example:
        >>> import torch
        >>> conv = SameConv2d(3, 8, 3, stride=2)
        >>> [conv(torch.randn(1, 3, size, size)).shape[-1] for size in (7, 8)]
        [4, 4]
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.padding = 'same'

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight, self.bias)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return F.conv2d(x, weight, bias, self.stride, (0, 0), self.dilation, self.groups)
