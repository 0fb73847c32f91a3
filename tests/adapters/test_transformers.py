"""The Trainer of transformers with tricks: the same as the loop by hand, and as itself where there are none."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from adapters.by_hand import CASES, EPOCHS, RATE, STEPS, TRAIN, VALID, SpySGD, Trace, start
from torch import nn
from torch.utils.data import IterableDataset
from trickbox_tricks import (
    EMA,
    SAM,
    Augment,
    BatchNorm,
    CosineAnnealing,
    Dropout,
    EarlyStopping,
    LabelSmoothing,
    LayerNorm,
    MixedPrecision,
    OneCycle,
    Placebo,
    Transfer,
)

import trickbox as tb

transformers = pytest.importorskip("transformers", reason="the extra 'transformers' is not installed")
pytest.importorskip("accelerate", reason="the extra 'transformers' is not installed")
from trickbox.adapters.transformers import Trainer, TricksMixin  # noqa: E402

pytestmark = pytest.mark.slow

BY_HAND = sorted(CASES.keys() - {"sam", "mixup", "label_smoothing"})


class Net(nn.Module):
    """As models of transformers do it, this one takes its labels and gives its loss."""

    def __init__(self):
        super().__init__()
        self.net = start()

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits} if labels is not None else {"logits": logits}


def items(data):
    return [{"x": x, "labels": y} for x, y in zip(*data, strict=True)]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, capsys):
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    yield
    transformers.utils.logging.set_verbosity(verbosity)


def trainer_for(tmp_path, tricks, model=None, *, kind=None, train=None, optimizers=None, **settings):
    kind = kind or (transformers.Trainer if tricks is None else Trainer)
    model = model or Net()
    arguments = transformers.TrainingArguments(**{
        "output_dir": str(tmp_path), "report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True,
        "eval_strategy": "epoch", "logging_strategy": "epoch", "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 24, "num_train_epochs": EPOCHS, "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "constant", "max_grad_norm": 0, "seed": 5, **settings,
    })  # fmt: skip
    return kind(
        model, arguments, train_dataset=items(TRAIN) if train is None else train, eval_dataset=items(VALID),
        optimizers=optimizers or (SpySGD(model.parameters()), None), **({} if tricks is None else {"tricks": tricks}),
    )  # fmt: skip


def fit(tmp_path, tricks, model=None, **settings):
    trainer = trainer_for(tmp_path, tricks, model, **settings)
    trainer.train()
    return trainer.model, trainer


def spy(trainer):
    return getattr(trainer.optimizer, "optimizer", trainer.optimizer)


def trace(model, trainer):
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    return Trace(model.state_dict(), spy(trainer).rates, losses)


def measured(trainer):
    timing = ("runtime", "per_second")
    return [
        {name: value for name, value in row.items() if not any(word in name for word in timing)}
        for row in trainer.state.log_history
    ]


@pytest.mark.parametrize("tricks", [[], [Placebo()], [Dropout(0.0)]])
def test_tricks_that_do_nothing_change_no_bit(tmp_path, tricks):
    def train(tricks):
        torch.manual_seed(0)
        model = Net()
        model.net.own_dropout.p = 0.3  # draws from the global generator, as the order of the data does
        return fit(tmp_path, tricks, model, train_sampling_strategy="random", optim="sgd", max_grad_norm=1.0)

    (plain, without), (model, trainer) = train(None), train(tricks)
    trace(model, trainer).must_be(trace(plain, without))
    assert measured(trainer) == measured(without)


@pytest.mark.parametrize("name", BY_HAND)
def test_every_trick_does_what_it_does_by_hand(tmp_path, name):
    case = CASES[name]
    model, trainer = fit(tmp_path, case.tricks("eval_loss"))
    trace(model, trainer).must_be(case.loop("net.").run(), case.bits)
    tb.undo(model)
    assert list(model.state_dict()) == list(Net().state_dict())
    assert not vars(trainer).keys() & {"compute_loss", "create_optimizer", "evaluate"}
    assert not vars(trainer.accelerator).keys() & {"backward"}
    assert not vars(trainer.callback_handler).keys() & {"on_epoch_end"}


def test_schedules_count_updates_and_multiply(tmp_path):
    def rates(tricks, **settings):
        return spy(fit(tmp_path, tricks, **settings)[1]).rates

    assert rates([OneCycle()]) == pytest.approx(CASES["one_cycle"].loop("").run().rates)
    for settings, steps in (
        ({"gradient_accumulation_steps": 2}, EPOCHS * 2),
        ({"gradient_accumulation_steps": 3}, EPOCHS * 2),  # the last update of an epoch has one batch
        ({"max_steps": 6}, 6),
        ({"num_train_epochs": 1.5}, 6),
    ):
        found = rates([OneCycle()], **settings)
        assert len(found) == steps
        assert found[-1] == pytest.approx(RATE / 25e4)
    linear, cosine = rates([], lr_scheduler_type="linear"), rates([CosineAnnealing()])
    both = rates([CosineAnnealing()], lr_scheduler_type="linear")
    assert both == pytest.approx([a * b / RATE for a, b in zip(linear, cosine, strict=True)])


def test_an_optimizer_that_the_trainer_builds_trains_what_tricks_add(tmp_path):
    model, trainer = fit(tmp_path, [LayerNorm(), EMA(0.3)], optimizers=(None, None))
    assert not torch.equal(model.net.conv1.trickbox.layer_norm.weight, torch.ones(4))
    assert trainer.run.state.step == EPOCHS * STEPS
    assert trainer.run.state.history.columns[:3] == ["epoch", "step", "eval_loss"]


def test_evaluation_every_few_steps_ends_an_epoch_each_time(tmp_path):
    rising = EarlyStopping("eval_loss", patience=1, mode="max")
    _, trainer = fit(tmp_path, [rising], eval_strategy="steps", eval_steps=3)
    assert trainer.state.global_step == 6
    _, trainer = fit(tmp_path, [rising], eval_on_start=True)
    assert trainer.state.global_step == 2 * STEPS
    _, trainer = fit(tmp_path, [OneCycle()], eval_strategy="no")
    assert trainer.run.state.history["step"] == [STEPS * (epoch + 1) for epoch in range(EPOCHS)]
    with pytest.raises(tb.ConfigError, match=r"must be a metric of this run \(none\)"):
        fit(tmp_path, [EarlyStopping("eval_loss")], eval_strategy="no")


def test_several_data_sets_are_one_evaluation(tmp_path):
    trainer = trainer_for(tmp_path, [EMA(0.3), EarlyStopping("eval_two_loss", patience=1, mode="max")])
    trainer.eval_dataset = {"one": items(VALID), "two": items(VALID)}
    trainer.train()
    assert trainer.state.global_step == 2 * STEPS
    assert len(trainer.run.state.history) == 2


def test_an_evaluation_of_the_users_own_ends_no_epoch(tmp_path):
    class Look(transformers.TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            losses.append(trainer.evaluate(items(TRAIN), metric_key_prefix="train")["train_loss"])

    losses = []
    trainer = trainer_for(tmp_path, [EMA(0.3), EarlyStopping("eval_loss")])
    trainer.add_callback(Look())
    trainer.train()
    history = trainer.run.state.history
    assert history["epoch"] == list(range(EPOCHS))
    assert not [name for name in history.columns if name.startswith("train")]
    assert len(losses) == EPOCHS


def test_a_trainer_of_the_users_own_with_a_loss_of_its_own(tmp_path):
    class Weighted(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            logits = model(inputs["x"])["logits"]
            loss = F.cross_entropy(logits, inputs["kinds"])
            self.log({"own": loss.item()})
            return (loss, {"logits": logits}) if return_outputs else loss

    class WeightedWithTricks(TricksMixin, Weighted):
        pass

    data = [{"x": row["x"], "kinds": row["labels"]} for row in items(TRAIN)]
    settings = {"train": data, "label_names": ["kinds"], "remove_unused_columns": False, "eval_strategy": "no"}
    model, trainer = fit(tmp_path, [Augment(), Dropout(0.3)], kind=WeightedWithTricks, **settings)
    other, other_trainer = fit(tmp_path, [Augment(), Dropout(0.3)], eval_strategy="no")
    trace(model, trainer).must_be(trace(other, other_trainer))
    assert sum("own" in row for row in trainer.state.log_history) == EPOCHS * STEPS


def test_half_precision_of_the_trainer_and_of_a_trick_are_the_same(tmp_path):
    model, trainer = fit(tmp_path, [Dropout(0.3)], bf16=True)
    other, other_trainer = fit(tmp_path, [Dropout(0.3), MixedPrecision()])
    trace(model, trainer).must_be(trace(other, other_trainer), bits=False)


def test_a_model_of_transformers(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=20, num_labels=3, **sizes))
    ids = torch.randint(0, 20, (32, 6))
    data = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row.sum() % 3} for row in ids]
    before = list(model.state_dict())
    trainer = trainer_for(
        tmp_path, [Dropout(0.2), OneCycle(), EarlyStopping("eval_loss", patience=1)], model, train=data
    )
    trainer.eval_dataset = data
    trainer.args.activation_checkpointing = True
    trainer.train()
    assert "StreamDropout" in str(model)
    tb.undo(model)
    assert list(model.state_dict()) == before


def test_a_second_training(tmp_path):
    tricks = [Dropout(0.3), BatchNorm(), EarlyStopping("eval_loss", patience=1, mode="max")]
    trainer = trainer_for(tmp_path, tricks)
    trainer.train()
    with pytest.raises(tb.ConfigError, match="is on the model already"):
        trainer.train()
    tb.undo(trainer.model)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    first, rates = trainer.run, len(spy(trainer).rates)
    trainer.train()
    assert trainer.run is not first
    assert len(spy(trainer).rates) == 2 * rates
    assert not torch.equal(before["net.fc2.weight"], trainer.model.net.fc2.weight)
    loss = trainer.evaluate()["eval_loss"]
    assert loss == pytest.approx(trainer.run.state.metrics["eval_loss"])


def test_after_an_error_everything_has_its_own_methods(tmp_path):
    class Broken(Net):
        calls = 0

        def forward(self, x, labels=None):
            self.calls += 1
            if self.calls == 4:
                raise RuntimeError("broken")
            return super().forward(x, labels)

    trainer = trainer_for(tmp_path, [Dropout(0.3), EMA(0.3), EarlyStopping("eval_loss")], Broken())
    with pytest.raises(RuntimeError, match="broken"):
        trainer.train()
    assert not vars(trainer).keys() & {"compute_loss", "create_optimizer", "evaluate", "log"}
    assert not vars(trainer.accelerator).keys() & {"backward"}
    tb.undo(trainer.model)
    assert list(trainer.model.state_dict()) == list(Net().state_dict())


class Stream(IterableDataset):
    def __iter__(self):
        yield from items(TRAIN)


def test_data_without_a_length(tmp_path):
    _, trainer = fit(tmp_path, [OneCycle()], train=Stream(), max_steps=6, eval_strategy="steps", eval_steps=3)
    assert spy(trainer).rates[-1] == pytest.approx(RATE / 25e4)


def test_what_cannot_be_right_is_refused(tmp_path):
    best = {"load_best_model_at_end": True, "save_strategy": "epoch"}
    for tricks, settings, message in (
        (["dropout"], {"auto_find_batch_size": True}, "auto_find_batch_size"),
        ([EMA(0.3)], best, "ema and load_best_model_at_end"),
        ([SAM()], {}, "second pass"),
        (["accumulate"], {}, "accumulates gradients"),
        ([MixedPrecision("float16")], {}, "calls backward itself"),
        ([LabelSmoothing()], {}, "takes its labels by name"),
        ([EarlyStopping("eval_los")], {}, r"must be a metric of this run.*'eval_loss'\?"),
    ):
        with pytest.raises(tb.ConfigError, match=message):
            fit(tmp_path, tricks, **settings)
    with pytest.raises(tb.ConfigError, match="resume_from_checkpoint"):
        trainer_for(tmp_path, ["dropout"]).train(resume_from_checkpoint=True)
    model = Net()
    optimizer = SpySGD(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    transfer = Transfer(Net().state_dict(), head="keep", backbone_lr=0.1)
    with pytest.raises(tb.ConfigError, match="scheduler that was passed"):
        fit(tmp_path, [transfer], model, optimizers=(optimizer, scheduler))
    trainer = Trainer(
        model_init=Net, args=transformers.TrainingArguments(str(tmp_path), report_to=[]), train_dataset=items(TRAIN),
        tricks=["dropout"],
    )  # fmt: skip
    with pytest.raises(tb.ConfigError, match="model_init"):
        trainer.train()


def test_the_best_model_may_be_loaded_where_no_trick_decides_on_weights(tmp_path):
    model, trainer = fit(tmp_path, [BatchNorm()], load_best_model_at_end=True, save_strategy="epoch")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(trace(model, trainer).losses))


def test_a_list_that_cannot_work_is_refused_at_once(tmp_path):
    with pytest.raises(tb.ConfigError, match="tricks must be a list"):
        trainer_for(tmp_path, Dropout(0.1))
