# The same on NFNet-F0. Ours, and we have not trained it. Its last output is that of the final
# convolution, so weights of ImageNet fit.
_base_ = './mask-rcnn_nf-resnet50_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        _scope_='nf_plugins',
        type='nf_plugins.NFNet',
        arch='f0',
        out_indices=(0, 1, 2, 4),
    ),
    neck=[
        dict(
            _scope_='nf_plugins',
            type='nf_plugins.ReLUNeck',
            act_cfg=dict(type='nf_plugins.GammaAct', act='GELU', approximate='tanh'),
            avgpool=False,
        ),
        dict(type='FPN', in_channels=[256, 512, 1536, 3072], out_channels=256, num_outs=5),
    ],
)
