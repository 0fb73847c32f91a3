"""Every trick acts in every model of the zoo where an expert would put it; what differs is named here."""

from __future__ import annotations

import pytest
from models.expected import EXPECTED, TRICKS
from models.placed import agree, outcome

from trickbox.testing.zoo import specimen

DIFFERENT = {
    ("convnext", "layer_scale"): "that a factor of the model's own is a layer scale is not seen",
    ("mixture_of_experts", "lora"): "a router is left alone, which is as good",
    (
        "multihead_attention",
        "lora",
    ): "where the model itself adds, the layer in front of the first branch lies in the block",
}


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("name", EXPECTED)
def test_a_trick_acts_where_an_expert_would_put_it(name, trick):
    expected, found = EXPECTED[name][trick], outcome(*specimen(name), trick)
    assert agree(expected, found) == ((name, trick) not in DIFFERENT), (expected, found)
