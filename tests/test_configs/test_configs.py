"""Every shipped config parses, builds and trains one step on fake data of its own shape."""

import re

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, TRANSFORMS, init_default_scope
from mmengine.visualization import Visualizer
from mmpretrain.structures import DataSample

from nf_plugins.spp.inputs import config_input_size, image_channels

from ..conftest import ROOT, without_memory

EVERY = sorted(
    path.relative_to(ROOT / 'configs').as_posix()
    for path in (ROOT / 'configs').rglob('*.py')
    if '_base_' not in path.parts
)
CONFIGS = [name for name in EVERY if not name.startswith(('downstream/', 'timm/'))]
"""Classifiers to train; tests/test_downstream and test_models/test_hub.py have the others."""
SHORT = {
    'VisionTransformer': dict(
        embed_dims=768, num_layers=1, num_heads=12, feedforward_channels=3072
    ),
    'ConvNeXt': dict(depths=[1, 1, 1, 1], channels=[128, 256, 512, 1024]),
}
QUICK = ('digits', 'nf-resnet50_8xb32', 'nf-regnet-b0')


def load(name):
    cfg = Config.fromfile(str(ROOT / 'configs' / name))
    init_default_scope(cfg.default_scope)
    return cfg


def shallow(cfg, blocks):
    """The config with so many blocks of each stage, as one is like the others."""
    backbone = cfg.model.backbone
    if backbone.type in SHORT and isinstance(backbone.arch, str):  # a dict is short enough
        backbone.arch = SHORT[backbone.type]
    elif isinstance(backbone.get('arch'), str):
        backbone.arch = dict(base=backbone.arch, depths=(blocks,) * 4)
    elif isinstance(backbone.get('arch'), dict) and 'embed_dims' not in backbone.arch:
        backbone.arch.depths = (blocks,) * 4
    elif backbone.type == 'nf_plugins.NFResNet':
        backbone.depth = (blocks,) * 4
    return cfg


def mark(name):
    return pytest.param(name, marks=[] if any(q in name for q in QUICK) else [pytest.mark.slow])


@pytest.mark.parametrize('name', [mark(name) for name in CONFIGS])
def test_one_training_step(name):
    cfg = shallow(load(name), 1)
    model = MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor})
    model.init_weights()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    height, width = config_input_size(cfg)
    if cfg.model.backbone.type != 'VisionTransformer':  # which takes images of one size
        height, width = min(height, 64), min(width, 64)
    channels = image_channels(model.backbone)
    images = 1 if name.startswith('nfnet') else 2  # a large network, and no batch statistics
    batch = dict(
        inputs=[
            torch.randint(0, 256, (channels, height, width), dtype=torch.uint8)
            for _ in range(images)
        ],
        data_samples=[DataSample().set_gt_label(i) for i in range(images)],
    )
    with torch.no_grad():
        prepared = model.data_preprocessor(batch)
        features = model.extract_feat(prepared['inputs'])
    assert features[-1].shape == (images, model.head.in_channels)
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes

    losses = model.train_step(batch, optim_wrapper)
    assert losses['loss'].isfinite()
    moved = {id(p) for group in optim_wrapper.param_groups for p in group['params']}
    assert moved >= {id(p) for p in model.parameters() if p.requires_grad}
    assert model.head.fc.weight.isfinite().all()


@pytest.mark.parametrize('name', CONFIGS)
def test_pipelines_build(name):
    cfg = load(name)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for transform in cfg[loader].dataset.pipeline:
            TRANSFORMS.build(transform)


@pytest.mark.parametrize('name', CONFIGS)
def test_hooks_build(name):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    init_default_scope(cfg.default_scope)
    Visualizer.get_instance('test_hooks_build')  # which mmpretrain's hook asks for
    hooks = [*cfg.default_hooks.values(), *cfg.get('custom_hooks', [])]
    assert all(isinstance(HOOKS.build(hook), Hook) for hook in hooks)
    watched = ('digits' in name and 'nf-' in name) or 'step_cifar100' in name
    has_hook = any(hook['type'] == 'nf_plugins.SPPHook' for hook in hooks)
    wanted = 'needs' if watched else 'must not have'
    assert watched == has_hook, f"{name} {wanted} custom_hooks = [dict(type='nf_plugins.SPPHook')]"


@pytest.mark.parametrize('name', CONFIGS)
def test_auto_scale_lr_knows_the_batch_that_the_lr_is_for(name):
    """The base batch is that of the file's name (GPUs x images), but where the paper's is."""
    cfg = load(name)
    per_gpu = cfg.train_dataloader.batch_size
    named = re.search(r'_(\d+)xb(\d+)', name)
    if named:
        assert per_gpu == int(named[2])
        assert cfg.auto_scale_lr.base_batch_size == int(named[1]) * int(named[2])
    else:
        assert cfg.auto_scale_lr.base_batch_size == per_gpu
    assert not cfg.auto_scale_lr.get('enable', False)


@pytest.mark.parametrize('name', ['nfnet-f0_32xb128_in1k.py', 'nf-regnet-b0_8xb128_in1k.py'])
def test_ema_warms_up_as_published(name):
    """DeepMind's decay is min(0.99999, (1 + step) / (10 + step))."""
    (hook,) = load(f'{"nfnet" if "nfnet" in name else "nf_regnet"}/{name}').custom_hooks
    assert hook.type == 'EMAHook'
    source = torch.nn.Linear(1, 1, bias=False).requires_grad_(False)
    options = {k: v for k, v in hook.items() if k not in ('type', 'ema_type', 'priority')}
    averaged = MODELS.build(dict(type=hook.ema_type, model=source, **options))
    averaged.update_parameters(source)
    source.weight.zero_()
    for step in (1, 10, 1000, 50_000, 2_000_000):
        averaged.steps.fill_(step)
        averaged.module.weight.fill_(1.0)
        averaged.update_parameters(source)
        momentum = 1 - averaged.module.weight.item()
        assert momentum == pytest.approx(max(1e-5, 9 / (10 + step)), rel=0.15)


def test_names_are_unique_for_mim():
    names = [path.name for path in (ROOT / 'configs').rglob('*.py')]
    assert len(names) == len(set(names))


PWS_SETTINGS = {
    'pws-resnet34_1xb128_cifar10.py': (34, 'cifar', 1e-3, False, False),
    'pws-resnet34-equiv_1xb128_cifar10.py': (34, 'cifar', 0.1, True, True),
    'pws-resnet50_1xb64_in1k.py': (50, 'imagenet', 1e-4, False, True),
    'pws-resnet50-equiv_1xb64_in1k.py': (50, 'imagenet', 0.1, True, True),
}


@pytest.mark.parametrize('name', PWS_SETTINGS)
def test_published_pws_settings(name):
    depth, stem, gamma, equiv, initalpha = PWS_SETTINGS[name]
    cfg = load(f'pws_resnet/{name}')
    backbone, conv_cfg = cfg.model.backbone, cfg.model.backbone.conv_cfg
    assert (backbone.depth, backbone.get('stem', 'imagenet')) == (depth, stem)
    assert conv_cfg.mode == 'fan_in'
    assert (conv_cfg.gamma, conv_cfg.get('equiv', False)) == (gamma, equiv)
    assert conv_cfg.initalpha == initalpha
    one_group = dict(type='GN', num_groups=1)
    assert backbone.norm_cfg == cfg.model.neck.norm_cfg == one_group
    optimizer, schedule = cfg.optim_wrapper.optimizer, cfg.param_scheduler
    batch, lr, decay, epochs, steps = (
        (128, 0.1, 5e-4, 200, [100, 150])
        if 'cifar' in name
        else (64, 0.025, 1e-4, 100, [30, 60, 90])
    )
    assert cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == batch
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('SGD', lr, decay)
    assert (cfg.train_cfg.max_epochs, schedule.milestones) == (epochs, steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'arch', 'options', 'extra'),
    [
        ('deit-base-dyt', 'vit_base_patch16_224', dict(global_pool='avg'), 1),
        ('deit-base-derf', 'vit_base_patch16_224', dict(global_pool='avg'), 2),
        ('convnext-base-dyt', 'convnext_base', {}, 1),
    ],
)
def test_dyt_networks_are_those_of_the_authors(name, arch, options, extra):
    """They take timm's, and each layer norm becomes a layer with one number more, or two."""
    timm = pytest.importorskip('timm')
    with without_memory():
        theirs = timm.create_model(arch, **options)
        ours = MODELS.build({**load(f'dyt/{name}_32xb128_in1k.py').model, 'train_cfg': None})
    norms = sum(isinstance(m, torch.nn.LayerNorm) for m in theirs.modules())
    kinds = [m for m in ours.modules() if type(m).__name__ in ('DyT', 'Derf')]
    assert len(kinds) == norms > 20
    assert not any(isinstance(m, torch.nn.LayerNorm) for m in ours.modules())
    counts = [sum(p.numel() for p in net.parameters()) for net in (theirs, ours)]
    assert counts[1] == counts[0] + extra * norms


@pytest.mark.slow
def test_the_model_index_lists_every_config_of_ours():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    listed = {}
    for metafile in index['Import']:
        content = yaml.safe_load((ROOT / metafile).read_text())
        collections = {c['Name'] for c in content['Collections']}
        for model in content['Models']:
            assert model['In Collection'] in collections
            listed[model['Config']] = model
    ours = {f'configs/{n}' for n in EVERY if not n.startswith('baselines/')}
    assert listed.keys() == ours, (
        'model-index.yml must list the metafile of each folder, and the metafile each config: '
        f'not listed: {sorted(ours - listed.keys())}, not there: {sorted(listed.keys() - ours)}'
    )
    for name in CONFIGS:
        if name.startswith('baselines/'):
            continue
        cfg, model = load(name), listed[f'configs/{name}']
        with without_memory():
            net = MODELS.build({**cfg.model, 'train_cfg': None})
        count = sum(p.numel() for p in net.parameters())
        assert model['Metadata']['Parameters'] == count, f'{name}: set Parameters: {count}'
