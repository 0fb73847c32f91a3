"""The zoo: small models of every kind, to see what a trick does on architectures that nobody built for it.

Each runs in milliseconds and needs nothing but torch. `ZOO` is the list of them all; the classes are in `specimens`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from trickbox.errors import ConfigError, near
from trickbox.streams import derive, forked
from trickbox.testing.specimens import attention, concatenating, language, other, plain, residual

BATCH = 4


@frozen
class Specimen:
    """A model of the zoo."""

    build: Callable[[], nn.Module]
    """The model, its weights from the global generator."""
    inputs: Callable[[], Any]
    """A batch of four: a tensor, a tuple for ``model(*inputs)`` or a mapping for ``model(**inputs)``."""
    trait: str
    """What is special about it, in a line."""


def specimen(name: str, seed: int = 0) -> tuple[nn.Module, Any]:
    """The model of the zoo called *name*, in train mode, and a batch for it; both are functions of *seed*.

    Raises `ConfigError` for a name that the zoo does not have.

    >>> from trickbox.nest import call
    >>> call(*specimen("resnet")).shape
    torch.Size([4, 3])
    """
    if name not in ZOO:
        raise ConfigError(f"the zoo has no {name!r}.{near(name, ZOO)}")
    with forked(derive(seed, "init")):
        model = ZOO[name].build()
    with forked(derive(seed, "inputs")):
        return model, ZOO[name].inputs()


def floats(*shape: int) -> Callable[[], Tensor]:
    """A batch of normal numbers."""
    return lambda: torch.randn(BATCH, *shape)


def tokens(length: int = 12) -> Callable[[], Tensor]:
    """A batch of sentences."""
    return lambda: torch.randint(other.VOCABULARY, (BATCH, length))


def masked_tokens() -> dict[str, Tensor]:
    """A batch of sentences of different lengths."""
    lengths = torch.tensor([[12], [9], [6], [3]])
    return {"input_ids": tokens()(), "attention_mask": (torch.arange(12) < lengths).long()}


def graphs() -> tuple[Tensor, Tensor]:
    """A batch of graphs: features of six nodes, and the shares that the nodes have of each other."""
    linked = (torch.rand(BATCH, 6, 6) < 0.5) | torch.eye(6, dtype=torch.bool)
    return torch.randn(BATCH, 6, 8), linked / linked.sum(-1, keepdim=True)


VECTORS, SERIES, IMAGES = floats(8), floats(2, 32), floats(3, 16, 16)

ZOO: dict[str, Specimen] = {
    # Plain chains
    "mlp": Specimen(plain.mlp, VECTORS, "linear layers and activations as modules"),
    "mlp_functional": Specimen(plain.FunctionalMLP, floats(2, 8), "functional activations, inline flatten"),
    "mlp_dropout": Specimen(plain.mlp_dropout, VECTORS, "dropout modules of its own"),
    "cnn_1d": Specimen(plain.cnn_1d, SERIES, "convolutions over series, global pool"),
    "cnn_2d": Specimen(plain.CNN2d, floats(1, 28, 28), "functional activations, one pool called twice"),
    "vgg_batch_norm": Specimen(plain.VGG, IMAGES, "batch norms, in-place activations, dropouts in the classifier"),
    "autoencoder": Specimen(plain.Autoencoder, floats(16), "a narrow code in the middle, the input as target"),
    "generator": Specimen(plain.Generator, floats(8, 1, 1), "transposed convolutions with batch norm, a last tanh"),
    "spectral_norm": Specimen(plain.discriminator, floats(1, 16, 16), "weights that are computed from parameters"),
    "lazy": Specimen(plain.lazy, floats(2, 16), "lazy layers, initialized"),
    "functional_weights": Specimen(plain.FunctionalWeights, VECTORS, "parameters and functions, no layer at all"),
    # Convolutional nets with residual joins
    "resnet": Specimen(partial(residual.ResNet, residual.BasicBlock), IMAGES, "in-place add, projected shortcut"),
    "resnet_bottleneck": Specimen(partial(residual.ResNet, residual.Bottleneck), IMAGES, "blocks that narrow"),
    "resnet_squeeze": Specimen(
        partial(residual.ResNet, residual.SqueezeExcitationBlock), IMAGES, "linear layers inside the branches"
    ),
    "resnet_preactivation": Specimen(
        partial(residual.PreActResNet, residual.PreActBlock), IMAGES, "norms in front, projection in mid-branch"
    ),
    "wide_resnet": Specimen(
        partial(residual.PreActResNet, residual.WideBlock), IMAGES, "a dropout of its own between the convolutions"
    ),
    "resnet_plain": Specimen(residual.NormFreeResNet, SERIES, "residual joins without norms"),
    "convnext": Specimen(residual.ConvNeXt, IMAGES, "depthwise convolution, channels-last layers, layer scale"),
    "mobilenet": Specimen(residual.MobileNet, IMAGES, "inverted residuals, some blocks without a join"),
    # Convolutional nets that concatenate
    "densenet": Specimen(concatenating.DenseNet, IMAGES, "each layer reads all earlier outputs"),
    "inception": Specimen(concatenating.InceptionNet, IMAGES, "parallel branches"),
    "unet": Specimen(concatenating.UNet, floats(1, 16, 16), "skips from encoder to decoder, transposed convolutions"),
    # Attention and mixers
    "mlp_mixer": Specimen(attention.Mixer, IMAGES, "linear layers over transposed patches"),
    "vit": Specimen(attention.VisionTransformer, IMAGES, "class token, learned positions, joint qkv"),
    "transformer_encoder": Specimen(attention.EncoderClassifier, tokens(), "torch's encoder, fused in eval mode"),
    "encoder_decoder": Specimen(attention.Seq2Seq, lambda: (tokens()(), tokens(8)()), "cross attention, two inputs"),
    "multihead_attention": Specimen(
        attention.TimeSeriesTransformer, floats(10, 5), "a projection whose module is never called"
    ),
    "gpt": Specimen(language.GPT, tokens(), "pre-norm, joint qkv, fused attention, no dropout"),
    "gpt2": Specimen(language.GPT2, tokens(), "tied head, own layer class with weights (in, out), own dropouts"),
    "bert": Specimen(language.Bert, tokens(), "post-norm, separate q k v, the add inside an output module"),
    "llama": Specimen(language.Llama, tokens(), "own norm class, rotary positions, gated layers, no biases"),
    # Recurrent and text models
    "lstm": Specimen(other.LSTMClassifier, tokens(), "two recurrent layers in one module, last step read"),
    "gru": Specimen(other.GRUForecaster, floats(20, 2), "one recurrent layer, hidden state read, a continuous target"),
    "embedding_bag": Specimen(other.BagOfWords, tokens(), "the embedding is the first module and pools already"),
    "mapping_inputs": Specimen(other.MaskedMeanClassifier, masked_tokens, "named inputs, a mapping as output"),
    # Shared layers, several inputs, outputs or branches
    "siamese": Specimen(other.Siamese, lambda: (VECTORS(), VECTORS()), "one tower called twice, two inputs"),
    "recurrent_depth": Specimen(other.RecurrentDepth, VECTORS, "one layer called three times in a row"),
    "auxiliary_head": Specimen(other.AuxiliaryNet, IMAGES, "a branch and an output in training only"),
    "mixture_of_experts": Specimen(other.MixtureOfExperts, VECTORS, "a gated sum that is no residual join"),
    "graph": Specimen(other.GCN, graphs, "message passing, two inputs, own layer class with weights (in, out)"),
    "two_heads": Specimen(other.TwoHeads, VECTORS, "nested outputs: a tuple with a mapping inside"),
}
"""Every specimen by name."""
