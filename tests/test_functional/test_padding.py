import pytest
import torch
from mmcv.cnn.bricks import Conv2dAdaptivePadding

from nf_plugins.functional import same_padding


@pytest.mark.parametrize('size', [1, 2, 7, 8, 9, 32])
@pytest.mark.parametrize('kernel', [1, 2, 3, 7])
@pytest.mark.parametrize('stride', [1, 2, 3, 4])
@pytest.mark.parametrize('dilation', [1, 2])
def test_equals_mmcv_adaptive_padding(size, kernel, stride, dilation):
    x = torch.randn(1, 1, size, size, dtype=torch.float64)
    conv = Conv2dAdaptivePadding(1, 1, kernel, stride, dilation=dilation).double()
    before, after = same_padding(size, kernel, stride, dilation)
    x_padded = torch.nn.functional.pad(x, [before, after, before, after])
    ours = torch.nn.functional.conv2d(x_padded, conv.weight, conv.bias, stride, 0, dilation)
    assert torch.equal(ours, conv(x))
    assert ours.shape[-1] == -(-size // stride)
