"""Architectures of the package transformers, from config with random weights: few layers, real blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from zoo.entries import TRACE, Entry, Inputs, Source, floats, numbers, tokens, uniform

_ENCODER = {
    "vocab_size": 97,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 40,
}
_DECODER = {**_ENCODER, "num_key_value_heads": 4}
_GROUPED = {**_ENCODER, "num_key_value_heads": 2}
_VISION = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
_SPEECH = {
    "vocab_size": 32,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "conv_dim": (32, 32, 32),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_STAGES = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}


class Answer(nn.Module):
    """A model whose forward takes tensors by position and returns one tensor."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], answer: str) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.answer = answer

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the field `answer` of the model's output."""
        output = self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=True)
        found: Tensor = output[self.answer]
        return found


def entries() -> tuple[Entry, ...]:
    """All of them; nothing is imported yet."""
    return (*_texts(), *_decoders(), *_pairs(), *_images(), *_stages(), *_sounds(), *_others())


def _texts() -> list[Entry]:
    text, ids = tokens(12), ("input_ids",)
    return [
        _entry("bert", "BERT", "BertForSequenceClassification", _ENCODER, text, ids),
        _entry("bert-eager", "BERT", "BertModel", {**_ENCODER, "attn_implementation": "eager"}, text, ids, _LAST),
        _entry("bert-masked", "BERT", "BertForSequenceClassification", _ENCODER, _masked, (*ids, "attention_mask")),
        _entry("roberta", "BERT", "RobertaForSequenceClassification", {**_ENCODER, "pad_token_id": 1}, text, ids),
        _entry("distilbert", "BERT", "DistilBertForSequenceClassification", _DISTILLED, text, ids),
        _entry("albert", "BERT", "AlbertForSequenceClassification", {**_ENCODER, "embedding_size": 32}, text, ids),
        _entry("electra", "BERT", "ElectraForSequenceClassification", {**_ENCODER, "embedding_size": 32}, text, ids),
        _entry("mpnet", "BERT", "MPNetForSequenceClassification", _ENCODER, text, ids),
        _entry("deberta-v2", "BERT", "DebertaV2ForSequenceClassification", _DEBERTA, text, ids),
        _entry("mobilebert", "BERT", "MobileBertForSequenceClassification", _MOBILEBERT, text, ids),
        _entry("squeezebert", "BERT", "SqueezeBertForSequenceClassification", _SQUEEZEBERT, text, ids),
        _entry("convbert", "BERT", "ConvBertForSequenceClassification", {**_ENCODER, "embedding_size": 64}, text, ids),
        _entry("roformer", "BERT", "RoFormerForSequenceClassification", {**_ENCODER, "embedding_size": 64}, text, ids),
        _entry("fnet", "mixer", "FNetForSequenceClassification", _ENCODER, text, ids, stuck=_FOURIER),
        _entry("modernbert", "BERT", "ModernBertForSequenceClassification", _MODERNBERT, text, ids),
    ]


def _decoders() -> list[Entry]:
    text, ids, logits = tokens(12), ("input_ids",), "logits"
    return [
        _entry("gpt2", "GPT", "GPT2LMHeadModel", _GPT2, text, ids, logits),
        _entry("gpt-neo", "GPT", "GPTNeoForCausalLM", _GPT_NEO, text, ids, logits),
        _entry("gpt-neox", "GPT", "GPTNeoXForCausalLM", _ENCODER, text, ids, logits),
        _entry("gptj", "GPT", "GPTJForCausalLM", {**_GPT2, "rotary_dim": 8}, text, ids, logits),
        _entry("opt", "GPT", "OPTForCausalLM", _OPT, text, ids, logits),
        _entry("llama", "GPT", "LlamaForCausalLM", _DECODER, text, ids, logits),
        _entry("llama-grouped", "GPT", "LlamaForCausalLM", _GROUPED, text, ids, logits),
        _entry("mistral", "GPT", "MistralForCausalLM", _GROUPED, text, ids, logits),
        _entry("qwen2", "GPT", "Qwen2ForCausalLM", _GROUPED, text, ids, logits),
        _entry("qwen3", "GPT", "Qwen3ForCausalLM", {**_GROUPED, "head_dim": 16}, text, ids, logits),
        _entry("gemma", "GPT", "GemmaForCausalLM", {**_DECODER, "head_dim": 16}, text, ids, logits),
        _entry("phi", "GPT", "PhiForCausalLM", _DECODER, text, ids, logits),
        _entry("falcon", "GPT", "FalconForCausalLM", _ENCODER, text, ids, logits),
    ]


def _pairs() -> list[Entry]:
    both, ids = _pair, ("input_ids", "decoder_input_ids")
    return [
        _entry("t5", "encoder-decoder", "T5ForConditionalGeneration", _T5, both, ids, "logits"),
        _entry("t5-gated", "encoder-decoder", "T5ForConditionalGeneration", _T5_GATED, both, ids, "logits"),
        _entry("bart", "encoder-decoder", "BartForConditionalGeneration", _BART, both, ids, "logits"),
        _entry("whisper", "audio", "WhisperForConditionalGeneration", _WHISPER, _spoken, _SPOKEN, "logits"),
        _entry("speech-to-text", "audio", "Speech2TextForConditionalGeneration", _S2T, _heard, _SPOKEN, "logits"),
    ]


def _images() -> list[Entry]:
    image, pixels = floats(3, 32, 32), ("pixel_values",)
    return [
        _entry("vit", "ViT", "ViTForImageClassification", _VISION, image, pixels),
        _entry("vit-eager", "ViT", "ViTForImageClassification", {**_VISION, **_EAGER}, image, pixels),
        _entry("deit", "ViT", "DeiTForImageClassification", _VISION, image, pixels),
        _entry("beit", "ViT", "BeitForImageClassification", _VISION, image, pixels),
        _entry("dinov2", "ViT", "Dinov2ForImageClassification", {**_VISION, "mlp_ratio": 2}, image, pixels),
        _entry("vit-msn", "ViT", "ViTMSNForImageClassification", _VISION, image, pixels),
        _entry("siglip-vision", "ViT", "SiglipVisionModel", _VISION, image, pixels, "pooler_output"),
        _entry("clip-vision", "ViT", "CLIPVisionModel", _VISION, image, pixels, "pooler_output"),
        _entry("dpt", "segmentation", "DPTForSemanticSegmentation", _DPT, image, pixels),
        _entry("yolos", "detection", "YolosForObjectDetection", _YOLOS, image, pixels),
        _entry("swin", "Swin", "SwinForImageClassification", _SWIN, floats(3, 64, 64), pixels),
        _entry("swinv2", "Swin", "Swinv2ForImageClassification", _SWIN, floats(3, 64, 64), pixels),
        _entry("cvt", "ViT", "CvtForImageClassification", _CVT, floats(3, 64, 64), pixels),
        _entry("levit", "ViT", "LevitForImageClassification", _LEVIT, floats(3, 64, 64), pixels),
        _entry("pvt", "ViT", "PvtForImageClassification", _PVT, floats(3, 64, 64), pixels),
        _entry("pvt-v2", "ViT", "PvtV2ForImageClassification", _PVT_V2, floats(3, 64, 64), pixels),
        _entry("segformer", "segmentation", "SegformerForSemanticSegmentation", _SEGFORMER, floats(3, 64, 64), pixels),
        _entry("mobilevit", "ViT", "MobileViTForImageClassification", _MOBILEVIT, floats(3, 64, 64), pixels),
        _entry("mobilevit-v2", "ViT", "MobileViTV2ForImageClassification", _MOBILEVIT_V2, floats(3, 64, 64), pixels),
        _entry("glpn", "segmentation", "GLPNForDepthEstimation", _GLPN, floats(3, 64, 64), pixels, "predicted_depth"),
        _entry("hiera", "ViT", "HieraForImageClassification", _HIERA, floats(3, 64, 64), pixels),
    ]


def _stages() -> list[Entry]:
    image, pixels = floats(3, 64, 64), ("pixel_values",)
    return [
        _entry("resnet-basic", "residual", "ResNetForImageClassification", _RESNET_BASIC, image, pixels),
        _entry("resnet-bottleneck", "residual", "ResNetForImageClassification", _RESNET, image, pixels),
        _entry("regnet-y", "SE", "RegNetForImageClassification", _REGNET, image, pixels),
        _entry("regnet-x", "grouped", "RegNetForImageClassification", {**_REGNET, "layer_type": "x"}, image, pixels),
        _entry("mobilenet-v1", "depthwise", "MobileNetV1ForImageClassification", _MOBILENET, image, pixels),
        _entry("mobilenet-v2", "depthwise", "MobileNetV2ForImageClassification", _MOBILENET, image, pixels),
        _entry("efficientnet", "SE", "EfficientNetForImageClassification", _EFFICIENTNET, image, pixels),
        _entry("convnext", "ConvNeXt", "ConvNextForImageClassification", _STAGES, image, pixels),
        _entry("convnext-v2", "ConvNeXt", "ConvNextV2ForImageClassification", _STAGES, image, pixels, stuck=_RESPONSE),
        _entry("poolformer", "residual", "PoolFormerForImageClassification", _POOLFORMER, image, pixels),
        _entry("bit", "residual", "BitForImageClassification", _BIT, image, pixels, stuck=_STANDARDIZED),
        _entry("focalnet", "residual", "FocalNetForImageClassification", _FOCALNET, image, pixels),
        _entry("swiftformer", "ViT", "SwiftFormerForImageClassification", _SWIFTFORMER, image, pixels),
        _entry("textnet", "plain", "TextNetForImageClassification", {}, image, pixels),
        _entry("hgnet-v2", "dense", "HGNetV2ForImageClassification", {}, image, pixels),
        _entry("upernet", "segmentation", "UperNetForSemanticSegmentation", {}, image, pixels),
    ]


def _sounds() -> list[Entry]:
    sound, values = floats(2000), ("input_values",)
    spectrogram = floats(64, 16)
    return [
        _entry("wav2vec2", "audio", "Wav2Vec2ForCTC", _SPEECH, sound, values),
        _entry("wav2vec2-layer-norm", "audio", "Wav2Vec2ForCTC", _SPEECH_NORM, sound, values),
        _entry("hubert", "audio", "HubertForCTC", _SPEECH, sound, values),
        _entry("wavlm", "audio", "WavLMForCTC", _SPEECH, sound, values),
        _entry("sew", "audio", "SEWForCTC", {**_SPEECH, "squeeze_factor": 1}, sound, values),
        _entry("unispeech", "audio", "UniSpeechForCTC", _SPEECH, sound, values),
        _entry(
            "data2vec-audio", "audio", "Data2VecAudioForCTC", {**_SPEECH, "num_conv_pos_embeddings": 2}, sound, values
        ),
        _entry("ast", "audio", "ASTForAudioClassification", _AST, spectrogram, values),
        _entry("encodec", "audio", "EncodecModel", _ENCODEC, floats(1, 640), values, "audio_values", _WEIGHT_NORM),
        _entry("univnet", "audio", "UnivNetModel", {}, floats(20, 100), ("input_features",), "waveforms"),
    ]


def _others() -> list[Entry]:
    series = floats(32, 3)
    return [
        _entry(
            "patchtst", "series", "PatchTSTForPrediction", _PATCHTST, series, ("past_values",), "prediction_outputs"
        ),
        _entry(
            "patchtsmixer",
            "series",
            "PatchTSMixerForPrediction",
            _MIXER,
            series,
            ("past_values",),
            "prediction_outputs",
        ),
        _entry("mamba", "state space", "MambaForCausalLM", _MAMBA, tokens(12), ("input_ids",), "logits"),
        _entry(
            "mixtral",
            "experts",
            "MixtralForCausalLM",
            {**_GROUPED, "num_local_experts": 4},
            tokens(12),
            ("input_ids",),
            "logits",
        ),
    ]


# --- Configurations -----------------------------------------------------------------------------------------------------

_FOURIER = "Fourier transforms have no agreed number of multiply-accumulates, so that no share of them can be asked for"
_RESPONSE = "global response normalization divides by a mean over the hidden channels, and layer norm holds the others"
_STANDARDIZED = "every kernel is standardized over its inputs before it is used"
_WEIGHT_NORM = "every kernel is normalized over its inputs (weight normalization)"
_LAST = "last_hidden_state"
_EAGER = {"attn_implementation": "eager"}
_SPOKEN = ("input_features", "decoder_input_ids")
_DISTILLED = {
    "vocab_size": 97,
    "dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 128,
    "max_position_embeddings": 40,
}
_DEBERTA = {**_ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
_MOBILEBERT = {**_ENCODER, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32}
_SQUEEZEBERT = {**_ENCODER, "embedding_size": 64}
_MODERNBERT = {
    **_ENCODER,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
_GPT2 = {"vocab_size": 97, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 40, "use_cache": False}
_GPT_NEO = {
    "vocab_size": 97,
    "hidden_size": 64,
    "num_layers": 2,
    "attention_types": [[["global", "local"], 1]],
    "num_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 40,
    "window_size": 8,
}
_OPT = {**_ENCODER, "ffn_dim": 128, "word_embed_proj_dim": 64}
_T5 = {
    "vocab_size": 97,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
_T5_GATED = {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_BART = {
    "vocab_size": 97,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 40,
}
_WHISPER = {
    **_BART,
    "num_mel_bins": 16,
    "max_source_positions": 32,
    "max_target_positions": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_S2T = {**_WHISPER, "input_feat_per_channel": 16, "conv_channels": 64, "max_source_positions": 64}
_DPT = {
    **_VISION,
    "backbone_out_indices": [0, 1, 2, 3],
    "num_hidden_layers": 4,
    "neck_hidden_sizes": [16, 32, 48, 64],
    "fusion_hidden_size": 32,
}
_YOLOS = {**_VISION, "image_size": [32, 32], "num_detection_tokens": 10}
_SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_CVT = {"embed_dim": [16, 32, 64], "num_heads": [1, 2, 4], "depth": [1, 2, 3]}
_LEVIT = {
    "image_size": 64,
    "hidden_sizes": [32, 48, 64],
    "num_attention_heads": [2, 3, 4],
    "depths": [2, 2, 2],
    "key_dim": [16, 16, 16],
}
_PVT = {"image_size": 64, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4]}
_PVT_V2 = {
    "image_size": 64,
    "hidden_sizes": [16, 32, 48, 64],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 3, 4],
}
_SEGFORMER = {
    "hidden_sizes": [16, 32, 48, 64],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 3, 4],
    "decoder_hidden_size": 64,
}
_GLPN = {**_SEGFORMER, "decoder_hidden_size": 32}
_MOBILEVIT = {"image_size": 64, "hidden_sizes": [48, 64, 80], "neck_hidden_sizes": [16, 32, 48, 64, 80, 96, 320]}
_MOBILEVIT_V2 = {"image_size": 64, "width_multiplier": 0.5}
_HIERA = {
    "image_size": [64, 64],
    "embed_dim": 32,
    "depths": [1, 1, 2, 1],
    "num_heads": [1, 2, 4, 8],
    "patch_stride": [4, 4],
    "masked_unit_size": [8, 8],
}
_RESNET = {**_STAGES, "embedding_size": 16, "layer_type": "bottleneck", "hidden_sizes": [64, 128, 256, 512]}
_RESNET_BASIC = {**_STAGES, "embedding_size": 16, "layer_type": "basic"}
_REGNET = {**_STAGES, "embedding_size": 16, "groups_width": 8, "layer_type": "y"}
_MOBILENET = {"image_size": 64, "depth_multiplier": 0.5}
_EFFICIENTNET = {"image_size": 64, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640}
_POOLFORMER = {**_STAGES}
_BIT = {**_STAGES, "embedding_size": 16, "num_groups": 4, "hidden_sizes": [32, 64, 96, 128]}
_FOCALNET = {"image_size": 64, "embed_dim": 32, "depths": [1, 1, 2, 1]}
_SWIFTFORMER = {"image_size": 64, "depths": [1, 1, 2, 1], "embed_dims": [16, 32, 48, 64]}
_SPEECH_NORM = {**_SPEECH, "feat_extract_norm": "layer", "do_stable_layer_norm": True}
_AST = {**_VISION, "max_length": 64, "num_mel_bins": 16, "frequency_stride": 8, "time_stride": 8}
_ENCODEC = {"num_filters": 8, "hidden_size": 32, "codebook_size": 16, "codebook_dim": 32, "num_residual_layers": 1}
_PATCHTST = {
    "context_length": 32,
    "prediction_length": 8,
    "num_input_channels": 3,
    "patch_length": 8,
    "patch_stride": 8,
    "d_model": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_MIXER = {
    "context_length": 32,
    "prediction_length": 8,
    "num_input_channels": 3,
    "patch_length": 8,
    "patch_stride": 8,
    "d_model": 16,
    "num_layers": 2,
}
_MAMBA = {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "use_cache": False}


def _masked(batch: int) -> Inputs:
    mask = numbers(batch, 12, below=90).ne(0).long()
    mask[0, -3:] = 0
    return numbers(batch, 12, below=90), mask


def _pair(batch: int) -> Inputs:
    return numbers(batch, 12, below=90), numbers(batch, 7, below=90, seed=1)


def _spoken(batch: int) -> Inputs:
    return uniform(batch, 16, 64), numbers(batch, 7, below=90)


def _heard(batch: int) -> Inputs:
    return uniform(batch, 64, 16), numbers(batch, 7, below=90)


def _entry(
    name: str,
    family: str,
    model: str,
    settings: Mapping[str, Any],
    inputs: Callable[[int], Inputs],
    names: tuple[str, ...],
    answer: str = "logits",
    stuck: str = "",
) -> Entry:
    def build() -> nn.Module:
        import transformers

        kind = getattr(transformers, model)
        config = kind.config_class(**settings)
        config.use_cache = False
        return Answer(kind(config), names, answer)

    return Entry(name, family, Source.TRANSFORMERS, build, inputs, TRACE, stuck=stuck)
