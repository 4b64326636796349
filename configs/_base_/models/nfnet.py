# NFNet-F0 on ImageNet.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='nf_plugins.NFNet', arch='f0', drop_path_rate=0.25),
    neck=dict(
        type='nf_plugins.ReLUNeck',
        in_channels=3072,
        act_cfg=dict(type='nf_plugins.GammaAct', act='GELU', approximate='tanh'),
        drop_rate=0.2,
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=3072,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1, 5),
        init_cfg=dict(type='Normal', layer='Linear', std=0.01),
    ),
    # The alphas are from DeepMind's nfnets/dataset.py, which draws a ratio for each image.
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.2), dict(type='CutMix', alpha=1.0)]),
)
