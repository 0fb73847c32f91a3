"""The zoo's models work, and the table of expected places speaks of modules and parameters that they have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import pytest
import torch
from models.expected import EXPECTED, NORMS, TRICKS, Refusal, expand
from torch import Tensor, nn

from trickbox.errors import ConfigError
from trickbox.nest import call, tensors
from trickbox.testing.zoo import BATCH, ZOO, specimen


def calls(model: nn.Module, inputs: object) -> Counter[str]:
    """How often a forward in train mode calls each module."""
    counts: Counter[str] = Counter()
    for path, module in model.named_modules():
        module.register_forward_hook(lambda *_, path=path: counts.update([path]))
    call(model, inputs)
    return counts


def equal(some: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    """Whether two rows of tensors are equal bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def ancestors(path: str) -> list[str]:
    """The containers of a module, the model's empty path first."""
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(len(parts))]


def places(name: str, *tricks: str) -> list[tuple[str, str]]:
    """The verbs and paths of a specimen's row; a span counts as its first and its last module."""
    found = []
    for trick in tricks:
        if not isinstance(row := EXPECTED[name][trick], Refusal):
            split = (place.split(" ") for place in row)
            found += [(verb, path) for verb, span in split for path in span.split("..")]
    return found


@pytest.mark.parametrize("name", ZOO)
def test_a_specimen_runs_in_train_and_in_eval_mode_and_trains_all_of_its_parameters(name):
    model, inputs = specimen(name)
    assert model.training
    assert all(len(tensor) == BATCH for tensor in tensors(inputs))
    assert sum(parameter.numel() for parameter in model.parameters()) < 100_000

    outputs = list(tensors(call(model, inputs)))
    assert all(output.isfinite().all() for output in outputs)
    sum(output.square().sum() for output in outputs).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())

    assert all(output.isfinite().all() for output in tensors(call(model.eval(), inputs)))
    with torch.no_grad():
        assert all(output.isfinite().all() for output in tensors(call(model, inputs)))


@pytest.mark.parametrize("name", ZOO)
def test_a_specimen_is_a_function_of_its_seed_and_leaves_the_global_generator_alone(name):
    before = torch.get_rng_state()
    (model, inputs), (twin, same), (other, _) = specimen(name), specimen(name), specimen(name, seed=1)

    assert torch.equal(torch.get_rng_state(), before)
    assert equal(model.parameters(), twin.parameters())
    assert equal(tensors(inputs), tensors(same))
    assert not equal(model.parameters(), other.parameters())


def test_an_unknown_specimen_is_refused_with_a_near_match():
    with pytest.raises(ConfigError, match=r"the zoo has no 'resnest'\. Did you mean 'resnet'"):
        specimen("resnest")


def test_the_zoo_is_as_large_as_promised_and_every_trait_is_one_line():
    assert len(ZOO) >= 34
    assert all(kept.trait and "\n" not in kept.trait and len(kept.trait) <= 80 for kept in ZOO.values())


def test_every_specimen_has_a_row_and_every_row_all_tricks():
    assert list(EXPECTED) == list(ZOO)
    assert all(sorted(row) == sorted(TRICKS) for row in EXPECTED.values())
    assert all(row for rows in EXPECTED.values() for row in rows.values()), "no places are a refusal with a reason"


@pytest.mark.parametrize("name", ZOO)
def test_expected_places_are_calls_that_a_training_forward_makes(name):
    model, inputs = specimen(name)
    counts = calls(model, inputs)

    modules = ("dropout", "residual", *NORMS, "instance_norm", "convert_norm", "squeeze_excite", "lora")
    for verb, path in (place for place in places(name, *modules) if ":" not in place[1]):
        bare, _, number = path.rstrip("]").partition("[")
        assert counts[bare] > int(number or 0), f"{path} is not called"
        assert verb == "replaces" or (counts[bare] > 1) == bool(number), f"{path} is called {counts[bare]} times"


KINDS = {"dropout": "dropout", "attention_dropout": "dropout", "weight_standardization": "conv"}
"""What a trick replaces, where that is no norm."""


@pytest.mark.parametrize("name", ZOO)
def test_expected_places_name_each_thing_once_and_replace_like_by_like(name):
    model, _ = specimen(name)

    for trick in TRICKS:
        assert isinstance(row := EXPECTED[name][trick], Refusal) or len(set(row)) == len(row)
        replaced = [] if trick in ("initialize", "freeze") else places(name, trick)
        kinds = {type(model.get_submodule(path)).__name__ for verb, path in replaced if verb == "replaces"}
        assert all(re.search(KINDS.get(trick, "norm"), kind.lower()) for kind in kinds)


@pytest.mark.parametrize("name", ZOO)
def test_expected_weights_are_parameters_of_the_model(name):
    model, _ = specimen(name)
    row = EXPECTED[name]["initialize"]
    assert isinstance(row, Refusal) or set(row) <= dict(model.named_parameters()).keys()


@pytest.mark.parametrize("name", ZOO)
def test_expected_frozen_modules_are_called_hold_parameters_and_are_the_outermost(name):
    model, inputs = specimen(name)
    if isinstance(row := EXPECTED[name]["freeze"], Refusal):
        return
    called = calls(model, inputs).keys()
    frozen = {p for path in row for p in model.get_submodule(path).parameters()}
    assert set(row) <= called
    assert all(any(True for _ in model.get_submodule(path).parameters()) for path in row)

    whole = {path for path in called if set(model.get_submodule(path).parameters()) <= frozen}
    assert not [path for path in row if whole & set(ancestors(path))]


def test_braces_expand_as_in_a_shell():
    assert expand("layer{1,2}.bn{a,b}") == ["layer1.bna", "layer1.bnb", "layer2.bna", "layer2.bnb"]
