# FCN on NF-ResNet-50 with output stride 8, on ADE20K. We have not trained it. For results like
# mmseg's, start with backbone weights from ImageNet: see docs/downstream.md.
_base_ = [
    '../_base_/models/fcn_nf_resnet50-d8.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/nf_ade20k.py',
    '../_base_/mmseg_runtime.py',
]

default_hooks = dict(
    logger=dict(interval=50, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=8000),
)
log_processor = dict(by_epoch=False)
