"""`at=` and `not_at=`, alike for all tricks that edit layers: there, nowhere else, and a misspelt one is an error."""

from __future__ import annotations

import itertools
import json
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trickbox_tricks.dropout import Dropout
from trickbox_tricks.initialization import Initialize
from trickbox_tricks.normalization import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from trickbox_tricks.residual import Residual
from trickbox_tricks.transfer import Freeze

from trickbox import ConfigError, NoEffectError, apply, fit, undo
from trickbox.surgery.sites import Site
from trickbox.trick import to_config

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 3
TRICKS: dict[str, Any] = {
    "dropout": Dropout,
    "batch_norm": BatchNorm,
    "layer_norm": LayerNorm,
    "group_norm": GroupNorm,
    "rms_norm": RMSNorm,
    "residual": partial(Residual, shortcut="projection"),  # fits everywhere
    "initialize": Initialize,
    "freeze": Freeze,
}
every_trick = pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS)


class Net(nn.Module):
    """Five layers, in an encoder and in a head whose last one makes the outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)])
        self.head = nn.ModuleDict({"hidden": nn.Linear(4, 4), "act": nn.ReLU(), "out": nn.Linear(4, 3)})

    def forward(self, x: Tensor) -> Tensor:
        return self.head["out"](self.head["act"](self.head["hidden"](self.encoder(x))))


FIRST, SECOND, THIRD, HIDDEN, OUT = "encoder.0.0", "encoder.1.0", "encoder.2.0", "head.hidden", "head.out"


def acted(model: nn.Module) -> set[str]:
    """The modules of a net to which anything was attached, or of which a parameter was changed or frozen."""
    plain = Net().state_dict()
    hosts = {name.partition(".trickbox.")[0] for name, _ in model.named_modules() if ".trickbox." in name}
    parameters = {name: p for name, p in model.named_parameters() if ".trickbox." not in name}
    changed = {name for name, p in parameters.items() if not p.requires_grad or not torch.equal(p, plain[name])}
    return hosts | {name.rpartition(".")[0] for name in changed}


def is_untouched(model: nn.Module) -> bool:
    """Whether a net is as it was made, with nothing left of any edit."""
    hooks = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return not acted(model) and not hooks and repr(model) == repr(Net()) and torch.equal(model(X), Net()(X))


def trained(tricks: list[Any]) -> dict[str, Tensor]:
    """What two updates make of a net with *tricks*."""
    optimizer = partial(torch.optim.SGD, lr=0.1)
    loss, data = nn.CrossEntropyLoss(), (X, Y)
    return fit(
        Net(), data, loss=loss, optimizer=optimizer, tricks=tricks, max_epochs=2, batch_size=6
    ).model.state_dict()


def are_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def is_third_or_hidden(site: Site) -> bool:
    return site.path in (THIRD, HIDDEN)


# -- there and nowhere else --------------------------------------------------------------------------------------------

PLACES: list[tuple[Any, set[str]]] = [
    (FIRST, {FIRST}),
    (OUT, {OUT}),
    ([FIRST, HIDDEN], {FIRST, HIDDEN}),
    ((HIDDEN, FIRST), {FIRST, HIDDEN}),
    ("encoder.[12].0", {SECOND, THIRD}),
    ("encoder.*.0", {FIRST, SECOND, THIRD}),
    ("**.0.0", {FIRST}),
    ("**.hidden", {HIDDEN}),
    (["encoder.**.0.0", "head.hid*"], {FIRST, HIDDEN}),
    (is_third_or_hidden, {THIRD, HIDDEN}),
    ([is_third_or_hidden, FIRST], {FIRST, THIRD, HIDDEN}),
    (nn.Linear, {FIRST, SECOND, THIRD, HIDDEN, OUT}),
    (":Linear", {FIRST, SECOND, THIRD, HIDDEN, OUT}),
]


@every_trick
@pytest.mark.parametrize(("place", "expected"), PLACES)
def test_a_trick_acts_at_its_places_and_nowhere_else(trick: Any, place: Any, expected: set[str]) -> None:
    assert acted(apply(Net(), [trick(at=place)], X)) == expected


@every_trick
@pytest.mark.parametrize(("place", "left_out"), PLACES[:-2])
def test_a_trick_acts_where_it_would_by_itself_but_not_there(trick: Any, place: Any, left_out: set[str]) -> None:
    default = acted(apply(Net(), [trick()], X))
    assert default >= {SECOND, THIRD, HIDDEN}
    assert acted(apply(Net(), [trick(not_at=place)], X)) == default - left_out


@every_trick
def test_not_at_wins_over_at(trick: Any) -> None:
    model = apply(Net(), [trick(at=nn.Linear, not_at=["encoder.0.*", OUT])], X)
    assert acted(model) == {SECOND, THIRD, HIDDEN}


@every_trick
@pytest.mark.parametrize("places", [{"at": FIRST, "not_at": "encoder.0.?"}, {"not_at": nn.Linear}])
def test_nothing_left_is_an_error_and_changes_nothing(trick: Any, places: dict[str, Any]) -> None:
    model = Net()
    with pytest.raises(NoEffectError):
        apply(model, [trick(**places)], X)
    assert is_untouched(model)


@every_trick
def test_undo_leaves_no_trace(trick: Any) -> None:
    model = apply(Net(), [trick(at=["encoder.*.0", OUT], not_at=SECOND)], X)
    assert not is_untouched(model)
    undo(model)
    assert is_untouched(model)


# -- a recipe for each layer -------------------------------------------------------------------------------------------

RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "dropout": ({"p": 0.1}, {"p": 0.5}, {"p": 0.25}),
    "batch_norm": ({"eps": 0.1}, {"eps": 0.2}, {"eps": 0.3}),
    "layer_norm": ({"eps": 0.1}, {"eps": 0.2}, {"eps": 0.3}),
    "rms_norm": ({"eps": 0.1}, {"eps": 0.2}, {"eps": 0.3}),
    "group_norm": ({"groups": 1}, {"groups": 2, "eps": 0.2}, {"groups": 2, "eps": 0.3}),
    "residual": ({}, {}, {}),
    "initialize": ({}, {"scheme": "orthogonal"}, {"scheme": "xavier"}),
    "freeze": ({}, {}, {}),
}
LAYERS = {"early": (FIRST, SECOND), "middle": (THIRD,), "late": (HIDDEN,)}


def recipe(name: str) -> list[tuple[str, Any]]:
    """Three objects of one trick, each with places and settings of its own."""
    settings = zip(LAYERS.items(), RECIPES[name], strict=True)
    return [(part, TRICKS[name](at=list(at), **own)) for (part, at), own in settings]


@pytest.mark.parametrize("name", TRICKS)
def test_several_objects_of_one_trick_are_a_recipe_for_each_layer(name: str) -> None:
    parts = recipe(name)
    model = apply(Net(), parts, X)
    assert acted(model) == {FIRST, SECOND, THIRD, HIDDEN}
    for part, trick in parts:
        alone = apply(Net(), [(part, trick)], X)
        for path in LAYERS[part]:
            ours, its = model.get_submodule(path), alone.get_submodule(path)
            assert repr(ours) == repr(its)
            assert are_equal(ours.state_dict(), its.state_dict())
            assert [p.requires_grad for p in ours.parameters()] == [p.requires_grad for p in its.parameters()]


@pytest.mark.parametrize("name", TRICKS)
def test_the_order_of_the_list_changes_no_bit(name: str) -> None:
    parts = recipe(name)
    first, *others = [trained(list(order)) for order in itertools.permutations(parts)]
    assert all(are_equal(first, other) for other in others)
    assert not are_equal(first, trained(parts[:2]))


def test_rates_for_each_layer_are_those_of_its_object() -> None:
    tricks = [("early", Dropout(0.1, at="encoder.*.0")), ("late", Dropout(0.5, at=HIDDEN))]
    for order in (tricks, tricks[::-1]):
        modules = dict(apply(Net(), order, X).named_modules())
        assert {name: module.p for name, module in modules.items() if hasattr(module, "draws")} == {
            f"{FIRST}.trickbox.early": 0.1,
            f"{SECOND}.trickbox.early": 0.1,
            f"{THIRD}.trickbox.early": 0.1,
            f"{HIDDEN}.trickbox.late": 0.5,
        }


# -- places that are not there -----------------------------------------------------------------------------------------


@every_trick
@pytest.mark.parametrize("setting", ["at", "not_at"])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("encodr.1.0", r"no path matches, got 'encodr.1.0'; there are .* Did you mean 'encoder.1.0'\?"),
        (["head.hidden", "haed.out"], r"no path matches, got 'haed.out'; there are .* Did you mean 'head.out'\?"),
        ("encodr.*.0", r"no path matches, got 'encodr.\*.0'; there are .* Did you mean 'encoder.\*.0'\?"),
        (":Linaer", r"no module is of this class, got ':Linaer'; there are .*:Linear.* Did you mean ':Linear'\?"),
        ([FIRST, nn.Conv1d], r"no module is of this class, got ':Conv1d'; there are "),
        (lambda site: site.path == "fc", r"the predicate is true for none of \d+ .*<lambda>\(\)'"),
    ],
)
def test_a_misspelt_place_is_refused_before_anything_is_changed(
    trick: Any, setting: str, place: Any, message: str
) -> None:
    model, bad = Net(), trick(**{setting: place})
    name = to_config(bad)["trick"]
    other = Initialize(at=FIRST) if name == "freeze" else Freeze(at=FIRST)
    with pytest.raises(ConfigError, match=rf"^{name}: {setting}: {message}"):
        apply(model, [bad], X)
    assert is_untouched(model)
    for tricks in ([other, ("wrong", bad), ("right", trick(at=SECOND))], [("right", trick(at=SECOND)), ("wrong", bad)]):
        with pytest.raises(ConfigError, match=rf"^wrong: {setting}: "):
            apply(model, tricks, X)
        assert is_untouched(model)


CAN = "it can act at the weight layers encoder"


@pytest.mark.parametrize("setting", ["at", "not_at"])
@pytest.mark.parametrize("name", ["batch_norm", "layer_norm", "group_norm", "initialize"])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("encoder.0.1", rf"it cannot act at encoder.0.1 \(ReLU\), got 'encoder.0.1'; {CAN}"),
        ("encoder", rf"it cannot act at encoder \(Sequential\), .*; {CAN}.* Did you mean 'encoder.\*\*'\?"),
        ("head", r"the model never calls head \(ModuleDict\), got 'head'; .* Did you mean 'head.\*\*'\?"),
        ("(model)", r"it cannot act at \(model\) \(Net\), got '\(model\)'; .* Did you mean '\*\*'\?"),
        (nn.ReLU, rf"it cannot act at encoder.0.1 \(ReLU\), .*head.act \(ReLU\), got ':ReLU'; {CAN}"),
    ],
)
def test_a_module_that_is_no_weight_layer_is_told_from_one_that_is_not_there(
    setting: str, name: str, place: Any, message: str
) -> None:
    model = Net()
    with pytest.raises(ConfigError, match=rf"^{name}: {setting}: {message}"):
        apply(model, [TRICKS[name](**{setting: place})], X)
    assert is_untouched(model)


def test_any_module_may_be_named_to_dropout_and_any_part_of_the_model_to_freeze() -> None:
    assert acted(apply(Net(), [Dropout(at=["head.act", "encoder.*.1"])], X)) == {
        "head.act", "encoder.0.1", "encoder.1.1", "encoder.2.1",
    }  # fmt: skip
    model = apply(Net(), [Dropout(0.5, at="(model)")], X)
    whole = model(X)
    assert torch.equal(whole[whole != 0], 2 * Net()(X)[whole != 0])
    assert (whole == 0).any()
    assert acted(apply(Net(), [Freeze(at="encoder.1")], X)) == {SECOND}
    assert acted(apply(Net(), [Freeze(at="encoder", not_at="encoder.1")], X)) == {FIRST, THIRD}


# -- JSON --------------------------------------------------------------------------------------------------------------


@every_trick
@pytest.mark.parametrize(
    ("at", "not_at"),
    [("encoder.1.0", None), (["encoder.*.0", "head.hidden"], "encoder.0.0"), (nn.Linear, [OUT]), (":Linear", OUT)],
)
def test_the_json_form_trains_to_the_same_bits(trick: Any, at: Any, not_at: Any) -> None:
    made = trick(at=at, not_at=not_at)
    config = json.loads(json.dumps(to_config(made)))
    assert config["at"] == (":Linear" if at is nn.Linear else at)
    assert are_equal(trained([config]), trained([made]))
    assert not are_equal(trained([config]), trained([]))


def test_json_with_places_is_what_a_user_writes() -> None:
    config = {"trick": "dropout", "p": 0.2, "at": "head.hidden"}
    assert are_equal(trained([config]), trained([Dropout(0.2, at=HIDDEN)]))
    model = apply(Net(), [config], X)
    assert acted(model) == {HIDDEN}
    assert model.head["hidden"].trickbox.dropout.p == 0.2
