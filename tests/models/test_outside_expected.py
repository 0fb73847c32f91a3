"""Every trick acts in architectures from elsewhere where an expert would put it; what differs is named here."""

from __future__ import annotations

from functools import lru_cache

import pytest
from models.architectures import ARCHITECTURES
from models.expected import TRICKS
from models.outside import EXPECTED
from models.placed import agree, outcome

import trickbox as tb

pytestmark = pytest.mark.slow

OWN_SCALE = "that a factor of the model's own is a layer scale is not seen"
FRONT = "a stage of a single block is taken for the block, and so the layer in front of it, too"
HANDED = "a weight that the model itself hands to a function is not drawn"
TALKING = "between the product of queries and keys and that with the values, more than a softmax is not followed"
UNCALLED = "a branch whose layers the model itself hands to functions is not seen"
DIFFERENT = {
    ("torchvision/convnext", "layer_scale"): OWN_SCALE,
    ("timm/convnext_atto", "layer_scale"): OWN_SCALE,
    ("timm/beit", "layer_scale"): OWN_SCALE,
    ("timm/cait", "layer_scale"): OWN_SCALE,
    ("timm/cait", "qk_norm"): TALKING,
    ("timm/cait", "attention_dropout"): TALKING,
    ("timm/cait", "lora"): "layers that mix the heads of an attention count as layers that make features",
    ("timm/convnext_atto", "lora"): FRONT,
    ("timm/convnextv2_atto", "lora"): FRONT,
    ("timm/beit", "initialize"): HANDED,
    ("timm/eva02_tiny", "initialize"): HANDED,
    ("torchvision/swin", "initialize"): HANDED,
    ("transformers/mamba", "initialize"): HANDED,
    ("torchvision/swin", "dropout"): UNCALLED,
    ("torchvision/swin", "layer_scale"): UNCALLED,
    ("torchvision/swin", "re_zero"): UNCALLED,
    ("timm/deit_tiny_distilled", "freeze"): "of two heads whose outputs are averaged, only the last counts as a head",
}


@lru_cache(maxsize=1)
def built(name):
    """The architecture of that name and its inputs; the tests of one follow each other."""
    return ARCHITECTURES[name].build(), ARCHITECTURES[name].inputs()


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("name", EXPECTED)
def test_a_trick_acts_where_an_expert_would_put_it(name, trick):
    source = ARCHITECTURES[name].source
    pytest.importorskip(source, reason=f"{source} is missing: pip install 'trickbox[models]'")
    model, inputs = built(name)
    expected, found = EXPECTED[name][trick], outcome(model, inputs, trick)
    tb.undo(model)
    assert agree(expected, found) == ((name, trick) not in DIFFERENT), (expected, found)
