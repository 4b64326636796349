# Mask R-CNN with FPN on a PWS ResNet-50, on COCO (1 GPU x 2 images), after the PWS authors'
# config for mmdet 2: PWS in the backbone (gamma 1e-4), in FPN and in the mask head (gamma 0.1,
# relative to the variance), one norm after the stem and one at each output of the backbone. The
# RPN head and the two layers of the box head have no norm. They publish 38.9 box AP and 35.3 mask
# AP (group norm 38.2 and 34.5, batch norm 38.0 and 34.4). We have not trained it.
# As published, the stem and the first stage are frozen, so it needs weights of ImageNet:
# init_cfg=dict(type='Pretrained', checkpoint=..., prefix='backbone.') of the backbone. To train
# without, set frozen_stages=-1.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/schedules/pws_coco.py',
]
custom_imports = dict(imports=['nf_plugins'], allow_failed_imports=False)

norm_cfg = dict(type='GN', num_groups=1)
conv_cfg = dict(type='nf_plugins.PWS', gamma=0.1, equiv=True, mode='fan_in', initalpha=True)
model = dict(
    # Because of `_scope_`, the backbone can be built and analysed even if mmdet's models cannot be
    # imported, which need mmcv's compiled operators.
    backbone=dict(
        _delete_=True,
        _scope_='nf_plugins',
        type='nf_plugins.PWSResNet',
        depth=50,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        conv_cfg=dict(type='nf_plugins.PWS', gamma=1e-4, mode='fan_in', initalpha=True),
        norm_cfg=norm_cfg,
    ),
    neck=[
        dict(
            _scope_='nf_plugins',
            type='nf_plugins.ReLUNeck',
            in_channels=[256, 512, 1024, 2048],
            norm_cfg=norm_cfg,
            avgpool=False,
        ),
        dict(
            type='FPN',
            in_channels=[256, 512, 1024, 2048],
            out_channels=256,
            num_outs=5,
            conv_cfg=conv_cfg,
            init_cfg=dict(type='Kaiming', layer='Conv2d', mode='fan_in', bias=0),
        ),
    ],
    roi_head=dict(mask_head=dict(conv_cfg=conv_cfg)),
)
