# FCN on a dilated NF-ResNet-50, for mmseg: mmseg's fcn_r50-d8.py without norms. The backbone's
# outputs are not activated, so the neck activates them. The head is built as the backbone:
# standardized weights after activations that preserve the variance.
conv_cfg = dict(type='nf_plugins.ScaledWS')
act_cfg = dict(type='nf_plugins.GammaAct', act='ReLU')
fcn_head = dict(
    type='FCNHead',
    dropout_ratio=0.1,
    num_classes=150,
    conv_cfg=conv_cfg,
    norm_cfg=None,
    act_cfg=act_cfg,
    align_corners=False,
)
model = dict(
    type='EncoderDecoder',
    backbone=dict(
        type='nf_plugins.NFResNet',
        depth=50,
        act_cfg=dict(type='ReLU'),
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        out_indices=(0, 1, 2, 3),
    ),
    neck=dict(type='nf_plugins.ReLUNeck', act_cfg=act_cfg, avgpool=False),
    decode_head=dict(
        **fcn_head,
        in_channels=2048,
        in_index=3,
        channels=512,
        num_convs=2,
        concat_input=True,
        loss_decode=dict(type='CrossEntropyLoss', loss_weight=1.0, avg_non_ignore=True),
    ),
    auxiliary_head=dict(
        **fcn_head,
        in_channels=1024,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        loss_decode=dict(type='CrossEntropyLoss', loss_weight=0.4, avg_non_ignore=True),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
