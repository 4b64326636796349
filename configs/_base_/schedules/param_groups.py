# The parameter groups of Brock et al. 2021 (DeepMind's nfnets/experiment.py), for all schedules of
# normalizer-free networks and of their baselines. There is no weight decay for biases, gains (also
# SkipInit gains), the alpha of PWS, and weights of norms. All other weights have weight decay, also
# the classifier's. The constructor finds parameters by their kind, so you can add your own
# `custom_keys`. AGC (see nfnet_imagenet.py) clips all parameters except the classifier's weight,
# which is in `clip_grad.skip`.
optim_wrapper = dict(
    constructor='nf_plugins.NFOptimWrapperConstructor',
    paramwise_cfg=dict(gain_decay_mult=0.0, bias_decay_mult=0.0, norm_decay_mult=0.0),
)
