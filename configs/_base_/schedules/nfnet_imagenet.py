# Published (DeepMind's nfnets/experiment_nfnets.py): batch 4096, SGD with Nesterov momentum,
# lr 0.1 * batch / 256 after 5 epochs of warmup, cosine to 0, 360 epochs, decay 2e-5 (none of
# gains and biases), adaptive gradient clipping with 0.01 (not of the classifier's weight), label
# smoothing 0.1, RandAugment, mixup and cutmix, EMA 0.99999.
# Ours: a batch is mixed up or cut, not half and half.
optim_wrapper = dict(
    type='AGCOptimWrapper',
    clip_grad=dict(type='agc', clip_factor=0.01, eps=1e-3, skip=['head.fc.weight']),
    optimizer=dict(type='SGD', lr=1.6, momentum=0.9, nesterov=True, weight_decay=2e-5),
    paramwise_cfg=dict(
        bias_decay_mult=0.0, norm_decay_mult=0.0, custom_keys={'gain': dict(decay_mult=0.0)}
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=355,
        eta_min=0.0,
        by_epoch=True,
        begin=5,
        end=360,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=360, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=4096)
custom_hooks = [dict(type='EMAHook', momentum=1e-5, priority='ABOVE_NORMAL')]
