# A small RetinaNet on drawn shapes: draw them with
# `python -m nf_plugins.datasets.coco_shapes data/coco_shapes`.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/datasets/coco_shapes.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/schedules/shapes_detection.py',
]
custom_imports = dict(imports=['nf_plugins'], allow_failed_imports=False)

model = dict(
    data_preprocessor=dict(mean=[128.0] * 3, std=[50.0] * 3, pad_size_divisor=1),
    backbone=dict(
        _delete_=True,
        _scope_='nf_plugins',
        type='nf_plugins.NFResNet',
        depth=26,
        base_channels=16,
        act_cfg=dict(type='ReLU'),
        out_indices=(0, 1, 2, 3),
    ),
    neck=[
        dict(
            _scope_='nf_plugins',
            type='nf_plugins.ReLUNeck',
            act_cfg=dict(type='nf_plugins.GammaAct', act='ReLU'),
            avgpool=False,
        ),
        dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=32, num_outs=4),
    ],
    bbox_head=dict(
        num_classes=3,
        in_channels=32,
        feat_channels=32,
        stacked_convs=2,
        anchor_generator=dict(octave_base_scale=4, strides=[4, 8, 16, 32]),
    ),
    test_cfg=dict(max_per_img=20),
)
default_hooks = dict(logger=dict(interval=10), visualization=dict(draw=False))
randomness = dict(seed=0)
custom_hooks = [dict(type='nf_plugins.SPPHook')]
