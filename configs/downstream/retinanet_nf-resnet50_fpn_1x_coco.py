# RetinaNet on NF-ResNet-50, on COCO (8 GPUs x 2 images): mmdet's retinanet_r50_fpn_1x_coco.py
# with another backbone; its FPN and head have no norms. We have not trained it. For results like
# mmdet's, start with backbone weights from ImageNet: see docs/downstream.md.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/schedules/nf_coco_1x.py',
]
custom_imports = dict(imports=['nf_plugins'], allow_failed_imports=False)

# Because of `_scope_`, the backbone can be built and analysed even if mmdet's models cannot be
# imported, which need mmcv's compiled operators.
model = dict(
    backbone=dict(
        _delete_=True,
        _scope_='nf_plugins',
        type='nf_plugins.NFResNet',
        depth=50,
        act_cfg=dict(type='ReLU'),
        out_indices=(0, 1, 2, 3),
    ),
    # The backbone's outputs are not activated. The first neck activates them for the FPN.
    neck=[
        dict(
            _scope_='nf_plugins',
            type='nf_plugins.ReLUNeck',
            act_cfg=dict(type='nf_plugins.GammaAct', act='ReLU'),
            avgpool=False,
        ),
        dict(
            type='FPN',
            in_channels=[256, 512, 1024, 2048],
            out_channels=256,
            start_level=1,
            add_extra_convs='on_input',
            num_outs=5,
        ),
    ],
)
