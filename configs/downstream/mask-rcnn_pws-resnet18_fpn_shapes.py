# A small Mask R-CNN with PWS on drawn shapes: draw them with
# `python -m nf_plugins.datasets.coco_shapes data/coco_shapes`. All of it trains from scratch.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_shapes.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/schedules/shapes_detection.py',
]
custom_imports = dict(imports=['nf_plugins'], allow_failed_imports=False)

conv_cfg = dict(type='nf_plugins.PWS', gamma=0.1, equiv=True, mode='fan_in', initalpha=True)
norm_cfg = dict(type='GN', num_groups=1)
channels = [16, 32, 64, 128]
model = dict(
    data_preprocessor=dict(mean=[128.0] * 3, std=[50.0] * 3, pad_size_divisor=1),
    backbone=dict(
        _delete_=True,
        _scope_='nf_plugins',
        type='nf_plugins.PWSResNet',
        depth=18,
        stem_channels=16,
        base_channels=16,
        out_indices=(0, 1, 2, 3),
        conv_cfg=dict(type='nf_plugins.PWS', gamma=1e-4, mode='fan_in', initalpha=True),
        norm_cfg=norm_cfg,
    ),
    neck=[
        dict(
            _scope_='nf_plugins',
            type='nf_plugins.ReLUNeck',
            in_channels=channels,
            norm_cfg=norm_cfg,
            avgpool=False,
        ),
        dict(
            type='FPN',
            in_channels=channels,
            out_channels=32,
            num_outs=5,
            conv_cfg=conv_cfg,
            init_cfg=dict(type='Kaiming', layer='Conv2d', mode='fan_in', bias=0),
        ),
    ],
    rpn_head=dict(in_channels=32, feat_channels=32, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32, finest_scale=14),
        bbox_head=dict(in_channels=32, fc_out_channels=64, num_classes=3),
        mask_roi_extractor=dict(out_channels=32, finest_scale=14),
        mask_head=dict(
            in_channels=32, conv_out_channels=32, num_convs=2, num_classes=3, conv_cfg=conv_cfg
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=50),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=50), rcnn=dict(max_per_img=20)),
)
val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator
default_hooks = dict(logger=dict(interval=10), visualization=dict(draw=False))
randomness = dict(seed=0)
custom_hooks = [dict(type='nf_plugins.SPPHook')]
