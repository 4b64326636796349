# The same network with the norms taken out and nothing else.
_base_ = './resnet-bn_digits.py'

model = dict(backbone=dict(norm_cfg=dict(type='nf_plugins.NoNorm')))
