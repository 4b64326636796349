"""Each library's own way to make a batch, through the tools."""

import pytest
import torch
from mmengine.config import Config

from ..tools import run_tool
from .common import FOLDER

SMALL = FOLDER / 'fcn_nf-resnet26-d4_shapes.py'
MMSEG = f"""
_base_ = '{SMALL}'
train_pipeline = [
    dict(type='RandomResize', scale=(64, 64), ratio_range=(0.5, 1.0), keep_ratio=True),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=4, dataset=dict(num_images=8, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(num_images=4))
model = dict(backbone=dict(base_channels=4), decode_head=dict(in_channels=128, channels=8),
             auxiliary_head=dict(in_channels=64, channels=8))
train_cfg = dict(max_epochs=1)
"""
# A model of our own, as those of mmdet need the compiled operators of mmcv.
OTHER = """
custom_imports = dict(imports=['uneven'], allow_failed_imports=False)
default_scope = '{scope}'
model = dict(type='Uneven')
train_dataloader = dict(batch_size=4, num_workers=0,
    dataset=dict(type='UnevenImages'), sampler=dict(type='DefaultSampler', shuffle=False))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
train_cfg = dict(by_epoch=True, max_epochs=1)
"""
UNEVEN = """
import torch
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS

SEEN = []

@DATASETS.register_module(force=True)
class UnevenImages(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return dict(inputs=torch.zeros(3, 4 + index, 5))

@MODELS.register_module(force=True)
class Uneven(BaseModel):
    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.weight = torch.nn.Parameter(torch.ones(()))
    def forward(self, inputs, mode='tensor'):
        SEEN.extend(tuple(image.shape) for image in inputs)
        return dict(loss=self.weight.square())
"""


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')  # of mmseg and mmengine
def test_mmseg_trains_on_images_of_different_sizes(tmp_path, monkeypatch):
    pytest.importorskip('mmseg')
    from mmseg.models import SegDataPreProcessor

    sizes = set()
    prepare = SegDataPreProcessor.forward

    def record(self, data, training=False):
        if training:
            sizes.update(tuple(image.shape[1:]) for image in data['inputs'])
        return prepare(self, data, training)

    monkeypatch.setattr(SegDataPreProcessor, 'forward', record)
    config = tmp_path / 'uneven_mmseg.py'
    config.write_text(MMSEG)
    assert run_tool('train', config, '--work-dir', tmp_path / 'first') == 0
    assert len(sizes) > 2
    # The config that mmengine has written there is one to train with.
    dumped = tmp_path / 'first' / config.name
    assert 'collate_fn' not in Config.fromfile(dumped).train_dataloader
    assert run_tool('train', dumped, '--work-dir', tmp_path / 'second') == 0


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('scope', ['mmdet', 'mmengine'])
def test_others_train_on_images_of_different_sizes(scope, tmp_path, monkeypatch):
    if scope == 'mmdet':
        pytest.importorskip('mmdet.engine', exc_type=ImportError)  # needs mmcv's compiled operators
    (tmp_path / 'uneven.py').write_text(UNEVEN)
    (tmp_path / 'config.py').write_text(OTHER.format(scope=scope))
    monkeypatch.syspath_prepend(tmp_path)
    assert run_tool('train', tmp_path / 'config.py', '--work-dir', tmp_path / 'w') == 0
    import uneven

    assert sorted(uneven.SEEN[-8:]) == [(3, 4 + index, 5) for index in range(8)]


@pytest.mark.parametrize('option', [[], ['--no-pin-memory', '--no-persistent-workers']])
def test_mmpretrain_collates_as_its_own_tool_does(option, tmp_path):
    """mmpretrain's tools/train.py sets these three, and what a config says goes first."""
    from nf_plugins.cli import runner

    args = dict(work_dir=str(tmp_path), launcher='none', local_rank=0, no_pin_memory=bool(option))
    args['config'] = 'nf-resnet_digits'
    args = type('Args', (), args)()
    found = {}
    for scope in ('mmpretrain', 'mmseg', 'mmdet'):
        loader = dict(num_workers=2, batch_size=1)
        cfg = Config(dict(default_scope=scope, train_dataloader=loader, val_dataloader=None))
        runner.prepare(cfg, args, ['train_dataloader', 'val_dataloader'])
        found[scope] = cfg.train_dataloader.to_dict()
    pin = {} if not option else dict(pin_memory=False)
    assert found['mmseg'] == found['mmdet'] == dict(num_workers=2, batch_size=1, **pin)
    assert found['mmpretrain'] == dict(
        num_workers=2,
        batch_size=1,
        pin_memory=False if option else torch.cuda.is_available(),
        persistent_workers=True,
        collate_fn=dict(type='default_collate'),
    )
    mine = Config(dict(default_scope='mmpretrain', train_dataloader=dict(
        collate_fn=dict(type='pseudo_collate'), persistent_workers=False)))  # fmt: skip
    runner.prepare(mine, args, ['train_dataloader'])
    assert mine.train_dataloader.collate_fn.type == 'pseudo_collate'
    assert not mine.train_dataloader.persistent_workers
