# Published (main.py and README.md of the DyT and the Derf repositories): batch 4096, AdamW, lr 4e-3
# after 20 epochs of warmup, cosine to 1e-6, 300 epochs, decay 0.05 of weights alone (not of biases,
# of what has one axis, of the position embedding and the class token), EMA 0.9999, and the
# augmentation of ../datasets/imagenet_randaug.py with mixup 0.8 and cutmix 1.
# Ours: batch 32 x 128 for both networks; their command for DyT has 64 x 64.
optim_wrapper = dict(
    constructor='nf_plugins.NFOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=4e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    paramwise_cfg=dict(
        flat_decay_mult=0.0,
        custom_keys={'.cls_token': dict(decay_mult=0.0), '.pos_embed': dict(decay_mult=0.0)},
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=280,
        eta_min=1e-6,
        by_epoch=True,
        begin=20,
        end=300,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=4096)
custom_hooks = [dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL')]
