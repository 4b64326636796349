"""The networks: those that get faults, and published ones at their own initialisation."""

from __future__ import annotations

import copy
import functools

import timm
import torch
import torchvision
from timm.models.mlp_mixer import MlpMixer
from torch import nn

from nf_plugins.models import NFNet, NFRegNet, NFResNet, PWSResNet, ResNetV2


def _own(build: type, **kwargs) -> nn.Module:
    net = build(**kwargs)
    net.init_weights()
    return net


def _torchvision(name: str) -> nn.Module:
    return torchvision.models.get_model(name, weights=None)


SUBJECTS = {
    'torchvision resnet18': lambda: _torchvision('resnet18'),
    'torchvision mobilenet_v3_small': lambda: _torchvision('mobilenet_v3_small'),
    'torchvision shufflenet_v2_x0_5': lambda: _torchvision('shufflenet_v2_x0_5'),
    'timm resnet26': lambda: timm.create_model('resnet26', channels=(32, 64, 128, 256)),
    'timm regnetx_002': lambda: timm.create_model('regnetx_002'),
    'timm efficientnet_lite0': lambda: timm.create_model('efficientnet_lite0'),
    'timm convnext_atto': lambda: timm.create_model('convnext_atto', ls_init_value=1.0),
    'timm vit_tiny': lambda: timm.create_model('vit_tiny_patch16_224', img_size=64),
    'timm swin': lambda: timm.create_model(
        'swin_tiny_patch4_window7_224', img_size=64, window_size=4, embed_dim=48
    ),
    'timm mixer': lambda: MlpMixer(img_size=64, patch_size=8, embed_dim=192),
    'timm nf_resnet26': lambda: timm.create_model('nf_resnet26'),
    'NFResNet': lambda: _own(NFResNet, depth=26, skipinit=1.0, base_channels=32),
    'NFRegNet': lambda: _own(NFRegNet, arch='b0', skipinit=1.0),
    'ResNetV2': lambda: _own(ResNetV2, depth=50, base_channels=32),
    'PWSResNet': lambda: _own(PWSResNet, depth=50, base_channels=32),
}
"""Name -> constructor of a network that gets faults."""

_TORCHVISION = (
    'resnet34 mobilenet_v2 mobilenet_v3_large shufflenet_v2_x0_5 '
    'shufflenet_v2_x1_0 mnasnet0_5 mnasnet1_0 densenet121 googlenet regnet_y_400mf regnet_x_400mf '
    'regnet_y_800mf efficientnet_b0 efficientnet_b1 swin_t swin_v2_t '
    'vgg11 vgg11_bn alexnet squeezenet1_1'
)
_TIMM = (
    'resnet26 resnet26d resnet18d seresnet18 ecaresnet26t resnetblur50 resnext26ts resnetv2_50 '
    'regnety_002 regnetz_005 mobilenetv3_small_050 mobilenetv2_050 efficientnet_es '
    'tf_efficientnetv2_b0 lcnet_050 ghostnet_050 hardcorenas_a mixnet_s tinynet_e rexnet_100 '
    'fbnetc_100 spnasnet_100 semnasnet_075 dla34 dla46_c hrnet_w18_small res2net50_26w_4s '
    'skresnet18 selecsls42 cspresnet50 darknet53 vovnet39a repvgg_a0 mobileone_s0 '
    'convnextv2_atto convnext_femto convmixer_768_32 poolformer_s12 poolformerv2_s12 '
    'edgenext_xx_small '
    'mobilevit_xxs mobilevitv2_050 efficientformer_l1 fastvit_t8 starnet_s1 mambaout_femto '
    'deit_tiny_patch16_224 deit3_small_patch16_224 cait_xxs24_224 '
    'xcit_nano_12_p16_224 levit_128s pit_ti_224 visformer_tiny tnt_s_patch16_224 '
    'twins_pcpvt_small pvt_v2_b0 gmlp_s16_224 resmlp_12_224 nf_regnet_b0 nf_resnet50 dm_nfnet_f0 '
    'eca_nfnet_l0 nf_seresnet26 efficientvit_b0 hgnet_tiny inception_next_tiny gcresnet50t'
)


def _timm(name: str) -> nn.Module:
    return timm.create_model(name)


HEALTHY = {
    **{f'torchvision {n}': (lambda n=n: _torchvision(n)) for n in _TORCHVISION.split()},
    **{f'timm {n}': (lambda n=n: _timm(n)) for n in _TIMM.split()},
    'NFNet': lambda: _own(NFNet, arch=dict(base='f0', width_mult=0.25, group_width=32)),
    'NFRegNet, gains at zero': lambda: _own(NFRegNet, arch='b0'),
    'ResNetV2-101': lambda: _own(ResNetV2, depth=101),
    'PWSResNet-101': lambda: _own(PWSResNet, depth=101),
}
"""Name -> constructor of a published network, at its own initialisation."""

CLASSICS = ('alexnet', 'vgg11', 'squeezenet1_1')
"""Published networks without norms: what is said of their variance is true."""


@functools.lru_cache(2)
def _built(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return (SUBJECTS if name in SUBJECTS else HEALTHY)[name]()


def build(name: str, seed: int = 0) -> nn.Module:
    """Build a network with seeded weights."""
    return copy.deepcopy(_built(name, seed))
