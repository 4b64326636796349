# Published (DeepMind's nfnets/experiment_nf_regnets.py): batch 1024, SGD with Nesterov momentum,
# lr 0.4 after 5 epochs of warmup, cosine to 0.001, 360 epochs, label smoothing 0.1, drop-path
# 0.1. Weight decay 5e-5, plus 1e-5 for each level of the arch, but none for gains and biases.
# Mixup (alpha 0.2) of one half of a batch, and cutmix (alpha 1) of the other half. EMA 0.99999,
# with a decay of at most (1 + step) / (10 + step).
# Ours: batch 8 x 128. A whole batch gets either mixup or cutmix, with one ratio.
_base_ = './param_groups.py'

optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.4, momentum=0.9, nesterov=True, weight_decay=5e-5),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=355,
        eta_min=0.001,
        by_epoch=True,
        begin=5,
        end=360,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=360, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=1024)
# Gamma 9 is the warmup of the published EMA. Without it, the initial weights would still have a
# share of 1/100 in the average at the end.
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='MomentumAnnealingEMA',
        momentum=1e-5,
        gamma=9,
        priority='ABOVE_NORMAL',
    )
]
