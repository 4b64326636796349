"""Against DeepMind's clipping (tests/data/agc_unit.npz) and the formula."""

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize('kwargs', [dict(clip_factor=0), dict(eps=-1), dict(eps=float('nan'))])
def test_bad_numbers(kwargs):
    with pytest.raises(ValueError, match='clip_factor and eps must be positive, got'):
        adaptive_clip_grad_([], **kwargs)


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
