"""Residual sums of the layers of Hugging Face transformers (5), read from their sources.

A layer whose attention and MLP are added to the stream together, ``x + (f(x) + g(x))``, has one
such sum; one that adds them one after the other, ``x + f(x) + g(x)``, has two.
"""

from __future__ import annotations

from .executed import Entry, flag


def _of(model: str, *classes: str) -> list[str]:
    return [f'modeling_{model}.{name}' for name in classes]


_ONE = [
    *_of('albert', 'AlbertAttention', 'AlbertLayer'),
    *_of('bert', 'BertSelfOutput', 'BertOutput'),
    *_of('bit', 'BitPreActivationBottleneckLayer', 'BitBottleneckLayer'),
    *_of('bloom', 'BloomAttention', 'BloomMLP'),
    *_of('codegen', 'CodeGenBlock'),
    *_of('convbert', 'ConvBertSelfOutput', 'ConvBertOutput'),
    *_of('convnext', 'ConvNextLayer'),
    *_of('convnextv2', 'ConvNextV2Layer'),  # that of its norm is inside the branch
    *_of('cvt', 'CvtOutput', 'CvtLayer'),
    *_of('deberta', 'DebertaSelfOutput', 'DebertaOutput'),
    *_of('deberta_v2', 'DebertaV2SelfOutput', 'DebertaV2Output', 'ConvLayer'),
    *_of('electra', 'ElectraSelfOutput', 'ElectraOutput'),
    *_of('fnet', 'FNetBasicOutput', 'FNetOutput'),
    *_of('gptj', 'GPTJBlock'),
    *_of('hubert', 'HubertEncoder'),  # convolutional position embeddings, and the layers below
    *_of('levit', 'LevitResidualLayer'),
    *_of('longformer', 'LongformerSelfOutput', 'LongformerOutput'),
    *_of('mamba', 'MambaBlock'),
    *_of('mamba2', 'Mamba2Block'),
    # The skip around all of a layer of MobileBERT, between its bottlenecks, is no block.
    *_of('mobilebert', 'MobileBertSelfOutput', 'FFNOutput', 'MobileBertOutput'),
    *_of('mobilevit', 'MobileViTOutput', 'MobileViTTransformerLayer'),
    *_of('mpnet', 'MPNetAttention', 'MPNetOutput'),
    *_of('mpt', 'MptBlock', 'MptMLP'),
    *_of('nystromformer', 'NystromformerSelfOutput', 'NystromformerOutput'),
    *_of('phi', 'PhiDecoderLayer'),
    *_of('regnet', 'RegNetXLayer', 'RegNetYLayer'),
    *_of('resnet', 'ResNetBasicLayer', 'ResNetBottleNeckLayer'),
    *_of('roberta', 'RobertaSelfOutput', 'RobertaOutput'),
    *_of('roformer', 'RoFormerSelfOutput', 'RoFormerOutput'),
    *_of('siglip', 'SiglipMultiheadAttentionPoolingHead'),
    *_of('squeezebert', 'ConvDropoutLayerNorm'),
    *_of('t5', 'T5LayerFF', 'T5LayerSelfAttention', 'T5LayerCrossAttention'),
    *_of('videomae', 'VideoMAEOutput', 'VideoMAELayer'),
    *_of('wav2vec2', 'Wav2Vec2Encoder'),  # convolutional position embeddings
    *_of('xlnet', 'XLNetRelativeAttention', 'XLNetFeedForward'),
    *_of('yolos', 'YolosOutput', 'YolosLayer'),
]
_TWO = [
    *_of('audio_spectrogram_transformer', 'ASTLayer'),
    *_of('bart', 'BartEncoderLayer'),
    *_of('beit', 'BeitLayer'),
    *_of('biogpt', 'BioGptDecoderLayer'),
    *_of('blenderbot', 'BlenderbotEncoderLayer'),
    *_of('blip', 'BlipEncoderLayer'),
    *_of('clip', 'CLIPEncoderLayer'),
    *_of('cohere', 'CohereDecoderLayer'),
    *_of('deit', 'DeiTLayer'),
    *_of('dinov2', 'Dinov2Layer'),
    *_of('distilbert', 'TransformerBlock'),
    *_of('focalnet', 'FocalNetLayer'),
    *_of('gemma', 'GemmaDecoderLayer'),
    *_of('gemma2', 'Gemma2DecoderLayer'),
    *_of('glpn', 'GLPNLayer'),
    *_of('gpt2', 'GPT2Block'),
    *_of('gpt_neo', 'GPTNeoBlock'),
    *_of('granite', 'GraniteDecoderLayer'),
    *_of('hiera', 'HieraLayer'),
    *_of('hubert', 'HubertEncoderLayer'),
    *_of('ijepa', 'IJepaLayer'),
    *_of('llama', 'LlamaDecoderLayer'),
    *_of('m2m_100', 'M2M100EncoderLayer'),
    *_of('mistral', 'MistralDecoderLayer'),
    *_of('mixtral', 'MixtralDecoderLayer'),
    *_of('mobilevitv2', 'MobileViTV2TransformerLayer'),
    *_of('olmo2', 'Olmo2DecoderLayer'),
    *_of('opt', 'OPTDecoderLayer'),
    *_of('pegasus', 'PegasusEncoderLayer'),
    *_of('phi3', 'Phi3DecoderLayer'),
    *_of('poolformer', 'PoolFormerLayer'),
    *_of('pvt', 'PvtLayer'),
    *_of('pvt_v2', 'PvtV2BlockLayer'),
    *_of('qwen2', 'Qwen2DecoderLayer'),
    *_of('qwen3', 'Qwen3DecoderLayer'),
    *_of('segformer', 'SegformerLayer'),
    *_of('siglip', 'SiglipEncoderLayer'),
    *_of('speech_to_text', 'Speech2TextEncoderLayer'),
    *_of('stablelm', 'StableLmDecoderLayer'),
    *_of('starcoder2', 'Starcoder2DecoderLayer'),
    *_of('swin', 'SwinLayer'),
    *_of('swinv2', 'Swinv2Layer'),
    *_of('vit', 'ViTLayer'),
    *_of('vit_mae', 'ViTMAELayer'),
    *_of('vit_msn', 'ViTMSNLayer'),
    *_of('vitdet', 'VitDetLayer'),
    *_of('vivit', 'VivitLayer'),
    *_of('wav2vec2', 'Wav2Vec2EncoderLayer'),
    *_of('whisper', 'WhisperEncoderLayer'),
    *_of('xglm', 'XGLMDecoderLayer'),
]
_THREE = [  # with cross-attention, or with attention in time and in space
    *_of('bart', 'BartDecoderLayer'),
    *_of('blenderbot', 'BlenderbotDecoderLayer'),
    *_of('m2m_100', 'M2M100DecoderLayer'),
    *_of('pegasus', 'PegasusDecoderLayer'),
    *_of('speech_to_text', 'Speech2TextDecoderLayer'),
    *_of('timesformer', 'TimesformerLayer'),
    *_of('whisper', 'WhisperDecoderLayer'),
]
BLOCKS: dict[str, Entry] = {
    **dict.fromkeys(_ONE, 1),
    **dict.fromkeys(_TWO, 2),
    **dict.fromkeys(_THREE, 3),
    'modeling_efficientnet.EfficientNetFinalBlockLayer': flag('apply_dropout'),
    'modeling_falcon.FalconDecoderLayer': lambda m: 1 if m.config.parallel_attn else 2,
    'modeling_gpt_neox.GPTNeoXLayer': lambda m: 1 if m.use_parallel_residual else 2,
    'modeling_mobilenet_v2.MobileNetV2InvertedResidual': flag('use_residual'),
    'modeling_mobilevit.MobileViTInvertedResidual': flag('use_residual'),
    'modeling_mobilevitv2.MobileViTV2InvertedResidual': flag('use_residual'),
}
