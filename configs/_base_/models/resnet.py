# mmpretrain's ResNet-50 with batch norm, for comparison.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ResNet', depth=50, out_indices=(3,), style='pytorch', norm_cfg=dict(type='BN')
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=2048,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
