"""Networks of the census that are made from small configs: no weights are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .census_cases import Case

WIDTH = 32
_COMMON: dict[str, Any] = dict(
    vocab_size=99,
    hidden_size=WIDTH,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=64,
    max_position_embeddings=64,
    pad_token_id=0,
    # Of encoders and decoders.
    d_model=WIDTH,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=64,
    decoder_ffn_dim=64,
)
"""Options of configs; each config gets those that it has."""
_TEXT: dict[str, dict[str, Any]] = {
    'albert': {},
    'bert': {},
    'biogpt': {},
    'bloom': {},
    'codegen': dict(rotary_dim=4),
    'cohere': {},
    'convbert': {},
    'deberta': {},
    'deberta-v2': {},
    'distilbert': {},
    'electra': {},
    'falcon': dict(head_dim=None),
    'fnet': {},
    'gemma': {},
    'gemma2': {},
    'gpt2': {},
    'gpt_neo': dict(attention_types=[[['global', 'local'], 2]], num_hidden_layers=4),
    'gpt_neox': {},
    'gptj': dict(rotary_dim=4),
    'granite': {},
    'llama': {},
    'longformer': dict(attention_window=4),
    'mamba': {},
    'mamba2': dict(num_heads=8, head_dim=8, n_groups=1, chunk_size=8, state_size=8),
    'mistral': {},
    'mixtral': dict(num_local_experts=2),
    'mobilebert': dict(
        embedding_size=WIDTH, intra_bottleneck_size=16, true_hidden_size=16, hidden_size=WIDTH
    ),
    'mpnet': {},
    'mpt': {},
    'nystromformer': dict(segment_means_seq_len=16, num_landmarks=4),
    'olmo2': {},
    'opt': dict(word_embed_proj_dim=WIDTH, ffn_dim=64),
    'phi': {},
    'phi3': {},
    'qwen2': {},
    'qwen3': {},
    'roberta': {},
    'roformer': {},
    'squeezebert': dict(embedding_size=WIDTH),
    'stablelm': {},
    'starcoder2': {},
    'xglm': dict(num_layers=2, attention_heads=4, ffn_dim=64),
    'xlnet': dict(d_inner=64, d_head=8, max_position_embeddings=None),
}
_BOTH: dict[str, dict[str, Any]] = {
    'bart': {},
    'blenderbot': {},
    'm2m_100': {},
    'pegasus': {},
    't5': dict(d_kv=8, d_ff=64, num_layers=2, num_heads=4),
}
_IMAGES: dict[str, dict[str, Any]] = {
    'beit': {},
    'bit': dict(depths=[2, 2, 1, 1]),
    'convnext': dict(hidden_sizes=[16, 32, 64, 64], depths=[2, 2, 3, 1]),
    'convnextv2': dict(hidden_sizes=[16, 32, 64, 64], depths=[2, 2, 3, 1]),
    'cvt': dict(hidden_size=None, num_attention_heads=None),
    'deit': {},
    'dinov2': {},
    'efficientnet': {},
    'focalnet': dict(hidden_size=None),
    'glpn': dict(num_attention_heads=[1, 2, 5, 8]),
    'hiera': dict(hidden_size=None),
    'ijepa': {},
    'levit': dict(num_attention_heads=[4, 8, 12]),
    'mobilenet_v2': {},
    'mobilevit': dict(hidden_size=None),
    'mobilevitv2': {},
    'poolformer': dict(depths=[2, 2, 3, 1]),
    'pvt': dict(num_attention_heads=[1, 2, 5, 8]),
    'pvt_v2': dict(num_attention_heads=[1, 2, 5, 8]),
    'regnet': {},
    'resnet': {},
    'segformer': dict(num_attention_heads=[1, 2, 5, 8]),
    'swin': dict(hidden_size=None, num_attention_heads=None),
    'swinv2': dict(hidden_size=None, num_attention_heads=None),
    'vit': {},
    'vit_mae': dict(mask_ratio=0.0),
    'vit_msn': {},
    'vitdet': {},
    'yolos': {},
}


def _build(kind: str, **options: Any) -> nn.Module:
    """Make a model of transformers from a config with those options that it has."""
    from transformers import AutoConfig, AutoModel

    default = AutoConfig.for_model(kind)
    common = {k: v for k, v in _COMMON.items() if hasattr(default, k)}
    chosen = {k: v for k, v in {**common, **options}.items() if v is not None}
    config = AutoConfig.for_model(kind, **chosen)
    config._attn_implementation = 'eager'
    return AutoModel.from_config(config)


def _words(model: nn.Module) -> dict[str, Tensor]:
    return dict(input_ids=torch.randint(1, 90, (2, 16)))


def _words_to_words(model: nn.Module) -> dict[str, Tensor]:
    return dict(_words(model), decoder_input_ids=torch.randint(1, 90, (2, 8)))


def _pixels(model: nn.Module) -> dict[str, Tensor]:
    size: Any = getattr(model.config, 'image_size', 224)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return dict(pixel_values=torch.randn(2, 3, height, width))


def _clip(model: nn.Module) -> dict[str, Tensor]:
    return dict(_words(model), pixel_values=torch.randn(2, 3, 32, 32))


def _clip_parts() -> dict[str, Any]:
    vision = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4)
    vision |= dict(image_size=32, patch_size=8, intermediate_size=64)
    text = dict(hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4)
    text |= dict(vocab_size=99, intermediate_size=64, eos_token_id=2)
    return dict(vision_config=vision, text_config=text)


def transformers_cases() -> Iterator[Case]:
    """Networks of transformers: one of each of about eighty kinds of model."""
    video = dict(image_size=32, patch_size=8, num_frames=4)

    def video_inputs(model: nn.Module) -> Any:
        return dict(pixel_values=torch.randn(1, 4, 3, 32, 32))

    def waves(model: nn.Module) -> Any:
        return dict(input_values=torch.randn(2, 2000))

    listening = dict(conv_dim=(16, 16), conv_kernel=(10, 3), conv_stride=(5, 2))
    listening |= dict(num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)
    spectrum = dict(num_mel_bins=8, max_source_positions=16, max_target_positions=32)

    def heard(model: nn.Module, frames: tuple[int, int] = (8, 32)) -> dict[str, Tensor]:
        words = torch.randint(1, 90, (2, 8))
        return dict(input_features=torch.randn(2, *frames), decoder_input_ids=words)

    others: dict[str, tuple[dict, Callable]] = {
        'clip': (_clip_parts(), _clip),
        'siglip': (_clip_parts(), _clip),
        'timesformer': (video, video_inputs),
        'videomae': (video, video_inputs),
        'vivit': (dict(video, tubelet_size=[2, 8, 8]), video_inputs),
        'wav2vec2': (listening, waves),
        'hubert': (listening, waves),
        'whisper': (spectrum, heard),
        'speech_to_text': (
            dict(
                num_conv_layers=1, conv_kernel_sizes=[3], conv_channels=32, input_feat_per_channel=8
            ),
            lambda model: heard(model, (32, 8)),
        ),
        'audio-spectrogram-transformer': (
            dict(max_length=64, num_mel_bins=32),
            lambda model: dict(input_values=torch.randn(2, 64, 32)),
        ),
    }
    for kinds, inputs in ((_TEXT, _words), (_BOTH, _words_to_words), (_IMAGES, _pixels)):
        others |= {kind: (options, inputs) for kind, options in kinds.items()}
    for kind, (options, given) in others.items():
        yield Case('transformers', kind, kind, lambda k=kind, o=options: _build(k, **o), given)


def smp_cases() -> Iterator[Case]:
    """Networks of segmentation_models_pytorch: architectures and encoders."""
    import segmentation_models_pytorch as smp

    encoders = 'resnet18 resnet50 resnext50_32x4d se_resnet50 se_resnext50_32x4d senet154 dpn68'
    encoders += ' vgg11_bn densenet121 inceptionresnetv2 inceptionv4 efficientnet-b0 mobilenet_v2'
    encoders += (
        ' xception timm-efficientnet-b0 timm-skresnet18 mit_b0 mobileone_s0 tu-convnext_atto'
    )
    encoders += ' tu-regnety_002 tu-mobilenetv3_small_100 tu-resnest14d tu-res2net50_26w_4s'
    pairs = [('Unet', encoder) for encoder in encoders.split()]
    architectures = 'UnetPlusPlus MAnet Linknet FPN PSPNet PAN DeepLabV3 DeepLabV3Plus UPerNet'
    pairs += [(name, 'resnet34') for name in architectures.split()]
    pairs += [('Segformer', 'mit_b0'), ('DPT', 'tu-vit_tiny_patch16_224')]
    pairs += [('FPN', 'efficientnet-b0'), ('Linknet', 'mobilenet_v2'), ('UPerNet', 'mit_b0')]

    def build(architecture: str, encoder: str) -> nn.Module:
        options: dict[str, Any] = {}
        if architecture == 'Unet':
            options = dict(decoder_attention_type='scse')
        if architecture == 'DPT':
            options = dict(dynamic_img_size=False)
        return getattr(smp, architecture)(encoder, encoder_weights=None, **options)

    for architecture, encoder in pairs:
        yield Case(
            'smp',
            architecture,
            f'{architecture}, {encoder}',
            lambda a=architecture, e=encoder: build(a, e),
            lambda model, s=224 if architecture == 'DPT' else 128: (torch.randn(2, 3, s, s),),
        )


def monai_cases() -> Iterator[Case]:
    """Networks of monai, of two or three dimensions."""
    from monai.networks import nets
    from monai.networks.nets.restormer import Restormer

    flat, solid = dict(spatial_dims=2, in_channels=1), dict(spatial_dims=3, in_channels=1)
    unet = dict(out_channels=2, channels=(8, 16, 32, 64), strides=(2, 2, 2))
    resnet = dict(spatial_dims=3, n_input_channels=1, num_classes=2)
    kernels = dict(out_channels=2, kernel_size=[3, 3, 3], strides=[1, 2, 2])
    kernels |= dict(upsample_kernel_size=[2, 2])
    diffusion = dict(out_channels=1, channels=(8, 16, 16), num_res_blocks=1, norm_num_groups=8)
    diffusion |= dict(attention_levels=(False, True, True), num_head_channels=8)
    latent = dict(out_channels=1, channels=(8, 16, 16), num_res_blocks=1, norm_num_groups=8)
    latent |= dict(attention_levels=(False, False, True), latent_channels=4)
    vit = dict(in_channels=1, img_size=(32, 32), patch_size=(8, 8), spatial_dims=2)
    vit |= dict(hidden_size=32, mlp_dim=64, num_layers=3, num_heads=4)
    vq = dict(out_channels=1, channels=(8, 16), num_res_layers=2, num_res_channels=(8, 16))
    vq |= dict(downsample_parameters=((2, 4, 1, 1),) * 2)
    vq |= dict(upsample_parameters=((2, 4, 1, 1, 0),) * 2, num_embeddings=16, embedding_dim=8)
    senet = dict(**flat, num_classes=2)
    step = torch.tensor([3, 5])
    words = torch.randn(2, 4, 16)
    cases: dict[str, tuple[str, dict, Any]] = {
        'AHNet': ('AHNet', dict(spatial_dims=2, in_channels=1, out_channels=2), (2, 1, 128, 128)),
        'AttentionUnet': ('AttentionUnet', {**flat, **unet}, (2, 1, 64, 64)),
        'AutoEncoder, residual': (
            'AutoEncoder',
            dict(**flat, out_channels=2, channels=(8, 16), strides=(2, 2), num_res_units=2),
            (2, 1, 64, 64),
        ),
        'AutoencoderKL': ('AutoencoderKL', {**flat, **latent}, (2, 1, 32, 32)),
        'BasicUNet': ('BasicUNet', {**flat, 'out_channels': 2}, (2, 1, 64, 64)),
        'BasicUNetPlusPlus': ('BasicUNetPlusPlus', {**flat, 'out_channels': 2}, (2, 1, 64, 64)),
        'DenseNet121': ('DenseNet121', {**flat, 'out_channels': 2}, (2, 1, 64, 64)),
        'DiffusionModelUNet': (
            'DiffusionModelUNet',
            {**flat, **diffusion},
            lambda m: dict(x=torch.randn(2, 1, 32, 32), timesteps=step),
        ),
        'DiffusionModelUNet, conditioned': (
            'DiffusionModelUNet',
            {**flat, **diffusion, 'with_conditioning': True, 'cross_attention_dim': 16},
            lambda m: dict(x=torch.randn(2, 1, 32, 32), timesteps=step, context=words),
        ),
        'DynUNet': ('DynUNet', {**solid, **kernels}, (1, 1, 32, 32, 32)),
        'DynUNet, residual': (
            'DynUNet',
            {**solid, **kernels, 'res_block': True},
            (1, 1, 32, 32, 32),
        ),
        'EfficientNetBN': (
            'EfficientNetBN',
            dict(model_name='efficientnet-b0', pretrained=False, **flat),
            (2, 1, 64, 64),
        ),
        'FlexibleUNet, resnet18': (
            'FlexibleUNet',
            dict(in_channels=1, out_channels=2, backbone='resnet18', spatial_dims=2),
            (2, 1, 64, 64),
        ),
        'FlexibleUNet, efficientnet-b0': (
            'FlexibleUNet',
            dict(in_channels=1, out_channels=2, backbone='efficientnet-b0', spatial_dims=2),
            (2, 1, 64, 64),
        ),
        'HighResNet': ('HighResNet', {**solid, 'out_channels': 2}, (1, 1, 32, 32, 32)),
        'HoVerNet': ('HoVerNet', dict(mode='fast', in_channels=3, out_classes=5), (1, 3, 256, 256)),
        'MaskedAutoEncoderViT': (
            'MaskedAutoEncoderViT',
            {**vit, 'masking_ratio': 0.5, 'decoder_hidden_size': 32, 'decoder_num_heads': 4},
            (2, 1, 32, 32),
        ),
        'MedNeXtSmall': ('MedNeXtSmall', {**solid, 'out_channels': 2}, (1, 1, 32, 32, 32)),
        'QuickNAT': ('Quicknat', dict(num_classes=2, num_channels=1), (2, 1, 64, 64)),
        'RegUNet': (
            'RegUNet',
            dict(spatial_dims=2, in_channels=1, num_channel_initial=8, depth=2),
            (2, 1, 32, 32),
        ),
        'resnet18': ('resnet18', resnet, (1, 1, 32, 32, 32)),
        'resnet50': ('resnet50', resnet, (1, 1, 32, 32, 32)),
        'Restormer': (
            'Restormer',
            dict(
                **flat,
                out_channels=1,
                dim=8,
                num_blocks=(1, 1, 1),
                heads=(1, 2, 2),
                num_refinement_blocks=1,
            ),
            (1, 1, 64, 64),
        ),
        'SegResNet': ('SegResNet', {**solid, 'out_channels': 2}, (1, 1, 32, 32, 32)),
        'SegResNetDS': ('SegResNetDS', {**solid, 'out_channels': 2}, (1, 1, 32, 32, 32)),
        'SegResNetVAE': (
            'SegResNetVAE',
            {**solid, 'out_channels': 2, 'input_image_size': (32, 32, 32)},
            (1, 1, 32, 32, 32),
        ),
        'SEResNet50': ('SEResNet50', senet, (2, 1, 64, 64)),
        'SEResNeXt50': ('SEResNext50', senet, (2, 1, 64, 64)),
        'SwinUNETR': (
            'SwinUNETR',
            dict(in_channels=1, out_channels=2, feature_size=12, spatial_dims=3),
            (1, 1, 64, 64, 64),
        ),
        'UNet': ('UNet', {**flat, **unet}, (2, 1, 64, 64)),
        'UNet, residual': ('UNet', {**flat, **unet, 'num_res_units': 2}, (2, 1, 64, 64)),
        'UNETR': (
            'UNETR',
            dict(
                in_channels=1,
                out_channels=2,
                img_size=(32, 32, 32),
                feature_size=8,
                hidden_size=48,
                mlp_dim=96,
                num_heads=4,
            ),
            (1, 1, 32, 32, 32),
        ),
        'ViT': ('ViT', {**vit, 'classification': True}, (2, 1, 32, 32)),
        'ViTAutoEnc': ('ViTAutoEnc', {**vit, 'patch_size': (4, 4)}, (2, 1, 32, 32)),
        'VNet': ('VNet', {**solid, 'out_channels': 2}, (1, 1, 32, 32, 32)),
        'VQVAE': ('VQVAE', {**flat, **vq}, (2, 1, 32, 32)),
    }
    for title, (name, options, given) in cases.items():
        inputs = given if callable(given) else lambda m, shape=given: (torch.randn(shape),)
        yield Case(
            'monai', name, title, lambda n=name, o=options: getattr(nets, n, Restormer)(**o), inputs
        )


def diffusers_cases() -> Iterator[Case]:
    """Networks of diffusers."""
    import diffusers

    unet = dict(block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8)
    conditioned = dict(cross_attention_dim=16, attention_head_dim=8, in_channels=4)
    conditioned |= dict(down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'))
    up = dict(up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'), out_channels=4)
    step, words = torch.tensor([3, 3]), (2, 5, 16)

    def told(model: nn.Module) -> dict[str, Tensor]:
        sample = torch.randn(2, 4, 16, 16)
        return dict(sample=sample, timestep=step, encoder_hidden_states=torch.randn(words))

    def hinted(model: nn.Module) -> dict[str, Tensor]:
        return dict(told(model), controlnet_cond=torch.randn(2, 3, 128, 128))

    def classed(model: nn.Module) -> dict[str, Tensor]:
        labels = torch.tensor([1, 2])
        return dict(hidden_states=torch.randn(2, 4, 8, 8), timestep=step, class_labels=labels)

    def joint(model: nn.Module) -> dict[str, Tensor]:
        hidden = dict(hidden_states=torch.randn(2, 4, 8, 8), timestep=step)
        return dict(
            hidden, encoder_hidden_states=torch.randn(words), pooled_projections=torch.randn(2, 16)
        )

    def packed(model: nn.Module) -> dict[str, Tensor]:
        hidden = dict(hidden_states=torch.randn(1, 16, 4), timestep=torch.tensor([0.3]))
        places = dict(img_ids=torch.zeros(16, 3), txt_ids=torch.zeros(5, 3))
        text = dict(encoder_hidden_states=torch.randn(1, 5, 16))
        return {**hidden, **places, **text, 'pooled_projections': torch.randn(1, 16)}

    def image(model: nn.Module) -> tuple:
        return (torch.randn(2, 3, 32, 32),)

    layers = dict(num_layers=2, num_attention_heads=4, attention_head_dim=8)
    cases: dict[str, tuple[dict[str, Any], Callable]] = {
        'UNet2DModel': (
            dict(
                **unet,
                in_channels=3,
                out_channels=3,
                attention_head_dim=8,
                down_block_types=('DownBlock2D', 'AttnDownBlock2D'),
                up_block_types=('AttnUpBlock2D', 'UpBlock2D'),
            ),
            lambda model: (torch.randn(2, 3, 32, 32), step),
        ),
        'UNet2DConditionModel': ({**unet, **conditioned, **up}, told),
        'ControlNetModel': (
            {**unet, **conditioned, 'conditioning_embedding_out_channels': (8, 16, 16, 16)},
            hinted,
        ),
        'AutoencoderKL': (
            dict(
                **unet,
                down_block_types=('DownEncoderBlock2D',) * 2,
                up_block_types=('UpDecoderBlock2D',) * 2,
            ),
            image,
        ),
        'AutoencoderTiny': (
            dict(encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8)),
            image,
        ),
        'VQModel': (
            dict(
                **unet,
                down_block_types=('DownEncoderBlock2D',) * 2,
                up_block_types=('UpDecoderBlock2D',) * 2,
                num_vq_embeddings=16,
            ),
            image,
        ),
        'DiTTransformer2DModel': (dict(layers, in_channels=4, sample_size=8), classed),
        'SD3Transformer2DModel': (
            dict(
                layers,
                sample_size=8,
                in_channels=4,
                out_channels=4,
                joint_attention_dim=16,
                caption_projection_dim=32,
                pooled_projection_dim=16,
                pos_embed_max_size=8,
            ),
            joint,
        ),
        'FluxTransformer2DModel': (
            dict(
                layers,
                num_single_layers=2,
                in_channels=4,
                joint_attention_dim=16,
                pooled_projection_dim=16,
                axes_dims_rope=(2, 2, 4),
            ),
            packed,
        ),
    }
    for name, (options, inputs) in cases.items():
        yield Case(
            'diffusers', name, name, lambda n=name, o=options: getattr(diffusers, n)(**o), inputs
        )


CASES: dict[str, Callable[[], Iterator[Case]]] = {
    'transformers': transformers_cases,
    'smp': smp_cases,
    'monai': monai_cases,
    'diffusers': diffusers_cases,
}
