"""Transfer and freezing: what is loaded, what is reported, and that a frozen part keeps every bit."""

from __future__ import annotations

import copy
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trickbox_tricks.dropout import Dropout
from trickbox_tricks.normalization import BatchNorm, GroupNorm
from trickbox_tricks.transfer import Freeze, Transfer, match, read_weights

from trickbox import ConfigError, NoEffectError, Session, apply, explain, fit, undo
from trickbox.tasks.waveforms import PlainNet
from trickbox.testing.zoo import specimen
from trickbox.trick import to_config

SERIES = (8, 1, 128)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, bool]:
    return {name: torch.equal(value, other[name]) for name, value in one.items()}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def train(model: nn.Module, tricks: list[Any], steps: int = 50, **options: Any) -> None:
    data = (torch.randn(steps * 8, 1, 128), torch.arange(steps * 8) % 3)
    optimizer = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
    fit(
        model,
        data,
        loss=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        tricks=tricks,
        max_epochs=1,
        batch_size=8,
        **options,
    )


# -- loading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_weights_come_from_a_file_a_mapping_or_a_model(tmp_path: Path, wrap: Any) -> None:
    teacher, path = PlainNet(), tmp_path / "weights.pt"
    torch.save(wrap(teacher.state_dict()), path)
    for source in (str(path), path, wrap(teacher.state_dict()), teacher):
        model = apply(PlainNet(), [Transfer(source)], torch.randn(SERIES))
        assert all(same(snapshot(model), teacher.state_dict()).values())


def test_a_path_survives_json(tmp_path: Path) -> None:
    config = to_config(Transfer(tmp_path / "weights.pt", backbone_lr=0.5))
    assert json.loads(json.dumps(config)) == config
    assert config["weights"] == str(tmp_path / "weights.pt")


def test_the_source_is_neither_changed_nor_shared() -> None:
    teacher = PlainNet()
    before = snapshot(teacher)
    model = apply(PlainNet(), [Transfer(teacher)], torch.randn(SERIES))
    with torch.no_grad():
        model.conv1.weight.zero_()
    assert all(same(snapshot(teacher), before).values())


def test_buffers_are_loaded_too() -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(252, 2))

    teacher = net()
    teacher(torch.randn(SERIES))
    model = apply(net(), [Transfer(teacher)], torch.randn(SERIES))
    assert torch.equal(model[1].running_mean, teacher[1].running_mean)
    assert int(model[1].num_batches_tracked) == 1
    undo(model)
    assert int(model[1].num_batches_tracked) == 0


def test_another_head_leaves_head_and_loads_the_backbone() -> None:
    teacher = PlainNet()
    teacher.fc2 = nn.Linear(64, 7)
    model = PlainNet()
    before = snapshot(model)
    apply(model, [Transfer(teacher)], torch.randn(SERIES))
    loaded = {name: equal for name, equal in same(snapshot(model), before).items() if name.startswith("fc2")}
    assert all(loaded.values())
    assert torch.equal(model.fc1.weight, teacher.fc1.weight)
    text = explain(PlainNet(), torch.randn(SERIES), [Transfer(teacher)])
    assert "fc2.weight: not loaded: it has shape (3, 64) here and (7, 64) there" in text


def test_a_new_head_belongs_to_the_seed_alone() -> None:
    teacher, x = PlainNet(), torch.randn(SERIES)

    def heads(*tricks: Any, seed: int = 0) -> Tensor:
        return apply(copy.deepcopy(teacher), [Transfer(teacher, head="new"), *tricks], x, seed=seed).fc2.weight

    assert not torch.equal(heads(), teacher.fc2.weight)
    assert torch.equal(heads(), heads(Dropout(), BatchNorm()))
    assert not torch.equal(heads(), heads(seed=1))
    model = apply(copy.deepcopy(teacher), [Transfer(teacher, head="new")], x)
    equal = same(snapshot(model), teacher.state_dict())
    assert [name for name, same_bits in equal.items() if not same_bits] == ["fc2.weight", "fc2.bias"]


def test_missing_and_unknown_names_are_reported() -> None:
    weights = {name: value for name, value in PlainNet().state_dict().items() if not name.startswith("conv1")}
    text = explain(PlainNet(), torch.randn(SERIES), [Transfer({**weights, "extra": torch.zeros(1)})])
    assert re.search(r"conv1\.weight.*: not loaded: it is not there", text)
    assert "not in the model: extra" in text
    fits, reasons = match({"a": torch.zeros(2, 1)}, {"a": torch.zeros(1, 2)})
    assert (fits, reasons) == ([], {"a": "has shape (2, 1) here and (1, 2) there"})


def test_nothing_to_load_is_an_error() -> None:
    with pytest.raises(NoEffectError, match=r"the weights have 0.weight.*the model has conv1.weight"):
        apply(PlainNet(), [Transfer({"0.weight": torch.zeros(2)})], torch.randn(SERIES))
    head_only = {name: value for name, value in PlainNet().state_dict().items() if name.startswith("fc2")}
    with pytest.raises(NoEffectError, match="equal name and shape"):
        apply(PlainNet(), [Transfer(head_only, head="new")], torch.randn(SERIES))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    model = PlainNet()
    before = snapshot(model)
    with pytest.raises(ConfigError, match=r"there is no file .*nowhere.pt"):
        train(model, [Transfer(str(tmp_path / "nowhere.pt"))])
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(ConfigError, match="cannot be read as a state_dict"):
        read_weights(str(tmp_path / "text.pt"))
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(ConfigError, match="must be a state_dict, got a Tensor"):
        read_weights(str(tmp_path / "tensor.pt"))
    assert all(same(snapshot(model), before).values())


class RunsCode:
    def __reduce__(self) -> Any:
        return print, ("gotcha",)


def test_a_file_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": RunsCode()}, tmp_path / "evil.pt")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_weights(str(tmp_path / "evil.pt"))
    assert not capsys.readouterr().out


def test_a_plain_checkpoint_goes_into_a_model_that_is_then_converted() -> None:
    def net() -> nn.Sequential:
        return nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(504, 2))

    teacher, model = net(), net()
    nn.init.normal_(teacher[1].weight)
    before = snapshot(model)
    apply(model, [GroupNorm(), Transfer(teacher)], torch.randn(SERIES))
    assert torch.equal(model[1].weight, teacher[1].weight)
    undo(model)
    assert all(same(snapshot(model), before).values())


def test_undo_gives_the_first_weights_back() -> None:
    model = PlainNet()
    before = snapshot(model)
    undo(apply(model, [Transfer(PlainNet(), head="new")], torch.randn(SERIES)))
    assert all(same(snapshot(model), before).values())


# -- rates -------------------------------------------------------------------------------------------------------------


def test_the_rates_of_backbone_head_and_new_parameters() -> None:
    weights = {name: value for name, value in PlainNet().state_dict().items() if name != "fc1.bias"}
    model, data = PlainNet(), (torch.randn(SERIES), torch.arange(8) % 3)
    factory = partial(torch.optim.SGD, lr=0.5)
    tricks = [Transfer(weights, backbone_lr=0.1), BatchNorm()]
    with Session(model, data, loss=nn.CrossEntropyLoss(), optimizer=factory, tricks=tricks, max_epochs=1) as session:
        names, rates = {id(p): name for name, p in model.named_parameters()}, {}

        def watch(optimizer: Any, args: Any, kwargs: Any) -> None:
            rates.update({names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]})

        session.state.optimizer.register_step_pre_hook(watch)
        for _ in session.epochs():
            for batch in session.batches():
                session.step(batch)
    slow = {name for name, rate in rates.items() if rate == pytest.approx(0.05)}
    assert slow == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "fc1.weight"}
    assert {rate for name, rate in rates.items() if name not in slow} == {0.5}
    assert set(rates) == set(names.values())


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"transfer: backbone_lr must be in \(0, 1\]"):
        Transfer("weights.pt", backbone_lr=0)
    with pytest.raises(ConfigError, match="transfer: head must be one of keep, new"):
        Transfer("weights.pt", head="old")
    with pytest.raises(ConfigError, match="transfer: weights must be a path, a state_dict or a model, got 3"):
        Transfer(3)
    with pytest.raises(ConfigError, match="freeze: until must be a non-empty string"):
        Freeze("")


# -- freezing ----------------------------------------------------------------------------------------------------------


def test_a_frozen_part_keeps_every_bit_in_training() -> None:
    model = nn.Sequential(
        nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(504, 3)
    )
    model(torch.randn(SERIES))
    before = snapshot(model)
    train(model, [Freeze()])
    unchanged = same(snapshot(model), before)
    assert [name for name, equal in unchanged.items() if not equal] == ["5.weight", "5.bias"]
    model.train()
    x = torch.randn(SERIES)
    assert torch.equal(model[:4](x), model.eval()[:4](x))


def test_attached_norms_and_dropouts_are_frozen_with_their_hosts() -> None:
    model, x = PlainNet(), torch.randn(SERIES)
    apply(model, [Freeze(until="fc1"), BatchNorm(), Dropout(0.5)], x)
    before = snapshot(model)
    model.train()
    hidden = model.pool(model.conv1(x))
    assert torch.equal(hidden, model.pool(model.conv1(x)))
    model(x)
    assert all(same(snapshot(model), before).values())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(4))
        self.stem = nn.Linear(3, 4)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)])
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.token
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.mark.parametrize(
    ("until", "frozen"),
    [
        (None, ["stem", "blocks.0", "blocks.1", "blocks.2"]),
        ("head", ["stem", "blocks.0", "blocks.1", "blocks.2"]),
        ("blocks.1", ["stem", "blocks.0"]),
        ("blocks", ["stem"]),
        ("blocks.1.0", ["stem", "blocks.0"]),
    ],
)
def test_until_is_a_path_or_a_prefix(until: str | None, frozen: list[str]) -> None:
    model = apply(Branch(), [Freeze(until)], torch.randn(5, 3))
    still = {name.rpartition(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert {next(f for f in frozen if f"{path}.".startswith(f"{f}.")) for path in still} == set(frozen)
    assert model.token.requires_grad
    assert model.unused.weight.requires_grad


def test_unknown_paths_have_a_near_match() -> None:
    with pytest.raises(ConfigError, match=r"no module 'blocks.9' is run, .* Did you mean 'blocks"):
        apply(Branch(), [Freeze("blocks.9")], torch.randn(5, 3))
    with pytest.raises(ConfigError, match="no module 'unused' is run"):
        apply(Branch(), [Freeze("unused")], torch.randn(5, 3))
    with pytest.raises(NoEffectError, match="trainable modules that run before"):
        apply(Branch(), [Freeze("stem")], torch.randn(5, 3))
    with pytest.raises(NoEffectError, match="trainable modules that run before"):
        apply(nn.Linear(4, 2), [Freeze()], torch.randn(5, 4))


def test_a_weight_tied_to_the_head_stays_trainable() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.embed(x)).relu())

    model = apply(Tied(), [Freeze()], torch.randint(0, 9, (5,)))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"embed.weight", "head.bias"}


def test_a_shared_layer_in_front_of_the_head_is_frozen() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.shared(self.shared(x)))

    model = apply(Twice(), [Freeze()], torch.randn(5, 4))
    assert not model.shared.weight.requires_grad


def test_a_transformer_layer_is_frozen_whole() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
    model, x = nn.Sequential(layer, nn.Linear(8, 2)), torch.randn(3, 5, 8)
    apply(model, [Freeze()], x).train()
    assert not any(p.requires_grad for p in layer.parameters())
    assert torch.equal(model(x), model(x))


def test_undo_thaws_what_was_trained_and_only_that() -> None:
    model, x = PlainNet(), torch.randn(SERIES)
    model.conv1.bias.requires_grad_(False)
    before = snapshot(model)
    undo(apply(model, [Freeze()], x))
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["conv1.bias"]
    assert all(same(snapshot(model), before).values())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_freezing_after_transfer_trains_the_new_head_only() -> None:
    teacher, model = PlainNet(), PlainNet()
    train(model, [Freeze(), Transfer(teacher, head="new")], steps=3)
    equal = same(snapshot(model), teacher.state_dict())
    assert [name for name, same_bits in equal.items() if not same_bits] == ["fc2.weight", "fc2.bias"]
    undo(model)
    assert F.cross_entropy(model(torch.randn(SERIES)), torch.arange(8) % 3).requires_grad


# -- at= and not_at=: what tests/tricks/test_at.py does not ask of all tricks ------------------------------------------


def frozen(model: nn.Module) -> list[str]:
    """The modules that hold a frozen parameter of their own."""
    still = [name.rpartition(".")[0] for name, p in model.named_parameters() if not p.requires_grad]
    return list(dict.fromkeys(still))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"at": "stem"}, ["stem"]),
        ({"at": "head"}, ["head"]),
        ({"at": ["blocks.2", "stem"]}, ["stem", "blocks.2.0"]),
        ({"at": "blocks.[02].*"}, ["blocks.0.0", "blocks.2.0"]),
        ({"at": ":Sequential", "not_at": "blocks.1"}, ["blocks.0.0", "blocks.2.0"]),
        ({"at": "(model)"}, ["", "stem", "blocks.0.0", "blocks.1.0", "blocks.2.0", "unused", "head"]),
        ({"at": "(model)", "not_at": "blocks.1"}, ["stem", "blocks.0.0", "blocks.2.0", "head"]),
        ({"at": "**", "not_at": ["(model)", "head"]}, []),
        ({"not_at": "stem"}, ["blocks.0.0", "blocks.1.0", "blocks.2.0"]),
        ({"not_at": "blocks.*.0"}, ["stem"]),
        ({"until": "blocks.2", "not_at": "blocks.0"}, ["stem", "blocks.1.0"]),
    ],
)
def test_what_is_frozen_is_what_is_named(settings: dict[str, Any], expected: list[str]) -> None:
    model, x = Branch(), torch.randn(5, 3)
    before = snapshot(model)
    if not expected:
        with pytest.raises(NoEffectError):
            apply(model, [Freeze(**settings)], x)
        return
    apply(model, [Freeze(**settings)], x)
    assert frozen(model) == expected
    undo(model)
    assert not frozen(model)
    assert all(same(snapshot(model), before).values())


def test_until_and_at_are_two_answers_to_one_question() -> None:
    with pytest.raises(ConfigError, match="freeze: until and at both say what is frozen; give one of them"):
        apply(Branch(), [Freeze("head", at="stem")], torch.randn(5, 3))


def test_a_part_in_the_middle_keeps_every_bit_while_all_around_it_learns() -> None:
    model = nn.Sequential(
        nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4), nn.Flatten(),
        nn.Linear(496, 3),
    )  # fmt: skip
    before = snapshot(model)
    train(model, [Freeze(at=["3", "4"])], steps=10)
    unchanged = [name.partition(".")[0] for name, equal in same(snapshot(model), before).items() if equal]
    assert list(dict.fromkeys(unchanged)) == ["3", "4"]
    assert int(model[4].num_batches_tracked) == 0
    assert int(model[1].num_batches_tracked) == 10
    model.train()
    assert torch.equal(model[4](torch.ones(2, 4, 9)), model.eval()[4](torch.ones(2, 4, 9)))


def test_norms_alone_can_be_frozen_or_left() -> None:
    model, inputs = specimen("gpt")
    apply(model, [Freeze(at=":LayerNorm", not_at="ln_f")], inputs)
    assert frozen(model) == ["blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2"]
    rest, _ = specimen("gpt")
    apply(rest, [Freeze(not_at=[":LayerNorm", "**.mlp"])], inputs)
    assert frozen(rest) == [
        "tok_emb", "pos_emb", "blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.1.attn.qkv", "blocks.1.attn.proj",
    ]  # fmt: skip


def test_the_first_blocks_of_a_gpt_and_of_a_residual_net() -> None:
    model, inputs = specimen("gpt")
    apply(model, [("tables", Freeze(at=nn.Embedding)), ("blocks", Freeze(at="blocks.0"))], inputs)
    assert {name.partition(".")[0] for name in frozen(model)} == {"tok_emb", "pos_emb", "blocks"}
    assert not any(name.startswith("blocks.1") for name in frozen(model))
    resnet, images = specimen("resnet")
    apply(resnet, [Freeze(at=["conv1", "bn1", "layer1"])], images)
    assert {name.partition(".")[0] for name in frozen(resnet)} == {"conv1", "bn1", "layer1"}
    before = snapshot(resnet.train())
    resnet(images)
    moved = {name for name, equal in same(snapshot(resnet), before).items() if not equal}
    assert moved
    assert all(name.startswith("layer2.") for name in moved)


def test_a_weight_that_two_modules_share_is_frozen_at_either_and_spared_by_either() -> None:
    for settings, expected in (({"at": "lm_head"}, True), ({"at": "wte"}, True), ({"not_at": "lm_head"}, False)):
        model, inputs = specimen("gpt2")
        apply(model, [Freeze(**settings)], inputs)
        assert model.wte.weight.requires_grad is not expected


def test_a_module_without_anything_to_freeze_is_no_place() -> None:
    with pytest.raises(NoEffectError, match="freeze acted nowhere: it looked for trainable modules"):
        apply(Branch(), [Freeze(at="blocks.*.1")], torch.randn(5, 3))


@pytest.mark.parametrize("setting", ["at", "not_at"])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("blocks.3", r"no path matches, got 'blocks.3'; there are .* Did you mean 'blocks.[012]'\?"),
        ("unused", r"the model never calls unused \(Linear\), got 'unused'; it can act at "),
        ("blocks", r"the model never calls blocks \(ModuleList\), got 'blocks'; .* Did you mean 'blocks.\*\*'\?"),
        ("stem.weight", r"no path matches, got 'stem.weight'; there are "),
        (nn.Conv1d, r"no module is of this class, got ':Conv1d'; there are "),
    ],
)
def test_what_is_not_run_cannot_be_named(setting: str, place: Any, message: str) -> None:
    model = Branch()
    with pytest.raises(ConfigError, match=rf"^freeze: {setting}: {message}"):
        apply(model, [Freeze(**{setting: place})], torch.randn(5, 3))
    assert not frozen(model)
