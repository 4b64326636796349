"""TF-style SAME padding."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def same_padding(size: int, kernel_size: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    r"""Compute the SAME padding of one spatial axis.

    The output has :math:`\lceil \mathrm{size} / \mathrm{stride} \rceil` positions. If the total
    padding is odd, the end gets one more zero than the start (as in TensorFlow and JAX).

    Args:
        size: Length of the axis. It may be a symbol while a network is traced or exported: the
            function never compares it, so the traced result is right for every length.
        kernel_size: Length of the kernel.
        stride: Stride.
        dilation: Dilation.

    Returns:
        ``(before, after)``, the numbers of zeros at both ends.

    Example:
        >>> same_padding(224, kernel_size=7, stride=2)
        (2, 3)
        >>> same_padding(225, kernel_size=7, stride=2)
        (3, 3)
    """
    covered = (kernel_size - 1) * dilation + 1
    total = covered - stride + -size % stride
    if covered < stride:  # max(total, 0), as total lies between -stride and stride
        total = total * ((total + stride) // stride)
    return total // 2, total - total // 2


def pad_same(
    x: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    value: float = 0.0,
) -> Tensor:
    """Pad an input, so that a convolution or pooling without padding gives the SAME output.

    ``torch.jit.trace``, ``torch.fx``, ``torch.export`` and both ONNX exporters record the
    padding as a function of the input's size.

    Args:
        x: ``(..., H, W)``.
        kernel_size: Size of the kernel.
        stride: Stride of each axis.
        dilation: Dilation of each axis.
        value: The value of the padding.

    Returns:
        The padded input.

    Example:
        >>> import torch
        >>> pad_same(torch.ones(1, 1, 4, 5), (3, 3), (2, 2)).shape
        torch.Size([1, 1, 5, 7])
    """
    vertical = same_padding(x.shape[-2], kernel_size[0], stride[0], dilation[0])
    horizontal = same_padding(x.shape[-1], kernel_size[1], stride[1], dilation[1])
    return F.pad(x, [*horizontal, *vertical], value=value)


def fixed_same_padding(kernel_size: int, stride: int, dilation: int = 1) -> int | None:
    """Return the SAME padding of an axis if it is one number, else None.

    It is one number if it is equal for all sizes of the input and on both sides.

    Args:
        kernel_size: Length of the kernel.
        stride: Stride.
        dilation: Dilation.

    Example:
        >>> fixed_same_padding(3, stride=1), fixed_same_padding(1, stride=2)
        (1, 0)
        >>> fixed_same_padding(3, stride=2) is None
        True
    """
    total = (kernel_size - 1) * dilation
    return total // 2 if total == 0 or (stride == 1 and total % 2 == 0) else None
