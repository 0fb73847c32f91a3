"""Lightning's and transformers' trainers with every family of tricks, through their adapters."""

from __future__ import annotations

import pytest
import torch
from loops.common import CRITERION, EPOCHS, SpySGD, Trace, loaders, start
from loops.families import FAMILIES
from torch import nn

import trickbox as tb
from trickbox.catalog import resolve

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
ORIGINALS = {}


def lightning(tricks, folder):
    L = pytest.importorskip("lightning.pytorch")
    from trickbox.adapters.lightning import Tricks

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.losses, self.epochs = start(), [], 0

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            x, y = batch
            loss = CRITERION(self(x), y)
            self.losses.append(loss.item())
            return loss

        def validation_step(self, batch, index):
            x, y = batch
            self.log("val_loss", CRITERION(self(x), y))

        def on_train_epoch_end(self):
            self.epochs += 1

        def configure_optimizers(self):
            self.spy = SpySGD(self.parameters(), lr=0.1)
            return [self.spy], [torch.optim.lr_scheduler.StepLR(self.spy, 2, gamma=0.5)]

    module = Module()
    trainer = L.Trainer(
        max_epochs=EPOCHS, callbacks=[] if tricks is None else [Tricks(tricks)], logger=False, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, *loaders())
    return Trace(module.net, module.spy.rates, module.losses, module.epochs, {"whole": module})


def transformers(tricks, folder):
    framework = pytest.importorskip("transformers")
    framework.utils.logging.set_verbosity_error()
    from trickbox.adapters.transformers import Trainer

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.losses = start(), []

        def forward(self, x, labels=None):
            logits = self.net(x)
            loss = CRITERION(logits, labels)
            if self.training and torch.is_grad_enabled():  # not when surgery tries the model out
                self.losses.append(loss.item())
            return {"loss": loss, "logits": logits}

    class Count(framework.TrainerCallback):
        epochs = 0

        def on_epoch_end(self, args, state, control, **kwargs):
            self.epochs += 1

    train, valid = ([{"x": x, "labels": y} for x, y in loader.dataset] for loader in loaders())
    model, count = Net(), Count()
    optimizer = SpySGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 8, gamma=0.5)
    arguments = framework.TrainingArguments(
        folder, num_train_epochs=EPOCHS, per_device_train_batch_size=16, per_device_eval_batch_size=24, use_cpu=True,
        eval_strategy="epoch", save_strategy="no", report_to=[], disable_tqdm=True, seed=0,
        remove_unused_columns=False,
    )  # fmt: skip
    more = {} if tricks is None else {"tricks": tricks}
    kind = framework.Trainer if tricks is None else Trainer
    trainer = kind(model, arguments, train_dataset=train, eval_dataset=valid, callbacks=[count],
                   optimizers=(optimizer, scheduler), **more)  # fmt: skip
    trainer.train()
    return Trace(model.net, optimizer.rates, model.losses, count.epochs, {"whole": model})


TRAINERS = {"lightning": lightning, "transformers": transformers}
MONITORS = {"lightning": "val_loss", "transformers": "eval_loss"}
NOT_CARRIED = {
    ("transformers", "mixup"): "mixup",
    ("transformers", "label_smoothing"): "label_smoothing",
    ("transformers", "layerwise_decay"): "a rate of their own",  # for the scheduler that is there already
    ("lightning", "layerwise_decay"): "a rate of their own",
}


def original(name, folder):
    if name not in ORIGINALS:
        ORIGINALS[name] = TRAINERS[name](None, folder)
    return ORIGINALS[name]


def trick_for(name, family):
    """The trick of a family, watching the metric and the names that this trainer has."""
    settings = FAMILIES[family].trick
    if family == "early_stopping":
        settings = {**settings, "monitor": MONITORS[name]}
    if family == "transfer":
        settings = {**settings, "weights": {f"net.{key}": value for key, value in settings["weights"].items()}}
    return tb.get(settings)() if isinstance(settings, str) else resolve(settings)


@pytest.mark.parametrize("name", TRAINERS)
def test_without_tricks_nothing_changes(name, tmp_path):
    plain, tricked = original(name, tmp_path), TRAINERS[name]([], tmp_path)
    assert (plain.losses, plain.rates, plain.epochs) == (tricked.losses, tricked.rates, tricked.epochs)
    for key, value in plain.model.state_dict().items():
        assert torch.equal(value, tricked.model.state_dict()[key]), key


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", TRAINERS)
def test_every_family_acts_in_every_trainer_or_is_refused_by_name(name, family, tmp_path):
    if (name, family) in NOT_CARRIED:
        with pytest.raises(tb.ConfigError, match=NOT_CARRIED[name, family]):
            TRAINERS[name]([trick_for(name, family)], tmp_path)
        return
    trace = TRAINERS[name]([trick_for(name, family)], tmp_path)
    FAMILIES[family].acted(trace, original(name, tmp_path))
    tb.undo(trace.extra["whole"])
    assert not [key for key, _ in trace.extra["whole"].named_modules() if "trickbox" in key]
