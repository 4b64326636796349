# timm's nfnet_l0.ra2_in1k: the network, and the images as timm tests them.
# Its training recipe is not here; tools/model_converters/from_published.py writes a config that
# fine-tunes it.
_base_ = 'eca_nfnet_l0.ra2_in1k.py'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            base='f0',
            se_ratio=0.25,
            final_ratio=(3, 2),
            group_width=64,
            bottleneck_ratio=0.25,
            channel_divisor=8,
            gamma_at='conv',
            downsample='avg',
        )
    )
)
