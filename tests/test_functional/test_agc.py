"""Against DeepMind's clipping (tests/data/agc_unit.npz) and the formula."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nf_plugins.functional import adaptive_clip_grad_, unitwise_norm

from ..conftest import DATA

with np.load(DATA / 'agc_unit.npz') as _archive:
    UNIT = {name: _archive[name] for name in _archive.files}
CASES = sorted({name.split('/')[0] for name in UNIT})


def to_torch(array):
    """HWIO to OIHW, IO to OI."""
    x = torch.from_numpy(np.array(array))
    if x.dim() == 4:
        return x.permute(3, 2, 0, 1).contiguous()
    return x.T.contiguous() if x.dim() == 2 else x


@pytest.mark.parametrize('clip_factor', [0.01, 0.1])
@pytest.mark.parametrize('case', CASES)
def test_equals_deepmind(case, clip_factor):
    param = torch.nn.Parameter(to_torch(UNIT[f'{case}/param']))
    param.grad = to_torch(UNIT[f'{case}/grad'])
    for name, x in (('pnorm', param), ('gnorm', param.grad)):
        norms = torch.from_numpy(UNIT[f'{case}/{name}']).flatten()
        torch.testing.assert_close(unitwise_norm(x).detach().flatten(), norms)
    adaptive_clip_grad_([param], clip_factor)
    torch.testing.assert_close(param.grad, to_torch(UNIT[f'{case}/clipped_{clip_factor}']))


@pytest.mark.parametrize('shape', [(), (5,), (5, 3), (5, 3, 2), (5, 3, 3, 3), (1, 7), (7, 1, 1, 1)])
def test_formula_and_fraction(shape):
    param = torch.nn.Parameter(torch.randn(shape, dtype=torch.float64))
    grad = torch.randn(shape, dtype=torch.float64) * 0.02
    vector = sum(size > 1 for size in shape) <= 1
    w, g = (x.detach().numpy().reshape(1 if vector else shape[0], -1) for x in (param, grad))
    limit = 0.01 * np.maximum(np.linalg.norm(w, axis=1, keepdims=True), 1e-3)
    norm = np.linalg.norm(g, axis=1, keepdims=True)
    expected = np.where(norm < limit, g, g * limit / norm).reshape(shape)
    param.grad = grad
    fraction = adaptive_clip_grad_(param)
    np.testing.assert_allclose(param.grad.numpy(), expected, rtol=1e-12)
    assert fraction.item() == pytest.approx((norm >= limit).mean())


def test_what_has_no_gradient_is_passed_over():
    with_grad, without = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    with_grad.grad = torch.ones(2)
    assert adaptive_clip_grad_([without, with_grad]).item() == 1
    assert without.grad is None
    assert adaptive_clip_grad_([without]).item() == 0


def test_not_finite_gradients_stay_visible():
    param = torch.nn.Parameter(torch.ones(2, 3))
    param.grad = torch.ones(2, 3)
    param.grad[0, 0] = torch.nan
    adaptive_clip_grad_([param])
    assert param.grad[0].isnan().all()
    assert param.grad[1].isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_on_cuda():
    params = [torch.nn.Parameter(torch.randn(s, device='cuda')) for s in [(8, 3, 3, 3), (8,)]]
    twins = [torch.nn.Parameter(p.detach().cpu()) for p in params]
    for p, twin in zip(params, twins):
        p.grad = torch.randn_like(p)
        twin.grad = p.grad.cpu()
    assert adaptive_clip_grad_(params).item() == adaptive_clip_grad_(twins).item()
    for p, twin in zip(params, twins):
        torch.testing.assert_close(p.grad.cpu(), twin.grad)


class Launches(TorchDispatchMode):
    """Counts the operations that compute something: views cost no kernel."""

    FREE = ('view', 'reshape', 'split', 'select', 'detach', 'expand', 'alias', 'slice', 'unbind')

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not any(word in func.__name__ for word in self.FREE)
        return func(*args, **(kwargs or {}))


def test_kernels_do_not_grow_with_the_number_of_parameters():
    """On a GPU; of the CPU's backend, where a call costs less than a copy, meta has nothing."""

    def launches(blocks):
        shapes = [(8, 4, 3, 3), (8,), (8, 1, 1), (16, 8), (16,), ()] * blocks
        params = [torch.nn.Parameter(torch.randn(s, device='meta')) for s in shapes]
        for p in params:
            p.grad = torch.randn_like(p)
        with Launches() as mode:
            adaptive_clip_grad_(params)
        return mode.count

    assert launches(20) == launches(2)


@pytest.mark.parametrize('mixed', [False, True])
def test_memory_formats_and_dtypes(mixed):
    """Gradients that lie differently in memory, and half-precision parameters among others."""
    dtypes = (torch.float64, torch.float32) if mixed else (torch.float64,)
    params, expected = [], []
    for i in range(4):
        p = torch.nn.Parameter(torch.randn(6, 3, 3, 3, dtype=dtypes[i % len(dtypes)]))
        p.grad = torch.randn_like(p).to(memory_format=torch.channels_last)
        limit = 0.01 * p.detach().flatten(1).norm(dim=1).clamp(min=1e-3)
        factor = (limit / p.grad.flatten(1).norm(dim=1)).clamp(max=1)
        expected.append(p.grad * factor.view(-1, 1, 1, 1))
        params.append(p)
    assert adaptive_clip_grad_(params).item() == 1
    for p, grad in zip(params, expected):
        torch.testing.assert_close(p.grad, grad)
        assert p.grad.is_contiguous(memory_format=torch.channels_last)
