# The network of resnet-bn_digits.py without norms; nothing else is changed.
_base_ = './resnet-bn_digits.py'

model = dict(backbone=dict(norm_cfg=dict(type='nf_plugins.NoNorm')))
