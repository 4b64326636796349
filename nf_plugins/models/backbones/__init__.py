from .fixup_resnet import FixupResNet
from .nf_regnet import NFRegNet
from .nf_resnet import NFResNet, SkipInitResNet
from .nfnet import NFNet
from .pws_resnet import PWSResNet
from .resnet_v2 import ResNetV2

__all__ = [
    'FixupResNet',
    'NFNet',
    'NFRegNet',
    'NFResNet',
    'PWSResNet',
    'ResNetV2',
    'SkipInitResNet',
]
