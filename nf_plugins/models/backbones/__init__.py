from .nf_resnet import NFResNet
from .pws_resnet import PWSResNet

__all__ = ['NFResNet', 'PWSResNet']
