"""save and load: what tricks made and nothing else, on a plain model the same bits again, and errors by name."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import trickbox as tb
from trickbox import catalog, files
from trickbox.authoring import Rank, hookimpl, trick
from trickbox.nest import call, tensors
from trickbox.surgery import evaluating, is_tricked
from trickbox.testing import tiny_data, tiny_model
from trickbox.testing.zoo import specimen

HEAD = {"fc.weight", "fc.bias"}


def outputs(model, inputs):
    with torch.no_grad(), evaluating(model):
        return [tensor.clone() for tensor in tensors(call(model, inputs))]


def changed(model, only=""):
    """*model* with other values in what trains, and in its statistics, where the name has *only* in it."""
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if (name in trains or ".trickbox." in name) and tensor.is_floating_point() and only in name:
                tensor.add_(torch.rand_like(tensor))
    return model


def saved(folder):
    return load_file(folder / "tricks.safetensors")


def recipe(folder):
    return json.loads((folder / "tricks.json").read_text())


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def moved(name, tricks, folder, only=""):
    """A model of the zoo with tricks on that were trained and saved, a plain one that has its tricks from the files."""
    model, inputs = specimen(name)
    plain = copy.deepcopy(model)
    changed(tb.apply(model, tricks, inputs), only)
    tb.save(model, folder)
    return model, tb.load(plain, folder, inputs), inputs


# -- what is written ---------------------------------------------------------------------------------------------------


def test_lora_writes_adapters_and_head_and_the_plain_model_becomes_the_same_in_all_bits(tmp_path):
    model, loaded, x = moved("resnet", [tb.get("lora")(2)], tmp_path)
    adapters = {name for name in model.state_dict() if ".trickbox." in name}
    assert saved(tmp_path).keys() == adapters | HEAD
    assert same(loaded.state_dict(), model.state_dict())
    assert all(map(torch.equal, outputs(loaded, x), outputs(model, x)))
    trains = [name for name, p in loaded.named_parameters() if p.requires_grad]
    assert trains == [name for name, p in model.named_parameters() if p.requires_grad]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tricks.json", "tricks.safetensors"]


def test_the_recipe_says_what_was_put_on(tmp_path):
    moved("mlp", ["batch_norm", ("wide", tb.get("dropout")(0.3, at="0")), tb.optional("residual")], tmp_path)
    found = recipe(tmp_path)
    assert (found["format"], found["model"]) == (1, "Sequential")
    assert [[t["name"], t["trick"], t.get("optional")] for t in found["tricks"][0]] == [
        ["batch_norm", "batch_norm", None],
        ["residual", "residual", True],
        ["wide", "dropout", None],
    ]
    assert found["tricks"][0][2]["p"] == 0.3


def test_where_nothing_is_frozen_only_what_was_added_is_written(tmp_path):
    model, loaded, x = moved("cnn_2d", ["batch_norm", "dropout", "initialize"], tmp_path, "trickbox")
    added = {name for name in model.state_dict() if ".trickbox." in name}
    assert saved(tmp_path).keys() == added
    own = specimen("cnn_2d")[0].state_dict()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in own.items())
    loaded.load_state_dict({name: value for name, value in model.state_dict().items() if name in own}, strict=False)
    assert all(map(torch.equal, outputs(loaded, x), outputs(model, x)))


def test_freeze_writes_what_still_trains_with_its_statistics(tmp_path):
    model, x = specimen("resnet")
    plain = copy.deepcopy(model)
    tb.apply(model, [tb.get("freeze")("layer2")], x)
    model.train()(x + 1)
    tb.save(changed(model), tmp_path)
    late = {name for name in model.state_dict() if name.startswith(("layer2.", "fc."))}
    assert saved(tmp_path).keys() == late
    assert same(tb.load(plain, tmp_path, x).state_dict(), model.state_dict())
    assert [p.requires_grad for p in plain.parameters()] == [p.requires_grad for p in model.parameters()]


def test_frozen_weights_that_a_trick_wrote_are_written(tmp_path):
    model, x = specimen("mlp")
    plain, teacher = copy.deepcopy(model), specimen("mlp", seed=1)[0]
    tb.apply(model, [tb.get("transfer")(teacher), "lora"], x)
    changed(model)
    tb.save(model, tmp_path)
    assert [t["trick"] for t in recipe(tmp_path)["tricks"][0]] == ["lora"]
    assert saved(tmp_path).keys() == model.state_dict().keys()
    assert same(tb.load(plain, tmp_path, x).state_dict(), model.state_dict())


def test_a_layer_that_was_exchanged_is_written_whole(tmp_path):
    model, loaded, x = moved("vgg_batch_norm", ["group_norm"], tmp_path, "features.1.")
    assert {"features.1.weight", "features.1.bias"} <= saved(tmp_path).keys()
    assert type(loaded.features[1]) is nn.GroupNorm
    assert all(map(torch.equal, outputs(loaded, x), outputs(model, x)))


def test_a_tied_weight_that_trains_is_written_once(tmp_path):
    model, tokens = specimen("gpt2")
    plain = copy.deepcopy(model)
    changed(tb.apply(model, [tb.get("freeze")(at="h.*")], tokens))
    tb.save(model, tmp_path)
    assert "wte.weight" in saved(tmp_path)
    assert "lm_head.weight" not in saved(tmp_path)
    tb.load(plain, tmp_path, tokens)
    assert same(plain.state_dict(), model.state_dict())
    assert plain.lm_head.weight is plain.wte.weight


def test_tricks_that_were_put_on_one_after_the_other_come_back_so(tmp_path):
    model, x = specimen("mlp")
    plain = copy.deepcopy(model)
    tb.apply(model, ["layer_norm", tb.get("dropout")(at="0")], x)
    tb.apply(model, [("second", tb.get("dropout")(at="2"))], x)
    tb.save(changed(model, "trickbox"), tmp_path)
    assert [len(each) for each in recipe(tmp_path)["tricks"]] == [2, 1]
    tb.load(plain, tmp_path, x)
    assert same(plain.state_dict(), model.state_dict())
    assert [m.extra_repr() for m in plain.modules()] == [m.extra_repr() for m in model.modules()]


def test_what_was_loaded_is_saved_as_it_was(tmp_path):
    _, loaded, _ = moved("mlp", [tb.get("lora")(2, at=nn.Linear, not_at="4")], tmp_path / "one")
    tb.save(loaded, tmp_path / "two")
    assert same(saved(tmp_path / "one"), saved(tmp_path / "two"))
    assert recipe(tmp_path / "one") == recipe(tmp_path / "two")


def test_after_fit_with_schedules_only_what_builds_is_in_the_recipe(tmp_path):
    model, data = tiny_model(), tiny_data(40)
    tricks = ["lora", "one_cycle", "dropout", "label_smoothing"]
    optimizer = partial(torch.optim.SGD, lr=0.1)
    tb.fit(model, data, loss=nn.CrossEntropyLoss(), optimizer=optimizer, tricks=tricks, max_epochs=1, batch_size=20)
    tb.save(model, tmp_path)
    assert [t["trick"] for t in recipe(tmp_path)["tricks"][0]] == ["lora", "dropout"]
    loaded = tb.load(tiny_model(), tmp_path, data[0])
    fresh = tiny_model()
    assert not torch.equal(fresh.fc2.weight, model.fc2.weight)
    assert all(map(torch.equal, outputs(loaded, data[0]), outputs(model, data[0])))


def test_undo_after_load_gives_the_plain_model_back(tmp_path):
    _, loaded, _ = moved("resnet", ["lora"], tmp_path)
    before, own = specimen("resnet")[0].state_dict(), {name for name, _ in loaded.named_parameters() if name in HEAD}
    assert own == HEAD
    tb.undo(loaded)
    assert same(loaded.state_dict(), before)
    assert all(p.requires_grad for p in loaded.parameters())


@trick
class Begins:
    """Write into the model's own weight, and add something. Cost: none."""

    @hookimpl
    def init(self, state):
        state.surgery.write("0.weight", torch.zeros(16, 8))
        state.surgery.insert(state.surgery.sites(nn.Linear)[0], nn.LayerNorm(16), Rank.NORM)


def test_what_a_trick_writes_into_the_models_own_weights_is_not_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "get", {"begins": Begins}.get)
    model, loaded, _ = moved("mlp", [Begins()], tmp_path, "trickbox")
    own = specimen("mlp")[0].state_dict()
    assert not model[0].weight.any()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in own.items())
    tb.undo(loaded)
    assert same(loaded.state_dict(), own)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_model_without_tricks_cannot_be_saved(tmp_path):
    model, x = specimen("mlp")
    for tricks in ([], ["initialize"]):
        tb.apply(model, tricks, x)
        with pytest.raises(tb.SurgeryError, match="tricks have built nothing on this Sequential; save its state_dict"):
            tb.save(model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_predicate_cannot_be_written(tmp_path):
    model, x = specimen("mlp")
    tb.apply(model, [tb.get("layer_norm")(at=lambda site: site.path == "0")], x)
    with pytest.raises(tb.ConfigError, match="save: layer_norm cannot be written down as JSON: layer_norm: at must be"):
        tb.save(model, tmp_path)


def test_a_trick_that_is_not_registered_cannot_be_written(tmp_path):
    @trick
    class Dropout:
        """Add nothing. Cost: none."""

        @hookimpl
        def init(self, state):
            state.surgery.freeze("0")

    @trick
    class Homemade:
        """Add nothing. Cost: none."""

        @hookimpl
        def init(self, state):
            state.surgery.freeze("0")

    for cls, why in ((Dropout, "its name means trickbox_tricks.dropout:Dropout"), (Homemade, "no trick 'homemade'")):
        model, x = specimen("mlp")
        tb.apply(model, [cls()], x)
        with pytest.raises(tb.ConfigError, match=f"^save: .*{why}"):
            tb.save(model, tmp_path)


def _is_refused(folder, model, inputs, message):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(tb.ConfigError, match=message):
        tb.load(model, folder, inputs)
    assert same(model.state_dict(), before)
    assert not is_tricked(model)
    assert not any(module._forward_hooks for module in model.modules())


def test_files_that_are_missing_or_damaged_are_named(tmp_path):
    moved("mlp", ["layer_norm"], tmp_path)
    model, x = specimen("mlp")
    _is_refused(
        tmp_path / "nowhere", model, x, r"there is no .*tricks\.json; give the folder that trickbox\.save wrote"
    )
    good = recipe(tmp_path)
    for text, message in (
        ("{", "is no recipe of trickbox"),
        ("[]", "is no recipe of trickbox"),
        (json.dumps({**good, "format": 2}), "has format 2; trickbox .* reads format 1"),
        (json.dumps({**good, "sha256": "0"}), "do not belong together; saving was interrupted"),
        (json.dumps({**good, "tricks": [[{"trick": "layer_norn", "name": "x"}]]}), "Did you mean 'layer_norm'"),
    ):
        (tmp_path / "tricks.json").write_text(text)
        _is_refused(tmp_path, model, x, message)
    (tmp_path / "tricks.json").write_text(json.dumps(good))
    tb.load(model, tmp_path, x)


def test_another_model_is_refused_with_the_names_of_the_tensors(tmp_path):
    moved("mlp", ["lora"], tmp_path)
    narrow = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))
    longer = nn.Sequential(*specimen("mlp")[0], nn.ReLU(), nn.Linear(3, 3))
    x = torch.zeros(2, 8)
    _is_refused(
        tmp_path, narrow, x, r"is of another model: 0.trickbox.lora.up.weight has shape \(\d+, 8\), the model's"
    )
    _is_refused(tmp_path, longer, x, r"is of another model: 4.trickbox.lora.down.weight is missing")


def test_a_file_with_more_or_less_in_it_is_refused(tmp_path):
    moved("mlp", ["layer_norm"], tmp_path)
    model, x = specimen("mlp")
    good = saved(tmp_path)
    name = "0.trickbox.layer_norm.weight"
    for tensors_, message in (
        ({key: value for key, value in good.items() if key != name}, f"{name} is missing"),
        ({**good, "0.wieght": torch.ones(2)}, r"0.wieght is not in the model. Did you mean '0.weight'\?"),
    ):
        save_file(tensors_, tmp_path / "tricks.safetensors")
        digest = hashlib.sha256((tmp_path / "tricks.safetensors").read_bytes()).hexdigest()
        (tmp_path / "tricks.json").write_text(json.dumps({**recipe(tmp_path), "sha256": digest}))
        _is_refused(tmp_path, model, x, message)


def test_a_model_that_has_tricks_on_is_refused(tmp_path):
    model, _, x = moved("mlp", ["layer_norm"], tmp_path)
    with pytest.raises(tb.ConfigError, match=r"call trickbox.undo\(model\) first"):
        tb.load(model, tmp_path, x)


def test_a_save_that_is_interrupted_leaves_the_old_one_or_is_noticed(tmp_path, monkeypatch):
    model, _, x = moved("mlp", ["layer_norm"], tmp_path)
    old = saved(tmp_path)

    def interrupted(_):
        if next(writes):
            raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupted)
    for fails, noticed in (([True], False), ([False, True], True)):
        writes = iter(fails)
        changed(model)
        with pytest.raises(KeyboardInterrupt):
            tb.save(model, tmp_path)
        plain = specimen("mlp")[0]
        if noticed:
            _is_refused(tmp_path, plain, x, "saving was interrupted, save again")
        else:
            tb.load(plain, tmp_path, x)
            assert same(saved(tmp_path), old)
        assert len(list(tmp_path.iterdir())) == 2


def test_without_safetensors_the_extra_is_named(tmp_path, monkeypatch):
    model, x = specimen("mlp")
    tb.apply(model, ["layer_norm"], x)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(tb.ConfigError, match=r"pip install 'trickbox\[save\]'"):
        tb.save(model, tmp_path)
