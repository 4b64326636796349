"""A network is fed with whatever it is called with: arguments, tokens, batches of data, parts."""

from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
import torchvision
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import nn

from nf_plugins.spp import analyze, find_residuals, unwrap
from nf_plugins.spp.feed import explained

GEN = torch.Generator().manual_seed(0)
X = torch.randn(2, 3, 8, 8, generator=GEN)
TOKENS = torch.randint(0, 10, (2, 5), generator=GEN)


class Block(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return x + self.conv2(torch.relu(self.conv1(x)))


class Timed(nn.Module):
    """Two inputs, and none of them has a default."""

    def __init__(self):
        super().__init__()
        self.embed, self.block = nn.Linear(1, 3), Block()

    def forward(self, sample, time):
        return self.block(sample + self.embed(time.float().view(-1, 1))[:, :, None, None])


class LM(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 10)

    def forward(self, ids, mask=None):
        return self.head(self.layers(self.embed(ids)))


def kinds(profile):
    return [(b.name, b.kind) for b in profile.blocks if b.kind != 'stem']


TIME = torch.tensor([3, 4])
BLOCK = [('block', 'residual')]


@pytest.mark.parametrize(
    ('inputs', 'call'),
    [
        ((X, TIME), None),
        (dict(sample=X, time=TIME), None),
        (dict(time=TIME, sample=X), None),
        (UserDict(sample=X, time=TIME), None),  # as a tokenizer's
        ({'a': [X], 'b': TIME}, lambda net, x: net(x['a'][0], time=x['b'])),
        (X, lambda net, x: net(x, TIME)),
    ],
)
def test_arguments(inputs, call):
    torch.manual_seed(0)
    net = Timed()
    x = X + net.embed(TIME[:, None].float())[..., None, None]
    expected = analyze(nn.Sequential(net.block), x)
    profile = analyze(net, inputs, call=call)
    assert kinds(profile) == BLOCK
    found = profile.blocks[-1]
    assert found.avg_var == pytest.approx(expected.blocks[-1].avg_var, rel=1e-6)
    assert found.res_avg_var == pytest.approx(expected.blocks[-1].res_avg_var, rel=1e-6)
    backward = analyze(net, inputs, call=call, backward=True)
    assert all(b.grad_avg_var > 0 for b in backward.blocks)
    if call is None:
        assert [r.name for r in find_residuals(net, inputs)] == ['block']


def test_what_the_profile_says_of_the_inputs():
    assert analyze(Block(), X).input == dict(shape=[2, 3, 8, 8])
    assert analyze(Timed(), (X, TIME)).input == dict(shape=[2, 3, 8, 8], shapes=[[2, 3, 8, 8], [2]])


def test_inputs_are_not_written_into():
    class Inplace(Block):
        def forward(self, x):
            return super().forward(x.mul_(2))

    x = X.clone()
    for backward in (False, True):
        analyze(Inplace(), x, backward=backward)
        analyze(Inplace(), dict(x=x), backward=backward)
        assert torch.equal(x, X)


@pytest.mark.parametrize('frozen', [False, True])
def test_tokens(frozen):
    torch.manual_seed(0)
    net = LM().requires_grad_(not frozen)
    names = [f'layers.layers.{i}.{part}' for i in (0, 1) for part in ('self_attn', 'linear2')]
    profile = analyze(net, TOKENS, backward=True)
    assert [b.name for b in profile.blocks] == ['stem', *names]
    # The same from the embedding on.
    rest = nn.Sequential(net.layers, net.head)
    floats = analyze(rest, net.embed(TOKENS).detach(), backward=True)
    for block, other in zip(profile.blocks[1:], floats.blocks[1:]):
        assert block.avg_var == pytest.approx(other.avg_var, rel=1e-5)
        assert block.grad_avg_var == pytest.approx(other.grad_avg_var, rel=1e-5)
    assert not any(p.requires_grad for p in net.parameters()) == frozen
    assert all(p.grad is None for p in net.parameters())


@dataclass
class Output:
    first: torch.Tensor
    second: torch.Tensor


@pytest.mark.parametrize('named', [lambda a, b: dict(a=a, b=b), Output, namedtuple('Pair', 'a b')])
def test_gradients_start_at_the_first_named_output(named):
    class Two(nn.Module):
        def __init__(self, pack):
            super().__init__()
            self.first, self.second, self.pack = Block(), Block(), pack

        def forward(self, x):
            x = self.first(x)
            return self.pack(x, self.second(x))

    torch.manual_seed(0)
    _, *blocks = analyze(Two(named), X, backward=True).blocks
    assert [b.grad_avg_var is not None for b in blocks] == [True, False]
    _, *blocks = analyze(Two(lambda *pair: pair), X, backward=True).blocks
    assert [b.grad_avg_var is not None for b in blocks] == [True, True]


# ------------------------------------------------------------------ parts
class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = Block(), Block()

    def forward(self, x, mask=None):
        return self.head(self.backbone(x))


class MMSegmenter(BaseModel):
    """As those of mmseg and mmdet."""

    def __init__(self):
        super().__init__(dict(type='ImgDataPreprocessor', mean=[1] * 3, std=[2] * 3))
        self.backbone, self.head = Block(), Block()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        out = self.head(self.backbone(inputs))
        assert mode in ('loss', 'tensor')
        if mode == 'tensor':
            return out
        targets = torch.stack([sample.target for sample in data_samples])
        return dict(loss=(out - targets).square().mean())


def names(profile):
    return [b.name for b in profile.blocks if b.kind != 'stem']


def test_only_a_part_that_images_are_fed_to_is_taken_out():
    assert names(analyze(Segmenter(), X)) == ['backbone', 'head']
    part = analyze(Segmenter(), X, module='backbone')
    assert len(part.blocks) == 2
    assert part.input['module'] == 'backbone'
    model = MMSegmenter()
    assert unwrap(model) is model.backbone
    assert unwrap(model, whole=True) is model
    assert analyze(model, X).input['module'] == 'backbone'
    assert names(analyze(model, X, module='')) == ['backbone', 'head']
    assert names(analyze(nn.DataParallel(model), X, module='head')) == names(part)


def samples():
    return [BaseDataElement(target=torch.zeros(3, 8, 8)) for _ in range(2)]


@pytest.mark.parametrize('mode', ['train', 'eval'])
@pytest.mark.parametrize(
    'inputs',
    [
        [*(X * 2 + 1)],  # as a data loader gives them
        (X * 100).to(torch.uint8),
        X,  # preprocessed
    ],
    ids=['list', 'bytes', 'floats'],
)
def test_batches_of_data(inputs, mode):
    torch.manual_seed(0)
    model = MMSegmenter()
    batch = dict(inputs=inputs, data_samples=samples())
    profile = analyze(model, batch, mode=mode, backward=True)
    assert names(profile) == ['backbone', 'head']
    assert all(b.grad_avg_var > 0 for b in profile.blocks)
    raw = not isinstance(inputs, torch.Tensor) or not inputs.is_floating_point()
    images = model.data_preprocessor(batch)['inputs'] if raw else inputs
    images = torch.stack(images) if isinstance(images, list) else images
    expected = analyze(nn.Sequential(model.backbone, model.head), images, mode=mode)
    for block, other in zip(profile.blocks[1:], expected.blocks[1:]):
        assert block.avg_var == pytest.approx(other.avg_var, rel=1e-5)
    assert names(analyze(model.backbone, dict(inputs=images, data_samples=None))) == names(
        analyze(model.backbone, images)
    )


@pytest.mark.parametrize('mode', ['train', 'eval'])
@pytest.mark.slow
def test_detectors_of_torchvision(mode):
    torch.manual_seed(0)
    make = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn
    net = make(weights=None, weights_backbone=None, min_size=64)
    inputs = torch.rand(2, 3, 64, 64)
    found = names(analyze(net, inputs, mode=mode))
    assert 'backbone.body.1' in found
    part = names(analyze(net.backbone, inputs, mode=mode))
    assert [n.removeprefix('backbone.') for n in found if n.startswith('backbone')] == part


# ------------------------------------------------------------------ programs
def program(net, kind):
    if kind == 'traced':
        return torch.jit.trace(net, X)
    if kind == 'frozen':
        return torch.jit.freeze(torch.jit.script(net.eval()))
    exported = torch.export.export(net, (X,))
    return exported if kind == 'exported' else exported.module()


@pytest.mark.parametrize('kind', ['exported', 'module', 'traced', 'frozen'])
def test_programs(kind):
    torch.manual_seed(0)
    net = nn.Sequential(Block(), Block())
    profile = analyze(program(net, kind), X)
    blocks = [b for b in profile.blocks if b.kind == 'residual']
    for block, other in zip(blocks, analyze(net, X).blocks[1:]):
        assert block.avg_var == pytest.approx(other.avg_var, rel=1e-5)
    assert [b.name for b in blocks] == (['0', '1'] if kind == 'exported' else ['block1', 'block2'])
    assert profile.mode == ('train' if kind == 'traced' else 'asis')


# ------------------------------------------------------------------ errors
@pytest.mark.parametrize(
    ('net', 'inputs', 'error', 'words'),
    [
        (Timed(), X, TypeError, "'time'.* with \\(float32 2x3x8x8\\).*takes \\(sample, time\\)"),
        (Timed(), dict(x=X), TypeError, "'x'.*\\(x=float32 2x3x8x8\\).*call="),
        (Timed(), (X[:, :2], TIME), RuntimeError, 'length 3.*float32 2x2x8x8, int64 2'),
        (LM(), X, RuntimeError, 'Long, Int.*LM was called in train mode.*tuple of positional'),
    ],
)
def test_an_error_ends_with_what_was_passed(net, inputs, error, words):
    with pytest.raises(error, match=words):
        analyze(net, inputs)
    with pytest.raises(error, match='was called by the call='):
        call = (lambda m, x: m(**x)) if isinstance(inputs, dict) else lambda m, x: m(*x)
        analyze(net, inputs if isinstance(inputs, dict | tuple) else (inputs,), call=call)


@pytest.mark.parametrize(
    ('options', 'error', 'words'),
    [
        (dict(inputs=[1, 2]), TypeError, r'inputs must be a tensor, .* got \[1, 2\]'),
        (dict(inputs={}), TypeError, r'inputs must be a tensor, .* got \{\}'),
        (dict(inputs=X, module='head'), ValueError, "got 'head'; it has conv1, conv2"),
        (dict(inputs=X, model=3), TypeError, 'model must be an nn.Module, got 3'),
        (
            dict(inputs=X, model=len),
            TypeError,
            'model must be an nn.Module, got <built-in function len>',
        ),
    ],
)
def test_what_cannot_be_fed(options, error, words):
    with pytest.raises(error, match=words):
        analyze(**{'model': Block(), **options})


@pytest.mark.parametrize('error', [ValueError('a'), KeyError('a'), OSError(2, 'a'), RuntimeError()])
def test_explained(error):
    found = explained(error, 'with this')
    assert str(found).endswith('; with this')
    assert isinstance(found, (type(error), RuntimeError))
