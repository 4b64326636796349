"""Padding that depends on the size of the input."""

from __future__ import annotations

from torch import Tensor, nn

from nf_plugins.functional import pad_same
from nf_plugins.utils.checks import check_pair


class SamePad2d(nn.Module):
    """Zeros around an input that make a convolution without padding a TF-style SAME one.

    How many zeros, and on which side, depends on the size of the input. So a strided SAME
    convolution is this layer followed by an ordinary one, whose ``padding`` of 0 is true.

    Args:
        kernel_size: Size of the kernel.
        stride: Stride.
        dilation: Dilation.

    Shape:
        - Input: ``(N, C, H, W)``.
        - Output: ``(N, C, H + top + bottom, W + left + right)``.

    Example:
        >>> import torch
        >>> pad, conv = SamePad2d(3, stride=2), nn.Conv2d(1, 1, 3, stride=2)
        >>> [conv(pad(torch.ones(1, 1, size, size))).shape[-1] for size in (7, 8)]
        [4, 4]
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        dilation: int | tuple[int, int] = 1,
    ) -> None:
        super().__init__()
        self.kernel_size = check_pair('kernel_size', kernel_size)
        self.stride = check_pair('stride', stride)
        self.dilation = check_pair('dilation', dilation)

    def forward(self, x: Tensor) -> Tensor:
        return pad_same(x, self.kernel_size, self.stride, self.dilation)

    def extra_repr(self) -> str:
        return f'{self.kernel_size}, stride={self.stride}, dilation={self.dilation}'
