# Published (ViT/main.py and ViT/README.md of the Derf repository): stochastic depth 0.15; the rest
# is as with DyT.
_base_ = './deit-base-dyt_32xb128_in1k.py'

model = dict(
    backbone=dict(
        drop_path_rate=0.15,
        norm_cfg=dict(_delete_=True, type='nf_plugins.Derf', alpha=0.5, shift=0.0),
    )
)
