"""Rates by depth, weight decay by kind, and depths that wait: against closed forms, loops by hand, and timm."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trickbox_tricks.branches import LayerScale
from trickbox_tricks.lora import LoRA
from trickbox_tricks.normalization import BatchNorm
from trickbox_tricks.parameter_groups import GradualUnfreeze, LayerwiseDecay, NoDecayOnNorms
from trickbox_tricks.residual import Residual
from trickbox_tricks.transfer import Freeze, Transfer

from trickbox import ConfigError, NoEffectError, apply, attach, explain, fit, undo
from trickbox.testing import tiny_data, tiny_model
from trickbox.testing.zoo import specimen

X, Y = tiny_data(16)


def groups(model: nn.Module, inputs: Any, *tricks: Any) -> dict[str, dict[str, Any]]:
    """The group of every parameter by name, of an optimizer with rate and weight decay 1."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=1.0)
    apply(model, list(tricks), inputs, optimizer=optimizer)
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {name: found[id(p)] for name, p in model.named_parameters()}


def distances(model: nn.Module, inputs: Any, *tricks: Any) -> dict[str, int]:
    """How far every parameter is from the last depth, as its rate at a decay of one half says."""
    found = groups(model, inputs, LayerwiseDecay(0.5), *tricks)
    exponents = {name: [k for k in range(30) if group["lr"] == 0.5**k] for name, group in found.items()}
    return {name: k for name, (k,) in exponents.items()}


def spared(model: nn.Module, inputs: Any, *tricks: Any) -> set[str]:
    """The parameters without weight decay."""
    return {name for name, group in groups(model, inputs, *tricks).items() if group["weight_decay"] == 0}


def of(found: dict[str, int], path: str) -> set[int]:
    """The distances of the parameters in a module."""
    return {distance for name, distance in found.items() if f"{name}.".startswith(f"{path}.")}


# -- depths ------------------------------------------------------------------------------------------------------------


def test_the_rates_of_a_plain_net_are_powers_of_the_decay() -> None:
    found = groups(tiny_model(), X, LayerwiseDecay(0.75))
    for depth, layer in enumerate(["conv1", "conv2", "fc1", "fc2"]):
        for leaf in ("weight", "bias"):
            assert found[f"{layer}.{leaf}"]["lr"] == 0.75 ** (3 - depth)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit", [["class_token", "pos_embedding", "conv_proj"], ["layers.0"], ["layers.1"], ["ln", "head"]]),
        ("bert", [["embeddings"], ["layer.0"], ["layer.1"], ["pooler", "classifier"]]),
        ("convnext", [["stem"], ["stages.0"], ["stages.1"], ["norm", "head"]]),
        ("gpt2", [["wpe"], ["h.0"], ["h.1"], ["ln_f", "wte"]]),  # wte is the head too
        ("multihead_attention", [["input_proj"], ["attention", "norm1", "ffn"], ["norm2", "head"]]),
        ("encoder_decoder", [["src_embedding", "tgt_embedding", "positions"], ["transformer.encoder.layers.0"],
                             ["transformer.encoder.norm", "transformer.decoder.layers.0"],
                             ["transformer.decoder.norm", "generator"]]),
        ("lstm", [["embedding"], ["lstm"], ["fc"]]),
        ("recurrent_depth", [["embed"], ["layer"], ["head"]]),
        ("auxiliary_head", [["conv1"], ["aux.2"], ["conv2"], ["aux.4", "fc"]]),
        ("spectral_norm", [["0"], ["2"], ["5"]]),
        ("vgg_batch_norm", [["features.0", "features.1"], ["features.4", "features.5"], ["features.7", "features.8"],
                            ["classifier.0"], ["classifier.3"], ["classifier.6"]]),
    ],
)  # fmt: skip
def test_the_depths_of_a_zoo(name: str, expected: list[list[str]]) -> None:
    found = distances(*specimen(name))
    told = {path: len(expected) - 1 - depth for depth, paths in enumerate(expected) for path in paths}
    assert {path: of(found, path) for path in told} == {path: {distance} for path, distance in told.items()}
    assert all(any(f"{each}.".startswith(f"{path}.") for path in told) for each in found)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Layers(nn.Module):
    """Blocks that are lists of two modules, which one forward goes through; as in many a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleList([mlp(), Wrapped(mlp())]) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for attend, feed in self.layers:
            x = x + attend(x)
            x = feed(x) + x
        return x


def test_blocks_in_a_list_that_one_forward_goes_through_are_a_depth_each() -> None:
    model = nn.Sequential(nn.Linear(3, 4), Layers(), nn.LayerNorm(4), nn.Linear(4, 2))
    found = distances(model, torch.randn(5, 3))
    assert [of(found, path) for path in ("0", "1.layers.0", "1.layers.1", "2", "3")] == [{3}, {2}, {1}, {0}, {0}]


@pytest.mark.parametrize("name", ["vit", "cnn_2d"])
def test_what_tricks_add_is_as_deep_as_its_host_in_any_order(name: str) -> None:
    tricks = [BatchNorm(), Residual(shortcut="projection")] if name == "cnn_2d" else [LayerScale(), LoRA()]
    (model, inputs), alone = specimen(name), distances(*specimen(name))
    found = groups(model, inputs, *tricks, LayerwiseDecay(0.5))
    added = [each for each in found if ".trickbox." in f".{each}"]
    assert len(added) >= 4
    for each in added:
        host = each.partition(".trickbox.")[0]
        assert found[each]["lr"] == 0.5 ** max(of(alone, host)), each
    model, _ = specimen(name)
    again = groups(model, inputs, LayerwiseDecay(0.5), *tricks[::-1])
    assert {each: group["lr"] for each, group in again.items()} == {each: group["lr"] for each, group in found.items()}


def test_rates_multiply_with_those_of_a_transferred_backbone() -> None:
    found = groups(tiny_model(), X, LayerwiseDecay(0.5), Transfer(tiny_model(1), backbone_lr=0.1))
    assert found["conv1.weight"]["lr"] == pytest.approx(0.1 * 0.5**3)
    assert found["fc2.weight"]["lr"] == 1


@pytest.mark.parametrize(
    ("places", "slower"),
    [
        ({"at": "conv?"}, {"conv1": 3, "conv2": 2}),
        ({"not_at": "conv1"}, {"conv2": 2, "fc1": 1}),
        ({"at": "(model)"}, {"conv1": 3, "conv2": 2, "fc1": 1}),
    ],
)
def test_places_say_whose_rates_change(places: dict[str, Any], slower: dict[str, int]) -> None:
    found = groups(tiny_model(), X, LayerwiseDecay(0.5, **places))
    rates = {name: group["lr"] for name, group in found.items()}
    assert rates == {name: 0.5 ** slower.get(name.partition(".")[0], 0) for name in rates}


def test_a_place_inside_a_place_and_one_that_is_nowhere() -> None:
    model, inputs = specimen("vit")
    found = groups(model, inputs, LayerwiseDecay(0.5, at="layers", not_at="layers.*.attn"))
    assert {name for name, group in found.items() if group["lr"] < 1} == {
        name for name in found if name.startswith("layers.") and ".attn." not in name
    }
    with pytest.raises(
        ConfigError, match=r"layerwise_decay: at: no path matches, got 'layer.0'.*Did you mean 'layers.0'"
    ):
        groups(model, inputs, LayerwiseDecay(at="layer.0"))


@pytest.mark.parametrize("trick", [LayerwiseDecay(), GradualUnfreeze()], ids=repr)
def test_one_depth_alone_is_an_error(trick: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with pytest.raises(NoEffectError, match=r"acted nowhere: it looked for .*parameters in front of the last depth"):
        attach(model, [trick], torch.randn(5, 3))
    assert all(p.requires_grad for p in model.parameters())


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"layerwise_decay: decay must be in \(0, 1\], got 1.5"):
        LayerwiseDecay(1.5)
    with pytest.raises(ConfigError, match="no_decay_on_norms: bias must be True or False, got 'yes'"):
        NoDecayOnNorms(bias="yes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="gradual_unfreeze: epochs must be a whole number of at least 0, got -1"):
        GradualUnfreeze(-1)


# -- decay -------------------------------------------------------------------------------------------------------------


class Parts(nn.Module):
    """A parameter of every kind, and some that look like another one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.positions = nn.Parameter(torch.randn(5, 4))
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.own_norm = RMSNorm()
        self.wide_norm = nn.LayerNorm((6, 4))
        self.flat = nn.Linear(4, 1)
        self.mixing = nn.Parameter(torch.randn(4, 4))
        self.gamma = nn.Parameter(torch.ones(4))
        self.rnn = nn.LSTM(4, 4, batch_first=True)
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.table(x) + self.positions], 1)
        x = self.wide_norm(self.own_norm(x)) * self.gamma
        x = self.attention(x, x, x)[0] + self.rnn(x)[0]
        return self.flat(torch.matmul(x, self.mixing))


class RMSNorm(nn.Module):
    """A norm of the model's own, whose gain is called so and has two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x / x.pow(2).mean(-1, keepdim=True).sqrt() * self.scale


NORMS = {"own_norm.scale", "wide_norm.weight", "wide_norm.bias"}
GAINS = {"token", "gamma"}
BIASES = {"flat.bias", "rnn.bias_ih_l0", "rnn.bias_hh_l0", "attention.in_proj_bias", "attention.out_proj.bias"}
EMBEDDINGS = {"table.weight", "positions"}
TOKENS = torch.arange(15).reshape(3, 5) % 7


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, NORMS | GAINS | BIASES),
        ({"bias": False}, NORMS | GAINS),
        ({"embeddings": True}, NORMS | GAINS | BIASES | EMBEDDINGS),
        ({"not_at": ":LSTM"}, NORMS | GAINS | BIASES - {"rnn.bias_ih_l0", "rnn.bias_hh_l0"}),
        ({"at": ["*_norm", "flat"]}, NORMS | {"flat.bias"}),
    ],
)
def test_norms_gains_and_biases_are_spared_whatever_their_shape(settings: dict[str, Any], expected: set[str]) -> None:
    assert spared(Parts(), TOKENS, NoDecayOnNorms(**settings)) == expected


def test_a_table_that_is_the_head_too_is_spared_as_a_table_only() -> None:
    assert "wte.weight" not in spared(*specimen("gpt2"), NoDecayOnNorms())
    assert {"wte.weight", "wpe.weight"} <= spared(*specimen("gpt2"), NoDecayOnNorms(embeddings=True))


def test_norms_and_gains_that_tricks_add_are_spared_in_any_order() -> None:
    for order in (1, -1):
        tricks = [NoDecayOnNorms(bias=False), BatchNorm(), Residual(), LayerScale()][::order]
        added = {"conv1.trickbox.batch_norm.weight", "fc1.trickbox.layer_scale.weight"}
        assert added <= spared(tiny_model(), X, *tricks)


def test_a_computed_weight_keeps_its_decay() -> None:
    found = spared(*specimen("spectral_norm"), NoDecayOnNorms())
    assert found == {"0.bias", "2.bias", "5.bias"}


def test_nothing_to_spare_is_an_error() -> None:
    with pytest.raises(
        NoEffectError, match=r"no_decay_on_norms acted nowhere: .* of these kinds: gain, norm; the model"
    ):
        attach(tiny_model(), [NoDecayOnNorms(bias=False)], X)


# -- against loops by hand ---------------------------------------------------------------------------------------------


def train(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor = X) -> None:
    """One update."""
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), Y).backward()
    optimizer.step()


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether all values of two models have the same bits."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())


def groups_by_hand(model: Any, rate: float) -> list[dict[str, Any]]:
    """What somebody writes for rates that halve with each layer, and no weight decay on biases."""
    layers = [model.fc2, model.fc1, model.conv2, model.conv1]
    weights = [{"params": [layer.weight], "lr": rate * 0.5**n} for n, layer in enumerate(layers)]
    biases = [{"params": [layer.bias], "lr": rate * 0.5**n, "weight_decay": 0.0} for n, layer in enumerate(layers)]
    return [*weights, *biases]


@pytest.mark.parametrize(
    "kind",
    [partial(torch.optim.AdamW, weight_decay=0.3), partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1)],
    ids=["AdamW", "SGD"],
)
def test_groups_by_hand_give_the_same_bits_under_a_schedule(kind: Any) -> None:
    ours, theirs = tiny_model().eval(), tiny_model().eval()
    by_hand = kind(groups_by_hand(theirs, 0.1))
    with attach(ours, [LayerwiseDecay(0.5), NoDecayOnNorms()], X) as run:
        optimizer = run.watch(kind(ours.parameters(), lr=0.1))
        schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(each, 8) for each in (optimizer, by_hand)]
        for _ in range(8):
            train(ours, optimizer)
            train(theirs, by_hand)
            for schedule in schedules:
                schedule.step()
    assert same(ours, theirs)
    assert not same(ours, tiny_model())


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
def test_a_loop_that_writes_one_rate_into_all_groups_changes_none_of_the_differences(lr: Any) -> None:
    ours, theirs = tiny_model().eval(), tiny_model().eval()
    by_hand = torch.optim.SGD(groups_by_hand(theirs, 0.1))
    with attach(ours, [LayerwiseDecay(0.5)], X) as run:
        optimizer = run.watch(torch.optim.SGD(ours.parameters(), lr=lr))
        for rate in (0.1, 0.05, 0.025):
            for group in optimizer.param_groups:
                group["lr"] = rate
            for n, group in enumerate(by_hand.param_groups):
                group["lr"] = rate * 0.5 ** (n % 4)
            train(ours, optimizer)
            train(theirs, by_hand)
    assert same(ours, theirs)


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
def test_a_factory_of_optimizers_gives_every_depth_its_rate(lr: Any) -> None:
    ours, theirs = tiny_model().eval(), tiny_model().eval()
    ours.own_dropout.p = theirs.own_dropout.p = 0.0
    by_hand = torch.optim.SGD(groups_by_hand(theirs, 0.1))
    fit(ours, (X, Y), loss=nn.CrossEntropyLoss(), optimizer=partial(torch.optim.SGD, lr=lr), max_epochs=1,
        tricks=[LayerwiseDecay(0.5)], batch_size=16)  # fmt: skip
    train(theirs, by_hand)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    assert not same(ours, tiny_model())


def with_norms() -> nn.Sequential:
    """Three depths: 0; 1 to 3; 4."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 8), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


STAGES, FLAT = (slice(4, 5), slice(1, 4), slice(0, 1)), X.flatten(1)


def trains(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("epochs", [1, 2])
def test_unfreezing_by_hand_gives_the_same_bits(epochs: int) -> None:
    ours, theirs = with_norms(), with_norms()
    ours[3].p = theirs[3].p = 0.0
    with attach(ours, [GradualUnfreeze(epochs)], FLAT) as run:
        optimizer = run.watch(torch.optim.AdamW(ours.parameters(), lr=0.1, weight_decay=0.3))
        by_hand = torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.3)
        for epoch in range(3 * epochs):
            ours.train()
            for n, stage in enumerate(STAGES):
                theirs[stage].requires_grad_(n <= epoch // epochs).train(n <= epoch // epochs)
            for _ in range(3):
                train(ours, optimizer, FLAT)
                train(theirs, by_hand, FLAT)
            assert same(ours, theirs), epoch
            run.epoch_end()


# -- what waits --------------------------------------------------------------------------------------------------------


class Watcher(nn.CrossEntropyLoss):
    """A loss that writes down, whenever it is asked in training, which parameters train and which modules do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.watched, self.seen = [model], list[tuple[list[str], list[bool]]]()

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        model = self.watched[0]
        if torch.is_grad_enabled():
            self.seen.append((trains(model), [module.training for module in (model[2], model[3])]))
        return super().forward(outputs, targets)


def watched(model: nn.Module, *tricks: Any, epochs: int = 3, **options: Any) -> list[tuple[list[str], list[bool]]]:
    """What trains in each epoch of a fit, and whether the norm and the dropout do."""
    loss, optimizer = Watcher(model), partial(torch.optim.AdamW, lr=0.01, weight_decay=0.3)
    fit(model, (FLAT, Y), loss=loss, optimizer=optimizer, tricks=tricks, max_epochs=epochs, batch_size=16, **options)
    return loss.seen[-epochs:]


ALL = trains(with_norms())


def test_one_depth_more_trains_in_each_epoch_with_its_norms_and_dropouts() -> None:
    head, hidden = ALL[-2:], ALL[2:]
    assert watched(with_norms(), GradualUnfreeze()) == [
        (head, [False, False]), (hidden, [True, True]), (ALL, [True, True])
    ]  # fmt: skip
    twice = watched(with_norms(), GradualUnfreeze(2), epochs=5)
    assert [names for names, _ in twice] == [head, head, hidden, hidden, ALL]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_what_waits_keeps_every_bit_and_has_no_gradient(set_to_none: bool) -> None:
    model = with_norms()
    nn.functional.cross_entropy(model(FLAT), Y).backward()  # gradients of an earlier run, say
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.9)
    with attach(model, [GradualUnfreeze()], FLAT) as run:
        run.watch(optimizer)
        for _ in range(3):
            optimizer.zero_grad(set_to_none)
            nn.functional.cross_entropy(model.train()(FLAT), Y).backward()
            optimizer.step()
            assert [name for name, p in model.named_parameters() if p.grad is not None] == ["4.weight", "4.bias"]
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["4.weight", "4.bias"]
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(ALL)]


def test_what_you_or_freeze_have_frozen_stays_frozen_and_its_depth_is_passed_over() -> None:
    model = with_norms()
    model[1:3].requires_grad_(False)
    model[4].bias.requires_grad_(False)
    seen = [names for names, _ in watched(model, GradualUnfreeze())]
    assert seen == [["4.weight"], ["0.weight", "0.bias", "4.weight"], ["0.weight", "0.bias", "4.weight"]]
    for tricks in ([GradualUnfreeze(), Freeze(at="0")], [Freeze(at="0"), GradualUnfreeze()]):
        assert [names for names, _ in watched(with_norms(), *tricks)] == [ALL[-2:], ALL[2:], ALL[2:]]


def test_where_the_head_is_frozen_the_depth_before_it_trains_first() -> None:
    model = with_norms()
    model[4].requires_grad_(False)
    assert [names for names, _ in watched(model, GradualUnfreeze(), epochs=2)] == [ALL[2:-2], ALL[:-2]]


@pytest.mark.parametrize("epochs", [1, 3])
def test_undo_trains_again_what_waited_and_only_that(epochs: int) -> None:
    model = with_norms()
    model[0].bias.requires_grad_(False)
    model.eval()
    watched(model, GradualUnfreeze(), epochs=epochs)
    undo(model)
    assert trains(model) == [name for name in ALL if name != "0.bias"]
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert {module.training for module in model.modules()} == {model.training}
    assert not [name for name in model.__dict__ if "trickbox" in name]


@pytest.mark.parametrize(
    ("places", "first"),
    [({"not_at": ":_BatchNorm"}, ["2.weight", "2.bias"]), ({"at": "1"}, ["0.weight", "0.bias", "2.weight", "2.bias"])],
)
def test_what_does_not_wait_trains_from_the_start(places: dict[str, Any], first: list[str]) -> None:
    seen = watched(with_norms(), GradualUnfreeze(**places), epochs=2)
    assert seen[0] == ([*first, *ALL[-2:]], [True, "at" in places])
    assert set(seen[1][0]) == ({*first, *ALL[2:]})


def test_norms_that_tricks_attach_wait_with_their_hosts() -> None:
    model = tiny_model()
    with attach(model, [GradualUnfreeze(), BatchNorm()], X) as run:
        run.watch(torch.optim.SGD(model.parameters(), lr=0.1))
        for waiting in (True, True, True, False):
            norm = model.get_submodule("conv1.trickbox.batch_norm")
            before = norm.running_mean.clone()
            model.train()(X)
            assert torch.equal(norm.running_mean, before) == waiting
            assert norm.weight.requires_grad != waiting
            run.epoch_end()


def test_a_table_that_is_the_head_too_trains_from_the_start() -> None:
    model, inputs = specimen("gpt2")
    with attach(model, [GradualUnfreeze()], inputs) as run:
        run.watch(torch.optim.SGD(model.parameters(), lr=0.1))
        assert trains(model) == ["wte.weight", "ln_f.weight", "ln_f.bias"]


def test_an_optimizer_of_what_trains_holds_all_that_will() -> None:
    model = with_norms()
    with attach(model, [GradualUnfreeze()], FLAT) as run:
        optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
        run.watch(optimizer)
        assert len(optimizer.param_groups[0]["params"]) == len(ALL)


def test_explain_says_until_when_and_freezes_nothing() -> None:
    model = with_norms()
    text = explain(model, FLAT, [GradualUnfreeze(3)])
    assert "gradual_unfreeze: {1,2}.weight, {1,2}.bias: frozen until epoch 3" in text
    assert "gradual_unfreeze: 0.weight, 0.bias: frozen until epoch 6" in text
    assert trains(model) == ALL


def test_two_that_unfreeze_cannot_be_in_one_run() -> None:
    with pytest.raises(ConfigError, match="cannot be in the same run"):
        attach(with_norms(), [GradualUnfreeze(), ("other", GradualUnfreeze(2))], FLAT)


@pytest.mark.slow
def test_a_compiled_model_trains_as_one_that_is_not() -> None:
    def run(**wrap: Any) -> nn.Module:
        model = with_norms()
        model[3].p = 0.0
        fit(model, (FLAT, Y), loss=nn.CrossEntropyLoss(), optimizer=partial(torch.optim.AdamW, lr=0.01),
            tricks=[GradualUnfreeze()], max_epochs=4, batch_size=8, **wrap)  # fmt: skip
        return model

    plain, compiled = run(), run(wrap=partial(torch.compile, backend="aot_eager", fullgraph=True))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value)


# -- against timm ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "follows"),
    [("vit_tiny_patch16_224", "norm"), ("convnext_atto", ""), ("resnet18", ""), ("mixer_s32_224", "norm"),
     ("swin_tiny_patch4_window7_224", "norm")],
)  # fmt: skip
def test_rates_and_decay_are_those_of_timm(name: str, follows: str) -> None:
    """But for a final norm: timm gives it the rate of the last block, BEiT and ELECTRA, and we, that of the head."""
    models, optim = (pytest.importorskip(f"timm.{part}", reason="timm is missing") for part in ("models", "optim"))
    model = models.create_model(name, num_classes=3)
    plain = copy.deepcopy(model)
    listed = {"absolute_pos_embed", *model.no_weight_decay()} if hasattr(model, "no_weight_decay") else set()
    theirs = optim.param_groups_layer_decay(plain, weight_decay=1.0, no_weight_decay_list=listed, layer_decay=0.7)
    by_id = {id(p): group for group in theirs for p in group["params"]}
    inputs, tricks = torch.zeros(1, 3, 224, 224), [LayerwiseDecay(0.7), NoDecayOnNorms(embeddings=True)]
    ours = groups(model, inputs, *tricks)
    for each, parameter in plain.named_parameters():
        group = by_id[id(parameter)]
        assert ours[each]["weight_decay"] == group["weight_decay"], each
        expected = 1.0 if follows and each.startswith(f"{follows}.") else group["lr_scale"]
        assert ours[each]["lr"] == pytest.approx(expected, rel=1e-12), each


def test_the_rate_can_be_any_function_of_the_depth() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    apply(net, [LayerwiseDecay(lambda depth: 0.1 + 0.6 * depth)], torch.zeros(4, 2), optimizer=optimizer)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates[id(layer.weight)] for layer in (net[0], net[2], net[4])] == pytest.approx([0.1, 0.4, 1.0])
