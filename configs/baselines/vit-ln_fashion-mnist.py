# A small ViT of mmpretrain with layer norm on Fashion-MNIST: 6 layers of 64 channels, patches of
# 4x4. ../dyt/vit-dyt_fashion-mnist.py has DyT in the places of the norms.
_base_ = [
    '../_base_/datasets/fashion-mnist.py',
    '../_base_/schedules/fashion-mnist_adamw.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=64, num_layers=6, num_heads=4, feedforward_channels=128),
        img_size=28,
        patch_size=4,
        in_channels=1,
        norm_cfg=dict(type='LN', eps=1e-6),
        out_type='avg_featmap',
        final_norm=True,
    ),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64, topk=(1,), init_cfg=None),
    init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
)
randomness = dict(seed=0)
