"""Configs that fine-tune published weights on a folder of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict

from .hub import Published, published_config

LR = 0.02
"""Learning rate of the classifier for a batch of 32; that of the backbone is a tenth."""
BACKBONE_LR = 0.1
AGC_FAMILIES = ('NFNet',)
"""What the papers train with adaptive gradient clipping."""


def fine_tuning_config(
    entry: Published,
    num_classes: int,
    data_root: str,
    parts: Mapping[str, Mapping[str, Any]],
    classes: Sequence[str] = (),
    epochs: int = 10,
    batch_size: int = 32,
    images: int | None = None,
) -> Config:
    """A whole config that fine-tunes published weights.

    Images are trained at the size of the publisher's training, and tested as the publisher does.
    Gains and biases are not decayed, and NFNets are trained with adaptive gradient clipping of all
    but the classifier, as in the papers. The learning rates and the number of epochs are ours.

    Args:
        entry: The weights.
        num_classes: Classes.
        data_root: Folder of the images.
        parts: Settings of the data sets 'train' and 'val', as mmpretrain's ``CustomDataset`` takes.
        classes: Their names; none to take those of the folders.
        epochs: Epochs.
        batch_size: Images in a batch.
        images: Images for training. If they are one batch, there is no warm-up; None if the number
            is not known.
    """
    base = published_config(entry, num_classes)
    cfg: dict[str, Any] = {
        name: base[name]
        for name in ('default_scope', 'custom_imports', 'env_cfg', 'vis_backends', 'visualizer')
    }
    model = base.model
    model.pop('train_cfg', None)  # mixup and cutmix are for long trainings
    model.head.topk = (1,)
    cfg.update(model=model, data_preprocessor=base.data_preprocessor)
    cfg.update(_data(base, data_root, parts, classes, batch_size))
    cfg.update(_schedule(entry, epochs, batch_size, images))
    hooks = base.default_hooks
    hooks.logger.interval = 10
    hooks.checkpoint.update(max_keep_ckpts=2, save_best='accuracy/top1')
    cfg.update(
        default_hooks=hooks,
        log_level='INFO',
        load_from=entry.uri,
        resume=False,
        randomness=dict(seed=0, deterministic=False),
    )
    return Config(cfg)


def _data(
    base: Config,
    root: str,
    parts: Mapping[str, Mapping[str, Any]],
    classes: Sequence[str],
    batch_size: int,
) -> dict[str, Any]:
    # RandAugment, of the published recipes, is for long trainings.
    train = [step for step in base.train_pipeline if step['type'] != 'RandAugment']
    loaders: dict[str, Any] = {}
    for part, pipeline in (('train', train), ('val', base.test_pipeline)):
        dataset: dict[str, Any] = dict(type='CustomDataset', data_root=root, **parts[part])
        if classes:
            dataset['metainfo'] = dict(classes=list(classes))
        loaders[f'{part}_dataloader'] = dict(
            batch_size=batch_size,
            num_workers=2,
            dataset=dict(**dataset, pipeline=pipeline),
            sampler=dict(type='DefaultSampler', shuffle=part == 'train'),
        )
    evaluator = dict(type='Accuracy', topk=(1,))
    return dict(
        **loaders,
        test_dataloader=loaders['val_dataloader'],
        val_evaluator=evaluator,
        test_evaluator=evaluator,
    )


def _schedule(entry: Published, epochs: int, batch_size: int, images: int | None) -> dict[str, Any]:
    optim_wrapper: dict[str, Any] = dict(
        optimizer=dict(
            type='SGD', lr=LR * batch_size / 32, momentum=0.9, nesterov=True, weight_decay=2e-5
        ),
        constructor='nf_plugins.NFOptimWrapperConstructor',
        paramwise_cfg=dict(
            gain_decay_mult=0.0,
            bias_decay_mult=0.0,
            norm_decay_mult=0.0,
            custom_keys=dict(backbone=dict(lr_mult=BACKBONE_LR)),
        ),
    )
    if entry.family in AGC_FAMILIES:
        clip_grad = dict(type='agc', clip_factor=0.01, eps=1e-3, skip=['head.fc.weight'])
        optim_wrapper.update(type='nf_plugins.AGCOptimWrapper', clip_grad=clip_grad)
    # LinearLR over a single iteration would keep its first factor for the whole training.
    warmup = 0 if images is not None and images <= batch_size else min(1, epochs - 1)
    schedulers: list[dict] = [
        dict(
            type='CosineAnnealingLR',
            T_max=epochs - warmup,
            begin=warmup,
            end=epochs,
            by_epoch=True,
            convert_to_iter_based=True,
        )
    ]
    if warmup:
        start = dict(type='LinearLR', start_factor=0.01, by_epoch=True, end=warmup)
        schedulers.insert(0, dict(start, convert_to_iter_based=True))
    return ConfigDict(
        optim_wrapper=optim_wrapper,
        param_scheduler=schedulers,
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=1),
        val_cfg=dict(),
        test_cfg=dict(),
        auto_scale_lr=dict(base_batch_size=batch_size),
    )
