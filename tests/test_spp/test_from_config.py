"""A config is measured in one way, whoever measures it."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from nf_plugins.errors import UsageError
from nf_plugins.models import NFResNet
from nf_plugins.spp import analyze
from nf_plugins.spp.from_config import (
    ConfiguredBackbone,
    Options,
    gaussian_inputs,
    measure_config,
)
from nf_plugins.spp.inputs import gaussian_batch

CONFIG = """model = dict(backbone=dict(type='nf_plugins.NFResNet', depth=26, base_channels=4))
train_dataloader = dict(dataset=dict(pipeline=[dict(type='Resize', scale=(40, 24))]))
"""
SMALL = Options(batch_size=2, input_size=(32, 32), seed=7)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'net.py'
    path.write_text(CONFIG)
    return str(path)


def save(net, path, **meta):
    torch.save(dict(state_dict=net.state_dict(), meta=meta), path)
    return str(path)


def test_at_initialisation(config):
    before = torch.get_rng_state()
    profile = measure_config(config, options=SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    net = MODELS.build(Config.fromfile(config).model.backbone)
    net.init_weights()
    expected = analyze(net, gaussian_batch((2, 3, 32, 32), 7), seed=7)
    assert profile.blocks == expected.blocks
    assert (profile.config, profile.checkpoint, profile.label) == (config, None, 'net')
    assert profile.input == dict(kind='gaussian', shape=[2, 3, 32, 32])


@pytest.mark.slow
def test_weights_of_one_checkpoint_are_not_left_for_the_next(config, tmp_path):
    paths = []
    for seed, iteration in ((1, 20), (2, 10)):
        torch.manual_seed(seed)
        net = NFResNet(26, base_channels=4, skipinit=float(seed))
        paths.append(save(net, tmp_path / f'{seed}.pth', epoch=1, iter=iteration))
    network = ConfiguredBackbone(config, SMALL)
    start = network.measure().blocks
    network.check(paths)
    records = network.measure_training(paths)
    assert [(r.iter, r.source) for r in records] == [(10, paths[1]), (20, paths[0])]
    for record in records:
        single = measure_config(config, record.source, SMALL)
        assert record.profile.blocks == single.blocks != start
        assert record.profile.checkpoint == record.source
    assert network.measure().blocks == start


def test_the_hook_and_the_tools_have_the_same_noise(config):
    net = NFResNet(26, base_channels=4)
    cfg = Config.fromfile(config)
    assert torch.equal(gaussian_inputs(cfg, net, 3, None, 5), gaussian_batch((3, 3, 24, 40), 5))
    assert torch.equal(gaussian_inputs(cfg, net, 3, [8], 5), gaussian_batch((3, 3, 8, 8), 5))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(device='quantum'), 'cannot use the device quantum'),
        (dict(batch_size=10**12), 'cannot make noise of shape'),
        (dict(input='val'), 'cannot read the val data of .*net.py: the config has no val_data'),
        (dict(input='nowhere'), 'cannot read the images of nowhere'),
        (dict(mode='test'), 'cannot run the backbone of .*net.py on 8 inputs of 3x24x40'),
    ],
)
def test_what_cannot_be_measured(options, message, config):
    with pytest.raises(UsageError, match=message):
        measure_config(config, options=Options(**options))


def test_a_checkpoint_of_another_network(config, tmp_path):
    path = save(torch.nn.Linear(2, 2), tmp_path / 'a.pth')
    with pytest.raises(UsageError, match='a.pth is for another model'):
        ConfiguredBackbone(config, SMALL).check([path])


RESNET = "dict(type='ResNet', depth=18, stem_channels=8, base_channels=8)"
WHOLE = """model = dict(type='ImageClassifier', backbone=BACKBONE,
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', in_channels=64, num_classes=3))
default_scope = 'mmpretrain'
""".replace('BACKBONE', RESNET)


def written(tmp_path, text):
    path = tmp_path / 'net.py'
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ('model', 'part'),
    [
        (f"dict(type='Unknown', image_encoder={RESNET})", 'image_encoder'),
        (f'dict(vision_backbone={RESNET}, text_backbone=dict(type="LeNet5"))', 'vision_backbone'),
        (f'dict(vision_encoder=dict(pretrained="a.pth", **{RESNET}))', 'vision_encoder'),
        (f'dict(image_encoder=[{RESNET}, dict(type="GlobalAveragePooling")])', 'image_encoder'),
    ],
)
def test_the_part_that_reads_images(model, part, tmp_path):
    path = written(tmp_path, f"model = {model}\ndefault_scope = 'mmpretrain'\n")
    network = ConfiguredBackbone(path, SMALL)
    profile = network.measure()
    assert profile.input['module'] == network.part == part
    assert len(profile.blocks) == 9
    state = {f'{part}.{k}': v for k, v in network.backbone.state_dict().items()}
    save = str(tmp_path / 'a.pth')
    torch.save(dict(state_dict={**state, 'head.weight': torch.ones(1)}), save)
    assert network.measure(save).blocks == profile.blocks


@pytest.mark.parametrize(('module', 'first'), [('', 'backbone.layer1.0'), ('backbone', 'layer1.0')])
def test_a_part_that_is_named(module, first, tmp_path):
    options = Options(batch_size=2, input_size=(32, 32), module=module)
    profile = measure_config(written(tmp_path, WHOLE), options=options)
    assert profile.blocks[1].name == first
    assert len(profile.blocks) == 9


@pytest.mark.parametrize(
    ('text', 'module', 'message'),
    [
        (WHOLE, 'stem', 'cannot build stem of .*its parts are .*backbone, neck, head'),
        (WHOLE, 'backbone.layer9', 'cannot build backbone.layer9'),
        (WHOLE, 'head', 'cannot run head .*--module.* with .float32 2x3x32x32'),
        (WHOLE, 'neck', 'neck of .*GlobalAveragePooling has nothing that can be measured'),
        (
            "model = dict(type='A', text=dict(type='B'), sound=dict(type='C'))",
            None,
            'has no backbone.*parts with --module: text, sound',
        ),
        ("model = dict(type='A', size=3)", None, 'has no backbone.*it has type, size'),
        ("model = dict(type='A', backbone=dict(depth=3))", None, 'must contain the key "type"'),
        ("model = dict(backbone=dict(type='NoSuch'))", None, 'NoSuch is not in'),
    ],
)
def test_parts_that_cannot_be_measured(text, module, message, tmp_path):
    options = Options(batch_size=2, input_size=(32, 32), module=module)
    with pytest.raises(UsageError, match=message):
        measure_config(written(tmp_path, text), options=options)


@pytest.mark.parametrize('before', [None, 'mmpretrain', 'mmengine'])
def test_types_without_a_default_scope(before, tmp_path):
    """They are looked up in the installed libraries, whatever config was read before."""
    if before:
        init_default_scope(before)
    head = WHOLE.partition('default_scope')[0]
    network = ConfiguredBackbone(written(tmp_path, head), SMALL)
    assert network.cfg.default_scope == 'mmpretrain'
    assert len(network.measure().blocks) == 9
