# SSD on VOC07+12 at 320x320 with PWS (gamma 1e-3), after the PWS authors' TensorFlow code: their
# schedule, sizes of the feature maps and anchors. Ours: the backbone is a PWS ResNet-50 instead
# of their VGG-16, images and losses are those of mmdet's SSD, and the last layers are plain
# convolutions (theirs have PWS, in one of their configs also a layer norm). We have not trained
# it.
_base_ = [
    'mmdet::_base_/models/ssd300.py',
    '../_base_/datasets/voc0712_320.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/schedules/pws_voc.py',
]
custom_imports = dict(imports=['nf_plugins'], allow_failed_imports=False)

norm_cfg = dict(type='GN', num_groups=1)
conv_cfg = dict(type='nf_plugins.PWS', gamma=1e-3, mode='fan_in')
channels = (512, 1024, 2048, 512, 256, 256)
# `_scope_`: see retinanet_nf-resnet50_fpn_1x_coco.py.
model = dict(
    data_preprocessor=dict(std=[58.395, 57.12, 57.375]),
    backbone=dict(
        _delete_=True,
        _scope_='nf_plugins',
        type='nf_plugins.PWSResNet',
        depth=50,
        out_indices=(1, 2, 3),
        conv_cfg=conv_cfg,
        norm_cfg=norm_cfg,
    ),
    neck=[
        dict(
            _scope_='nf_plugins',
            type='nf_plugins.ReLUNeck',
            in_channels=channels[:3],
            norm_cfg=norm_cfg,
            avgpool=False,
        ),
        # 40, 20 and 10 positions a side come from the backbone, 5, 3 and 1 from here.
        dict(
            type='SSDNeck',
            in_channels=channels[:3],
            out_channels=channels,
            level_strides=(2, 2, 1),
            level_paddings=(1, 1, 0),
            l2_norm_scale=None,
            conv_cfg=conv_cfg,
            init_cfg=dict(type='Kaiming', layer='Conv2d', mode='fan_in', bias=0),
        ),
    ],
    bbox_head=dict(
        in_channels=channels,
        num_classes=20,
        anchor_generator=dict(
            _delete_=True,
            type='SSDAnchorGenerator',
            scale_major=False,
            strides=[8, 16, 32, 64, 107, 320],
            ratios=[[2], [2, 3], [2, 3], [2, 3], [2], [2]],
            min_sizes=[32.0, 64.0, 118.4, 172.8, 227.2, 281.6],
            max_sizes=[64.0, 118.4, 172.8, 227.2, 281.6, 336.0],
        ),
    ),
)
custom_hooks = [
    dict(type='NumClassCheckHook'),
    dict(type='CheckInvalidLossHook', interval=50, priority='VERY_LOW'),
]
