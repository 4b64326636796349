# Published (DeepMind's nfnets/experiment_nfnets.py): batch 4096, SGD with Nesterov momentum,
# lr 0.1 * batch / 256 after 5 epochs of warmup, cosine to 0, 360 epochs, label smoothing 0.1,
# drop-path 0.25. Weight decay 2e-5, but none for gains and biases. Adaptive gradient clipping with
# 0.01, but not of the classifier's weight. RandAugment. Mixup (alpha 0.2) of one half of a batch,
# and cutmix (alpha 1) of the other half. EMA 0.99999, with a decay of at most
# (1 + step) / (10 + step).
# Ours: a whole batch gets either mixup or cutmix, with one ratio, and after RandAugment instead of
# before it.
_base_ = './param_groups.py'

optim_wrapper = dict(
    type='nf_plugins.AGCOptimWrapper',
    clip_grad=dict(type='agc', clip_factor=0.01, eps=1e-3, skip=['head.fc.weight']),
    optimizer=dict(type='SGD', lr=1.6, momentum=0.9, nesterov=True, weight_decay=2e-5),
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
# Gamma 9 is the warmup of the published EMA. Without it, the initial weights would still have a
# share of 1/3 in the average at the end.
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='MomentumAnnealingEMA',
        momentum=1e-5,
        gamma=9,
        priority='ABOVE_NORMAL',
    )
]
