"""Where an expert would put each trick, at its default settings, in every model of the zoo; written by hand.

A line says for one trick either its places or that it must be refused, with a part of the reason. ``norms`` is short
for batch_norm, layer_norm, group_norm and rms_norm alike, ``branches`` for stochastic_depth, layer_scale and re_zero;
`SETTINGS` has the columns that are no trick's defaults. Braces are choices, as in a shell. The order of places has no
meaning.

    after PATH          on the output of the module, behind its norm where that is the module named
    before PATH         on the input of the module
    replaces PATH       instead of the model's own module, in all its calls
    inside PATH         between the layers of a recurrent module; in a function that makes attention inside
    around PATH         a shortcut from the input of the module to its output
    around A..B         the same from the input of A to the output of B: a norm directly behind a layer belongs to it
    initialize          the weights that are drawn; the biases of their modules follow
    freeze              the outermost called modules that are frozen, of those that hold parameters

A PATH ends in the number of the call, ``layer[1]``, where the module is called several times in a forward.
``PATH:add`` is a function in the forward of the module; ``PATH:add[1]`` its second call, where there are several.

What decides:

- A weight layer owns a weight and maps features, whatever its class; embeddings and norms are none. The head is the
  last one on the way to each output. Nothing acts on the head's output, on gates, on a skip path, on q, k, v, or twice.
- dropout, plain nets: behind every weight layer but the head, and behind its norm. Residual nets of convolutions:
  in front of the head. Residual branches of linear layers: behind the last layer of each branch, and on the embedding.
  U-Nets: at the smallest resolution. Recurrent layers: between and behind them. Embeddings: on their output.
  A dropout of the model's own at such a place is replaced; all others stay.
- norms: behind convolutions, or linear layers where there are none; only where the net has no norms of its own, whose
  kind is changed instead where they stand directly behind convolutions.
- residual: around single layers but the first and the head, in nets that have no skips of their own, where shapes are
  equal or, for convolutions, channels do not get fewer.
- branches: on what is added to the trunk, so behind all else in a branch: the outermost module that makes it, or the
  sum where a function does. Projected skip paths make no difference. A layer scale for the features alone.
- qk_norm, attention_dropout: where queries meet keys, and on what makes the probabilities.
- convert_norm, here to layer norm: all norms of other kinds, wherever they stand.
- instance_norm: as the other norms, but behind convolutions only.
- weight_standardization: all convolutions but the head, also on skip paths and where the norm is still to come; only
  where residual branches, if any, have some.
- squeeze_excite: on branches with convolutions; in plain nets at the end of each stage.
- lora: every weight layer of the residual blocks but on skip paths; where there are none, all but the head.
"""

from __future__ import annotations

import re

from attrs import frozen

NORMS = ("batch_norm", "layer_norm", "group_norm", "rms_norm")
BRANCHES = ("stochastic_depth", "layer_scale", "re_zero")
SHORT = {"norms": NORMS, "branches": BRANCHES}
SETTINGS: dict[str, dict[str, str]] = {
    "attention_dropout": {"trick": "dropout", "where": "attention"},
    "convert_norm": {"trick": "convert_norm", "to": "layer_norm"},
}
"""The columns that are a trick with settings."""
TRICKS = (
    *("dropout", "residual", *NORMS, "initialize", "freeze", *BRANCHES),
    *("qk_norm", "attention_dropout", "convert_norm", "instance_norm"),
    *("weight_standardization", "squeeze_excite", "lora"),
)
VERBS = ("after", "before", "replaces", "inside", "around")


@frozen
class Refusal:
    """A trick finds no place; `reason` is a part of what it says."""

    reason: str


TABLE = """
# ---------------------------------------------------------------------------------------------------- plain chains

mlp
    dropout     after {0,2}
    residual    around 2
    norms       after {0,2}
    initialize  {0,2,4}.weight
    freeze      {0,2}
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it has no norms
    instance_norm           refused: only what convolutions put out has positions, over which it works
    weight_standardization  refused: it has no convolutions
    squeeze_excite          refused: it has no convolutions
    lora                    after {0,2}

mlp_functional
    dropout     after fc{1,2}
    residual    around fc2
    norms       after fc{1,2}
    initialize  fc{1,2,3}.weight
    freeze      fc{1,2}
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it has no norms
    instance_norm           refused: only what convolutions put out has positions, over which it works
    weight_standardization  refused: it has no convolutions
    squeeze_excite          refused: it has no convolutions
    lora                    after fc{1,2}

mlp_dropout
    dropout     replaces {2,5}
    residual    around 3
    norms       after {0,3}
    initialize  {0,3,6}.weight
    freeze      {0,3}
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it has no norms
    instance_norm           refused: only what convolutions put out has positions, over which it works
    weight_standardization  refused: it has no convolutions
    squeeze_excite          refused: it has no convolutions
    lora                    after {0,3}

cnn_1d
    dropout     after {0,3}
    residual    around 3
    norms       after {0,3}
    initialize  {0,3,7}.weight
    freeze      {0,3}
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it has no norms
    instance_norm           after {0,3}
    weight_standardization  replaces {0,3}
    squeeze_excite          after 0  # behind 3 the net pools to one value a channel
    lora                    after {0,3}

cnn_2d
    dropout     after conv{1,2} fc{1,2}
    residual    around conv2  # fc2 narrows
    norms       after conv{1,2}
    initialize  conv{1,2}.weight fc{1,2,3}.weight
    freeze      conv{1,2} fc{1,2}
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it has no norms
    instance_norm           after conv{1,2}
    weight_standardization  replaces conv{1,2}
    squeeze_excite          after conv{1,2}  # fc1 reads all positions
    lora                    after conv{1,2} fc{1,2}

vgg_batch_norm
    dropout     after features.{1,5,8} replaces classifier.{2,5}
    residual    around features.4..features.5 features.7..features.8 classifier.3
    batch_norm  refused: it is a BatchNorm2d already
    layer_norm  replaces features.{1,5,8}
    group_norm  replaces features.{1,5,8}
    initialize  features.{0,4,7}.weight classifier.{0,3,6}.weight
    freeze      features classifier.{0,3}
    rms_norm                replaces features.{1,5,8}
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            replaces features.{1,5,8}
    instance_norm           replaces features.{1,5,8}
    weight_standardization  replaces features.{0,4,7}
    squeeze_excite          after features.{1,8}  # the pools end the stages, and the last leaves four positions
    lora                    after features.{0,4,7} classifier.{0,3}

autoencoder
    dropout     after encoder.{0,2} decoder.0
    residual    refused: (4, 12) in and (4, 4) out
    norms       after encoder.{0,2} decoder.0
    initialize  encoder.{0,2}.weight decoder.{0,2}.weight
    freeze      encoder decoder.0
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it has no norms
    instance_norm           refused: only what convolutions put out has positions, over which it works
    weight_standardization  refused: it has no convolutions
    squeeze_excite          refused: it has no convolutions
    lora                    after encoder.{0,2} decoder.0

generator
    dropout     after main.{1,4}
    residual    refused: (4, 16, 4, 4) in and (4, 8, 8, 8) out  # channels get fewer everywhere
    batch_norm  refused: it is a BatchNorm2d already
    layer_norm  replaces main.{1,4}
    group_norm  replaces main.{1,4}
    initialize  main.{0,3,6}.weight
    freeze      main.{0,1,3,4}
    rms_norm                replaces main.{1,4}
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            replaces main.{1,4}
    instance_norm           replaces main.{1,4}
    weight_standardization  refused: it is a ConvTranspose2d, and only torch's convolutions, not transposed
    squeeze_excite          after main.{1,4}  # each transposed convolution is a stage
    lora                    refused: it is a transposed convolution

spectral_norm
    dropout     after {0,2}
    residual    around 2
    norms       after {0,2}
    initialize  refused: its weight is computed from other parameters (parametrized)
    freeze      {0,2}
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it has no norms
    instance_norm           after {0,2}
    weight_standardization  refused: its weight is computed from other parameters (parametrized)
    squeeze_excite          after {0,2}
    lora                    refused: its weight is computed, so nothing can be added to it

lazy
    dropout     after {0,2,5}
    residual    around 2
    norms       after {0,2}
    initialize  {0,2,5,7}.weight
    freeze      {0,2,5}
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it has no norms
    instance_norm           after {0,2}
    weight_standardization  replaces {0,2}
    squeeze_excite          after {0,2}
    lora                    after {0,2,5}

functional_weights  # the model is its only module, and so its own head
    dropout     refused: weight layer
    residual    refused: weight layer
    norms       refused: weight layer
    initialize  refused: weight layer
    freeze      refused: before the head
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it has no norms
    instance_norm           refused: weight layer
    weight_standardization  refused: it has no convolutions
    squeeze_excite          refused: it has no convolutions
    lora                    refused: weight layer

# ------------------------------------------------------------------------ convolutional nets with residual joins

resnet
    dropout     before fc
    residual    refused: it has residual connections already, in 4 blocks from layer1.0 on
    batch_norm  refused: it is a BatchNorm2d already
    layer_norm  replaces bn1 layer{1,2}.{0,1}.bn{1,2} layer2.0.downsample.1
    group_norm  replaces bn1 layer{1,2}.{0,1}.bn{1,2} layer2.0.downsample.1
    initialize  conv1.weight layer{1,2}.{0,1}.conv{1,2}.weight layer2.0.downsample.0.weight fc.weight
    freeze      conv1 bn1 layer{1,2}
    rms_norm                replaces bn1 layer{1,2}.{0,1}.bn{1,2} layer2.0.downsample.1
    branches                after layer{1,2}.{0,1}.bn2  # also where the skip path is projected
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            replaces bn1 layer{1,2}.{0,1}.bn{1,2} layer2.0.downsample.1
    instance_norm           replaces bn1 layer{1,2}.{0,1}.bn{1,2} layer2.0.downsample.1
    weight_standardization  replaces conv1 layer{1,2}.{0,1}.conv{1,2} layer2.0.downsample.0
    squeeze_excite          after layer{1,2}.{0,1}.bn2
    lora                    after layer{1,2}.{0,1}.conv{1,2}

resnet_bottleneck
    dropout     before fc
    residual    refused: it has residual connections already, in 4 blocks from layer1.0 on
    batch_norm  refused: it is a BatchNorm2d already
    layer_norm  replaces bn1 layer{1,2}.{0,1}.bn{1,2,3} layer2.0.downsample.1
    group_norm  replaces bn1 layer{1,2}.{0,1}.bn{1,2,3} layer2.0.downsample.1
    initialize  conv1.weight layer{1,2}.{0,1}.conv{1,2,3}.weight layer2.0.downsample.0.weight fc.weight
    freeze      conv1 bn1 layer{1,2}
    rms_norm                replaces bn1 layer{1,2}.{0,1}.bn{1,2,3} layer2.0.downsample.1
    branches                after layer{1,2}.{0,1}.bn3
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            replaces bn1 layer{1,2}.{0,1}.bn{1,2,3} layer2.0.downsample.1
    instance_norm           replaces bn1 layer{1,2}.{0,1}.bn{1,2,3} layer2.0.downsample.1
    weight_standardization  replaces conv1 layer{1,2}.{0,1}.conv{1,2,3} layer2.0.downsample.0
    squeeze_excite          after layer{1,2}.{0,1}.bn3
    lora                    after layer{1,2}.{0,1}.conv{1,2,3}

# The gate belongs to the branch: a factor in front of it would change what it sees.
resnet_squeeze
    dropout     before fc
    residual    refused: it has residual connections already, in 4 blocks from layer1.0 on
    batch_norm  refused: it is a BatchNorm2d already
    layer_norm  replaces bn1 layer{1,2}.{0,1}.bn{1,2} layer2.0.downsample.1
    group_norm  replaces bn1 layer{1,2}.{0,1}.bn{1,2} layer2.0.downsample.1
    initialize  conv1.weight layer{1,2}.{0,1}.conv{1,2}.weight layer{1,2}.{0,1}.se.fc.{0,2}.weight
                layer2.0.downsample.0.weight fc.weight
    freeze      conv1 bn1 layer{1,2}
    rms_norm                replaces bn1 layer{1,2}.{0,1}.bn{1,2} layer2.0.downsample.1
    branches                after layer{1,2}.{0,1}.se
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            replaces bn1 layer{1,2}.{0,1}.bn{1,2} layer2.0.downsample.1
    instance_norm           replaces bn1 layer{1,2}.{0,1}.bn{1,2} layer2.0.downsample.1  # se then sees shifts alone
    weight_standardization  replaces conv1 layer{1,2}.{0,1}.conv{1,2} layer2.0.downsample.0
    squeeze_excite          refused: its blocks have gates of their own already, such as layer1.0.se.fc.2
    lora                    after layer{1,2}.{0,1}.conv{1,2}  # gates are none

# Norms behind an add keep their kind: only those directly behind a convolution are exchanged, the stem's among them.
resnet_preactivation
    dropout     before linear
    residual    refused: it has residual connections already, in 4 blocks from layer1.0 on
    batch_norm  refused: it is a BatchNorm2d already
    layer_norm  replaces layer1.0.bn1 layer{1,2}.{0,1}.bn2
    group_norm  replaces layer1.0.bn1 layer{1,2}.{0,1}.bn2
    initialize  conv1.weight layer{1,2}.{0,1}.conv{1,2}.weight layer2.0.shortcut.0.weight linear.weight
    freeze      conv1 layer{1,2} bn
    rms_norm                replaces layer1.0.bn1 layer{1,2}.{0,1}.bn2
    branches                after layer{1,2}.{0,1}.conv2
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            replaces layer{1,2}.{0,1}.bn{1,2} bn  # wherever they stand
    instance_norm           replaces layer1.0.bn1 layer{1,2}.{0,1}.bn2
    weight_standardization  replaces conv1 layer{1,2}.{0,1}.conv{1,2} layer2.0.shortcut.0
    squeeze_excite          after layer{1,2}.{0,1}.conv2
    lora                    after layer{1,2}.{0,1}.conv{1,2}

wide_resnet
    dropout     before linear  # the dropouts between the convolutions are the model's own affair
    residual    refused: it has residual connections already, in 4 blocks from layer1.0 on
    batch_norm  refused: it is a BatchNorm2d already
    layer_norm  replaces layer1.0.bn1 layer{1,2}.{0,1}.bn2
    group_norm  replaces layer1.0.bn1 layer{1,2}.{0,1}.bn2
    initialize  conv1.weight layer{1,2}.{0,1}.conv{1,2}.weight layer2.0.shortcut.0.weight linear.weight
    freeze      conv1 layer{1,2} bn
    rms_norm                replaces layer1.0.bn1 layer{1,2}.{0,1}.bn2
    branches                after layer{1,2}.{0,1}.conv2
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            replaces layer{1,2}.{0,1}.bn{1,2} bn
    instance_norm           replaces layer1.0.bn1 layer{1,2}.{0,1}.bn2
    weight_standardization  replaces conv1 layer{1,2}.{0,1}.conv{1,2} layer2.0.shortcut.0
    squeeze_excite          after layer{1,2}.{0,1}.conv2
    lora                    after layer{1,2}.{0,1}.conv{1,2}

resnet_plain
    dropout     before head
    residual    refused: it has residual connections already, in 2 blocks from blocks.0 on
    norms       after stem blocks.{0,1}.conv{1,2}  # as He et al. 2016 do, behind the stem too
    initialize  stem.weight blocks.{0,1}.conv{1,2}.weight head.weight
    freeze      stem blocks
    branches                after blocks.{0,1}.conv2
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it has no norms
    instance_norm           after stem blocks.{0,1}.conv{1,2}
    weight_standardization  replaces stem blocks.{0,1}.conv{1,2}  # the norm that sets the scale is another trick
    squeeze_excite          after blocks.{0,1}.conv2
    lora                    after blocks.{0,1}.conv{1,2}

# The norms of the blocks follow a permutation to channels last; exchanging that of the stem alone would be no trick.
# A layer scale of its own, gamma, needs no second one. A scalar factor is another trick. What is added is permuted.
convnext
    dropout     before head
    residual    refused: it has residual connections already, in 2 blocks from stages.0 on
    norms       refused: blocks have norms of their own already
    initialize  stem.0.weight stages.{0,1}.{dwconv,pwconv1,pwconv2}.weight head.weight
    freeze      stem stages norm
    stochastic_depth        before stages.{0,1}:add
    layer_scale             refused: already
    re_zero                 before stages.{0,1}:add
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it is a LayerNorm already  # that of the stem is a layer norm by descent
    instance_norm           refused: blocks have norms of their own already
    weight_standardization  replaces stem.0 stages.{0,1}.dwconv
    squeeze_excite          before stages.{0,1}:add
    lora                    after stages.{0,1}.pwconv{1,2}  # not the depthwise convolution

# features.1 adds nothing, and so is no residual block.
mobilenet
    dropout     replaces classifier.0
    residual    refused: it has residual connections already, at features.2
    batch_norm  refused: it is a BatchNorm2d already
    layer_norm  replaces features.{0,3}.1 features.{1,2}.conv.{0.1,1.1,3}
    group_norm  replaces features.{0,3}.1 features.{1,2}.conv.{0.1,1.1,3}
    initialize  features.{0,3}.0.weight features.{1,2}.conv.{0.0,1.0,2}.weight classifier.1.weight
    freeze      features
    rms_norm                replaces features.{0,3}.1 features.{1,2}.conv.{0.1,1.1,3}
    branches                after features.2.conv
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            replaces features.{0,3}.1 features.{1,2}.conv.{0.1,1.1,3}
    instance_norm           replaces features.{0,3}.1 features.{1,2}.conv.{0.1,1.1,3}
    weight_standardization  replaces features.{0,3}.0 features.{1,2}.conv.{0.0,1.0,2}
    squeeze_excite          after features.2.conv
    lora                    after features.2.conv.{0.0,2}  # not the depthwise convolution

# -------------------------------------------------------------------------- convolutional nets that concatenate

# Its paper, too, drops behind each convolution (all but the first), and torchvision behind conv2.
densenet
    dropout     after features.norm0 features.denseblock{1,2}.{0,1}.{norm2,conv2} features.transition1.2
    residual    refused: it has skips of its own already, by concatenation
    batch_norm  refused: it is a BatchNorm2d already  # that behind a conv2 is norm1 of the next layer
    layer_norm  replaces features.norm0 features.denseblock{1,2}.{0,1}.norm2
    group_norm  replaces features.norm0 features.denseblock{1,2}.{0,1}.norm2
    initialize  features.conv0.weight features.denseblock{1,2}.{0,1}.conv{1,2}.weight
                features.transition1.2.weight classifier.weight
    freeze      features
    rms_norm                replaces features.norm0 features.denseblock{1,2}.{0,1}.norm2
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            replaces features.{norm0,norm5,transition1.0} features.denseblock{1,2}.{0,1}.norm{1,2}
    instance_norm           replaces features.norm0 features.denseblock{1,2}.{0,1}.norm2
    weight_standardization  replaces features.{conv0,transition1.2} features.denseblock{1,2}.{0,1}.conv{1,2}
    squeeze_excite          refused: it joins maps by concatenation, so that a convolution ends no stage
    lora                    after features.{conv0,transition1.2} features.denseblock{1,2}.{0,1}.conv{1,2}

# Behind the last module stands a dropout of its own, which serves all branches that end there. branch2 is a chain of
# two layers, but a shortcut belongs around a whole module.
inception
    dropout     after conv1.bn inception3a.{branch1,branch2.0,branch2.1,branch3.1}.bn inception3b.branch2.0.bn
                replaces dropout
    residual    refused: it has skips of its own already, by concatenation
    batch_norm  refused: it is a BatchNorm2d already
    layer_norm  replaces conv1.bn inception3{a,b}.{branch1,branch2.0,branch2.1,branch3.1}.bn
    group_norm  replaces conv1.bn inception3{a,b}.{branch1,branch2.0,branch2.1,branch3.1}.bn
    initialize  conv1.conv.weight inception3{a,b}.{branch1,branch2.0,branch2.1,branch3.1}.conv.weight fc.weight
    freeze      conv1 inception3{a,b}
    rms_norm                replaces conv1.bn inception3{a,b}.{branch1,branch2.0,branch2.1,branch3.1}.bn
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            replaces conv1.bn inception3{a,b}.{branch1,branch2.0,branch2.1,branch3.1}.bn
    instance_norm           replaces conv1.bn inception3{a,b}.{branch1,branch2.0,branch2.1,branch3.1}.bn
    weight_standardization  replaces conv1.conv inception3{a,b}.{branch1,branch2.0,branch2.1,branch3.1}.conv
    squeeze_excite          refused: it joins maps by concatenation, so that a convolution ends no stage
    lora                    after conv1.conv inception3{a,b}.{branch1,branch2.0,branch2.1,branch3.1}.conv

unet
    dropout     after bottleneck.{1,4}
    residual    refused: it has skips of its own already, by concatenation
    batch_norm  refused: it is a BatchNorm2d already  # the upward convolutions have none on purpose
    layer_norm  replaces encoder{1,2}.{1,4} bottleneck.{1,4} decoder{1,2}.{1,4}
    group_norm  replaces encoder{1,2}.{1,4} bottleneck.{1,4} decoder{1,2}.{1,4}
    initialize  encoder{1,2}.{0,3}.weight bottleneck.{0,3}.weight upconv{1,2}.weight decoder{1,2}.{0,3}.weight
                conv.weight
    freeze      encoder{1,2} bottleneck upconv{1,2} decoder{1,2}
    rms_norm                replaces encoder{1,2}.{1,4} bottleneck.{1,4} decoder{1,2}.{1,4}
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            replaces encoder{1,2}.{1,4} bottleneck.{1,4} decoder{1,2}.{1,4}
    instance_norm           replaces encoder{1,2}.{1,4} bottleneck.{1,4} decoder{1,2}.{1,4}
    weight_standardization  replaces encoder{1,2}.{0,3} bottleneck.{0,3} decoder{1,2}.{0,3}  # upconv are transposed
    squeeze_excite          refused: it joins maps by concatenation, so that a convolution ends no stage
    lora                    after encoder{1,2}.{0,3} bottleneck.{0,3} decoder{1,2}.{0,3}

# ------------------------------------------------------------------------------------------ attention and mixers

# The token mixing's output is transposed in front of the sum, and a square of tokens and channels tells no axis.
mlp_mixer
    dropout     after patch_embed blocks.{0,1}.{token_mix,channel_mix}.2
    residual    refused: it has residual connections already, in 2 blocks from blocks.0 on
    norms       refused: blocks have norms of their own already
    initialize  patch_embed.weight blocks.{0,1}.{token_mix,channel_mix}.{0,2}.weight head.weight
    freeze      patch_embed blocks.{0,1} norm
    stochastic_depth        before blocks.{0,1}:add[0] after blocks.{0,1}.channel_mix
    layer_scale             after blocks.{0,1}.channel_mix
    re_zero                 before blocks.{0,1}:add[0] after blocks.{0,1}.channel_mix
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it is a LayerNorm already
    instance_norm           refused: blocks have norms of their own already
    weight_standardization  refused: its residual branches have no convolutions  # that of the patches is in none
    squeeze_excite          refused: its residual branches have no convolutions
    lora                    after blocks.{0,1}.{token_mix,channel_mix}.{0,2}

vit
    dropout     after conv_proj layers.{0,1}.{attn.proj,mlp.2}
    residual    refused: it has residual connections already, in 2 blocks from layers.0 on
    norms       refused: blocks have norms of their own already
    initialize  conv_proj.weight layers.{0,1}.{attn.qkv,attn.proj,mlp.0,mlp.2}.weight head.weight
    freeze      conv_proj layers ln  # class token and positions belong to the model itself
    branches                after layers.{0,1}.{attn,mlp}
    qk_norm                 before layers.{0,1}.attn:scaled_dot_product_attention
    attention_dropout       inside layers.{0,1}.attn:scaled_dot_product_attention
    convert_norm            refused: it is a LayerNorm already
    instance_norm           refused: blocks have norms of their own already
    weight_standardization  refused: its residual branches have no convolutions
    squeeze_excite          refused: its residual branches have no convolutions
    lora                    after layers.{0,1}.{attn.qkv,attn.proj,mlp.0,mlp.2}

# The attention's joint projection and its output projection are weights, though no module of theirs is called.
# lora: the attention uses its projections as functions, so no module of theirs has an output.
transformer_encoder
    dropout     after embedding replaces encoder.layers.{0,1}.dropout{1,2}
    residual    refused: it has residual connections already, in 2 blocks from encoder.layers.0 on
    norms       refused: blocks have norms of their own already
    initialize  encoder.layers.{0,1}.self_attn.{in_proj_weight,out_proj.weight}
                encoder.layers.{0,1}.linear{1,2}.weight fc.weight
    freeze      embedding encoder
    branches                after encoder.layers.{0,1}.dropout{1,2}
    qk_norm                 inside encoder.layers.{0,1}.self_attn:multi_head_attention_forward
    attention_dropout       inside encoder.layers.{0,1}.self_attn:multi_head_attention_forward
    convert_norm            refused: it is a LayerNorm already
    instance_norm           refused: blocks have norms of their own already
    weight_standardization  refused: its residual branches have no convolutions
    squeeze_excite          refused: its residual branches have no convolutions
    lora                    after encoder.layers.{0,1}.linear{1,2}

encoder_decoder
    dropout     after {src,tgt}_embedding
                replaces transformer.encoder.layers.0.dropout{1,2} transformer.decoder.layers.0.dropout{1,2,3}
    residual    refused: it has residual connections already, in 2 blocks from transformer.encoder.layers.0 on
    norms       refused: blocks have norms of their own already
    initialize  transformer.{encoder,decoder}.layers.0.self_attn.{in_proj_weight,out_proj.weight}
                transformer.decoder.layers.0.multihead_attn.{in_proj_weight,out_proj.weight}
                transformer.{encoder,decoder}.layers.0.linear{1,2}.weight generator.weight
    freeze      {src,tgt}_embedding transformer
    branches                after transformer.encoder.layers.0.dropout{1,2} transformer.decoder.layers.0.dropout{1,2,3}
    qk_norm                 inside transformer.{encoder,decoder}.layers.0.self_attn:multi_head_attention_forward
                            transformer.decoder.layers.0.multihead_attn:multi_head_attention_forward
    attention_dropout       inside transformer.{encoder,decoder}.layers.0.self_attn:multi_head_attention_forward
                            transformer.decoder.layers.0.multihead_attn:multi_head_attention_forward
    convert_norm            refused: it is a LayerNorm already
    instance_norm           refused: blocks have norms of their own already
    weight_standardization  refused: its residual branches have no convolutions
    squeeze_excite          refused: its residual branches have no convolutions
    lora                    after transformer.{encoder,decoder}.layers.0.linear{1,2}

# attention.out_proj is never called, so behind it means behind the attention. A layer that starts the trunk is an
# embedding, also of numbers. The dropout in the middle of ffn is the model's own affair.
multihead_attention
    dropout     after input_proj attention ffn.3
    residual    refused: it has residual connections already, at the model itself
    norms       refused: blocks have norms of their own already
    initialize  input_proj.weight attention.{in_proj_weight,out_proj.weight} ffn.{0,3}.weight head.weight
    freeze      input_proj attention norm1 ffn norm2
    branches                after attention ffn
    qk_norm                 inside attention:multi_head_attention_forward
    attention_dropout       inside attention:multi_head_attention_forward
    convert_norm            refused: it is a LayerNorm already
    instance_norm           refused: blocks have norms of their own already
    weight_standardization  refused: its residual branches have no convolutions
    squeeze_excite          refused: its residual branches have no convolutions
    lora                    after ffn.{0,3}  # input_proj is outside the block

gpt
    dropout     after tok_emb blocks.{0,1}.{attn.proj,mlp.2}
    residual    refused: it has residual connections already, in 2 blocks from blocks.0 on
    norms       refused: blocks have norms of their own already
    initialize  blocks.{0,1}.{attn.qkv,attn.proj,mlp.0,mlp.2}.weight lm_head.weight
    freeze      tok_emb pos_emb blocks ln_f
    branches                after blocks.{0,1}.{attn,mlp}
    qk_norm                 before blocks.{0,1}.attn:scaled_dot_product_attention
    attention_dropout       inside blocks.{0,1}.attn:scaled_dot_product_attention
    convert_norm            refused: it is a LayerNorm already
    instance_norm           refused: blocks have norms of their own already
    weight_standardization  refused: its residual branches have no convolutions
    squeeze_excite          refused: its residual branches have no convolutions
    lora                    after blocks.{0,1}.{attn.qkv,attn.proj,mlp.0,mlp.2}

gpt2
    dropout     replaces drop h.{0,1}.{attn.resid_dropout,mlp.dropout}
    residual    refused: it has residual connections already, in 2 blocks from h.0 on
    norms       refused: blocks have norms of their own already
    initialize  h.{0,1}.{attn,mlp}.c_proj.weight h.{0,1}.{attn.c_attn,mlp.c_fc}.weight
    freeze      wpe h.{0,1} ln_f  # wte is the head
    branches                after h.{0,1}.{attn,mlp}
    qk_norm                 before h.{0,1}.attn:matmul[0]  # the second product is that with the values
    attention_dropout       replaces h.{0,1}.attn.attn_dropout
    convert_norm            refused: it is a LayerNorm already
    instance_norm           refused: blocks have norms of their own already
    weight_standardization  refused: its residual branches have no convolutions  # such a Conv1D is a linear layer
    squeeze_excite          refused: its residual branches have no convolutions
    lora                    after h.{0,1}.{attn.c_attn,attn.c_proj,mlp.c_fc,mlp.c_proj}

bert
    dropout     replaces embeddings.dropout layer.{0,1}.{attention.output,output}.dropout
    residual    refused: it has residual connections already, in 2 blocks from layer.0 on
    norms       refused: blocks have norms of their own already
    initialize  layer.{0,1}.attention.self.{query,key,value}.weight layer.{0,1}.{attention.output,output}.dense.weight
                layer.{0,1}.intermediate.0.weight pooler.weight classifier.weight
    freeze      embeddings layer.{0,1} pooler
    branches                after layer.{0,1}.{attention.output,output}.dropout
    qk_norm                 before layer.{0,1}.attention.self:scaled_dot_product_attention
    attention_dropout       inside layer.{0,1}.attention.self:scaled_dot_product_attention
    convert_norm            refused: it is a LayerNorm already
    instance_norm           refused: blocks have norms of their own already
    weight_standardization  refused: its residual branches have no convolutions
    squeeze_excite          refused: its residual branches have no convolutions
    lora                    after layer.{0,1}.attention.self.{query,key,value} layer.{0,1}.intermediate.0
                            layer.{0,1}.{attention.output,output}.dense  # the pooler is outside the blocks

llama
    dropout     after embed_tokens layers.{0,1}.{self_attn.o_proj,mlp.down_proj}
    residual    refused: it has residual connections already, in 2 blocks from layers.0 on
    norms       refused: blocks have norms of their own already
    initialize  layers.{0,1}.self_attn.{q,k,v,o}_proj.weight layers.{0,1}.mlp.{gate,up,down}_proj.weight
                lm_head.weight
    freeze      embed_tokens layers.{0,1} norm
    branches                after layers.{0,1}.{self_attn,mlp}
    qk_norm                 before layers.{0,1}.self_attn:scaled_dot_product_attention
    attention_dropout       inside layers.{0,1}.self_attn:scaled_dot_product_attention
    convert_norm            refused: a LlamaRMSNorm, a class whose work only its own code knows
    instance_norm           refused: blocks have norms of their own already
    weight_standardization  refused: its residual branches have no convolutions
    squeeze_excite          refused: its residual branches have no convolutions
    lora                    after layers.{0,1}.self_attn.{q,k,v,o}_proj layers.{0,1}.mlp.{gate,up,down}_proj

# -------------------------------------------------------------------------------------- recurrent and text models

# lora: the output of a recurrent layer is not its weight times its input.
lstm
    dropout     after embedding inside lstm after lstm
    residual    refused: its recurrent layers are no chain that a shortcut fits
    norms       refused: its recurrent layers take no norm
    initialize  lstm.weight_{ih,hh}_l{0,1} fc.weight
    freeze      embedding lstm
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it has no norms
    instance_norm           refused: its recurrent layers take no norm
    weight_standardization  refused: it has no convolutions
    squeeze_excite          refused: it has no convolutions
    lora                    refused: recurrent layers are one call each, and get no adapter

gru
    dropout     after gru  # on the hidden state, as that is what the model reads
    residual    refused: its recurrent layers are no chain that a shortcut fits
    norms       refused: its recurrent layers take no norm
    initialize  gru.weight_{ih,hh}_l0 head.weight
    freeze      gru
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it has no norms
    instance_norm           refused: its recurrent layers take no norm
    weight_standardization  refused: it has no convolutions
    squeeze_excite          refused: it has no convolutions
    lora                    refused: recurrent layers are one call each, and get no adapter

embedding_bag
    dropout     after embedding fc1
    residual    refused: fits  # fc1 is the first weight layer
    norms       after fc1
    initialize  fc{1,2}.weight
    freeze      embedding fc1
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it has no norms
    instance_norm           refused: only what convolutions put out has positions, over which it works
    weight_standardization  refused: it has no convolutions
    squeeze_excite          refused: it has no convolutions
    lora                    after fc1

mapping_inputs
    dropout     after word_embeddings replaces dropout
    residual    refused: fits
    norms       after pre_classifier
    initialize  {pre_classifier,classifier}.weight
    freeze      word_embeddings pre_classifier
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it has no norms
    instance_norm           refused: only what convolutions put out has positions, over which it works
    weight_standardization  refused: it has no convolutions
    squeeze_excite          refused: it has no convolutions
    lora                    after pre_classifier

# ------------------------------------------------------------- shared layers, several inputs, outputs or branches

siamese
    dropout     after tower.{0,2}[{0,1}]
    residual    around tower.2[{0,1}]
    norms       after tower.{0,2}[{0,1}]
    initialize  tower.{0,2}.weight head.weight
    freeze      tower
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it has no norms
    instance_norm           refused: only what convolutions put out has positions, over which it works
    weight_standardization  refused: it has no convolutions
    squeeze_excite          refused: it has no convolutions
    lora                    after tower.{0,2}[{0,1}]  # one adapter in both calls

recurrent_depth
    dropout     after embed layer[{0,1,2}]
    residual    around layer[{0,1,2}]
    norms       after embed layer[{0,1,2}]
    initialize  {embed,layer,head}.weight
    freeze      embed layer
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it has no norms
    instance_norm           refused: only what convolutions put out has positions, over which it works
    weight_standardization  refused: it has no convolutions
    squeeze_excite          refused: it has no convolutions
    lora                    after embed layer[{0,1,2}]

# The auxiliary branch counts like any other, and its last layer is a head.
auxiliary_head
    dropout     after conv{1,2} aux.2
    residual    around conv2
    norms       after conv{1,2}
    initialize  conv{1,2}.weight aux.{2,4}.weight fc.weight
    freeze      conv{1,2} aux.2
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it has no norms
    instance_norm           after conv{1,2}
    weight_standardization  replaces conv{1,2}
    squeeze_excite          refused: the head's pooling follows, which leaves one mean a channel  # at the only stage
    lora                    after conv{1,2} aux.2

# The gate makes logits, of which none may be missing or scaled.
# lora: an adapter scales nothing and begins at nothing, so the gate has one as any other layer.
mixture_of_experts
    dropout     after embed experts.{0,1}.{0,2}
    residual    refused: (4, 16) in and (4, 32) out
    norms       after embed experts.{0,1}.{0,2}
    initialize  {embed,gate,head}.weight experts.{0,1}.{0,2}.weight
    freeze      embed gate experts.{0,1}
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention  # the softmax is over experts
    convert_norm            refused: it has no norms
    instance_norm           refused: only what convolutions put out has positions, over which it works
    weight_standardization  refused: it has no convolutions
    squeeze_excite          refused: it has no convolutions
    lora                    after embed gate experts.{0,1}.{0,2}

# lora: behind its weight, a graph convolution mixes the nodes.
graph
    dropout     after gc{1,2}
    residual    around gc2
    batch_norm  refused: last axis, where only layer_norm and rms_norm act
    layer_norm  after gc{1,2}
    group_norm  refused: last axis, where only layer_norm and rms_norm act
    initialize  gc{1,2}.weight head.weight
    freeze      gc{1,2}
    rms_norm                after gc{1,2}
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it has no norms
    instance_norm           refused: only what convolutions put out has positions, over which it works
    weight_standardization  refused: it has no convolutions
    squeeze_excite          refused: it has no convolutions
    lora                    refused: what a GraphConvolution puts out is more than its weight times its input

two_heads
    dropout     after backbone.{0,2}
    residual    around backbone.2
    norms       after backbone.{0,2}
    initialize  backbone.{0,2}.weight {class,box}_head.weight
    freeze      backbone
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it has no norms
    instance_norm           refused: only what convolutions put out has positions, over which it works
    weight_standardization  refused: it has no convolutions
    squeeze_excite          refused: it has no convolutions
    lora                    after backbone.{0,2}
"""


def expand(text: str) -> list[str]:
    """The words that a word with braces stands for: ``fc{1,2}`` for fc1 and fc2."""
    if not (found := re.search(r"{([^{}]*)}", text)):
        return [text]
    choices = found[1].split(",")
    return [word for choice in choices for word in expand(text[: found.start()] + choice + text[found.end() :])]


def expectation(text: str) -> tuple[str, ...] | Refusal:
    """The places, or the refusal, that the words behind a trick's name mean."""
    if text.startswith("refused: "):
        return Refusal(text.removeprefix("refused: "))
    places, verb = [], ""
    for word in text.split():
        if word in VERBS:
            verb = f"{word} "
        else:
            places += [f"{verb}{path}" for path in expand(word)]
    return tuple(places)


def parse(table: str) -> dict[str, dict[str, tuple[str, ...] | Refusal]]:
    """A table as above, by model and trick."""
    text = re.sub(r"\n {8,}", " ", re.sub(r" *#.*", "", table))
    rows: dict[str, dict[str, tuple[str, ...] | Refusal]] = {}
    for line in filter(None, text.splitlines()):
        if not line.startswith(" "):
            assert line not in rows, f"{line} has two rows"
            row = rows[line] = {}
            continue
        name, rest = line.split(maxsplit=1)
        for trick in SHORT.get(name, (name,)):
            assert trick not in row, f"{trick} has two lines"
            row[trick] = expectation(rest)
    return rows


EXPECTED = parse(TABLE)
"""For every model of the zoo and every trick of `TRICKS`, the places or the refusal."""
