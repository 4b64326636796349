# The same on NF-ResNet-50, with Scaled WS in the neck. Ours, and we have not trained it.
_base_ = './ssd320_pws-resnet50_voc0712.py'

channels = (512, 1024, 2048, 512, 256, 256)
act_cfg = dict(type='nf_plugins.GammaAct', act='ReLU')
model = dict(
    backbone=dict(
        _delete_=True,
        _scope_='nf_plugins',
        type='nf_plugins.NFResNet',
        depth=50,
        act_cfg=dict(type='ReLU'),
        out_indices=(1, 2, 3),
    ),
    neck=[
        dict(_scope_='nf_plugins', type='nf_plugins.ReLUNeck', act_cfg=act_cfg, avgpool=False),
        dict(
            type='SSDNeck',
            in_channels=channels[:3],
            out_channels=channels,
            level_strides=(2, 2, 1),
            level_paddings=(1, 1, 0),
            l2_norm_scale=None,
            conv_cfg=dict(type='nf_plugins.ScaledWS'),
            act_cfg=act_cfg,
            init_cfg=None,
        ),
    ],
)
