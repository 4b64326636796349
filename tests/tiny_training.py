"""A training of a second: a linear layer on 16 random points, two iterations an epoch."""

from __future__ import annotations

import itertools
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import (
    DATASETS,
    HOOKS,
    METRICS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIMIZERS,
)
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

_numbers = itertools.count()


@MODELS.register_module(force=True)
class TinyModel(BaseModel):
    def __init__(self, width=4, sparse=False):
        super().__init__()
        self.fc = nn.Linear(width, 3, bias=False)
        self.embedding = nn.Embedding(4, width, sparse=True) if sparse else None

    def init_weights(self):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x, y, mode='tensor'):
        if self.embedding is not None:
            x = self.embedding((x[:, 0] > 0).long())
        out = self.fc(x[:, : self.fc.in_features])
        if mode == 'loss':
            return dict(loss=nn.functional.mse_loss(out, y))
        return [out] if mode == 'predict' else out


@DATASETS.register_module(force=True)
class TinyData(Dataset):
    def __init__(self):
        self.x, self.y = torch.randn(16, 7, generator=torch.Generator().manual_seed(1)).split(
            (4, 3), dim=1
        )

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return dict(x=self.x[i], y=self.y[i])


@METRICS.register_module(force=True)
class TinyMetric(BaseMetric):
    """A value that grows from validation to validation, or what the model is."""

    def process(self, data_batch, data_samples):
        self.results.append(float(data_samples[0].abs().mean()))

    def compute_metrics(self, results):
        return dict(acc=sum(results) / len(results))


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class SparseOnly:
    """Trains the embedding alone."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        self.optimizer = optim_wrapper_cfg['optimizer']

    def __call__(self, model):
        parameters = list(model.embedding.parameters())
        return OptimWrapper(OPTIMIZERS.build(dict(self.optimizer, params=parameters)))


class Killed(BaseException):
    """As a signal, it passes what catches an Exception."""


@HOOKS.register_module(force=True)
class KillHook(Hook):
    """Ends the process, as it seems, after the checkpoint of an epoch."""

    priority = 'LOWEST'

    def __init__(self, epoch):
        self.epoch = epoch

    def after_train_epoch(self, runner):
        if runner.epoch + 1 == self.epoch:
            raise Killed


CONFIG = """
custom_imports = dict(imports=['nf_plugins', 'tests.tiny_training'])
default_scope = 'mmengine'
model = dict(type='TinyModel')
train_dataloader = dict(
    batch_size=8,
    dataset=dict(type='TinyData'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
)
val_dataloader = dict(
    batch_size=16,
    dataset=dict(type='TinyData'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
)
train_cfg = dict(by_epoch=True, max_epochs=4)
val_cfg = dict()
val_evaluator = dict(type='TinyMetric')
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4)
)
param_scheduler = dict(type='MultiStepLR', milestones=[2, 3])
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', interval=1, backend_args=dict(backend='atomic_local')),
)
custom_hooks = []
randomness = dict(seed=0)
visualizer = dict(type='Visualizer', vis_backends=[])
log_level = 'WARNING'
"""


def tiny_config(work_dir, **changes) -> Config:
    """The config of a tiny training with some settings changed."""
    cfg = Config.fromstring(CONFIG, '.py')
    cfg.merge_from_dict({k: v for k, v in changes.items() if k != 'param_scheduler'})
    cfg.param_scheduler = changes.get('param_scheduler', cfg.param_scheduler)  # not merged
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = f'tiny{next(_numbers)}'  # mmengine's, the second, may come twice
    return cfg


def train(work_dir, kill=None, **changes) -> Runner:
    """Run a tiny training in this process; ``kill`` is the epoch after which it dies."""
    cfg = tiny_config(work_dir, **changes)
    if kill is not None:
        cfg.custom_hooks = [*cfg.custom_hooks, dict(type='KillHook', epoch=kill)]
    with mock.patch.object(Runner, '_log_env'):  # it starts compilers
        runner = Runner.from_cfg(cfg)
    try:
        runner.train()
    except Killed:
        assert kill is not None
    return runner
