"""Against DeepMind's clipping (tests/data/agc_unit.npz) and the formula."""

import numpy as np
import pytest
import torch
from torch.nn.utils import prune
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


@pytest.mark.cuda
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


def by_formula(weight, grad, clip_factor=0.01, eps=1e-3):
    """The clipped gradient in numpy's long double, which overflows beyond 1e4000 alone."""
    w, g = (x.detach().double().numpy().astype(np.longdouble) for x in (weight, grad))
    rows = (1 if sum(size > 1 for size in w.shape) <= 1 else len(w), -1)
    norms = [np.sqrt((x.reshape(rows) ** 2).sum(1, keepdims=True)) for x in (w, g)]
    limit = clip_factor * np.maximum(norms[0], eps)
    with np.errstate(divide='ignore', invalid='ignore'):
        clipped = np.where(norms[1] < limit, g.reshape(rows), g.reshape(rows) * limit / norms[1])
    return torch.from_numpy(clipped.reshape(w.shape).astype(np.float64))


HALF = [torch.float16, torch.bfloat16]
SIZES = [
    *((dtype, w, g) for dtype in HALF for w, g in [(1, 2000), (2000, 2000), (1e-4, 300), (300, 1)]),
    *((torch.float32, w, g) for w, g in [(1, 1e20), (1, 1e36), (1e22, 1e25), (1e-30, 1e19)]),
    *((torch.bfloat16, w, g) for w, g in [(1, 1e20), (1e20, 1e30)]),
    *((torch.float64, w, g) for w, g in [(1, 1e160), (1e170, 1e180), (1, 1e300)]),
]


@pytest.mark.parametrize('shape', [(4, 4096), (4096,), (3, 16, 3, 3), (), (1, 50, 1, 1)])
@pytest.mark.parametrize(('dtype', 'weight', 'grad'), SIZES)
def test_norms_do_not_overflow(dtype, weight, grad, shape):
    p = torch.nn.Parameter((torch.rand(shape, dtype=torch.float64) + 0.5).mul(weight).to(dtype))
    p.grad = (torch.rand(shape, dtype=torch.float64) - 0.5).mul(grad).to(dtype)
    expected = by_formula(p, p.grad)
    adaptive_clip_grad_([p])
    assert p.grad.dtype == dtype
    tolerance = 2 * torch.finfo(dtype).eps
    # What is smaller than the smallest normal number has fewer digits.
    least = torch.finfo(dtype).smallest_normal
    torch.testing.assert_close(p.grad.double(), expected, rtol=tolerance + 1e-5, atol=least)


def test_an_overflow_among_others_changes_those_not():
    params = [torch.nn.Parameter(torch.ones(s)) for s in [(3, 4), (5,), (2, 2)]]
    for p, size in zip(params, [1e-6, 1e25, 1e25]):
        p.grad = torch.full_like(p, size)
    params[0].grad[1] = 1e30
    params[2].grad[0, 0] = torch.nan
    expected = [by_formula(p, p.grad) for p in params]
    adaptive_clip_grad_(params)
    for p, clipped in zip(params, expected):
        torch.testing.assert_close(p.grad.double(), clipped, equal_nan=True, rtol=1e-5, atol=0)


@pytest.mark.parametrize('shape', [(4,), (), (4, 3)])
@pytest.mark.parametrize('how', ['list', 'generator', 'names', 'module'])
def test_each_parameter_is_clipped_once(shape, how):
    p = torch.nn.Parameter(torch.ones(shape))
    p.grad = torch.full(shape, 100.0)
    expected = by_formula(p, p.grad)
    module = torch.nn.Module()
    module.first, module.second = p, p
    params = dict(
        list=[p, p, p],
        generator=(p for _ in range(3)),
        names=[('first', p), ('second', p)],
        module=module,
    )
    adaptive_clip_grad_(params[how])
    torch.testing.assert_close(p.grad.double(), expected)


@pytest.mark.parametrize('layer', [torch.nn.Embedding, torch.nn.EmbeddingBag])
@pytest.mark.parametrize('named', [True, False])
def test_sparse_gradients_are_refused_unless_skipped(layer, named):
    words = layer(3, 2, sparse=True)
    words(torch.tensor([[0, 2]])).sum().backward()
    other = torch.nn.Parameter(torch.ones(3, 2))
    other.grad = torch.ones(3, 2)
    params = [('other', other), ('words.weight', words.weight)]
    name = 'words.weight' if named else 'a parameter'
    message = rf'got torch.sparse_coo for {name} of the shape \(3, 2\)'
    with pytest.raises(ValueError, match=message):
        adaptive_clip_grad_(params if named else [p for _, p in params])
    assert other.grad.eq(1).all()  # nothing was changed before the error
    assert adaptive_clip_grad_(params, skip='words').item() == 1


@pytest.mark.parametrize('shape', [(0,), (0, 3), (3, 0), (2, 0, 3, 3)])
def test_empty_parameters_are_passed_over(shape):
    empty, p = torch.nn.Parameter(torch.ones(shape)), torch.nn.Parameter(torch.ones(2))
    empty.grad, p.grad = torch.ones(shape), torch.ones(2)
    assert adaptive_clip_grad_([empty]).item() == 0
    assert adaptive_clip_grad_([empty, p]).item() == 1


class Head(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 3, bias=False)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(4, 4, bias=False)
        self.head = Head()

    def forward(self, x):
        return self.head.fc(self.body(x))


def tied(net):
    net.head.fc.weight = torch.nn.Parameter(torch.randn(4, 4))
    net.body.weight = net.head.fc.weight
    return net, [net.body.weight]


def parametrized(norm):
    def change(net):
        norm(net.head.fc)
        return net, list(net.head.fc.parameters())

    return change


def replaced(net):
    adaptive_clip_grad_(net, skip='head.fc.weight')
    net.head.fc = torch.nn.Linear(4, 3, bias=False)
    return net, [net.head.fc.weight]


def wrapped(net):
    owned = [net.head.fc.weight]
    net.head = torch.nn.DataParallel(net.head)
    net.forward = lambda x: net.head.module.fc(net.body(x))
    return torch.nn.DataParallel(net), owned


HEADS = dict(
    plain=lambda net: (net, [net.head.fc.weight]),
    tied=tied,
    weight_norm=parametrized(torch.nn.utils.parametrizations.weight_norm),
    spectral_norm=parametrized(torch.nn.utils.parametrizations.spectral_norm),
    orthogonal=parametrized(torch.nn.utils.parametrizations.orthogonal),
    pruned=parametrized(lambda fc: prune.l1_unstructured(fc, 'weight', 2)),
    old_spectral_norm=parametrized(torch.nn.utils.spectral_norm),
    replaced=replaced,
    wrapped=wrapped,
)


@pytest.mark.parametrize('kind', HEADS)
def test_skip_finds_the_head(kind):
    net, owned = HEADS[kind](Net())
    net(torch.randn(5, 4)).square().sum().mul(1e3).backward()
    before = {id(p): p.grad.clone() for p in net.parameters()}
    adaptive_clip_grad_(net, skip=['head.fc.weight'])
    for p in net.parameters():
        same = torch.equal(p.grad, before[id(p)])
        assert same == any(p is q for q in owned)


@pytest.mark.parametrize(
    ('skip', 'message'),
    [
        ('haed', "skip='haed' is in no parameter name; close names: head.fc.weight"),
        (['head', 'nck.weight'], "skip='nck.weight' is in no parameter name"),
        ('', 'must not be empty'),
        ('module', "skip='module' is in no parameter name"),
    ],
)
def test_skip_that_names_nothing(skip, message):
    with pytest.raises(ValueError, match=message):
        adaptive_clip_grad_(torch.nn.DataParallel(Net()), skip=skip)


def test_skip_needs_names():
    net = Net()
    with pytest.raises(ValueError, match='give the module, or module.named_parameters'):
        adaptive_clip_grad_(net.parameters(), skip='head')
    with pytest.raises(TypeError, match='skip must be a Sequence'):
        adaptive_clip_grad_(net, skip=3)
    with pytest.raises(TypeError, match='a pattern of skip must be a str'):
        adaptive_clip_grad_(net, skip=[3])


def test_in_a_plain_loop_as_by_hand():
    net, twin = Net(), Net()
    twin.load_state_dict(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        x = torch.randn(5, 4)
        optimizer.zero_grad()
        net(x).square().sum().backward()
        adaptive_clip_grad_(net, 0.02, eps=0.01, skip=['head.fc'])
        optimizer.step()

        body, head = torch.autograd.grad(
            twin(x).square().sum(), (twin.body.weight, twin.head.fc.weight)
        )
        body = by_formula(twin.body.weight, body, 0.02, 0.01).float()
        with torch.no_grad():
            twin.body.weight -= 0.1 * body
            twin.head.fc.weight -= 0.1 * head
    for p, q in zip(net.parameters(), twin.parameters()):
        torch.testing.assert_close(p, q)
