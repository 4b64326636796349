# Published (Fort et al. 2021, arXiv 2105.13343): NFNet-F5 with sharpness-aware minimisation and 16
# augmentations of each image in a batch.
# Ours: the length, as many steps as 360 epochs of one augmentation, with 8 images in the batch of a
# device; the rest is as without them.
_base_ = 'nfnet-f5-sam_32xb128_in1k.py'

train_dataloader = dict(
    sampler=dict(_delete_=True, type='nf_plugins.MultiplicitySampler', multiplicity=16),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, end=1564),
    dict(
        type='CosineAnnealingLR', T_max=111036, eta_min=0.0, by_epoch=False, begin=1564, end=112600
    ),
]
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=112600, val_interval=5000)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False), checkpoint=dict(by_epoch=False, interval=5000)
)
log_processor = dict(by_epoch=False)
