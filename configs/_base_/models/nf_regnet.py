# NF-RegNet-B0 on ImageNet. The classifier starts at 0, as published.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='nf_plugins.NFRegNet', arch='b0', drop_path_rate=0.1),
    neck=dict(
        type='nf_plugins.ReLUNeck',
        in_channels=960,
        act_cfg=dict(type='nf_plugins.GammaAct', act='SiLU'),
        drop_rate=0.2,
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=960,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1, 5),
        init_cfg=dict(type='Constant', layer='Linear', val=0),
    ),
    # The alphas are from DeepMind's nfnets/dataset.py, which draws a ratio for each image.
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.2), dict(type='CutMix', alpha=1.0)]),
)
