# Mask R-CNN with FPN on NF-ResNet-50, on COCO (8 GPUs x 2 images): mmdet's
# mask-rcnn_r50_fpn_1x_coco.py with another backbone; its FPN and heads have no norms. Ours, and
# we have not trained it. For results like mmdet's, start with backbone weights from ImageNet.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/schedules/nf_coco_1x.py',
]
custom_imports = dict(imports=['nf_plugins'], allow_failed_imports=False)

# `_scope_`: see retinanet_nf-resnet50_fpn_1x_coco.py.
model = dict(
    backbone=dict(
        _delete_=True,
        _scope_='nf_plugins',
        type='nf_plugins.NFResNet',
        depth=50,
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
        dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=5),
    ],
)
