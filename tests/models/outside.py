"""Where an expert would put each trick, at its default settings, in architectures that nobody here wrote.

By hand from the source of each, in the grammar and by the rules of `models.expected`; `models.architectures` has the
models. Two things are new: ``$family`` stands for the lines that its rows share, and a name may be the one list of
norms in braces that `spelled` knows.
"""

from __future__ import annotations

from models.expected import parse

RESNET = """
    residual    refused: it has residual connections already
    batch_norm  refused: it is a BatchNorm2d already
    dropout     before fc
    freeze      conv1 bn1 layer{1,2,3,4}
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
"""
TRANSFORMER = """
    residual    refused: it has residual connections already, in 2 blocks from
    norms       refused: blocks have norms of their own already
    instance_norm           refused: blocks have norms of their own already
    weight_standardization  refused: its residual branches have no convolutions
    squeeze_excite          refused: its residual branches have no convolutions
"""
PRELUDES = {"$resnet": RESNET, "$transformer": TRANSFORMER}
"""The lines that rows of one family share; a row begins with the name of its family."""

TABLE = """
torchvision/resnet18
    $resnet
    {layer_norm,group_norm,rms_norm,convert_norm,instance_norm}  replaces bn1 layer{1,2,3,4}.{0,1}.bn{1,2}
                layer{2,3,4}.0.downsample.1
    initialize  conv1.weight layer{1,2,3,4}.{0,1}.conv{1,2}.weight layer{2,3,4}.0.downsample.0.weight fc.weight
    branches    after layer{1,2,3,4}.{0,1}.bn2
    weight_standardization  replaces conv1 layer{1,2,3,4}.{0,1}.conv{1,2} layer{2,3,4}.0.downsample.0
    squeeze_excite          after layer{1,2,3,4}.{0,1}.bn2
    lora                    after layer{1,2,3,4}.{0,1}.conv{1,2}

torchvision/resnet50
    $resnet
    {layer_norm,group_norm,rms_norm,convert_norm,instance_norm}  replaces bn1 layer1.1.bn{1,2,3}
                layer{1,2,3,4}.0.{bn1,bn2,bn3,downsample.1}
    initialize  conv1.weight layer1.1.conv{1,2,3}.weight layer{1,2,3,4}.0.{conv1,conv2,conv3,downsample.0}.weight
                fc.weight
    branches    after layer1.1.bn3 layer{1,2,3,4}.0.bn3
    weight_standardization  replaces conv1 layer1.1.conv{1,2,3} layer{1,2,3,4}.0.{conv1,conv2,conv3,downsample.0}
    squeeze_excite          after layer1.1.bn3 layer{1,2,3,4}.0.bn3
    lora                    after layer1.1.conv{1,2,3} layer{1,2,3,4}.0.conv{1,2,3}

torchvision/vgg11_bn
    {layer_norm,group_norm,rms_norm,convert_norm,instance_norm}  replaces features.{1,5,9,12,16,19,23,26}
    batch_norm  refused: it is a BatchNorm2d already
    dropout     after features.{1,5,9,12,16,19,23,26} replaces classifier.{2,5}
    residual    around features.4..features.5 features.8..features.9 features.11..features.12 features.15..features.16
                features.18..features.19 features.22..features.23 features.25..features.26 classifier.3
    initialize  features.{0,4,8,11,15,18,22,25}.weight classifier.{0,3,6}.weight
    freeze      features classifier.{0,3}
    branches                refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    weight_standardization  replaces features.{0,4,8,11,15,18,22,25}
    squeeze_excite          after features.{1,5,12,19,26}  # the pools end the stages
    lora                    after features.{0,4,8,11,15,18,22,25} classifier.{0,3}

timm/mixer
    $transformer
    dropout     after stem.proj replaces blocks.{0,1}.mlp_{tokens,channels}.drop2
    initialize  stem.proj.weight blocks.{0,1}.mlp_{tokens,channels}.fc{1,2}.weight head.weight
    freeze      stem blocks norm
    branches    after blocks.{0,1}.drop_path[{0,1}]
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it is a LayerNorm already
    lora                    after blocks.{0,1}.mlp_{tokens,channels}.fc{1,2}

transformers/gpt2
    $transformer
    dropout     replaces transformer.drop transformer.h.{0,1}.{attn.resid_dropout,mlp.dropout}
    initialize  transformer.h.{0,1}.{attn.c_attn,attn.c_proj,mlp.c_fc,mlp.c_proj}.weight
    freeze      transformer.wpe transformer.h.{0,1} transformer.ln_f  # wte is the head
    branches    after transformer.h.{0,1}.{attn,mlp}
    qk_norm                 before transformer.h.{0,1}.attn:scaled_dot_product_attention
    attention_dropout       inside transformer.h.{0,1}.attn:scaled_dot_product_attention
    convert_norm            refused: it is a LayerNorm already
    lora                    after transformer.h.{0,1}.{attn.c_attn,attn.c_proj,mlp.c_fc,mlp.c_proj}

transformers/distilbert
    $transformer
    dropout     after distilbert.transformer.layer.{0,1}.attention.out_lin
                replaces distilbert.embeddings.dropout distilbert.transformer.layer.{0,1}.ffn.dropout
    initialize  distilbert.transformer.layer.{0,1}.attention.{q,k,v,out}_lin.weight
                distilbert.transformer.layer.{0,1}.ffn.lin{1,2}.weight {pre_classifier,classifier}.weight
    freeze      distilbert pre_classifier
    branches    after distilbert.transformer.layer.{0,1}.{attention,ffn}
    qk_norm                 before distilbert.transformer.layer.{0,1}.attention:scaled_dot_product_attention
    attention_dropout       inside distilbert.transformer.layer.{0,1}.attention:scaled_dot_product_attention
    convert_norm            refused: it is a LayerNorm already
    lora                    after distilbert.transformer.layer.{0,1}.{attention.{q,k,v,out}_lin,ffn.lin{1,2}}

transformers/llama
    $transformer
    dropout     after model.embed_tokens model.layers.{0,1}.{self_attn.o_proj,mlp.down_proj}
    initialize  model.layers.{0,1}.{self_attn.{q,k,v,o}_proj,mlp.{gate,up,down}_proj}.weight lm_head.weight
    freeze      model
    branches    after model.layers.{0,1}.{self_attn,mlp}
    qk_norm                 before model.layers.{0,1}.self_attn:scaled_dot_product_attention
    attention_dropout       inside model.layers.{0,1}.self_attn:scaled_dot_product_attention
    convert_norm            refused: a LlamaRMSNorm, a class whose work only its own code knows
    lora                    after model.layers.{0,1}.{self_attn.{q,k,v,o}_proj,mlp.{gate,up,down}_proj}

transformers/vit
    $transformer
    dropout     replaces vit.embeddings.dropout vit.layers.{0,1}.dropout
    initialize  vit.embeddings.patch_embeddings.projection.weight classifier.weight
                vit.layers.{0,1}.{attention.{q,k,v,o}_proj,mlp.fc{1,2}}.weight
    freeze      vit
    branches    after vit.layers.{0,1}.dropout[{0,1}]  # one dropout, called behind both branches
    qk_norm                 before vit.layers.{0,1}.attention:scaled_dot_product_attention
    attention_dropout       inside vit.layers.{0,1}.attention:scaled_dot_product_attention
    convert_norm            refused: it is a LayerNorm already
    lora                    after vit.layers.{0,1}.{attention.{q,k,v,o}_proj,mlp.fc{1,2}}
"""


def spelled(table: str) -> str:
    """*table* with the lines of its families, and a line for each trick of a line's braces."""
    for name, lines in PRELUDES.items():
        table = table.replace(f"    {name}\n", lines.removeprefix("\n"))
    several = "{layer_norm,group_norm,rms_norm,convert_norm,instance_norm}"
    out: list[str] = []
    for row in table.replace("\n                ", " ").splitlines():
        names = several.strip("{}").split(",") if several in row else [several]
        out += [row.replace(several, name) for name in names]
    return "\n".join(out)


EXPECTED = parse(spelled(TABLE))
"""For each of these architectures and every trick, the places or the refusal."""
