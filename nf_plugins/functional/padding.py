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


def fixed_same_padding(kernel_size: int, stride: int, dilation: int = 1) -> int | None:
    """SAME padding of an axis where it is the same for all sizes and on both sides, else None.

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
