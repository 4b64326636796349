# Published: NF-ResNets need dropout and stochastic depth beside the plain recipe (2102.06171);
# stochastic depth 0.1 (the default of DeepMind's nf_resnet.py).
# Ours: dropout 0.25, which 2102.06171 states for fine-tuning NFNets, with this stochastic depth.
_base_ = './nf-resnet50_8xb32_in1k.py'

model = dict(backbone=dict(drop_path_rate=0.1), neck=dict(drop_rate=0.25))
