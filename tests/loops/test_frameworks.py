"""The loops of frameworks that need no adapter, with every family of tricks."""

from __future__ import annotations

import pytest
import torch
from loops.families import FAMILIES, REFUSED
from loops.variants import FRAMEWORKS, marked, variant

import trickbox as tb

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
LINES = {"accelerated": 4, "fabric": 4, "ignited": 4, "skorched": 5}
ORIGINALS = {}


def original(name):
    if name not in ORIGINALS:
        ORIGINALS[name] = variant(name, None)(None)
    return ORIGINALS[name]


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_without_tricks_nothing_changes(name):
    plain, attached = original(name), variant(name, ("batches", "validation"))([])
    assert (plain.losses, plain.rates) == (attached.losses, attached.rates)
    for key, value in plain.model.state_dict().items():
        assert torch.equal(value, attached.model.state_dict()[key]), key


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_every_family_acts_in_every_loop(name, family):
    found = FAMILIES[family]
    found.acted(variant(name, found.needs)([found.made]), original(name))


def test_a_loop_that_hands_a_closure_to_its_optimizer_carries_sam():
    trace = variant("skorched", ("batches",))([tb.get("sam")(rho=0.05), "mixup"])
    first, again = trace.losses[:2]  # both passes over the first batch, the second from higher up
    assert again > first
    assert len(trace.losses) == 2 * len(original("skorched").losses)


CELLS = [(name, trick) for name in FRAMEWORKS for trick in REFUSED if (name, trick) != ("skorched", "sam")]


@pytest.mark.parametrize(("name", "trick"), CELLS)
def test_what_a_loop_cannot_carry_is_refused_with_the_reason(name, trick):
    with pytest.raises(tb.ConfigError, match=REFUSED[trick].replace("(", r"\(").replace(")", r"\)")):
        variant(name, ("batches", "validation"))([trick])


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_the_lines_that_a_loop_needs(name):
    assert marked(name) == {"": LINES[name], "batches": 1, "validation": 1}
