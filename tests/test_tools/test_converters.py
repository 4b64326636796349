"""The converters and the fold, as a user runs them."""

import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from nf_plugins.checkpoint import safe_load
from nf_plugins.checkpoint.haiku import read_haiku
from nf_plugins.layers import StandardizedConv2d

from ..conftest import DATA, relative_error, sample
from ..test_models.official import F0W8, arrays
from ..tools import run_tool

F0W8_CONFIG = f"""
model = dict(
    type='ImageClassifier',
    backbone=dict(type='NFNet', arch={F0W8!r}),
    neck=dict(
        type='ReLUNeck',
        in_channels=384,
        act_cfg=dict(type='GammaAct', act='GELU', approximate='tanh'),
    ),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=384),
)
default_scope = 'mmpretrain'
"""
PWS_CONFIG = """
norm_cfg = dict(type='GN', num_groups=1)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='PWSResNet', depth=50, base_channels=8, stem_channels=8, norm_cfg=norm_cfg,
        conv_cfg=dict(type='PWS', gamma=1e-4, mode='fan_in', initalpha=True)),
    neck=dict(type='ReLUNeck', in_channels=256, norm_cfg=norm_cfg),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=256),
)
default_scope = 'mmpretrain'
"""


NF_RESNET_CONFIG = """
model = dict(
    type='ImageClassifier',
    backbone=dict(type='NFResNet', depth=26, base_channels=8, attention='se'),
    neck=dict(type='ReLUNeck', in_channels=256, act_cfg=dict(type='GammaAct', act='ReLU')),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=256),
)
default_scope = 'mmpretrain'
"""
NF_REGNET_CONFIG = """
model = dict(
    type='ImageClassifier',
    backbone=dict(type='NFRegNet', arch=dict(base='b0', width_mult=0.25)),
    neck=dict(type='ReLUNeck', in_channels=320, act_cfg=dict(type='GammaAct', act='SiLU')),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=320),
)
default_scope = 'mmpretrain'
"""


def convert(tool, *args):
    return run_tool(f'model_converters/{tool}', *args)


def build(config):
    cfg = Config.fromfile(str(config))
    init_default_scope('mmpretrain')
    return MODELS.build(cfg.model).eval()


def logits(model, x):
    with torch.no_grad():
        return model.head.fc(model.extract_feat(x)[-1])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / 'f0.py').write_text(F0W8_CONFIG)
    (tmp_path / 'pws.py').write_text(PWS_CONFIG)
    (tmp_path / 'nf_resnet.py').write_text(NF_RESNET_CONFIG)
    (tmp_path / 'nf_regnet.py').write_text(NF_REGNET_CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('source', ['F0w8_haiku', 'F0w8_flatmapping_haiku', 'nfnet_F0w8_gelu'])
def test_published_haiku_weights(source, folder):
    assert convert('haiku_to_nf', DATA / f'{source}.npz', 'out.pth', '--config', 'f0.py') == 0
    model = build('f0.py')
    model.load_state_dict(safe_load('out.pth')['state_dict'])
    data = arrays('nfnet_F0w8_gelu')
    for size in ('64x64', '65x71'):
        x = torch.from_numpy(data[f'input/{size}']).permute(0, 3, 1, 2)
        if source == 'nfnet_F0w8_gelu':
            assert relative_error(logits(model, x), data[f'out/{size}/logits']) < 1e-4
        else:  # the same network with other weights: finite and not the reference's
            assert logits(model, x).isfinite().all()
    params = read_haiku(DATA / f'{source}.npz')
    kernel = params['NFNet.stem_conv0.w'].transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(model.backbone.stem.conv1.weight.detach(), kernel)


def test_both_pickles_hold_the_same_arrays():
    a, b = (read_haiku(DATA / f'{name}.npz') for name in ('F0w8_haiku', 'F0w8_flatmapping_haiku'))
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize('suffix', ['.npz', '.pth', '.safetensors'])
def test_pwsconv_weights(suffix, folder):
    with np.load(DATA / 'r50_pws.npz') as data:
        data = {name: torch.from_numpy(data[name]) for name in data.files}
    state = {k: v for k, v in data.items() if k.startswith(('backbone.', 'neck.'))}
    state['head.fc.weight'], state['head.fc.bias'] = torch.randn(10, 256), torch.randn(10)
    source = f'epoch_100{suffix}'
    if suffix == '.npz':
        np.savez(source, **{name: value.numpy() for name, value in state.items()})
    elif suffix == '.pth':
        torch.save(dict(state_dict=state, epoch=100, optimizer={}), source)
    else:
        from safetensors.torch import save_file

        save_file(state, source)
    assert convert('pwsconv_to_nf', source, 'out.pth', '--config', 'pws.py') == 0
    model = build('pws.py')
    model.load_state_dict(safe_load('out.pth')['state_dict'])
    features = model.extract_feat(data['x'])[-1]
    assert relative_error(features, data['pooled']) < 1e-4
    model.train()(100 * data['x'])  # trained weights: initalpha must not fire
    assert torch.equal(model.backbone.conv1.alpha, state['backbone.conv1.alpha'])


class Harmful:
    def __reduce__(self):
        return os.mkdir, ('harmed',)


def bad_haiku(kind):
    """Damaged versions of the published file."""
    whole = (DATA / 'F0w8_haiku.npz').read_bytes()
    tree = read_haiku(DATA / 'F0w8_haiku.npz')
    if kind == 'truncated':
        return whole[:-1000]
    if kind == 'harmful':
        return pickle.dumps({**tree, 'extra': Harmful()})
    if kind == 'renamed':
        tree['NFNet.nf_block_3.conv9.w'] = tree.pop('NFNet.nf_block_3.conv0.w')
    if kind == 'missing':
        del tree['NFNet.linear.b']
    if kind == 'reshaped':
        tree['NFNet.linear.w'] = tree['NFNet.linear.w'][:, :3]
    if kind == 'another':
        tree['NFNet.nf_block_12.conv0.w'] = tree['NFNet.nf_block_3.conv0.w']
    if kind == 'objects':
        tree['NFNet.linear.w'] = np.array([{}], dtype=object)
    if kind == 'list':
        return pickle.dumps([1, 2])
    if kind == 'empty':
        return b''
    return pickle.dumps(tree)


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('truncated', 'is not a readable file of weights'),
        ('harmful', r'is refused: it names posix\.mkdir'),
        ('renamed', r'1 source keys have no place.*conv9\.w; 1 model keys are left empty'),
        ('missing', r'1 model keys are left empty: head\.fc\.bias'),
        ('reshaped', r'1 shapes differ: NFNet\.linear\.w -> head\.fc\.weight: \(3, 384\)'),
        ('another', r'1 source keys have no place in the model: NFNet\.nf_block_12\.conv0\.w'),
        ('objects', r"an array of 'O8' is refused"),
        ('list', 'holds no parameters'),
        ('empty', 'is not a readable file of weights'),
    ],
)  # fmt: skip
def test_bad_weights_are_refused(kind, message, folder, capsys):
    import re

    (folder / 'bad.npz').write_bytes(bad_haiku(kind))
    before = sorted(os.listdir(folder))
    assert convert('haiku_to_nf', 'bad.npz', 'out.pth', '--config', 'f0.py') == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith('error: cannot ')
    assert re.search(message, line), line
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize(
    ('tool', 'args', 'message'),
    [
        ('haiku_to_nf', ['none.npz', 'out.pth', '--config', 'f0.py'], 'no weights at none.npz'),
        ('timm_to_nf', ['none.pth', 'out.pth', '--config', 'f0.py'], 'no checkpoint at none.pth'),
        ('timm_to_nf', ['zip.npz', 'out.pth', '--config', 'f0.py'], 'source keys have no place'),
        ('timm_to_nf', ['zip.npz', 'out.pth', '--config', 'pws.py'], 'a normalizer-free backbone'),
        ('timm_to_nf', ['evil.pth', 'out.pth', '--config', 'f0.py'], 'it names .*mkdir'),
        ('pwsconv_to_nf', ['cut.npz', 'out.pth', '--config', 'pws.py'], 'not a readable file'),
        ('pwsconv_to_nf', ['cut.safetensors', 'o.pth', '--config', 'pws.py'], 'not a readable'),
        ('pwsconv_to_nf', ['zip.npz', 'f0.py/out.pth', '--config', 'pws.py'], 'cannot write'),
        ('pwsconv_to_nf', ['zip.npz', 'out.pth', '--config', 'none.py'], 'no config at none.py'),
        ('fold', ['f0.py', 'none.pth', 'out.pth'], 'no checkpoint at none.pth'),
        ('fold', ['f0.py', 'evil.pth', 'out.pth'], 'it names .*mkdir'),
        ('fold', ['f0.py', 'zero.pth', 'out.pth'], 'another model: 0 of'),
        ('fold', ['f0.py', 'zero.pth', 'out.py'], 'would be overwritten by the config'),
    ],
)
def test_bad_arguments(tool, args, message, folder, capsys):
    import re

    np.savez('zip.npz', a=np.ones(3))
    (folder / 'cut.npz').write_bytes((folder / 'zip.npz').read_bytes()[:-30])
    (folder / 'cut.safetensors').write_bytes(b'\x10\0\0\0\0\0\0\0{"a":')
    torch.save(dict(a=torch.ones(1), b=Harmful()), 'evil.pth')
    torch.save(dict(a=torch.ones(1)), 'zero.pth')
    before = sorted(os.listdir(folder))
    assert convert(tool, *args) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line), line
    assert sorted(os.listdir(folder)) == before


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')  # of the exporter
@pytest.mark.parametrize(
    ('config', 'more'),
    sample(
        [
            ('few_of_f0.py', []),
            ('pws.py', []),
            ('nf_resnet.py', ['--dynamic-size']),
            ('few_of_nf_regnet.py', []),
        ],
        lambda case: case[0] in ('pws.py', 'nf_resnet.py'),
    ),
)
def test_fold_and_onnx(config, more, folder, capsys):
    import onnx
    import onnxruntime

    for name in ('f0', 'nf_regnet'):
        few = f"_base_ = './{name}.py'\nmodel = dict(backbone=dict(arch=dict(depths=(1, 2, 1, 1))))"
        (folder / f'few_of_{name}.py').write_text(few)
    model = build(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(('gain', 'alpha', 'bias')):
                p.uniform_(0.5, 1.5)
    torch.save(dict(state_dict=model.state_dict(), meta={}), 'trained.pth')
    options = ['--onnx', 'folded.onnx', '--input-size', 65, *more]
    assert convert('fold', config, 'trained.pth', 'sub/folded.pth', *options) == 0

    folded = build('sub/folded.py')
    folded.load_state_dict(safe_load('sub/folded.pth')['state_dict'])
    assert not any(isinstance(m, StandardizedConv2d) for m in folded.modules())
    assert f'ONNX: images of {"any size" if more else "65x65"}, ' in capsys.readouterr().out
    session = onnxruntime.InferenceSession('folded.onnx')
    for size in [(65, 65), (64, 96), (33, 70)] if more else [(65, 65)]:
        x = torch.randn(3, 3, *size)
        expected = logits(model, x)
        assert relative_error(logits(folded, x), expected) < 1e-5
        (scores,) = session.run(None, {'images': x.numpy()})
        assert relative_error(torch.from_numpy(scores), expected) < 1e-4
    graph = onnx.load('folded.onnx').graph
    constants = {initializer.name for initializer in graph.initializer}
    convs = [node for node in graph.node if node.op_type == 'Conv']
    assert len(convs) == sum(isinstance(m, nn.Conv2d) for m in folded.modules())
    assert all(node.input[1] in constants for node in convs)  # nothing standardizes them
