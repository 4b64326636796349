# NF-ResNet-50 on ImageNet; label smoothing as published.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='nf_plugins.NFResNet', depth=50, act_cfg=dict(type='ReLU')),
    neck=dict(
        type='nf_plugins.ReLUNeck',
        in_channels=2048,
        act_cfg=dict(type='nf_plugins.GammaAct', act='ReLU'),
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=2048,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1, 5),
        init_cfg=dict(type='Normal', layer='Linear', std=0.01),
    ),
)
