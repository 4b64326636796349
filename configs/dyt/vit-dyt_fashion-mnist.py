# ../baselines/vit-ln_fashion-mnist.py with DyT in the places of the norms. For Derf:
# `--cfg-options model.backbone.norm_cfg.type=nf_plugins.Derf`.
_base_ = '../baselines/vit-ln_fashion-mnist.py'

model = dict(backbone=dict(norm_cfg=dict(_delete_=True, type='nf_plugins.DyT', alpha=0.5)))
