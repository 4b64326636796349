# Published (the yuhodots/SPPs project, after weiaicunzai/pytorch-cifar100): batch 128, SGD with
# momentum 0.9, lr 0.1, lr / 5 after epochs 60, 120 and 160, decay 5e-4 of every parameter, 200
# epochs, crops of the padded image, flips, rotations of up to 15 degrees; signal propagation
# plots of Gaussian noise in every epoch.
# Ours: mmpretrain's ResNet-50 for CIFAR.
_base_ = [
    '../_base_/models/resnet.py',
    '../_base_/datasets/cifar100.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(type='ResNet_CIFAR'),
    head=dict(num_classes=100, topk=(1, 5)),
)

train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    # The angle is uniform between -15 and 15.
    dict(
        type='Rotate',
        magnitude_level=10,
        magnitude_range=(0.0, 15.0),
        magnitude_std='inf',
        prob=1.0,
        pad_val=0,
    ),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4))
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[60, 120, 160], gamma=0.2)
train_cfg = dict(by_epoch=True, max_epochs=200, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=128)

custom_hooks = [dict(type='nf_plugins.SPPHook', interval=1, by_epoch=True)]
