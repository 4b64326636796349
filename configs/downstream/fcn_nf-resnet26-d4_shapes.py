# A small FCN on NF-ResNet-26 with output stride 4, on drawn shapes. Training takes a few minutes
# on a CPU.
_base_ = [
    '../_base_/models/fcn_nf_resnet50-d8.py',
    '../_base_/datasets/shapes.py',
    '../_base_/schedules/digits_sgd.py',
    '../_base_/mmseg_runtime.py',
]

model = dict(
    backbone=dict(depth=26, base_channels=16, stem='regnet'),
    decode_head=dict(in_channels=512, channels=64, num_classes=4),
    auxiliary_head=dict(in_channels=256, channels=32, num_classes=4),
)
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(logger=dict(interval=10))
randomness = dict(seed=0)
# Record signal propagation after every epoch; `tools/spp_video.py WORK_DIR` shows the records.
custom_hooks = [dict(type='nf_plugins.SPPHook')]
