# ResNet-50 with PWS on ImageNet: two norms in all, after the stem and in the neck.
norm_cfg = dict(type='GN', num_groups=1)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='nf_plugins.PWSResNet',
        depth=50,
        conv_cfg=dict(type='nf_plugins.PWS', gamma=1e-4, mode='fan_in', initalpha=True),
        norm_cfg=norm_cfg,
    ),
    neck=dict(type='nf_plugins.ReLUNeck', in_channels=2048, norm_cfg=norm_cfg),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=2048,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
