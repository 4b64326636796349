# PWS in detection. Published (the authors' config for mmdet 2): 1 GPU x 2 images, lr 0.0025 after
# 500 iterations of linear warmup, weight decay 1e-4 of all parameters except alpha, 24 epochs, lr
# / 10 after 16 and 22. Their README says 12 epochs.
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.0025, momentum=0.9, weight_decay=1e-4),
    constructor='nf_plugins.NFOptimWrapperConstructor',
    paramwise_cfg=dict(gain_decay_mult=0.0, bias_decay_mult=1.0, norm_decay_mult=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=24, milestones=[16, 22], gamma=0.1),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=24, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(base_batch_size=2)
