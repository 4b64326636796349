"""Residual additions of mmpretrain's backbones, read from their sources.

    python -m tests.oracles.residual_counts

prints, per backbone type among mmpretrain's configs, how many block-level residual
additions one forward pass executes. It shares no code with the tracer it is to check:
the numbers below were read from the ``forward`` of every block, nothing is run.

A residual addition is ``shortcut + branch``. The shortcut is the running stream, perhaps
through views, or a projection of it (at most one conv or linear, a pooling, a norm). The
branch is computed from the stream by the block. Not counted are added parameters, fusion
sums, parallel branches without a skip, and additions inside the branch of another one.

Left out: the two detectors under ``byol/benchmarks`` (their bases are in mmdet), and the
vision part of the OFA and Chinese-CLIP ResNet-50 configs (registered only where
``transformers`` is installed).
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import mmpretrain
import mmpretrain.models
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from torch import nn

from benchmarks.common import quiet

CONFIGS = Path(mmpretrain.__file__).parent / '.mim' / 'configs'
# Where a config keeps a backbone. The later ones belong to multimodal and retrieval models.
PLACES = ('backbone', 'vision_encoder', 'vision_backbone', 'image_encoder')
# Arguments that change neither the blocks nor what they add.
INDIFFERENT = {
    'avg_token',
    'drop_path_rate',
    'drop_rate',
    'final_norm',
    'frozen_stages',
    'gap_before_final_norm',
    'init_cfg',
    'norm_eval',
    'out_indices',
    'out_type',
    'pretrained',
    'use_checkpoint',
    'with_cp',
    'zero_init_residual',
}
# Only modules of these packages are looked up: timm also has a `resnet.Bottleneck`.
PACKAGES = ('mmpretrain', 'mmcv', 'mmengine')

# Backbone types for which there is no number. None: `TIMMBackbone` and `HuggingFace...` are
# in no config; their blocks are of other packages, and `count_residuals` refuses them.
UNCOUNTED: dict[str, str] = {}


@dataclass(frozen=True)
class Case:
    """One distinct backbone.

    Attributes:
        config (str): the first config that has it, relative to mmpretrain's configs.
        cfg (dict): the backbone, without a checkpoint to load.
        size (tuple[int, int]): height and width to run it at.
        channels (int): channels of its input.
        where (str): the field of the model it was found in.
    """

    config: str
    cfg: dict
    size: tuple[int, int]
    channels: int
    where: str = 'backbone'

    @property
    def type(self) -> str:
        return self.cfg['type']


def _ffn(name: str, first: int) -> Callable[[nn.Module], int]:
    """`first` additions of the block and one in its FFN, where that adds the identity."""

    def count(module: nn.Module) -> int:
        ffn = getattr(module, name)
        same = getattr(ffn, 'out_dims', ffn.embed_dims) == ffn.embed_dims
        return first + int(ffn.add_identity and same)

    return count


def _flag(name: str) -> Callable[[nn.Module], int]:
    return lambda module: int(bool(getattr(module, name)))


# `module.Class` -> additions of one call, without those of children that have an entry.
BLOCK_RESIDUALS: dict[str, int | Callable[[nn.Module], int]] = {
    # Convolutional.
    'convmixer.Residual': 1,
    'convnext.ConvNeXtBlock': 1,  # GRN's own sum is inside the branch
    'cspnet.DarknetBottleneck': _flag('add_identity'),
    'edgenext.SDTAEncoder': 1,  # the cascaded sums and the attention's are inside the branch
    'efficientnet.EdgeResidual': _flag('with_residual'),
    'efficientnet_v2.EnhancedConvModule': _flag('has_skip'),
    'hornet.HorNetBlock': 2,
    'inverted_residual.InvertedResidual': _flag('with_res_shortcut'),
    'mobilenet_v2.InvertedResidual': _flag('use_res_connect'),
    'replknet.ConvFFN': 1,
    'replknet.RepLKBlock': 1,  # the re-parametrised kernels are summed inside the branch
    'res2net.Bottle2neck': 1,  # its hierarchical sums are inside the branch
    'resnest.Bottleneck': 1,
    'resnet.BasicBlock': 1,
    'resnet.Bottleneck': 1,
    'seresnet.SEBottleneck': 1,
    'shufflenet_v1.ShuffleUnit': lambda m: int(m.combine == 'add'),
    'shufflenet_v2.InvertedResidual': 0,  # concatenates
    'sparse_convnext.SparseConvNeXtBlock': 1,
    'tinyvit.MBConvBlock': 1,
    'van.VANBlock': 2,  # `SpatialAttention`'s own shortcut is inside the branch
    'vig.FFN': 1,
    'vig.Grapher': 1,
    # Pooling, affine and MLP mixers.
    'efficientformer.Meta3D': 2,
    'efficientformer.Meta4D': 2,
    'mlp_mixer.MixerBlock': _ffn('channel_mix', 1),
    'poolformer.PoolFormerBlock': 2,  # `pool(x) - x` belongs to the branch
    'repmlp.RepMLPNetUnit': 2,
    'riformer.RIFormerBlock': 2,  # also deployed, when the token mixer is a mere affine map
    # Attention.
    'beit.BEiTTransformerEncoderLayer': 2,
    'conformer.ConvBlock': 1,  # `conv2(x + fusion_features)` is a fusion, and in the branch
    'davit.ChannelBlock': _ffn('ffn', 1),
    'davit.SpatialBlock': _ffn('ffn', 1),
    'deit3.DeiT3TransformerEncoderLayer': _ffn('ffn', 1),
    'hivit.BlockWithRPE': lambda m: 1 + int(m.attn is not None),
    'levit.Residual': 1,
    'mixmim.MixMIMBlock': _ffn('ffn', 1),
    'mvit.MultiScaleBlock': 2,  # residual pooling (`x + q`) is inside the branch
    'revvit.RevTransformerEncoderLayer': 2,  # the two couplings
    'swin_transformer.SwinBlock': _ffn('ffn', 1),
    'swin_transformer_v2.SwinBlockV2': 2,
    't2t_vit.T2TTransformerLayer': lambda m: _ffn('ffn', int(not m.v_shortcut))(m),
    'tinyvit.TinyViTBlock': 2,
    'tnt.TransformerBlock': _ffn('ffn', 1),  # the first is in mmcv's MultiheadAttention
    'twins.GSAEncoderLayer': 2,
    'twins.LSAEncoderLayer': 2,
    'vision_transformer.TransformerEncoderLayer': _ffn('ffn', 1),
    'vit_eva02.EVA02EndcoderLayer': 2,
    'vit_sam.TransformerEncoderLayer': _ffn('ffn', 1),
    # The second one also doubles the patch tokens: its branch holds them unchanged.
    'xcit.ClassAttentionBlock': 2,
    'xcit.XCABlock': 3,
    # Arguable: T2T's two token transformers skip with v = linear(norm(x)), for the
    # dimensions differ. A norm and one linear are a projection of the stream.
    'attention.MultiheadAttention': _flag('v_shortcut'),
    'twins.GlobalSubsampledAttention': _flag('v_shortcut'),
    # Position encodings `x + depthwise_conv(x)`.
    'davit.ConvPosEnc': 1,
    'position_encoding.ConditionalPositionEncoding': lambda m: int(m.stride == 1),
}

_POSITION = 'adds position embeddings, a parameter'
_BIAS = 'attention bias or mask'
_PARALLEL = 'parallel branches without a skip'
_MASKING = 'position embeddings and mask tokens'
_SIZES = 'sizes and indices only'
# `module.Class` -> why the additions in its forward do not count.
NOT_RESIDUAL: dict[str, str] = {
    'attention.BEiTAttention': _BIAS,
    'attention.ChannelMultiheadAttention': 'inside the branch',
    'attention.LeAttention': _BIAS,
    'attention.ShiftWindowMSA': _SIZES,
    'attention.WindowMSA': _BIAS,
    'attention.WindowMSAV2': _BIAS,
    'beit.BEiTPretrainViT': _MASKING,
    'beit.BEiTViT': _POSITION,
    'cae.CAEPretrainViT': _MASKING,
    # Arguable: the stream of the transformer plus features of the other stream (FCU).
    'conformer.ConvTransBlock': 'fusion of two streams',
    'conv2d_adaptive_padding.Conv2dAdaptivePadding': _SIZES,
    'davit.DaViTWindowMSA': _BIAS,
    'deit.DistilledVisionTransformer': _POSITION,
    'deit3.DeiT3': _POSITION,
    'deit3.DeiT3FFN': 'counted with its block',
    'drop.DropPath': _SIZES,
    'edgenext.EdgeNeXt': 'position encoding of the coordinates, not of the stream',
    'efficientformer.AttentionWithBias': _BIAS,
    'embed.PatchMerging': _SIZES,
    'hivit.Attention': _BIAS,
    'hivit.HiViT': _POSITION,
    'hornet.HorNetLayerNorm': 'bias',
    'hornet.gnConv': _SIZES,
    'hrnet.HRModule': 'multi-scale fusion, also where one term is the stream itself',
    'hsigmoid.HSigmoid': 'bias',
    'itpn.iTPNHiViT': _MASKING,
    'levit.Attention': _BIAS,
    'levit.AttentionSubsample': _BIAS,
    'lora.LoRALinear': 'a linear layer and its low-rank update',
    'mae.MAEHiViT': _MASKING,
    'mae.MAEViT': _MASKING,
    'maskfeat.MaskFeatViT': _MASKING,
    'mff.MFFViT': 'weighted sum of the outputs of several layers',
    'milan.MILANViT': _MASKING,
    'mixmim.MixMIMPretrainTransformer': 'mixes the patches of two images',
    'mixmim.MixMIMTransformer': _POSITION,
    'mixmim.MixMIMWindowAttention': _BIAS,
    'mobileone.MobileOneBlock': _PARALLEL,
    'mvit.MultiScaleAttention': 'residual pooling, inside the branch',
    'mvit.MViT': _POSITION,
    'norm.GRN': 'inside the branch',
    'parrots_wrapper.SyncBatchNorm': 'counts its batches',
    'position_encoding.PositionEncodingFourier': 'coordinates',
    'position_encoding.RotaryEmbeddingFast': 'rotation of q and k',
    'replknet.ReparamLargeKernelConv': _PARALLEL,
    'repmlp.RepMLPBlock': _PARALLEL,
    # Arguable: three branches, one of them BN(x), then an activation.
    'repvgg.RepVGGBlock': _PARALLEL,
    'resnest.SplitAttentionConv2d': 'sum over the splits',
    'revvit.RevVisionTransformer': _POSITION,
    'revvit.TwoStreamFusion': 'fusion of the two streams',
    'simmim.SimMIMSwinTransformer': _MASKING,
    'swiglu_ffn.SwiGLUFFN': 'counted with its block',
    'swin_transformer.SwinTransformer': _POSITION,
    'swin_transformer_v2.SwinTransformerV2': _POSITION,
    't2t_vit.T2T_ViT': _POSITION,
    't2t_vit.T2TModule': _SIZES,
    'tnt.PixelEmbed': _POSITION,
    'tnt.TNT': _POSITION,
    # Arguable: the stream of the patches plus a projection of the other stream.
    'tnt.TnTLayer': 'injects the stream of the pixels into that of the patches',
    'transformer.AdaptivePadding': _SIZES,
    'transformer.FFN': 'counted with its block',
    'transformer.MultiheadAttention': 'counted with its block',
    'transformer.PatchMerging': _SIZES,
    'twins.LocallyGroupedSelfAttention': _BIAS,
    'van.SpatialAttention': 'inside the branch',
    'vig.DenseDilatedKnnGraph': 'distances of the graph',
    'vig.DyGraphConv2d': 'distances of the graph',
    'vig.MRConv2d': _SIZES,
    'vig.PyramidVig': _POSITION,
    'vig.Vig': _POSITION,
    'vision_transformer.VisionTransformer': _POSITION,
    'vit_eva02.ViTEVA02': _POSITION,
    'vit_sam.Attention': _BIAS,
    'vit_sam.ViTSAM': _POSITION,
    'wrappers.Conv2d': _SIZES,
    'wrappers.Linear': _SIZES,
    'xcit.PositionalEncodingFourier': 'coordinates',
    'xcit.XCiT': _POSITION,
}


# Backbones of the configs.


def _literals(path: Path) -> dict:
    """Merged literal assignments of a config and its bases.

    For configs that `Config.fromfile` refuses: RepLKNet-31B's base imports mmpretrain, and
    two of Swin V2 change a pipeline that their base lacks.
    """
    values = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                values[node.targets[0].id] = eval(
                    compile(ast.Expression(node.value), str(path), 'eval'), {'dict': dict}
                )
            except NameError:
                continue
    merged: dict = {}
    bases = values.pop('_base_', [])
    for base in [bases] if isinstance(bases, str) else bases:
        merged.update(_literals(path.parent / base))
    merged = Config(merged)
    merged.merge_from_dict({k: v for k, v in values.items() if isinstance(v, (dict, list))})
    return merged._cfg_dict.to_dict()


def _configs() -> Iterator[tuple[str, dict]]:
    for path in sorted(CONFIGS.rglob('*.py')):
        name = path.relative_to(CONFIGS).as_posix()
        if '_base_' in path.parts or name.startswith('byol/benchmarks/mask-rcnn'):
            continue
        try:
            yield name, Config.fromfile(path)._cfg_dict.to_dict()
        except (KeyError, RuntimeError):
            yield name, _literals(path)


def _plain(value: object) -> object:
    """A copy in which types are names and no checkpoint is loaded."""
    if isinstance(value, Mapping):
        return {
            k: _plain(v)
            for k, v in value.items()
            if k != 'pretrained'
            and not (k == 'init_cfg' and 'Pretrained' in json.dumps(v, default=str))
        }
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(v) for v in value)
    return value.__name__ if inspect.isclass(value) else value


def _key(cfg: dict) -> str:
    kept = {k: v for k, v in cfg.items() if k not in INDIFFERENT}
    if isinstance(kept.get('module'), dict):
        kept['module'] = _key(kept['module'])
    return json.dumps(kept, sort_keys=True, default=str)


def _pair(size: object) -> tuple[int, int] | None:
    if isinstance(size, int):
        return (size, size)
    if isinstance(size, (list, tuple)) and all(isinstance(s, int) for s in size):
        return (size[0], size[-1])
    return None


def _pipeline_size(steps: list) -> tuple[int, int] | None:
    """Size after the last crop or resize, in the first view where there are several."""
    found = None
    for step in steps:
        if not isinstance(step, Mapping):
            continue
        nested = step.get('transforms')
        if nested:
            nested = nested[0] if isinstance(nested[0], (list, tuple)) else nested
            found = _pipeline_size(nested) or found
        elif any(word in str(step.get('type')) for word in ('Crop', 'Resize')):
            for key in ('crop_size', 'scale', 'size'):
                found = _pair(step.get(key)) or found
    return found


def _size(cfg: dict, config: dict) -> tuple[int, int]:
    cfg = cfg.get('module', cfg)
    signature = inspect.signature(MODELS.get(cfg['type']).__init__)
    default = signature.parameters.get('img_size')
    loader = config.get('train_dataloader') or {}
    pipeline = (loader.get('dataset') or {}).get('pipeline') or config.get('train_pipeline')
    return (
        _pair(cfg.get('img_size', default and default.default))
        or _pipeline_size(pipeline or [])
        or (224, 224)
    )


@functools.cache
def _cases() -> tuple[Case, ...]:
    cases: dict[str, Case] = {}
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        configs = list(_configs())
    for place in PLACES:
        for name, config in configs:
            cfg = (config.get('model') or {}).get(place)
            if place == 'image_encoder' and isinstance(cfg, list):
                cfg = cfg[0]
            if not isinstance(cfg, Mapping) or MODELS.get(cfg['type']) is None:
                continue
            cfg = _plain(cfg)
            channels = cfg.get('in_channels', cfg.get('in_chans', 3))
            channels = 1 if cfg['type'] == 'LeNet5' else channels
            case = Case(name, cfg, _size(cfg, config), channels, place)
            cases.setdefault(_key(cfg), case)
    return tuple(cases.values())


def distinct_backbones() -> list[Case]:
    """Every distinct backbone of mmpretrain's configs.

    Returns:
        list[Case]: those of `model.backbone` first.
    """
    return list(_cases())


@contextmanager
def _device(device: str) -> Iterator[None]:
    """Builds there. Rates of stochastic depth are numbers, so these are always real."""
    with (
        mock.patch.object(torch, 'linspace', functools.partial(torch.linspace, device='cpu')),
        DefaultScope.overwrite_default_scope('mmpretrain'),
        quiet(),
        warnings.catch_warnings(),
        torch.device(device),
    ):
        warnings.simplefilter('ignore')
        yield


def build(cfg: dict) -> nn.Module:
    """Builds a backbone, without memory unless it initialises itself, as LoRA does."""
    for device in ('meta', 'cpu'):
        try:
            with _device(device):
                return MODELS.build(cfg)
        except NotImplementedError:
            if device == 'cpu':
                raise
    raise AssertionError


# Counting.


def _name(cls: type) -> str:
    return f'{cls.__module__.rpartition(".")[2]}.{cls.__name__}'


def _entry(module: nn.Module) -> int | Callable[[nn.Module], int] | None:
    """Entry of the nearest class, which must also be where `forward` comes from."""
    for cls in type(module).__mro__:
        if cls.__module__.split('.')[0] in PACKAGES and _name(cls) in BLOCK_RESIDUALS:
            if type(module).forward is not cls.forward:
                raise ValueError(f'{_name(type(module))} overrides the forward of {_name(cls)}')
            return BLOCK_RESIDUALS[_name(cls)]
    return None


def count_residuals(backbone: nn.Module) -> dict[str, int]:
    """Residual additions of one forward pass.

    Every block of mmpretrain's backbones runs once per pass, whatever is masked or put out.

    Args:
        backbone (nn.Module): a backbone of mmpretrain.

    Returns:
        dict[str, int]: path of the module to its additions, where there are any.
    """
    counts = {}
    for path, module in backbone.named_modules():
        if type(module).__module__.split('.')[0] not in (*PACKAGES, 'torch'):
            raise ValueError(f'no entries for blocks of {type(module).__module__}')
        entry = _entry(module)
        number = entry(module) if callable(entry) else entry
        if number:
            counts[path] = number
    return counts


# Audit of the tables.


def _adds(tree: ast.AST) -> bool:
    """Whether a function adds anything that may be an activation."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, ast.Add):
            right = node.right if isinstance(node, ast.BinOp) else node.value
            if not isinstance(right, ast.Constant):
                return True
        if isinstance(node, ast.Call):
            name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
            if name in ('add', 'add_', 'lerp', 'lerp_', 'sum', 'addcmul', 'baddbmm'):
                return True
            if any(keyword.arg == 'identity' for keyword in node.keywords):
                return True
    return False


def _tree(function: Callable) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))


def class_adds(cls: type) -> bool:
    """Whether `forward`, or what it calls in its class and file, adds anything."""
    seen, todo = set(), [cls.forward]
    while todo:
        function = inspect.unwrap(todo.pop())
        if function in seen or not inspect.isfunction(function):
            continue
        seen.add(function)
        tree = _tree(function)
        if _adds(tree):
            return True
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and getattr(node.value, 'id', '') == 'self':
                todo.append(inspect.getattr_static(cls, node.attr, None))
            elif isinstance(node, ast.Name):
                called = function.__globals__.get(node.id)
                if inspect.isfunction(called) and called.__module__.split('.')[0] in PACKAGES:
                    todo.append(called)
        todo = [getattr(item, '__func__', item) for item in todo if item is not None]
    return False


def unexplained(classes: set[type]) -> list[str]:
    """Classes with additions that neither table explains."""
    return sorted(
        _name(cls)
        for cls in classes
        if not any(_name(c) in BLOCK_RESIDUALS for c in cls.__mro__)
        and not any(
            _name(c) in NOT_RESIDUAL and cls.forward is c.forward
            for c in cls.__mro__
            if hasattr(c, 'forward')
        )
        and class_adds(cls)
    )


def main() -> None:
    cases = distinct_backbones()
    totals: dict[str, list[tuple[int, Case]]] = {}
    classes: set[type] = set()
    entries: Counter = Counter()
    for case in cases:
        backbone = build(case.cfg)
        totals.setdefault(case.type, []).append((sum(count_residuals(backbone).values()), case))
        for module in backbone.modules():
            if type(module).__module__.split('.')[0] in PACKAGES:
                classes.add(type(module))
    for cls in classes:
        entries.update(_name(c) for c in cls.__mro__)
    for kind, found in sorted(totals.items()):
        numbers = ' '.join(str(number) for number, _ in found)
        number, first = found[0]
        print(f'{kind}: {number} in {first.config} at {first.size}; all {len(found)}: {numbers}')
    total = sum(number for found in totals.values() for number, _ in found)
    print(f'{len(cases)} backbones of {len(totals)} types, {total} residual additions')
    print('not explained:', ', '.join(unexplained(classes)) or 'none')
    unused = [name for name in (*BLOCK_RESIDUALS, *NOT_RESIDUAL) if not entries[name]]
    print('entries without a module:', ', '.join(unused) or 'none')


if __name__ == '__main__':
    main()
