# For transformers on Fashion-MNIST: the optimizer and the parameter groups of dyt_imagenet.py with
# the epochs of fashion-mnist_sgd.py. Ours.
_base_ = './fashion-mnist_sgd.py'

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        flat_decay_mult=0.0,
        custom_keys={'.cls_token': dict(decay_mult=0.0), '.pos_embed': dict(decay_mult=0.0)},
    ),
)
