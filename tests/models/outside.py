"""Where an expert would put each trick, at its default settings, in architectures that nobody here wrote.

By hand from the source of each, in the grammar and by the rules of `models.expected`; `models.architectures` has the
models. Two things are new: ``$family`` stands for the lines that its rows share, with a word behind it for ``PREFIX``,
and a line may name several tricks in braces.
"""

from __future__ import annotations

import re

from models.expected import parse

RESNET = """
    residual    refused: it has residual connections already
    batch_norm  refused: it is a BatchNorm2d already
    dropout     before fc
    freeze      conv1 bn1 layer{1,2,3,4}
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
"""
BOTTLENECK = """
    $resnet
    {layer_norm,group_norm,rms_norm,convert_norm,instance_norm}  replaces bn1 layer1.1.bn{1,2,3}
                layer{1,2,3,4}.0.{bn1,bn2,bn3,downsample.1}
    initialize  conv1.weight layer1.1.conv{1,2,3}.weight layer{1,2,3,4}.0.{conv1,conv2,conv3,downsample.0}.weight
                fc.weight
    branches    after layer1.1.bn3 layer{1,2,3,4}.0.bn3
    weight_standardization  replaces conv1 layer1.1.conv{1,2,3} layer{1,2,3,4}.0.{conv1,conv2,conv3,downsample.0}
    squeeze_excite          after layer1.1.bn3 layer{1,2,3,4}.0.bn3
"""
NORMED = """
    norms       refused: blocks have norms of their own already
    instance_norm           refused: blocks have norms of their own already
    weight_standardization  refused: its residual branches have no convolutions
    squeeze_excite          refused: its residual branches have no convolutions
"""
TRANSFORMER = """
    residual    refused: it has residual connections already, in 2 blocks from
    $normed
"""
BERT = """
    $transformer
    branches    after PREFIX.encoder.layer.{0,1}.{attention.output,output}.dropout
    dropout     replaces PREFIX.embeddings.dropout PREFIX.encoder.layer.{0,1}.{attention.output,output}.dropout
    qk_norm                 before PREFIX.encoder.layer.{0,1}.attention.self:scaled_dot_product_attention
    attention_dropout       inside PREFIX.encoder.layer.{0,1}.attention.self:scaled_dot_product_attention
    convert_norm            refused: it is a LayerNorm already
    lora                    after PREFIX.encoder.layer.{0,1}.attention.self.{query,key,value}
                PREFIX.encoder.layer.{0,1}.{attention.output.dense,intermediate.dense,output.dense}
"""
LLAMA = """
    $transformer
    dropout     after model.embed_tokens model.layers.{0,1}.{self_attn.o_proj,mlp.down_proj}
    initialize  model.layers.{0,1}.{self_attn.{q,k,v,o}_proj,mlp.{gate,up,down}_proj}.weight lm_head.weight
    freeze      model
    branches    after model.layers.{0,1}.{self_attn,mlp}
    attention_dropout       inside model.layers.{0,1}.self_attn:scaled_dot_product_attention
    convert_norm            refused: a class whose work only its own code knows
    lora                    after model.layers.{0,1}.{self_attn.{q,k,v,o}_proj,mlp.{gate,up,down}_proj}
"""
VIT = """
    $transformer
    initialize  patch_embed.proj.weight blocks.{0,1}.{attn.qkv,attn.proj,mlp.fc1,mlp.fc2}.weight head.weight
    dropout     replaces pos_drop blocks.{0,1}.{attn.proj_drop,mlp.drop2}
    qk_norm                 before blocks.{0,1}.attn:scaled_dot_product_attention
    attention_dropout       inside blocks.{0,1}.attn:scaled_dot_product_attention
    convert_norm            refused: it is a LayerNorm already
    lora                    after blocks.{0,1}.{attn.qkv,attn.proj,mlp.fc1,mlp.fc2}
"""
PRELUDES = {"$bottleneck": BOTTLENECK, "$resnet": RESNET, "$bert": BERT, "$llama": LLAMA, "$vit": VIT}
PRELUDES |= {"$transformer": TRANSFORMER, "$normed": NORMED}
"""The lines that rows of one family share; a row begins with the name of its family, and one may contain another."""

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
    $bottleneck
    lora                    after layer1.1.conv{1,2,3} layer{1,2,3,4}.0.conv{1,2,3}

torchvision/wide_resnet50
    $bottleneck
    lora                    after layer1.1.conv{1,2,3} layer{1,2,3,4}.0.conv{1,2,3}

torchvision/resnext50
    $bottleneck
    lora                    after layer1.1.conv{1,3} layer{1,2,3,4}.0.conv{1,3}  # conv2 works in groups

torchvision/resnet18_group_norm
    residual    refused: it has residual connections already
    dropout     before fc
    freeze      conv1 bn1 layer{1,2,3,4}
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    group_norm  refused: it is a GroupNorm already
    {batch_norm,layer_norm,rms_norm,convert_norm,instance_norm}  replaces bn1 layer1.{0,1}.bn{1,2}
                layer{2,3,4}.0.bn{1,2} layer{2,3,4}.0.downsample.1
    initialize  conv1.weight layer1.{0,1}.conv{1,2}.weight layer{2,3,4}.0.conv{1,2}.weight
                layer{2,3,4}.0.downsample.0.weight fc.weight
    branches    after layer1.{0,1}.bn2 layer{2,3,4}.0.bn2
    weight_standardization  replaces conv1 layer1.{0,1}.conv{1,2} layer{2,3,4}.0.conv{1,2} layer{2,3,4}.0.downsample.0
    squeeze_excite          after layer1.{0,1}.bn2 layer{2,3,4}.0.bn2
    lora                    after layer1.{0,1}.conv{1,2} layer{2,3,4}.0.conv{1,2}

torchvision/vit
    $transformer
    dropout     replaces encoder.dropout encoder.layers.encoder_layer_{0,1}.{dropout,mlp.4}
    initialize  conv_proj.weight encoder.layers.encoder_layer_{0,1}.self_attention.{in_proj_weight,out_proj.weight}
                encoder.layers.encoder_layer_{0,1}.mlp.{0,3}.weight heads.head.weight
    freeze      conv_proj encoder
    branches    after encoder.layers.encoder_layer_{0,1}.{dropout,mlp}
    qk_norm                 inside encoder.layers.encoder_layer_{0,1}.self_attention:multi_head_attention_forward
    attention_dropout       inside encoder.layers.encoder_layer_{0,1}.self_attention:multi_head_attention_forward
    convert_norm            refused: it is a LayerNorm already
    lora                    after encoder.layers.encoder_layer_{0,1}.mlp.{0,3}

torchvision/densenet121
    dropout     after features.norm0 features.denseblock{1,2,3,4}.denselayer{1,2}.{norm2,conv2}
                features.transition{1,2,3}.conv
    residual    refused: it has skips of its own already, by concatenation
    batch_norm  refused: it is a BatchNorm2d already
    {layer_norm,group_norm,rms_norm,instance_norm}  replaces features.norm0
                features.denseblock{1,2,3,4}.denselayer{1,2}.norm2
    convert_norm            replaces features.{norm0,norm5} features.transition{1,2,3}.norm
                features.denseblock{1,2,3,4}.denselayer{1,2}.norm{1,2}
    initialize  features.conv0.weight features.denseblock{1,2,3,4}.denselayer{1,2}.conv{1,2}.weight
                features.transition{1,2,3}.conv.weight classifier.weight
    freeze      features
    branches    refused: joins by concatenation, and adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    weight_standardization  replaces features.conv0 features.denseblock{1,2,3,4}.denselayer{1,2}.conv{1,2}
                features.transition{1,2,3}.conv
    squeeze_excite          refused: it joins maps by concatenation
    lora                    after features.conv0 features.denseblock{1,2,3,4}.denselayer{1,2}.conv{1,2}
                features.transition{1,2,3}.conv

torchvision/mobilenet_v2
    dropout     replaces classifier.0
    residual    refused: it has residual connections already
    batch_norm  refused: it is a BatchNorm2d already
    {layer_norm,group_norm,rms_norm,convert_norm,instance_norm}  replaces features.{0,18}.1 features.1.conv.{0.1,2}
                features.{2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17}.conv.{0.1,1.1,3}
    initialize  features.{0,18}.0.weight features.1.conv.{0.0,1}.weight
                features.{2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17}.conv.{0.0,1.0,2}.weight classifier.1.weight
    freeze      features
    branches    after features.{1,3,5,6,8,9,10,12,13,15,16}.conv  # the others change the shape, and have no skip
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    weight_standardization  replaces features.{0,18}.0 features.1.conv.{0.0,1}
                features.{2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17}.conv.{0.0,1.0,2}
    squeeze_excite          after features.{1,3,5,6,8,9,10,12,13,15,16}.conv
    lora                    after features.1.conv.1 features.{3,5,6,8,9,10,12,13,15,16}.conv.{0.0,2}  # not depthwise

torchvision/convnext
    dropout     before classifier.2
    residual    refused: it has residual connections already
    norms       refused: blocks have norms of their own already
    initialize  features.{0.0,2.1,4.1}.weight features.{1.0,3.0,3.1,5.0}.block.{0,3,5}.weight classifier.2.weight
    freeze      features classifier.0
    stochastic_depth        replaces features.{1.0,3.0,3.1,5.0}.stochastic_depth
    layer_scale             refused: already  # a factor of the model's own in each branch
    re_zero                 after features.{1.0,3.0,3.1,5.0}.stochastic_depth
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it is a LayerNorm already  # those of the maps are layer norms by descent
    instance_norm           refused: blocks have norms of their own already
    weight_standardization  replaces features.{0.0,2.1,4.1} features.{1.0,3.0,3.1,5.0}.block.0
    squeeze_excite          before features.{1.0,3.0,3.1,5.0}.stochastic_depth
    lora                    after features.{1.0,3.0,3.1,5.0}.block.{3,5}  # not the depthwise convolution

torchvision/regnet_y
    dropout     before fc
    residual    refused: it has residual connections already
    batch_norm  refused: it is a BatchNorm2d already
    {layer_norm,group_norm,rms_norm,convert_norm,instance_norm}  replaces stem.1
                trunk_output.block1.block1-0.{proj.1,f.a.1,f.b.1,f.c.1}
                trunk_output.block2.block2-0.{proj.1,f.a.1,f.b.1,f.c.1}
                trunk_output.block3.block3-0.{proj.1,f.a.1,f.b.1,f.c.1} trunk_output.block3.block3-1.f.{a,b,c}.1
    initialize  stem.0.weight fc.weight trunk_output.block1.block1-0.{proj.0,f.a.0,f.b.0,f.c.0,f.se.fc1,f.se.fc2}.weight
                trunk_output.block2.block2-0.{proj.0,f.a.0,f.b.0,f.c.0,f.se.fc1,f.se.fc2}.weight
                trunk_output.block3.block3-0.{proj.0,f.a.0,f.b.0,f.c.0,f.se.fc1,f.se.fc2}.weight
                trunk_output.block3.block3-1.{f.a.0,f.b.0,f.c.0,f.se.fc1,f.se.fc2}.weight
    freeze      stem trunk_output
    branches    after trunk_output.block1.block1-0.f trunk_output.block2.block2-0.f trunk_output.block3.block3-{0,1}.f
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    weight_standardization  replaces stem.0 trunk_output.block1.block1-0.{proj.0,f.a.0,f.b.0,f.c.0}
                trunk_output.block2.block2-0.{proj.0,f.a.0,f.b.0,f.c.0} trunk_output.block3.block3-1.f.{a,b,c}.0
                trunk_output.block3.block3-0.{proj.0,f.a.0,f.b.0,f.c.0}
    squeeze_excite          refused: its blocks have gates of their own already
    lora                    after trunk_output.block1.block1-0.f.{a,c}.0 trunk_output.block2.block2-0.f.{a,c}.0
                trunk_output.block3.block3-{0,1}.f.{a,c}.0  # b works in groups, and gates are none

torchvision/video_resnet
    dropout     before fc
    residual    refused: it has residual connections already
    batch_norm  refused: it is a BatchNorm3d already
    instance_norm           replaces stem.1 layer1.0.conv{1,2}.1 layer{2,3}.0.conv{1,2}.0.1 layer{2,3}.0.conv{1,2}.1
                layer{2,3}.0.downsample.1  # the last stage has one position
    {layer_norm,group_norm,rms_norm,convert_norm}  replaces stem.1 layer1.0.conv{1,2}.1
                layer{2,3,4}.0.conv{1,2}.0.1 layer{2,3,4}.0.conv{1,2}.1 layer{2,3,4}.0.downsample.1
    initialize  stem.0.weight layer1.0.conv{1,2}.0.weight layer{2,3,4}.0.conv{1,2}.0.{0,3}.weight
                layer{2,3,4}.0.downsample.0.weight fc.weight
    freeze      stem layer{1,2,3,4}
    branches    after layer{1,2,3,4}.0.conv2
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    weight_standardization  replaces stem.0 layer{2,3}.0.conv{1,2}.0.{0,3} layer{2,3}.0.downsample.0
    squeeze_excite          after layer{1,2,3}.0.conv2
    lora                    after layer1.0.conv{1,2}.0 layer{2,3,4}.0.conv{1,2}.0.{0,3}

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

torchvision/squeezenet
    dropout     after features.0 features.{3,4,6,7,9,10,11}.{squeeze,expand1x1,expand3x3} features.12.squeeze
                replaces classifier.0  # which serves the layers in front of it
    residual    refused: it has skips of its own already, by concatenation
    {norms,instance_norm}  after features.0 features.{3,4,6,7,9,10,11,12}.{squeeze,expand1x1,expand3x3}
    initialize  features.0.weight features.{3,4,6,7,9,10,11,12}.{squeeze,expand1x1,expand3x3}.weight
                classifier.1.weight
    freeze      features
    branches    refused: adds no branch to a skip path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it has no norms
    weight_standardization  replaces features.0 features.{3,4,6,7,9,10,11,12}.{squeeze,expand1x1,expand3x3}
    squeeze_excite          refused: it joins maps by concatenation
    lora                    after features.0 features.{3,4,6,7,9,10,11,12}.{squeeze,expand1x1,expand3x3}

torchvision/swin
    residual    refused: it has residual connections already, in 4 blocks from features.1.0 on
    {norms,instance_norm}  refused: features.0.2 follows, and normalizes its values in another shape
    weight_standardization  refused: its residual branches have no convolutions
    squeeze_excite          refused: its residual branches have no convolutions
    dropout     after features.0.2 inside features.{1,3}.{0,1}.attn:dropout[1] replaces features.{1,3}.{0,1}.mlp.4
    initialize  features.0.0.weight features.{1,3}.{0,1}.{attn.qkv,attn.proj,mlp.0,mlp.3}.weight
                features.2.reduction.weight head.weight
    freeze      features norm
    stochastic_depth        replaces features.{1,3}.{0,1}.stochastic_depth
    {layer_scale,re_zero}   after features.{1,3}.{0,1}.stochastic_depth[{0,1}]
    qk_norm                 before features.{1,3}.{0,1}.attn:matmul[0]
    attention_dropout       inside features.{1,3}.{0,1}.attn:dropout[0]
    convert_norm            refused: it is a LayerNorm already
    lora                    after features.{1,3}.{0,1}.mlp.{0,3}  # the projections are used by a function

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

timm/resnet18
    residual    refused: it has residual connections already
    batch_norm  refused: it is a BatchNorm2d already
    dropout     before fc
    freeze      conv1 bn1 layer{1,2,3,4}
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    {layer_norm,group_norm,rms_norm,convert_norm,instance_norm}  replaces bn1 layer1.1.bn{1,2}
                layer{1,2,3,4}.0.{bn1,bn2,downsample.1}
    initialize  conv1.weight layer1.1.conv{1,2}.weight layer{1,2,3,4}.0.{conv1,conv2,downsample.0}.weight fc.weight
    branches    after layer1.1.bn2 layer{1,2,3,4}.0.bn2
    weight_standardization  replaces conv1 layer1.1.conv{1,2} layer{1,2,3,4}.0.{conv1,conv2,downsample.0}
    squeeze_excite          after layer1.1.bn2 layer{1,2,3,4}.0.bn2
    lora                    after layer1.1.conv{1,2} layer{1,2,3,4}.0.conv{1,2}

timm/resnet50d
    residual    refused: it has residual connections already
    batch_norm  refused: it is a BatchNorm2d already
    dropout     before fc
    freeze      conv1 bn1 layer{1,2,3,4}
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    {layer_norm,group_norm,rms_norm,convert_norm,instance_norm}  replaces conv1.{1,4} bn1 layer1.1.bn{1,2,3}
                layer{1,2,3,4}.0.{bn1,bn2,bn3,downsample.2}
    initialize  conv1.{0,3,6}.weight layer1.1.conv{1,2,3}.weight fc.weight
                layer{1,2,3,4}.0.{conv1,conv2,conv3,downsample.1}.weight
    branches    after layer1.1.bn3 layer{1,2,3,4}.0.bn3
    weight_standardization  replaces conv1.{0,3,6} layer1.1.conv{1,2,3}
                layer{1,2,3,4}.0.{conv1,conv2,conv3,downsample.1}
    squeeze_excite          after layer1.1.bn3 layer{1,2,3,4}.0.bn3
    lora                    after layer1.1.conv{1,2,3} layer{1,2,3,4}.0.conv{1,2,3}

timm/seresnet50
    residual    refused: it has residual connections already
    batch_norm  refused: it is a BatchNorm2d already
    dropout     before fc
    freeze      conv1 bn1 layer{1,2,3,4}
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    {layer_norm,group_norm,rms_norm,convert_norm,instance_norm}  replaces bn1 layer1.1.bn{1,2,3}
                layer{1,2,3,4}.0.{bn1,bn2,bn3} layer{2,3,4}.0.downsample.1
    initialize  conv1.weight layer1.{0,1}.{conv1,conv2,conv3,se.fc1,se.fc2}.weight layer{2,3,4}.0.downsample.0.weight
                layer{2,3,4}.0.{conv1,conv2,conv3,se.fc1,se.fc2}.weight fc.weight
    stochastic_depth        after layer1.0.se replaces layer1.1.drop_path layer{2,3,4}.0.drop_path
    layer_scale             after layer1.0.se layer1.1.drop_path layer{2,3,4}.0.drop_path
    re_zero                 after layer1.0.se layer1.1.drop_path layer{2,3,4}.0.drop_path
    weight_standardization  replaces conv1 layer1.{0,1}.conv{1,2,3} layer{2,3,4}.0.{conv1,conv2,conv3,downsample.0}
    squeeze_excite          refused: its blocks have gates of their own already
    lora                    after layer1.{0,1}.conv{1,2,3} layer{2,3,4}.0.conv{1,2,3}  # gates are none

timm/vit_tiny
    $vit
    freeze      patch_embed blocks norm
    stochastic_depth        after blocks.0.drop_path{1,2} replaces blocks.1.drop_path{1,2}
    layer_scale             after blocks.{0,1}.drop_path{1,2}
    re_zero                 after blocks.{0,1}.drop_path{1,2}

timm/deit_tiny_distilled
    $transformer
    initialize  patch_embed.proj.weight blocks.{0,1}.{attn.qkv,attn.proj,mlp.fc1,mlp.fc2}.weight
                {head,head_dist}.weight
    dropout     replaces pos_drop blocks.{0,1}.{attn.proj_drop,mlp.drop2}
    qk_norm                 before blocks.{0,1}.attn:scaled_dot_product_attention
    attention_dropout       inside blocks.{0,1}.attn:scaled_dot_product_attention
    convert_norm            refused: it is a LayerNorm already
    lora                    after blocks.{0,1}.{attn.qkv,attn.proj,mlp.fc1,mlp.fc2}
    freeze      patch_embed blocks norm
    branches    after blocks.{0,1}.drop_path{1,2}

timm/convmixer
    dropout     replaces head_drop
    residual    refused: it has residual connections already
    initialize  stem.0.weight blocks.{0,1}.{0.fn.0,1}.weight head.weight
    freeze      stem blocks
    branches    after blocks.{0,1}.0.fn
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            replaces stem.2 blocks.{0,1}.{0.fn.2,3}
    {batch_norm,layer_norm,group_norm,rms_norm,instance_norm}  refused: of their own already  # behind the activations
    weight_standardization  replaces stem.0 blocks.{0,1}.{0.fn.0,1}
    squeeze_excite          after blocks.{0,1}.0.fn
    lora                    after blocks.{0,1}.1  # not the depthwise convolution

timm/convnext_atto
    dropout     replaces head.drop
    residual    refused: it has residual connections already
    norms       refused: blocks have norms of their own already
    initialize  stem.0.weight stages.{1,2,3}.downsample.1.weight head.fc.weight
                stages.{0,1,2,3}.blocks.0.{conv_dw,mlp.fc1,mlp.fc2}.weight
                stages.2.blocks.1.{conv_dw,mlp.fc1,mlp.fc2}.weight
    freeze      stem stages head.norm
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it is a LayerNorm2d, a class whose work only its own code knows
    instance_norm           refused: blocks have norms of their own already
    stochastic_depth        after stages.0.blocks.0.drop_path replaces stages.{1,2,3}.blocks.0.drop_path
                stages.2.blocks.1.drop_path
    layer_scale             refused: already
    re_zero                 after stages.{0,1,2,3}.blocks.0.drop_path
                stages.2.blocks.1.drop_path
    weight_standardization  replaces stem.0 stages.{1,2,3}.downsample.1
                stages.{0,1,2,3}.blocks.0.{conv_dw,mlp.fc1,mlp.fc2} stages.2.blocks.1.{conv_dw,mlp.fc1,mlp.fc2}
    squeeze_excite          after stages.0.blocks.0.drop_path before stages.{1,2,3}.blocks.0.drop_path
                stages.2.blocks.1.drop_path
    lora                    after stages.{0,1,2,3}.blocks.0.mlp.fc{1,2} stages.2.blocks.1.mlp.fc{1,2}

timm/beit
    $transformer
    initialize  patch_embed.proj.weight blocks.{0,1}.{attn.qkv,attn.proj,mlp.fc1,mlp.fc2}.weight head.weight
    dropout     replaces pos_drop blocks.{0,1}.{attn.proj_drop,mlp.drop2}
    qk_norm                 before blocks.{0,1}.attn:scaled_dot_product_attention
    attention_dropout       inside blocks.{0,1}.attn:scaled_dot_product_attention
    convert_norm            refused: it is a LayerNorm already
    lora                    after blocks.{0,1}.{attn.proj,mlp.fc1,mlp.fc2}  # qkv is used by a function
    freeze      patch_embed blocks.{0,1} fc_norm
    stochastic_depth        after blocks.{0,1}.drop_path{1,2}  # behind the factors of its own
    layer_scale             refused: already
    re_zero                 after blocks.{0,1}.drop_path{1,2}

timm/convnextv2_atto
    dropout     replaces head.drop
    residual    refused: it has residual connections already
    norms       refused: blocks have norms of their own already
    initialize  stem.0.weight stages.{1,2,3}.downsample.1.weight head.fc.weight
                stages.{0,1,2,3}.blocks.0.{conv_dw,mlp.fc1,mlp.fc2}.weight
                stages.2.blocks.1.{conv_dw,mlp.fc1,mlp.fc2}.weight
    freeze      stem stages head.norm
    branches    after stages.{0,1,2,3}.blocks.0.drop_path stages.2.blocks.1.drop_path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: it is a LayerNorm2d, a class whose work only its own code knows
    instance_norm           refused: blocks have norms of their own already
    weight_standardization  replaces stem.0 stages.{1,2,3}.downsample.1
                stages.{0,1,2,3}.blocks.0.{conv_dw,mlp.fc1,mlp.fc2} stages.2.blocks.1.{conv_dw,mlp.fc1,mlp.fc2}
    squeeze_excite          after stages.{0,1,2,3}.blocks.0.drop_path stages.2.blocks.1.drop_path
    lora                    after stages.{0,1,2,3}.blocks.0.mlp.fc{1,2} stages.2.blocks.1.mlp.fc{1,2}

timm/eva02_tiny
    $transformer
    initialize  patch_embed.proj.weight blocks.{0,1}.{attn.qkv,attn.proj,mlp.fc1,mlp.fc2}.weight head.weight
    dropout     replaces pos_drop blocks.{0,1}.{attn.proj_drop,mlp.drop2}
    qk_norm                 before blocks.{0,1}.attn:scaled_dot_product_attention
    attention_dropout       inside blocks.{0,1}.attn:scaled_dot_product_attention
    convert_norm            refused: it is a LayerNorm already
    lora                    after blocks.{0,1}.{attn.proj,mlp.fc1,mlp.fc2}  # qkv is used by a function
    freeze      patch_embed blocks.{0,1} fc_norm
    branches    after blocks.{0,1}.drop_path{1,2}

timm/swin_tiny
    dropout     after patch_embed.norm replaces layers.{0,1}.blocks.{0,1}.{attn.proj_drop,mlp.drop2}
    residual    refused: it has residual connections already, in 4 blocks from
    norms       refused: patch_embed.norm follows, and normalizes its values in another shape
    initialize  patch_embed.proj.weight layers.1.downsample.reduction.weight head.fc.weight
                layers.{0,1}.blocks.{0,1}.{attn.qkv,attn.proj,mlp.fc1,mlp.fc2}.weight
    freeze      patch_embed layers norm
    stochastic_depth        after layers.0.blocks.0.drop_path{1,2} replaces layers.0.blocks.1.drop_path{1,2}
                layers.1.blocks.{0,1}.drop_path{1,2}
    layer_scale             after layers.{0,1}.blocks.{0,1}.drop_path{1,2}
    re_zero                 after layers.{0,1}.blocks.{0,1}.drop_path{1,2}
    qk_norm                 before layers.{0,1}.blocks.{0,1}.attn:matmul[0]  # the second is that with the values
    attention_dropout       replaces layers.{0,1}.blocks.{0,1}.attn.attn_drop
    convert_norm            refused: it is a LayerNorm already
    instance_norm           refused: patch_embed.norm follows, and normalizes its values in another shape
    weight_standardization  refused: its residual branches have no convolutions
    squeeze_excite          refused: its residual branches have no convolutions
    lora                    after layers.{0,1}.blocks.{0,1}.{attn.qkv,attn.proj,mlp.fc1,mlp.fc2}

timm/resnetv2_50
    dropout     replaces head.drop
    residual    refused: it has residual connections already
    {norms,instance_norm}  refused: blocks have norms of their own already
    convert_norm            refused: a class whose work only its own code knows  # a BatchNormAct2d, with the activation
    initialize  stem.conv.weight stages.0.blocks.{0,1}.conv{1,2,3}.weight stages.{1,2,3}.blocks.0.conv{1,2,3}.weight
                stages.{0,1,2,3}.blocks.0.downsample.conv.weight head.fc.weight
    freeze      stem stages norm
    branches    after stages.0.blocks.{0,1}.drop_path stages.{1,2,3}.blocks.0.drop_path
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    weight_standardization  replaces stem.conv stages.0.blocks.{0,1}.conv{1,2,3} stages.{1,2,3}.blocks.0.conv{1,2,3}
                stages.{0,1,2,3}.blocks.0.downsample.conv
    squeeze_excite          after stages.0.blocks.{0,1}.drop_path stages.{1,2,3}.blocks.0.drop_path
    lora                    after stages.0.blocks.{0,1}.conv{1,2,3} stages.{1,2,3}.blocks.0.conv{1,2,3}

timm/cait
    residual    refused: it has residual connections already
    $normed
    dropout     replaces pos_drop {blocks,blocks_token_only}.{0,1}.{attn.proj_drop,mlp.drop2}
    initialize  patch_embed.proj.weight blocks.{0,1}.attn.{qkv,proj,proj_l,proj_w}.weight
                blocks_token_only.{0,1}.attn.{q,k,v,proj}.weight {blocks,blocks_token_only}.{0,1}.mlp.fc{1,2}.weight
                head.weight
    freeze      patch_embed blocks blocks_token_only.{0,1} norm
    stochastic_depth        after {blocks,blocks_token_only}.{0,1}.drop_path[{0,1}]
    layer_scale             refused: already
    re_zero                 after {blocks,blocks_token_only}.{0,1}.drop_path[{0,1}]
    qk_norm                 before blocks.{0,1}.attn:matmul[0]
                            blocks_token_only.{0,1}.attn:scaled_dot_product_attention
    attention_dropout       replaces blocks.{0,1}.attn.attn_drop
                            inside blocks_token_only.{0,1}.attn:scaled_dot_product_attention
    convert_norm            refused: it is a LayerNorm already
    lora                    after blocks.{0,1}.attn.{qkv,proj} blocks_token_only.{0,1}.attn.{q,k,v,proj}
                {blocks,blocks_token_only}.{0,1}.mlp.fc{1,2}  # what mixes the heads makes no features

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

transformers/bert
    $bert bert
    initialize  bert.encoder.layer.{0,1}.attention.self.{query,key,value}.weight classifier.weight
                bert.encoder.layer.{0,1}.{attention.output,intermediate,output}.dense.weight bert.pooler.dense.weight
    freeze      bert

transformers/roberta
    $bert roberta
    initialize  roberta.encoder.layer.{0,1}.attention.self.{query,key,value}.weight classifier.{dense,out_proj}.weight
                roberta.encoder.layer.{0,1}.{attention.output,intermediate,output}.dense.weight
    freeze      roberta classifier.dense

transformers/electra
    $bert electra
    initialize  electra.encoder.layer.{0,1}.attention.self.{query,key,value}.weight electra.embeddings_project.weight
                electra.encoder.layer.{0,1}.{attention.output,intermediate,output}.dense.weight
                discriminator_predictions.{dense,dense_prediction}.weight
    freeze      electra discriminator_predictions.dense

transformers/gpt_neox
    $transformer
    dropout     replaces gpt_neox.emb_dropout gpt_neox.layers.{0,1}.post_{attention,mlp}_dropout
    initialize  gpt_neox.layers.{0,1}.attention.{query_key_value,dense}.weight lm_head.weight
                gpt_neox.layers.{0,1}.mlp.{dense_h_to_4h,dense_4h_to_h}.weight
    freeze      gpt_neox
    branches    after gpt_neox.layers.{0,1}.post_{attention,mlp}_dropout
    qk_norm                 before gpt_neox.layers.{0,1}.attention:scaled_dot_product_attention
    attention_dropout       inside gpt_neox.layers.{0,1}.attention:scaled_dot_product_attention
    convert_norm            refused: it is a LayerNorm already
    lora                    after gpt_neox.layers.{0,1}.attention.{query_key_value,dense}
                gpt_neox.layers.{0,1}.mlp.{dense_h_to_4h,dense_4h_to_h}

transformers/opt
    $transformer
    dropout     after model.decoder.embed_tokens inside model.decoder.layers.{0,1}:dropout[{0,1}]
    initialize  model.decoder.layers.{0,1}.self_attn.{q,k,v,out}_proj.weight model.decoder.layers.{0,1}.fc{1,2}.weight
    freeze      model.decoder.{embed_positions,layers.0,layers.1,final_layer_norm}  # the words are the head
    stochastic_depth        before model.decoder.layers.{0,1}:add[0]  # the others are flat, without samples
    layer_scale             before model.decoder.layers.{0,1}:add[{0,1}]
    re_zero                 before model.decoder.layers.{0,1}:add[{0,1}]
    qk_norm                 before model.decoder.layers.{0,1}.self_attn:scaled_dot_product_attention
    attention_dropout       inside model.decoder.layers.{0,1}.self_attn:scaled_dot_product_attention
    convert_norm            refused: it is a LayerNorm already
    lora                    after model.decoder.layers.{0,1}.{self_attn.{q,k,v,out}_proj,fc1,fc2}

transformers/llama
    $llama
    qk_norm                 before model.layers.{0,1}.self_attn:scaled_dot_product_attention

transformers/mistral
    $llama
    qk_norm                 before model.layers.{0,1}.self_attn:scaled_dot_product_attention

transformers/qwen2
    $llama
    qk_norm                 before model.layers.{0,1}.self_attn:scaled_dot_product_attention

transformers/qwen3
    $transformer
    dropout     after model.embed_tokens model.layers.{0,1}.{self_attn.o_proj,mlp.down_proj}
    initialize  model.layers.{0,1}.{self_attn.{q,k,v,o}_proj,mlp.{gate,up,down}_proj}.weight
    freeze      model.layers.{0,1} model.norm  # the words are the head
    branches    after model.layers.{0,1}.{self_attn,mlp}
    attention_dropout       inside model.layers.{0,1}.self_attn:scaled_dot_product_attention
    convert_norm            refused: a class whose work only its own code knows
    lora                    after model.layers.{0,1}.{self_attn.{q,k,v,o}_proj,mlp.{gate,up,down}_proj}
    qk_norm                 refused: its queries and keys have norms of their own already

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

transformers/albert
    residual    refused: it has residual connections already
    $normed
    dropout     replaces albert.embeddings.dropout
                albert.encoder.albert_layer_groups.0.albert_layers.0.attention.output_dropout
                after albert.encoder.albert_layer_groups.0.albert_layers.0.ffn_output[{0,1,2}]
    initialize  albert.encoder.embedding_hidden_mapping_in.weight albert.pooler.weight classifier.weight
                albert.encoder.albert_layer_groups.0.albert_layers.0.attention.{query,key,value,dense}.weight
                albert.encoder.albert_layer_groups.0.albert_layers.0.{ffn,ffn_output}.weight
    freeze      albert
    branches    after albert.encoder.albert_layer_groups.0.albert_layers.0.attention.output_dropout[{0,1,2}]
                albert.encoder.albert_layer_groups.0.albert_layers.0.ffn_output[{0,1,2}]
    qk_norm                 before
                albert.encoder.albert_layer_groups.0.albert_layers.0.attention[{0,1,2}]:scaled_dot_product_attention
    attention_dropout       inside
                albert.encoder.albert_layer_groups.0.albert_layers.0.attention[{0,1,2}]:scaled_dot_product_attention
    convert_norm            refused: it is a LayerNorm already
    lora                    after
                albert.encoder.albert_layer_groups.0.albert_layers.0.attention.{query,key,value,dense}[{0,1,2}]
                albert.encoder.albert_layer_groups.0.albert_layers.0.{ffn,ffn_output}[{0,1,2}]  # one adapter each

transformers/t5
    residual    refused: it has residual connections already
    $normed
    dropout     replaces {encoder,decoder}.dropout encoder.block.{0,1}.layer.{0,1}.dropout
                decoder.block.{0,1}.layer.{0,1,2}.dropout
    initialize  {encoder,decoder}.block.{0,1}.layer.0.SelfAttention.{q,k,v,o}.weight
                decoder.block.{0,1}.layer.1.EncDecAttention.{q,k,v,o}.weight
                encoder.block.{0,1}.layer.1.DenseReluDense.w{i,o}.weight
                decoder.block.{0,1}.layer.2.DenseReluDense.w{i,o}.weight
    freeze      {encoder,decoder}.{block.0,block.1,final_layer_norm}  # the words are the head
    branches    after encoder.block.{0,1}.layer.{0,1}.dropout decoder.block.{0,1}.layer.{0,1,2}.dropout
    qk_norm                 before {encoder,decoder}.block.{0,1}.layer.0.SelfAttention:scaled_dot_product_attention
                decoder.block.{0,1}.layer.1.EncDecAttention:scaled_dot_product_attention
    attention_dropout       inside {encoder,decoder}.block.{0,1}.layer.0.SelfAttention:scaled_dot_product_attention
                decoder.block.{0,1}.layer.1.EncDecAttention:scaled_dot_product_attention
    convert_norm            refused: a class whose work only its own code knows
    lora                    after {encoder,decoder}.block.{0,1}.layer.0.SelfAttention.{q,k,v,o}
                decoder.block.{0,1}.layer.1.EncDecAttention.{q,k,v,o}
                encoder.block.{0,1}.layer.1.DenseReluDense.w{i,o} decoder.block.{0,1}.layer.2.DenseReluDense.w{i,o}

transformers/bart
    residual    refused: it has residual connections already, in 4 blocks from model.encoder.layers.0 on
    $normed
    dropout     inside model.{encoder,decoder}:dropout model.encoder.layers.{0,1}:dropout[{0,2}]
                model.decoder.layers.{0,1}:dropout[{0,1,3}]  # those behind fc1 are the model's own affair
    initialize  model.{encoder,decoder}.layers.{0,1}.self_attn.{q,k,v,out}_proj.weight
                model.decoder.layers.{0,1}.encoder_attn.{q,k,v,out}_proj.weight
                model.{encoder,decoder}.layers.{0,1}.fc{1,2}.weight
    freeze      model.{encoder,decoder}.{embed_positions,layernorm_embedding,layers.0,layers.1}  # words are the head
    branches    before model.encoder.layers.{0,1}:add[{0,1}] model.decoder.layers.{0,1}:add[{0,1,2}]
    qk_norm                 before model.{encoder,decoder}.layers.{0,1}.self_attn:scaled_dot_product_attention
                model.decoder.layers.{0,1}.encoder_attn:scaled_dot_product_attention
    attention_dropout       inside model.{encoder,decoder}.layers.{0,1}.self_attn:scaled_dot_product_attention
                model.decoder.layers.{0,1}.encoder_attn:scaled_dot_product_attention
    convert_norm            refused: it is a LayerNorm already
    lora                    after model.{encoder,decoder}.layers.{0,1}.self_attn.{q,k,v,out}_proj
                model.decoder.layers.{0,1}.encoder_attn.{q,k,v,out}_proj
                model.{encoder,decoder}.layers.{0,1}.fc{1,2}

transformers/mamba
    residual    refused: it has residual connections already, in 2 blocks from backbone.layers.0 on
    {norms,instance_norm}  refused: blocks have norms of their own already
    dropout     after backbone.embeddings backbone.layers.{0,1}.mixer.out_proj
    initialize  backbone.layers.{0,1}.mixer.{in_proj,conv1d,x_proj,dt_proj,out_proj}.weight
    freeze      backbone.layers.{0,1} backbone.norm_f  # the words are the head
    branches    after backbone.layers.{0,1}.mixer
    qk_norm                 refused: it has no attention
    attention_dropout       refused: it has no attention
    convert_norm            refused: a class whose work only its own code knows
    weight_standardization  refused: it has no convolutions  # the weight of its only one is used by a function
    squeeze_excite          refused: its residual branches have no convolutions  # means would see what follows
    lora                    after backbone.layers.{0,1}.mixer.{in_proj,x_proj,out_proj}  # dt_proj is used as a factor
"""


def spelled(table: str) -> str:
    """*table* with the lines of its families, and a line for each trick of a line's braces."""
    for name, lines in PRELUDES.items():
        shared = lines.removeprefix("\n")
        table = re.sub(
            rf"    \{name}(?: (\w+))?\n", lambda found, shared=shared: shared.replace("PREFIX", found[1] or ""), table
        )
    out: list[str] = []
    for row in re.sub(r"\n {8,}", " ", table).splitlines():
        several = re.match(r"    \{([\w,]+)\} (.*)", row)
        out += [f"    {name} {several[2]}" for name in several[1].split(",")] if several else [row]
    return "\n".join(out)


EXPECTED = parse(spelled(TABLE))
"""For each of these architectures and every trick, the places or the refusal."""
