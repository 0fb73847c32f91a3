"""Where an expert would put each trick, at its default settings, in every model of the zoo; written by hand.

A line says for one trick either its places or that it must be refused, with a part of the reason. ``norms`` is short
for batch_norm, layer_norm and group_norm alike. Braces are choices, as in a shell. The order of places has no meaning.

    after PATH          on the output of the module, behind its norm where that is the module named
    before PATH         on the input of the module
    replaces PATH       instead of the model's own module, in all its calls
    inside PATH         between the layers of a recurrent module
    around PATH         a shortcut from the input of the module to its output
    around A..B         the same from the input of A to the output of B: a norm directly behind a layer belongs to it
    initialize          the weights that are drawn; the biases of their modules follow
    freeze              the outermost called modules that are frozen, of those that hold parameters

A PATH ends in the number of the call, ``layer[1]``, where the module is called several times in a forward.

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
"""

from __future__ import annotations

import re

from attrs import frozen

NORMS = ("batch_norm", "layer_norm", "group_norm")
TRICKS = ("dropout", "residual", *NORMS, "initialize", "freeze")
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

mlp_functional
    dropout     after fc{1,2}
    residual    around fc2
    norms       after fc{1,2}
    initialize  fc{1,2,3}.weight
    freeze      fc{1,2}

mlp_dropout
    dropout     replaces {2,5}
    residual    around 3
    norms       after {0,3}
    initialize  {0,3,6}.weight
    freeze      {0,3}

cnn_1d
    dropout     after {0,3}
    residual    around 3
    norms       after {0,3}
    initialize  {0,3,7}.weight
    freeze      {0,3}

cnn_2d
    dropout     after conv{1,2} fc{1,2}
    residual    around conv2  # fc2 narrows
    norms       after conv{1,2}
    initialize  conv{1,2}.weight fc{1,2,3}.weight
    freeze      conv{1,2} fc{1,2}

vgg_batch_norm
    dropout     after features.{1,5,8} replaces classifier.{2,5}
    residual    around features.4..features.5 features.7..features.8 classifier.3
    batch_norm  refused: already
    layer_norm  replaces features.{1,5,8}
    group_norm  replaces features.{1,5,8}
    initialize  features.{0,4,7}.weight classifier.{0,3,6}.weight
    freeze      features classifier.{0,3}

autoencoder
    dropout     after encoder.{0,2} decoder.0
    residual    refused: fits
    norms       after encoder.{0,2} decoder.0
    initialize  encoder.{0,2}.weight decoder.{0,2}.weight
    freeze      encoder decoder.0

generator
    dropout     after main.{1,4}
    residual    refused: fits  # channels get fewer everywhere
    batch_norm  refused: already
    layer_norm  replaces main.{1,4}
    group_norm  replaces main.{1,4}
    initialize  main.{0,3,6}.weight
    freeze      main.{0,1,3,4}

spectral_norm
    dropout     after {0,2}
    residual    around 2
    norms       after {0,2}
    initialize  refused: parametri
    freeze      {0,2}

lazy
    dropout     after {0,2,5}
    residual    around 2
    norms       after {0,2}
    initialize  {0,2,5,7}.weight
    freeze      {0,2,5}

functional_weights  # the model is its only module, and so its own head
    dropout     refused: weight layer
    residual    refused: weight layer
    norms       refused: weight layer
    initialize  refused: weight layer
    freeze      refused: before the head

# ------------------------------------------------------------------------ convolutional nets with residual joins

resnet
    dropout     before fc
    residual    refused: has residual connections
    batch_norm  refused: already
    layer_norm  replaces bn1 layer{1,2}.{0,1}.bn{1,2} layer2.0.downsample.1
    group_norm  replaces bn1 layer{1,2}.{0,1}.bn{1,2} layer2.0.downsample.1
    initialize  conv1.weight layer{1,2}.{0,1}.conv{1,2}.weight layer2.0.downsample.0.weight fc.weight
    freeze      conv1 bn1 layer{1,2}

resnet_bottleneck
    dropout     before fc
    residual    refused: has residual connections
    batch_norm  refused: already
    layer_norm  replaces bn1 layer{1,2}.{0,1}.bn{1,2,3} layer2.0.downsample.1
    group_norm  replaces bn1 layer{1,2}.{0,1}.bn{1,2,3} layer2.0.downsample.1
    initialize  conv1.weight layer{1,2}.{0,1}.conv{1,2,3}.weight layer2.0.downsample.0.weight fc.weight
    freeze      conv1 bn1 layer{1,2}

resnet_squeeze
    dropout     before fc
    residual    refused: has residual connections
    batch_norm  refused: already
    layer_norm  replaces bn1 layer{1,2}.{0,1}.bn{1,2} layer2.0.downsample.1
    group_norm  replaces bn1 layer{1,2}.{0,1}.bn{1,2} layer2.0.downsample.1
    initialize  conv1.weight layer{1,2}.{0,1}.conv{1,2}.weight layer{1,2}.{0,1}.se.fc.{0,2}.weight
                layer2.0.downsample.0.weight fc.weight
    freeze      conv1 bn1 layer{1,2}

# Norms behind an add keep their kind: only those directly behind a convolution are exchanged, the stem's among them.
resnet_preactivation
    dropout     before linear
    residual    refused: has residual connections
    batch_norm  refused: already
    layer_norm  replaces layer1.0.bn1 layer{1,2}.{0,1}.bn2
    group_norm  replaces layer1.0.bn1 layer{1,2}.{0,1}.bn2
    initialize  conv1.weight layer{1,2}.{0,1}.conv{1,2}.weight layer2.0.shortcut.0.weight linear.weight
    freeze      conv1 layer{1,2} bn

wide_resnet
    dropout     before linear  # the dropouts between the convolutions are the model's own affair
    residual    refused: has residual connections
    batch_norm  refused: already
    layer_norm  replaces layer1.0.bn1 layer{1,2}.{0,1}.bn2
    group_norm  replaces layer1.0.bn1 layer{1,2}.{0,1}.bn2
    initialize  conv1.weight layer{1,2}.{0,1}.conv{1,2}.weight layer2.0.shortcut.0.weight linear.weight
    freeze      conv1 layer{1,2} bn

resnet_plain
    dropout     before head
    residual    refused: has residual connections
    norms       after stem blocks.{0,1}.conv{1,2}  # as He et al. 2016 do, behind the stem too
    initialize  stem.weight blocks.{0,1}.conv{1,2}.weight head.weight
    freeze      stem blocks

# The norms of the blocks follow a permutation to channels last; exchanging that of the stem alone would be no trick.
convnext
    dropout     before head
    residual    refused: has residual connections
    norms       refused: blocks have norms
    initialize  stem.0.weight stages.{0,1}.{dwconv,pwconv1,pwconv2}.weight head.weight
    freeze      stem stages norm

mobilenet
    dropout     replaces classifier.0
    residual    refused: has residual connections
    batch_norm  refused: already
    layer_norm  replaces features.{0,3}.1 features.{1,2}.conv.{0.1,1.1,3}
    group_norm  replaces features.{0,3}.1 features.{1,2}.conv.{0.1,1.1,3}
    initialize  features.{0,3}.0.weight features.{1,2}.conv.{0.0,1.0,2}.weight classifier.1.weight
    freeze      features

# -------------------------------------------------------------------------- convolutional nets that concatenate

# Its paper, too, drops behind each convolution (all but the first), and torchvision behind conv2.
densenet
    dropout     after features.norm0 features.denseblock{1,2}.{0,1}.{norm2,conv2} features.transition1.2
    residual    refused: concatenat
    batch_norm  refused: already  # that behind a conv2 is norm1 of the next layer
    layer_norm  replaces features.norm0 features.denseblock{1,2}.{0,1}.norm2
    group_norm  replaces features.norm0 features.denseblock{1,2}.{0,1}.norm2
    initialize  features.conv0.weight features.denseblock{1,2}.{0,1}.conv{1,2}.weight
                features.transition1.2.weight classifier.weight
    freeze      features

# Behind the last module stands a dropout of its own, which serves all branches that end there.
inception
    dropout     after conv1.bn inception3a.{branch1,branch2.0,branch2.1,branch3.1}.bn inception3b.branch2.0.bn
                replaces dropout
    residual    refused: concatenat  # branch2 is a chain of two layers, but around a whole module is where one belongs
    batch_norm  refused: already
    layer_norm  replaces conv1.bn inception3{a,b}.{branch1,branch2.0,branch2.1,branch3.1}.bn
    group_norm  replaces conv1.bn inception3{a,b}.{branch1,branch2.0,branch2.1,branch3.1}.bn
    initialize  conv1.conv.weight inception3{a,b}.{branch1,branch2.0,branch2.1,branch3.1}.conv.weight fc.weight
    freeze      conv1 inception3{a,b}

unet
    dropout     after bottleneck.{1,4}
    residual    refused: concatenat
    batch_norm  refused: already  # the upward convolutions have none on purpose
    layer_norm  replaces encoder{1,2}.{1,4} bottleneck.{1,4} decoder{1,2}.{1,4}
    group_norm  replaces encoder{1,2}.{1,4} bottleneck.{1,4} decoder{1,2}.{1,4}
    initialize  encoder{1,2}.{0,3}.weight bottleneck.{0,3}.weight upconv{1,2}.weight decoder{1,2}.{0,3}.weight
                conv.weight
    freeze      encoder{1,2} bottleneck upconv{1,2} decoder{1,2}

# ------------------------------------------------------------------------------------------ attention and mixers

mlp_mixer
    dropout     after patch_embed blocks.{0,1}.{token_mix,channel_mix}.2
    residual    refused: has residual connections
    norms       refused: blocks have norms
    initialize  patch_embed.weight blocks.{0,1}.{token_mix,channel_mix}.{0,2}.weight head.weight
    freeze      patch_embed blocks.{0,1} norm

vit
    dropout     after conv_proj layers.{0,1}.{attn.proj,mlp.2}
    residual    refused: has residual connections
    norms       refused: blocks have norms
    initialize  conv_proj.weight layers.{0,1}.{attn.qkv,attn.proj,mlp.0,mlp.2}.weight head.weight
    freeze      conv_proj layers ln  # class token and positions belong to the model itself

# The attention's joint projection and its output projection are weights, though no module of theirs is called.
transformer_encoder
    dropout     after embedding replaces encoder.layers.{0,1}.dropout{1,2}
    residual    refused: has residual connections
    norms       refused: blocks have norms
    initialize  encoder.layers.{0,1}.self_attn.{in_proj_weight,out_proj.weight}
                encoder.layers.{0,1}.linear{1,2}.weight fc.weight
    freeze      embedding encoder

encoder_decoder
    dropout     after {src,tgt}_embedding
                replaces transformer.encoder.layers.0.dropout{1,2} transformer.decoder.layers.0.dropout{1,2,3}
    residual    refused: has residual connections
    norms       refused: blocks have norms
    initialize  transformer.{encoder,decoder}.layers.0.self_attn.{in_proj_weight,out_proj.weight}
                transformer.decoder.layers.0.multihead_attn.{in_proj_weight,out_proj.weight}
                transformer.{encoder,decoder}.layers.0.linear{1,2}.weight generator.weight
    freeze      {src,tgt}_embedding transformer

# attention.out_proj is never called, so behind it means behind the attention. A layer that starts the trunk is an
# embedding, also of numbers. The dropout in the middle of ffn is the model's own affair.
multihead_attention
    dropout     after input_proj attention ffn.3
    residual    refused: has residual connections
    norms       refused: blocks have norms
    initialize  input_proj.weight attention.{in_proj_weight,out_proj.weight} ffn.{0,3}.weight head.weight
    freeze      input_proj attention norm1 ffn norm2

gpt
    dropout     after tok_emb blocks.{0,1}.{attn.proj,mlp.2}
    residual    refused: has residual connections
    norms       refused: blocks have norms
    initialize  blocks.{0,1}.{attn.qkv,attn.proj,mlp.0,mlp.2}.weight lm_head.weight
    freeze      tok_emb pos_emb blocks ln_f

gpt2
    dropout     replaces drop h.{0,1}.{attn.resid_dropout,mlp.dropout}
    residual    refused: has residual connections
    norms       refused: blocks have norms
    initialize  h.{0,1}.{attn,mlp}.c_proj.weight h.{0,1}.{attn.c_attn,mlp.c_fc}.weight
    freeze      wpe h.{0,1} ln_f  # wte is the head

bert
    dropout     replaces embeddings.dropout layer.{0,1}.{attention.output,output}.dropout
    residual    refused: has residual connections
    norms       refused: blocks have norms
    initialize  layer.{0,1}.attention.self.{query,key,value}.weight layer.{0,1}.{attention.output,output}.dense.weight
                layer.{0,1}.intermediate.0.weight pooler.weight classifier.weight
    freeze      embeddings layer.{0,1} pooler

llama
    dropout     after embed_tokens layers.{0,1}.{self_attn.o_proj,mlp.down_proj}
    residual    refused: has residual connections
    norms       refused: blocks have norms
    initialize  layers.{0,1}.self_attn.{q,k,v,o}_proj.weight layers.{0,1}.mlp.{gate,up,down}_proj.weight
                lm_head.weight
    freeze      embed_tokens layers.{0,1} norm

# -------------------------------------------------------------------------------------- recurrent and text models

lstm
    dropout     after embedding inside lstm after lstm
    residual    refused: recurrent
    norms       refused: recurrent
    initialize  lstm.weight_{ih,hh}_l{0,1} fc.weight
    freeze      embedding lstm

gru
    dropout     after gru  # on the hidden state, as that is what the model reads
    residual    refused: recurrent
    norms       refused: recurrent
    initialize  gru.weight_{ih,hh}_l0 head.weight
    freeze      gru

embedding_bag
    dropout     after embedding fc1
    residual    refused: fits  # fc1 is the first weight layer
    norms       after fc1
    initialize  fc{1,2}.weight
    freeze      embedding fc1

mapping_inputs
    dropout     after word_embeddings replaces dropout
    residual    refused: fits
    norms       after pre_classifier
    initialize  {pre_classifier,classifier}.weight
    freeze      word_embeddings pre_classifier

# ------------------------------------------------------------- shared layers, several inputs, outputs or branches

siamese
    dropout     after tower.{0,2}[{0,1}]
    residual    around tower.2[{0,1}]
    norms       after tower.{0,2}[{0,1}]
    initialize  tower.{0,2}.weight head.weight
    freeze      tower

recurrent_depth
    dropout     after embed layer[{0,1,2}]
    residual    around layer[{0,1,2}]
    norms       after embed layer[{0,1,2}]
    initialize  {embed,layer,head}.weight
    freeze      embed layer

# The auxiliary branch counts like any other, and its last layer is a head.
auxiliary_head
    dropout     after conv{1,2} aux.2
    residual    around conv2
    norms       after conv{1,2}
    initialize  conv{1,2}.weight aux.{2,4}.weight fc.weight
    freeze      conv{1,2} aux.2

# The gate makes logits, of which none may be missing or scaled.
mixture_of_experts
    dropout     after embed experts.{0,1}.{0,2}
    residual    refused: fits
    norms       after embed experts.{0,1}.{0,2}
    initialize  {embed,gate,head}.weight experts.{0,1}.{0,2}.weight
    freeze      embed gate experts.{0,1}

graph
    dropout     after gc{1,2}
    residual    around gc2
    batch_norm  refused: last axis
    layer_norm  after gc{1,2}
    group_norm  refused: last axis
    initialize  gc{1,2}.weight head.weight
    freeze      gc{1,2}

two_heads
    dropout     after backbone.{0,2}
    residual    around backbone.2
    norms       after backbone.{0,2}
    initialize  backbone.{0,2}.weight {class,box}_head.weight
    freeze      backbone
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
        for trick in NORMS if name == "norms" else (name,):
            assert trick not in row, f"{trick} has two lines"
            row[trick] = expectation(rest)
    return rows


EXPECTED = parse(TABLE)
"""For every model of the zoo and every trick of `TRICKS`, the places or the refusal."""
