"""Five loops that people write by hand, with every family of tricks: their bodies stay as they were."""

from __future__ import annotations

import pytest
import torch
from loops.families import FAMILIES, REFUSED
from loops.variants import PLAIN, marked, variant

import trickbox as tb
from trickbox.catalog import available

ORIGINALS = {}


def original(name):
    """The loop without trickbox, run once for all cells."""
    if name not in ORIGINALS:
        ORIGINALS[name] = variant(name, None)(None)
    return ORIGINALS[name]


def same(one, other):
    assert one.losses == other.losses
    assert one.rates == other.rates
    for key, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[key]), key


@pytest.mark.parametrize("name", PLAIN)
def test_without_tricks_nothing_changes(name):
    same(original(name), variant(name, ("batches", "validation"))([]))


@pytest.mark.parametrize("name", PLAIN)
def test_no_global_generator_is_touched(name):
    before = variant(name, None)
    torch.manual_seed(3)
    before(None)
    expected = torch.get_rng_state()
    torch.manual_seed(3)
    variant(name, ("batches",))(["dropout", "augment", "mixup"])
    assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", PLAIN)
def test_every_family_acts_in_every_loop(name, family):
    found = FAMILIES[family]
    trace = variant(name, found.needs)([found.made])
    found.acted(trace, original(name))


@pytest.mark.parametrize("trick", REFUSED)
@pytest.mark.parametrize("name", PLAIN)
def test_what_a_loop_cannot_carry_is_refused_with_the_reason(name, trick):
    with pytest.raises(tb.ConfigError, match=REFUSED[trick].replace("(", r"\(").replace(")", r"\)")):
        variant(name, ("batches", "validation"))([trick])


@pytest.mark.parametrize("name", PLAIN)
def test_a_line_that_is_missing_is_named_in_the_first_step(name):
    for trick, line in (("augment", "x, y = run.batch"), ("mixup", "x, y = run.batch"), ("ema", "run.evaluating")):
        with pytest.raises(tb.ConfigError, match=line):
            variant(name, ())([trick])


@pytest.mark.parametrize("name", PLAIN)
def test_a_loop_needs_four_lines_and_one_more_for_batches_and_validation(name):
    assert marked(name) == {"": 4, "batches": 1, "validation": 1}


NEED_BLOCKS = {"attention", "stochastic depth"}
"""Families that act on blocks, which the net of the loops has none of; they are attached and draw as dropout is."""


def test_no_family_is_forgotten():
    shown = {*FAMILIES, *REFUSED}
    kinds = {tb.get(name).family for name in available()} - {tb.get(name).family for name in shown}
    assert kinds <= {None, *NEED_BLOCKS}, "a family without a cell in the matrix of loops"
