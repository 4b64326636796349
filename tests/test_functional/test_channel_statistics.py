import numpy as np
import pytest
import torch

from nf_plugins.functional import channel_statistics


@pytest.mark.parametrize('channel_dim', [1, -1, 2])
def test_equals_numpy(channel_dim):
    x = torch.randn(4, 5, 6, 7) * 3 + 10
    stats = channel_statistics(x, channel_dim)
    array = np.moveaxis(x.double().numpy(), channel_dim, 0)
    array = array.reshape(len(array), -1)
    assert stats.count == array.shape[1]
    np.testing.assert_allclose(stats.mean, array.mean(1), rtol=1e-5)
    np.testing.assert_allclose(stats.var, array.var(1), rtol=1e-5)
    assert stats.avg_sq_mean.item() == pytest.approx((array.mean(1) ** 2).mean(), rel=1e-5)
    assert stats.avg_var.item() == pytest.approx(array.var(1).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ('shape', 'channel_dim', 'channels_last'),
    [
        ((1, 600_000), 0, False),
        ((2, 300_000), 0, False),
        ((300, 16, 8, 8), 1, False),
        ((3, 8, 200, 100), 1, False),
        ((3, 8, 200, 100), 1, True),
        ((2, 1, 512, 512), 1, False),
        ((5, 197, 384), 2, False),
        ((700, 512), 1, False),
        ((5, 384, 197), 1, False),
        ((2, 14, 14, 4, 4, 32), -1, False),
    ],
)
@pytest.mark.parametrize('offset', [0, 300])
def test_large_signals_in_every_layout(shape, channel_dim, channels_last, offset):
    """Chunk by chunk: float32 sums must neither cancel nor run out of digits."""
    x = torch.randn(shape) + offset
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    stats = channel_statistics(x, channel_dim)
    array = np.moveaxis(x.numpy().astype(np.float64), channel_dim, 0)
    array = array.reshape(len(array), -1)
    assert stats.count == array.shape[1]
    np.testing.assert_allclose(stats.mean, array.mean(1), atol=1e-6 + 1e-6 * offset)
    np.testing.assert_allclose(stats.var, array.var(1), rtol=5e-6)


def test_merging_equals_measuring_at_once_and_is_associative():
    x = torch.randn(9, 5, 6, 7, dtype=torch.float64) + 100
    a, b, c = (channel_statistics(part) for part in (x[:1], x[1:5], x[5:]))
    whole = channel_statistics(x)
    for merged in ((a + b) + c, a + (b + c), c + a + b):
        assert merged.count == whole.count
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-13, atol=0)
        torch.testing.assert_close(merged.var, whole.var, rtol=1e-11, atol=0)


def test_low_precision_is_measured_in_float32():
    x = torch.full((8, 2, 64, 64), 100.0, dtype=torch.float16)
    stats = channel_statistics(x)
    assert stats.mean.dtype == torch.float32
    assert stats.avg_sq_mean.item() == 1e4
    assert stats.avg_var.item() == 0


def test_no_values_are_refused():
    with pytest.raises(ValueError, match=r'needs values, got one of shape \(0, 3\)'):
        channel_statistics(torch.empty(0, 3))
