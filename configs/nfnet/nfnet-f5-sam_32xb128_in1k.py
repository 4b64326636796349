# Published: sharpness-aware minimisation, whose first pass takes a fifth of the batch of each
# device and is not synchronised (appendix A.4).
# Ours: rho 0.05, which the paper states for fine-tuning.
_base_ = 'nfnet-f5_32xb128_in1k.py'

optim_wrapper = dict(type='nf_plugins.SAMOptimWrapper', rho=0.05, ratio=0.2)
