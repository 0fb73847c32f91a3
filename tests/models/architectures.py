"""Real architectures at random weights, shrunk until each is built and run in a fraction of a second.

They have what tiny models of our own making have not: shared and tied layers, auxiliary heads, stochastic depth, norms
of their own, attention, convolutions over time, outputs that are mappings. Their packages are the extra ``models``, and
are imported when the first model is built, for they take seconds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from trickbox.streams import forked

SEED, BATCH, CLASSES, WORDS, LENGTH = 11, 2, 10, 64, 12


@frozen
class Architecture:
    """A model and what it is called with, both new at each call and always the same, with no trace in random states."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    """A tensor, or a mapping of keyword arguments."""
    source: str
    """The package that it comes from."""


ARCHITECTURES: dict[str, Architecture] = {}


def _add(name: str, build: Callable[[], nn.Module], inputs: Callable[[], Any]) -> None:
    source = name.partition("/")[0]

    def seeded_build() -> nn.Module:
        with forked(SEED):
            return build()

    def seeded_inputs() -> Any:
        with forked(SEED + 1):
            return inputs()

    ARCHITECTURES[name] = Architecture(seeded_build, seeded_inputs, source)


def image(size: int) -> Tensor:
    """A batch of square images."""
    return torch.randn(BATCH, 3, size, size)


def words(length: int = LENGTH) -> Tensor:
    """A batch of texts; the low numbers, which mean padding and ends somewhere, are left out."""
    return torch.randint(5, WORDS, (BATCH, length))


# -- torchvision -----------------------------------------------------------------------------------------------------


def _torchvision(name: str, size: int) -> Callable[[Callable[[Any], nn.Module]], Callable[[Any], nn.Module]]:
    """Add what the decorated function builds, which is given ``torchvision.models``."""

    def added(build: Callable[[Any], nn.Module]) -> Callable[[Any], nn.Module]:
        def built() -> nn.Module:
            import torchvision.models

            return build(torchvision.models)

        _add(f"torchvision/{name}", built, partial(image, size))
        return build

    return added


def _small_resnet(models: Any, block: str, **settings: Any) -> nn.Module:
    """One block a stage instead of three to six; two in the first, the second of which is added to its very input."""
    made: nn.Module = models.ResNet(getattr(models.resnet, block), [2, 1, 1, 1], num_classes=CLASSES, **settings)
    return made


@_torchvision("resnet18", 64)
def _(models: Any) -> nn.Module:
    return models.resnet18(num_classes=CLASSES)


@_torchvision("resnet50", 64)
def _(models: Any) -> nn.Module:
    return _small_resnet(models, "Bottleneck")


@_torchvision("wide_resnet50", 64)
def _(models: Any) -> nn.Module:
    return _small_resnet(models, "Bottleneck", width_per_group=128)


@_torchvision("resnext50", 64)
def _(models: Any) -> nn.Module:
    return _small_resnet(models, "Bottleneck", groups=8, width_per_group=8)


@_torchvision("resnet18_group_norm", 64)
def _(models: Any) -> nn.Module:
    return _small_resnet(models, "BasicBlock", norm_layer=partial(nn.GroupNorm, 8))


@_torchvision("vgg11_bn", 64)
def _(models: Any) -> nn.Module:
    # The classifier of 120 million weights cannot be chosen, so it is cut off before it takes any memory.
    with torch.device("meta"):
        net: nn.Module = models.VGG(nn.Identity(), init_weights=False)
    net.features = models.vgg.make_layers([8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M"], batch_norm=True)
    head = [nn.Linear(64 * 49, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 64), nn.ReLU(True), nn.Dropout()]
    net.classifier = nn.Sequential(*head, nn.Linear(64, CLASSES))
    return net


@_torchvision("densenet121", 64)
def _(models: Any) -> nn.Module:
    return models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=CLASSES)


@_torchvision("densenet121_checkpointed", 64)
def _(models: Any) -> nn.Module:
    return models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=CLASSES, memory_efficient=True)


@_torchvision("googlenet", 64)
def _(models: Any) -> nn.Module:
    return models.GoogLeNet(CLASSES, aux_logits=True, init_weights=False)


@_torchvision("mobilenet_v2", 64)
def _(models: Any) -> nn.Module:
    return models.MobileNetV2(CLASSES, width_mult=0.25)


def _blocks_of_mobilenet_v3(models: Any) -> list[Any]:
    block = partial(models.mobilenetv3.InvertedResidualConfig, dilation=1, width_mult=1.0)
    return [
        block(16, 3, 16, 16, True, "RE", stride=2),
        block(16, 3, 32, 24, False, "RE", stride=2),
        block(24, 5, 48, 24, True, "HS", stride=1),
        block(24, 5, 64, 32, True, "HS", stride=2),
    ]


@_torchvision("mobilenet_v3", 64)
def _(models: Any) -> nn.Module:
    return models.MobileNetV3(_blocks_of_mobilenet_v3(models), last_channel=64, num_classes=CLASSES)


@_torchvision("mnasnet", 64)
def _(models: Any) -> nn.Module:
    return models.MNASNet(0.25, num_classes=CLASSES)


@_torchvision("efficientnet", 64)
def _(models: Any) -> nn.Module:
    block = models.efficientnet.MBConvConfig
    blocks = [block(1, 3, 1, 16, 8, 1), block(6, 3, 2, 8, 16, 2), block(6, 5, 2, 16, 24, 2)]
    return models.EfficientNet(blocks, dropout=0.2, num_classes=CLASSES, last_channel=64)


@_torchvision("efficientnet_v2", 64)
def _(models: Any) -> nn.Module:
    parts = models.efficientnet
    blocks = [parts.FusedMBConvConfig(4, 3, 1, 16, 16, 2), parts.MBConvConfig(4, 3, 2, 16, 24, 2)]
    return models.EfficientNet(blocks, dropout=0.2, num_classes=CLASSES, last_channel=64)


@_torchvision("convnext", 32)
def _(models: Any) -> nn.Module:
    block = models.convnext.CNBlockConfig
    blocks = [block(16, 32, 1), block(32, 48, 2), block(48, None, 1)]
    return models.ConvNeXt(blocks, stochastic_depth_prob=0.1, num_classes=CLASSES)


@_torchvision("regnet_y", 64)
def _(models: Any) -> nn.Module:
    blocks = models.regnet.BlockParams.from_init_params(depth=4, w_0=16, w_a=16, w_m=2.0, group_width=8, se_ratio=0.25)
    return models.RegNet(blocks, num_classes=CLASSES, stem_width=16)


@_torchvision("swin", 32)
def _(models: Any) -> nn.Module:
    return models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], stochastic_depth_prob=0.1, num_classes=CLASSES)


@_torchvision("vit", 32)
def _(models: Any) -> nn.Module:
    return models.VisionTransformer(32, 8, 2, 2, 32, 64, dropout=0.1, num_classes=CLASSES)


@_torchvision("maxvit", 64)
def _(models: Any) -> nn.Module:
    return models.MaxVit((64, 64), 16, 4, [16, 32], [1, 1], 8, stochastic_depth_prob=0.1, num_classes=CLASSES)


@_torchvision("squeezenet", 64)
def _(models: Any) -> nn.Module:
    return models.SqueezeNet("1_1", CLASSES)


@_torchvision("shufflenet_v2", 64)
def _(models: Any) -> nn.Module:
    return models.ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 128], num_classes=CLASSES)


def _features(models: Any, net: nn.Module, **names: str) -> nn.Module:
    """The layers of *net* up to the last of those named, as a backbone that returns a mapping."""
    made: nn.Module = models._utils.IntermediateLayerGetter(net, {layer: name for name, layer in names.items()})
    return made


@_torchvision("fcn_resnet", 64)
def _(models: Any) -> nn.Module:
    backbone = _features(models, _small_resnet(models, "BasicBlock"), out="layer4", aux="layer3")
    head = models.segmentation.fcn.FCNHead
    return models.segmentation.FCN(backbone, head(512, CLASSES), head(256, CLASSES))


@_torchvision("deeplabv3_resnet", 64)
def _(models: Any) -> nn.Module:
    backbone = _features(models, _small_resnet(models, "BasicBlock"), out="layer3")
    return models.segmentation.DeepLabV3(
        backbone, models.segmentation.deeplabv3.DeepLabHead(256, CLASSES, atrous_rates=(2, 3, 4))
    )


@_torchvision("lraspp_mobilenet_v3", 64)
def _(models: Any) -> nn.Module:
    net = models.MobileNetV3(_blocks_of_mobilenet_v3(models), last_channel=64)
    return models.segmentation.LRASPP(_features(models, net.features, low="2", high="5"), 24, 192, CLASSES)


def _video() -> Tensor:
    return torch.randn(BATCH, 3, 4, 16, 16)


def _r3d() -> nn.Module:
    from torchvision.models.video import resnet

    makers = [resnet.Conv3DSimple, *[resnet.Conv2Plus1D] * 3]
    net: nn.Module = resnet.VideoResNet(resnet.BasicBlock, makers, [1, 1, 1, 1], resnet.BasicStem, num_classes=CLASSES)
    return net


_add("torchvision/video_resnet", _r3d, _video)

# -- timm ------------------------------------------------------------------------------------------------------------

_STAGES = {"layers": (2, 1, 1, 1), "channels": (16, 32, 64, 128)}
_TOKENS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
_WINDOWS = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
_TIMM: dict[str, tuple[str, int, dict[str, Any]]] = {
    # its name here: (its name or its class there, the size of its images, what makes it small)
    "resnet18": ("resnet18", 64, _STAGES),
    "resnet50d": ("resnet50d", 64, {**_STAGES, "stem_width": 8}),
    "seresnet50": ("seresnet50", 64, {**_STAGES, "drop_path_rate": 0.1}),
    "res2net50": ("res2net50_26w_4s", 64, _STAGES),
    "resnetv2_50": ("resnetv2_50", 64, {**_STAGES, "stem_chs": 16}),
    "resnetv2_50_bit": (
        "resnetv2.ResNetV2",  # group norms and standardized weights
        64,
        {"layers": (2, 1, 1, 1), "channels": (128, 128, 256, 256), "stem_chs": 32, "stem_type": "fixed"},
    ),
    "convnext_atto": ("convnext_atto", 64, {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "drop_path_rate": 0.1}),
    "convnextv2_atto": ("convnextv2_atto", 64, {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}),
    "vit_tiny": ("vit_tiny_patch16_224", 32, {**_TOKENS, "drop_path_rate": 0.1}),
    "deit_tiny_distilled": ("deit_tiny_distilled_patch16_224", 32, _TOKENS),
    "beit": ("beit_base_patch16_224", 32, _TOKENS),
    "eva02_tiny": ("eva02_tiny_patch14_224", 32, _TOKENS),
    "cait": ("cait_xxs24_224", 32, _TOKENS),
    "xcit_nano": ("xcit_nano_12_p8_224", 32, _TOKENS),
    "swin_tiny": ("swin_tiny_patch4_window7_224", 32, _WINDOWS),
    "swinv2_tiny": ("swinv2_tiny_window8_256", 32, _WINDOWS),
    "mixer": ("mlp_mixer.MlpMixer", 32, {"img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 32}),
    "convmixer": ("convmixer.ConvMixer", 32, {"dim": 32, "depth": 2}),
    "efficientnet": ("test_efficientnet", 64, {}),
    "efficientnet_evonorm": ("test_efficientnet_evos", 64, {}),
    "mobilenetv3": ("mobilenetv3_small_050", 64, {}),
    "regnety": ("regnety_002", 64, {}),
    "byobnet": ("test_byobnet", 64, {}),
    "nfnet": ("test_nfnet", 64, {}),
    "coat_tiny": (
        "coat_tiny",
        32,
        {"img_size": 32, "embed_dims": (16,) * 4, "serial_depths": (1,) * 4, "parallel_depth": 1, "num_heads": 8},
    ),
    "levit": (
        "levit_128s",
        64,
        {"img_size": 64, "embed_dim": (32, 48, 64), "key_dim": 8, "num_heads": (2, 3, 4), "depth": (1, 1, 1)},
    ),
    "maxvit": ("test_maxvit", 64, {"img_size": 64}),
    "coatnet": ("test_coatnet", 64, {"img_size": 64}),
    "mambaout": ("test_mambaout", 64, {}),
}


def _timm(model: str, settings: Mapping[str, Any]) -> nn.Module:
    import timm

    module, _, name = model.rpartition(".")
    if module:
        make = getattr(importlib.import_module(f"timm.models.{module}"), name)
    else:
        make = partial(timm.create_model, name)
    net: nn.Module = make(num_classes=CLASSES, **settings)
    return net


for _name, (_model, _size, _settings) in _TIMM.items():
    _add(f"timm/{_name}", partial(_timm, _model, _settings), partial(image, _size))


def _hrnet() -> nn.Module:
    from timm.models.hrnet import HighResolutionNet

    def stage(block: str, *channels: int) -> dict[str, Any]:
        branches = len(channels)
        return {
            "num_modules": 1,
            "num_branches": branches,
            "block_type": block,
            "num_blocks": (1,) * branches,
            "num_channels": channels,
            "fuse_method": "SUM",
        }

    stages = [stage("BOTTLENECK", 8), stage("BASIC", 4, 8), stage("BASIC", 4, 8, 16), stage("BASIC", 4, 8, 16, 32)]
    numbered = {f"stage{number}": each for number, each in enumerate(stages, 1)}
    net: nn.Module = HighResolutionNet({"stem_width": 8, **numbered}, num_classes=CLASSES)
    return net


_add("timm/hrnet", _hrnet, partial(image, 64))

# -- transformers ----------------------------------------------------------------------------------------------------


def _text() -> dict[str, Tensor]:
    return {"input_ids": words(), "attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.long)}


def _pair() -> dict[str, Tensor]:
    return {**_text(), "decoder_input_ids": words(5)}


def _pixels() -> dict[str, Tensor]:
    return {"pixel_values": image(32)}


def _pixels_and_text() -> dict[str, Tensor]:
    return {**_pixels(), **_text()}


def _wave() -> dict[str, Tensor]:
    return {"input_values": torch.randn(BATCH, 400)}


def _spectrum() -> dict[str, Tensor]:
    return {"input_features": torch.randn(BATCH, 8, 32), "decoder_input_ids": words(5)}


_CORE = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_ENCODER = {**_CORE, "intermediate_size": 64, "max_position_embeddings": 32, "num_labels": CLASSES}
_DECODER = {**_ENCODER, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GROUPED = {**_DECODER, "num_key_value_heads": 1, "head_dim": 16}
_TWO_SIDES = {
    "vocab_size": WORDS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
_IMAGES = {"image_size": 32, "patch_size": 8}
_TRANSFORMERS: dict[str, tuple[str, str, Callable[[], Any], dict[str, Any]]] = {
    # its name here: (its configuration, its model, what it is called with, what makes it small)
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        _text,
        {
            "vocab_size": WORDS,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 32,
            "use_cache": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _text, _DECODER),
    "opt": ("OPTConfig", "OPTForCausalLM", _text, {**_DECODER, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "llama": ("LlamaConfig", "LlamaForCausalLM", _text, _GROUPED),
    "mistral": ("MistralConfig", "MistralForCausalLM", _text, {**_GROUPED, "sliding_window": 8}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", _text, {**_GROUPED, "num_local_experts": 2}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _text, _GROUPED),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _text, {**_GROUPED, "tie_word_embeddings": True}),
    "mamba": (
        "MambaConfig",
        "MambaForCausalLM",
        lambda: {"input_ids": words()},
        {**_CORE, "state_size": 4, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "bert": ("BertConfig", "BertForSequenceClassification", _text, _ENCODER),
    "bert_masked": ("BertConfig", "BertForMaskedLM", _text, _ENCODER),
    "roberta": ("RobertaConfig", "RobertaForSequenceClassification", _text, _ENCODER),
    "electra": ("ElectraConfig", "ElectraForPreTraining", _text, {**_ENCODER, "embedding_size": 16}),
    "albert": (
        "AlbertConfig",
        "AlbertForSequenceClassification",
        _text,
        {**_ENCODER, "embedding_size": 16, "num_hidden_layers": 3},  # one layer, called three times
    ),
    "deberta": (
        "DebertaV2Config",
        "DebertaV2ForSequenceClassification",
        _text,
        {**_ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        _text,
        {"vocab_size": WORDS, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "num_labels": CLASSES},
    ),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        _pair,
        {
            "vocab_size": WORDS,
            "d_model": 32,
            "d_kv": 16,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 2,
            "use_cache": False,
            "decoder_start_token_id": 0,
        },
    ),
    "bart": ("BartConfig", "BartForConditionalGeneration", _pair, {**_TWO_SIDES, "max_position_embeddings": 32}),
    "whisper": (
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        _spectrum,
        {**_TWO_SIDES, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16},
    ),
    "vit": ("ViTConfig", "ViTForImageClassification", _pixels, {**_ENCODER, **_IMAGES}),
    "clip": (
        "CLIPConfig",
        "CLIPModel",
        _pixels_and_text,
        {
            "text_config": {**_ENCODER, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": WORDS - 1},
            "vision_config": {**_ENCODER, **_IMAGES},
            "projection_dim": 16,
        },
    ),
    "segformer": (
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        _pixels,
        {
            "hidden_sizes": [16, 24, 32, 48],
            "num_attention_heads": [1, 2, 2, 4],
            "depths": [1, 1, 1, 1],
            "decoder_hidden_size": 32,
            "num_labels": CLASSES,
        },
    ),
    "wav2vec2": (
        "Wav2Vec2Config",
        "Wav2Vec2ForCTC",
        _wave,
        {
            **_CORE,
            "intermediate_size": 64,
            "conv_dim": (16, 16, 16),
            "conv_stride": (5, 2, 2),
            "conv_kernel": (10, 3, 3),
            "num_feat_extract_layers": 3,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "apply_spec_augment": False,  # it masks from numpy's global generator
            "pad_token_id": 0,
        },
    ),
}


def _transformers(config: str, model: str, settings: Mapping[str, Any]) -> nn.Module:
    import transformers

    net: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**settings))
    return net


for _name, (_config, _model, _inputs, _settings) in _TRANSFORMERS.items():
    _add(f"transformers/{_name}", partial(_transformers, _config, _model, _settings), _inputs)
