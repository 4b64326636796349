# A small NF-ResNet-26 on the digits of scikit-learn. An epoch takes seconds on a CPU.
_base_ = [
    '../_base_/models/nf_resnet.py',
    '../_base_/datasets/digits.py',
    '../_base_/schedules/digits_sgd.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(depth=26, base_channels=16, in_channels=1, stem='cifar'),
    neck=dict(in_channels=512),
    head=dict(
        num_classes=10,
        in_channels=512,
        loss=dict(_delete_=True, type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1,),
    ),
)
default_hooks = dict(logger=dict(interval=10))
randomness = dict(seed=0)
# Record signal propagation after every epoch; `tools/spp_video.py WORK_DIR` shows the records.
custom_hooks = [dict(type='nf_plugins.SPPHook')]
