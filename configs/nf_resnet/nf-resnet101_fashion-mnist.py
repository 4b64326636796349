# The network of nf-resnet26_fashion-mnist.py with more blocks.
_base_ = './nf-resnet26_fashion-mnist.py'

model = dict(backbone=dict(depth=101))
