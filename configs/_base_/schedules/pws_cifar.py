# Published (PWSConv's configs/cifar): batch 128, lr 0.1, weight decay 5e-4 of all parameters
# except alpha, 200 epochs, lr / 10 after 100 and 150.
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4),
    constructor='nf_plugins.NFOptimWrapperConstructor',
    paramwise_cfg=dict(gain_decay_mult=0.0, bias_decay_mult=1.0, norm_decay_mult=1.0),
)
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[100, 150], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=200, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=128)
