"""TF-style SAME padding."""

from __future__ import annotations


def same_padding(size: int, kernel_size: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    r"""Zeros to put before and after one spatial axis for SAME padding.

    The output has :math:`\lceil \mathrm{size} / \mathrm{stride} \rceil` positions;
    when the total is odd, the extra zero goes to the end (TensorFlow, JAX).

    Args:
        size: Length of the axis.
        kernel_size: Length of the kernel.
        stride: Stride.
        dilation: Dilation.

    Returns:
        ``(before, after)``.

    Example:
        >>> same_padding(224, kernel_size=7, stride=2)
        (2, 3)
        >>> same_padding(225, kernel_size=7, stride=2)
        (3, 3)
    """
    covered = (-(-size // stride) - 1) * stride + (kernel_size - 1) * dilation + 1
    total = max(covered - size, 0)
    return total // 2, total - total // 2
