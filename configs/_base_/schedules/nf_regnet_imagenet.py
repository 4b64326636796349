# Published (DeepMind's nfnets/experiment_nf_regnets.py): batch 1024, SGD with Nesterov momentum,
# lr 0.4 after 5 epochs of warmup, cosine to 0.001, 360 epochs, decay 5e-5 plus 1e-5 per level of
# the arch (none of gains and biases), label smoothing 0.1, mixup and cutmix, EMA 0.99999.
# Ours: batch 8 x 128; a batch is mixed up or cut, not half and half.
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.4, momentum=0.9, nesterov=True, weight_decay=5e-5),
    paramwise_cfg=dict(
        bias_decay_mult=0.0, norm_decay_mult=0.0, custom_keys={'gain': dict(decay_mult=0.0)}
    ),
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
custom_hooks = [dict(type='EMAHook', momentum=1e-5, priority='ABOVE_NORMAL')]
