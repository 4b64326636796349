# The network of resnetv2-26-bn_fashion-mnist.py without norms; nothing else is changed.
_base_ = './resnetv2-26-bn_fashion-mnist.py'

norm_cfg = dict(type='nf_plugins.NoNorm')
model = dict(backbone=dict(norm_cfg=norm_cfg), neck=dict(norm_cfg=norm_cfg))
