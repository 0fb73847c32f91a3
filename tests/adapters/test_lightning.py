"""Lightning's Trainer with tricks: the same as the loop by hand, and as itself where there are none."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from adapters.by_hand import CASES, EPOCHS, RATE, SEED, STEPS, TRAIN, VALID, SpySGD, Trace, start
from processes import finished
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from trickbox_tricks import (
    EMA,
    SAM,
    Augment,
    BatchNorm,
    CosineAnnealing,
    Dropout,
    EarlyStopping,
    LabelSmoothing,
    MixedPrecision,
    Mixup,
    OneCycle,
    Placebo,
    Transfer,
)

import trickbox as tb

L = pytest.importorskip("lightning.pytorch", reason="the extra 'lightning' is not installed")
from trickbox.adapters.lightning import Tricks  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*dataloader_iter"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
]


class Lit(L.LightningModule):
    """As users write it."""

    def __init__(self):
        super().__init__()
        self.net = start()
        self.losses = []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.losses.append(float(self.trainer.callback_metrics["val_loss"]))

    def configure_optimizers(self):
        return SpySGD(self.parameters())


def loader(data, batch_size, **settings):
    return DataLoader(TensorDataset(*data), batch_size=batch_size, **settings)


def trainer_for(tmp_path, tricks, **settings):
    callbacks = [] if tricks is None else [tricks if isinstance(tricks, Tricks) else Tricks(tricks, seed=SEED)]
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(
        default_root_dir=tmp_path, callbacks=callbacks + settings.pop("callbacks", []),
        **{"accelerator": "cpu", "max_epochs": EPOCHS, **quiet, **settings},
    )  # fmt: skip


def fit(tmp_path, tricks, module=None, train=None, valid=None, **settings):
    """Train, and give the module back together with its trainer."""
    torch.manual_seed(1)
    module = Lit() if module is None else module
    trainer = trainer_for(tmp_path, tricks, **settings)
    trainer.fit(module, loader(TRAIN, 16) if train is None else train, loader(VALID, 24) if valid is None else valid)
    return module, trainer


def run_of(trainer):
    return next(callback for callback in trainer.callbacks if isinstance(callback, Tricks)).run


def trace(module, trainer):
    return Trace(module.state_dict(), trainer.optimizers[0].rates, module.losses)


def own_attributes(module):
    return {name for name in vars(module) if name not in vars(Lit())}


# -- without tricks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tricks", [[], [Placebo()], [Dropout(0.0), EarlyStopping(patience=10**9, restore_best_weights=False)]]
)
def test_tricks_that_do_nothing_change_no_bit(tmp_path, tricks):
    def train(tricks):
        module = Lit()
        module.net.own_dropout.p = 0.3  # draws from the global generator, as the order of the data does
        return fit(tmp_path, tricks, module, train=loader(TRAIN, 16, shuffle=True), valid=loader(VALID, 5))

    plain, without = train(None)
    randomness = torch.get_rng_state()
    module, trainer = train(tricks)
    assert torch.equal(torch.get_rng_state(), randomness)
    trace(module, trainer).must_be(trace(plain, without))
    assert trainer.callback_metrics == without.callback_metrics


# -- as by hand --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_trick_does_what_it_does_by_hand(tmp_path, name):
    case = CASES[name]
    module, trainer = fit(tmp_path, case.tricks("val_loss"))
    trace(module, trainer).must_be(case.loop("net.").run(), case.bits)
    tb.undo(module)
    assert list(module.state_dict()) == list(Lit().state_dict())
    assert own_attributes(module) == own_attributes(fit(tmp_path, None, max_epochs=1)[0])


def test_one_epoch_may_have_several_validations(tmp_path):
    """Then tricks look after each of them, as Lightning's own early stopping does."""
    rising = EarlyStopping("val_loss", patience=1, mode="max")
    module, trainer = fit(tmp_path, [rising], val_check_interval=2)
    assert len(module.losses) == 2
    assert trainer.global_step == 4
    module, trainer = fit(tmp_path, [rising], check_val_every_n_epoch=2)
    assert len(module.losses) == 2
    assert trainer.global_step == 4 * STEPS
    module, trainer = fit(tmp_path, [EarlyStopping("train_loss_epoch", patience=1, mode="max")], limit_val_batches=0)
    assert trainer.global_step == 2 * STEPS


def test_schedules_count_updates(tmp_path):
    def expected(steps):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=RATE, momentum=0.5)
        rule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            rule.step()
        return pytest.approx(rates)

    for settings, steps in (
        ({"accumulate_grad_batches": 2}, EPOCHS * 2),
        ({"limit_train_batches": 3}, EPOCHS * 3),
        ({"max_epochs": -1, "max_steps": 10}, 10),
        ({"max_steps": 6}, 6),
    ):
        _, trainer = fit(tmp_path, [OneCycle()], **settings)
        assert trainer.optimizers[0].rates == expected(steps), settings


def test_schedules_multiply_with_the_scheduler_of_the_module(tmp_path):
    class Scheduled(Lit):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)]

    _, alone = fit(tmp_path, None, Scheduled())
    _, together = fit(tmp_path, [CosineAnnealing()], Scheduled())
    _, cosine = fit(tmp_path, [CosineAnnealing()])
    product = [a * c / RATE for a, c in zip(alone.optimizers[0].rates, cosine.optimizers[0].rates, strict=True)]
    assert together.optimizers[0].rates == pytest.approx(product)
    with pytest.raises(tb.ConfigError, match="lr_scheduler of the module does not know"):
        fit(tmp_path, [Transfer(Lit().state_dict(), head="keep", backbone_lr=0.1)], Scheduled())


def test_what_lightning_does_to_gradients_comes_before_tricks(tmp_path):
    module, trainer = fit(tmp_path, [SAM(0.1)], gradient_clip_val=1e6)
    trace(module, trainer).must_be(CASES["sam"].loop("net.").run(), bits=False)
    module, trainer = fit(tmp_path, [], gradient_clip_val=0.05)
    clipped, _ = fit(tmp_path, CASES["clip_gradients"].tricks(""))
    trace(module, trainer).must_be(trace(clipped, trainer), bits=False)


def test_mixed_precision_of_lightning_and_of_a_trick_are_the_same(tmp_path):
    module, trainer = fit(tmp_path, [Dropout(0.3)], precision="bf16-mixed")
    other, other_trainer = fit(tmp_path, [Dropout(0.3), MixedPrecision()])
    trace(module, trainer).must_be(trace(other, other_trainer), bits=False)


def test_what_is_compiled_after_tricks_has_them(tmp_path):
    class Compiled(Lit):
        def on_fit_start(self):
            self.net.compile(backend="aot_eager", fullgraph=True)

    module, trainer = fit(tmp_path, [Dropout(0.3), BatchNorm()], Compiled())
    eager, eager_trainer = fit(tmp_path, [Dropout(0.3), BatchNorm()])
    trace(module, trainer).must_be(trace(eager, eager_trainer), bits=False)


def test_schedules_wait_where_a_scaler_skips(tmp_path):
    from lightning.pytorch.plugins import MixedPrecision as Plugin

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=10**6)
    plugin = Plugin(precision="16-mixed", device="cpu", scaler=scaler)
    _, trainer = fit(tmp_path, [OneCycle(), Dropout(0.1)], plugins=plugin)
    made = len(trainer.optimizers[0].rates)
    assert made == run_of(trainer).state.step < EPOCHS * STEPS
    with pytest.raises(tb.ConfigError, match="second pass"):
        fit(tmp_path, [SAM(0.1)], plugins=Plugin(precision="16-mixed", device="cpu", scaler=scaler))


class Adversaries(Lit):
    """Manual optimization, two optimizers: one is stepped every other time."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        x, y = batch
        one, other = self.optimizers()
        loss = F.cross_entropy(self(x), y)
        self.manual_backward(loss)
        one.step()
        if batch_idx % 2:
            other.step()
        one.zero_grad()
        other.zero_grad()

    def configure_optimizers(self):
        head = list(self.net.fc2.parameters())
        kept = {id(parameter) for parameter in head}
        return SpySGD([p for p in self.parameters() if id(p) not in kept]), SpySGD(head)


def test_manual_optimization_with_several_optimizers(tmp_path):
    module, trainer = fit(tmp_path, [Dropout(0.3), BatchNorm(), Augment()], Adversaries())
    assert not torch.equal(module.net.conv1.trickbox.batch_norm.weight, torch.ones(4))
    _, trainer = fit(tmp_path, Tricks([CosineAnnealing()], steps=EPOCHS * STEPS), Adversaries())
    first, second = (optimizer.rates for optimizer in trainer.optimizers)
    assert len(first) == 2 * len(second)
    assert second == pytest.approx(first[: len(second)])  # each counts the updates of its own
    for tricks, message in (
        ([OneCycle()], "length of the run"),
        ([MixedPrecision()], "manual optimization keeps to itself"),
        ([SAM()], "second pass"),
    ):
        with pytest.raises(tb.ConfigError, match=message) as caught:
            fit(tmp_path, tricks, Adversaries())
        assert message != "length of the run" or "steps=" in caught.value.__notes__[-1]


# -- the plan ----------------------------------------------------------------------------------------------------------


class Autoencoder(L.LightningModule):
    """`forward` is half of what trains; what a step writes down must not be written down by the dry run."""

    def __init__(self):
        super().__init__()
        import torchmetrics

        self.steps, self.notes, self.seen = [], {"all": []}, 0
        self.error = torchmetrics.MeanSquaredError()

    def setup(self, stage):
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(48, 8), nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 48))
        self.register_buffer("queue", torch.zeros(3))

    def forward(self, x):
        return self.encoder(x.flatten(1))

    def training_step(self, batch):
        x = batch["x"].flatten(1)
        out = self.decoder(self(batch["x"]))
        loss = F.mse_loss(out, x)
        self.error(out, x)
        self.log("error", self.error, on_epoch=True)
        self.seen += 1
        self.steps.append(self.seen)
        self.notes["all"].append(self.seen)
        self.queue += 1
        return {"loss": loss, "out": out}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def train_dataloader(self):
        return DataLoader([{"x": x} for x in TRAIN[0]], batch_size=16)


def test_the_tape_is_that_of_the_step_where_forward_is_another_way(tmp_path):
    def train(tricks):
        module = Autoencoder()
        trainer = trainer_for(tmp_path, tricks, max_epochs=2)
        trainer.fit(module)
        return module, trainer

    (plain, without), (module, trainer) = train(None), train([Dropout(0.3)])
    assert {name for name, part in module.named_modules() if name.endswith("dropout")} == {
        "encoder.trickbox.dropout",
        "decoder.0.trickbox.dropout",
    }
    assert module.steps == plain.steps == module.notes["all"] == list(range(1, 9))
    assert torch.equal(module.queue, plain.queue)
    assert trainer.callback_metrics["error_epoch"] != without.callback_metrics["error_epoch"]
    _, with_placebo = train([Placebo()])
    assert with_placebo.callback_metrics == without.callback_metrics


def test_a_validation_step_may_call_the_training_step(tmp_path):
    class Shared(Lit):
        def training_step(self, batch, batch_idx):
            self.seen.append(batch[1].ndim)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.training_step(batch=batch, batch_idx=batch_idx))

    Shared.seen = []
    module, trainer = fit(tmp_path, [Mixup(0.4), Dropout(0.3)], Shared())
    assert run_of(trainer).state.epoch == EPOCHS
    assert Shared.seen.count(2) == EPOCHS * STEPS + 1, "training sees soft targets, once more before it"
    other, other_trainer = fit(tmp_path, [Mixup(0.4), Dropout(0.3)])
    trace(module, trainer).must_be(trace(other, other_trainer))


def test_a_second_pass_is_logged_nowhere(tmp_path):
    plain, without = fit(tmp_path, None, max_epochs=1, limit_train_batches=1)
    sam, with_sam = fit(tmp_path, [SAM(0.1)], max_epochs=1, limit_train_batches=1)
    assert with_sam.callback_metrics["train_loss"] == without.callback_metrics["train_loss"]
    assert not torch.equal(plain.net.fc2.weight, sam.net.fc2.weight)


def test_planning_moves_no_loader(tmp_path):
    def order(tricks, **settings):
        class Order(Lit):
            def training_step(self, batch, batch_idx):
                seen.append(batch[1].tolist())
                return super().training_step(batch, batch_idx)

        seen = []
        generator = torch.Generator().manual_seed(3)
        train = loader(TRAIN, 16, shuffle=True, generator=generator, **settings)
        fit(tmp_path, tricks, Order(), train=train, max_epochs=2)
        return seen, generator.get_state()

    for settings in ({}, {"num_workers": 1, "persistent_workers": True}):
        (plain, before), (seen, after) = order(None, **settings), order([Dropout(0.3)], **settings)
        assert seen[-2 * STEPS :] == plain
        assert torch.equal(before, after)


def test_batches_of_several_kinds(tmp_path):
    class Named(Lit):
        def training_step(self, batch, batch_idx):
            assert isinstance(batch, dict)
            return super().training_step((batch["x"], batch["labels"]), batch_idx)

    class Three(Lit):
        def training_step(self, batch, batch_idx):
            x, y, _ = batch
            return super().training_step((x, y), batch_idx)

    named = DataLoader([{"x": x, "labels": y} for x, y in zip(*TRAIN, strict=True)], batch_size=16)
    of_pairs, trainer = fit(tmp_path, [Augment(), Dropout(0.3)])
    for module, train in ((Named(), named), (Three(), loader((*TRAIN, TRAIN[1]), 16))):
        other, other_trainer = fit(tmp_path, [Augment(), Dropout(0.3)], module, train)
        trace(other, other_trainer).must_be(trace(of_pairs, trainer))


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(*TRAIN, strict=True)


def test_data_without_a_length(tmp_path):
    stream = DataLoader(Stream(), batch_size=16)
    _, trainer = fit(tmp_path, [OneCycle()], train=stream, max_steps=6)
    assert trainer.optimizers[0].rates[-1] == pytest.approx(RATE / 25e4)
    with pytest.raises(tb.ConfigError, match="length of the run") as caught:
        fit(tmp_path, [OneCycle()], train=stream)
    assert "steps=" in caught.value.__notes__[-1]
    module, trainer = fit(tmp_path, Tricks([Dropout(0.3)], TRAIN[0][:2], SEED), train=stream)
    by_sample, by_sample_trainer = fit(tmp_path, [Dropout(0.3)])
    trace(module, trainer).must_be(trace(by_sample, by_sample_trainer))


def test_an_optimizer_that_calls_the_step_again_sees_the_same_batch(tmp_path):
    class Again(Lit):
        def configure_optimizers(self):
            optimizer = torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)
            optimizer.rates = []
            return optimizer

    (plain, without), (module, trainer) = (fit(tmp_path, tricks, Again()) for tricks in (None, [Placebo()]))
    trace(module, trainer).must_be(trace(plain, without))
    module, trainer = fit(tmp_path, [Dropout(0.3), Augment()], Again(), max_epochs=1)
    assert run_of(trainer).state.history["step"] == [STEPS]


# -- before, between, after --------------------------------------------------------------------------------------------


def test_one_callback_serves_several_fits(tmp_path):
    tricks = Tricks([Dropout(0.3), BatchNorm(), OneCycle(), EarlyStopping("val_loss", patience=1)], seed=SEED)
    first, first_trainer = fit(tmp_path, tricks)
    second, second_trainer = fit(tmp_path, tricks)
    trace(first, first_trainer).must_be(trace(second, second_trainer))
    with pytest.raises(tb.ConfigError, match="is on the model already"):
        fit(tmp_path, tricks, second)
    tb.undo(second)
    second_trainer.fit_loop.max_epochs += 1
    second_trainer.should_stop = False
    with pytest.raises(tb.ConfigError, match="goes on after"):
        second_trainer.fit(second, loader(TRAIN, 16), loader(VALID, 24))


def test_the_trainer_validates_afterwards_with_the_tricks_on(tmp_path):
    module, trainer = fit(tmp_path, [BatchNorm(), EMA(0.3)])
    (found,) = trainer.validate(module, loader(VALID, 24), verbose=False)
    assert found["val_loss"] == pytest.approx(module.losses[-2])
    assert len(run_of(trainer).state.history) == EPOCHS


@pytest.mark.parametrize(
    "where", ["training_step", "on_validation_epoch_end", "configure_optimizers", "on_train_start"]
)
def test_after_an_error_the_module_has_its_own_methods(tmp_path, where):
    class Broken(Lit):
        pass

    def fail(self, *args):
        if not self.trainer.sanity_checking and (where != "training_step" or args[1] == 2):
            raise RuntimeError("broken")
        return getattr(super(Broken, self), where)(*args)

    setattr(Broken, where, fail)
    tricks = Tricks([Dropout(0.3), EarlyStopping("val_loss")], TRAIN[0][:4])
    module = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        fit(tmp_path, tricks, module)
    assert ("StreamDropout" in str(module)) == (where in ("training_step", "on_validation_epoch_end"))
    tb.undo(module)
    assert not own_attributes(module) & {"training_step", "backward", "setup", "on_train_epoch_end", "log"}
    assert list(module.state_dict()) == list(Lit().state_dict())
    fit(tmp_path, tricks, max_epochs=1)


def test_a_trick_that_acts_nowhere_leaves_everything_as_it_was(tmp_path):
    class Flat(Lit):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))

    module = Flat()
    with pytest.raises(tb.NoEffectError, match="dropout acted nowhere"):
        fit(tmp_path, [Dropout(0.3)], module)
    assert not own_attributes(module) & {"training_step", "backward", "setup", "on_train_epoch_end"}
    fit(tmp_path, [], module, max_epochs=1)


def test_what_cannot_be_right_is_refused(tmp_path):
    from lightning.pytorch.strategies import SingleDeviceStrategy

    class Late(Lit):
        def configure_model(self):
            self.more = nn.Linear(2, 2)

    class Iterates(Lit):
        def training_step(self, dataloader_iter):
            raise AssertionError

    class FSDPStrategy(SingleDeviceStrategy):
        pass

    class Negative(Lit):
        def training_step(self, batch, batch_idx):
            return F.nll_loss(self(batch[0]).log_softmax(1), batch[1])

    class Headless(Lit):
        def forward(self, x):
            raise NotImplementedError

    changing = L.callbacks.GradientAccumulationScheduler({0: 2, 1: 1})

    for tricks, module, settings, message in (
        ([OneCycle()], Lit(), {"callbacks": [changing]}, "length of the run"),
        ([], Late(), {}, "configure_model"),
        ([], Iterates(), {}, "dataloader_iter"),
        ([], Lit(), {"strategy": FSDPStrategy(device="cpu")}, "FSDPStrategy shards"),
        ([], torch.compile(Lit(), backend="eager"), {}, r"on_fit_start: self.net.compile\(\)"),
        (["accumulate"], Lit(), {}, "accumulates gradients"),
        ([MixedPrecision(dtype="float16")], Lit(), {}, "calls backward itself"),
        ([SAM()], Lit(), {"accumulate_grad_batches": 2}, "second pass"),
        ([Mixup()], Negative(), {}, "must take class probabilities, got .*Negative.training_step"),
        ([LabelSmoothing()], Negative(), {}, "must take class probabilities"),
        ([EarlyStopping("val_los")], Lit(), {}, r"must be a metric of this run.*'val_loss'\?"),
        ([EarlyStopping("val_loss")], Lit(), {"limit_val_batches": 0}, "must be a metric of this run"),
    ):
        with pytest.raises(tb.ConfigError, match=message):
            fit(tmp_path, tricks, module, **settings)
    with pytest.raises(tb.DataError, match="neither forward nor training_step can take"):
        fit(tmp_path, [], Headless())


# -- imports -----------------------------------------------------------------------------------------------------------


def test_a_list_that_cannot_work_is_refused_at_once():
    with pytest.raises(tb.ConfigError, match="tricks must be a list"):
        Tricks(Dropout(0.1))
    with pytest.raises(tb.ConfigError, match="dropuot"):
        Tricks(["dropuot"])


TWO_RANKS = """
import sys, types, warnings
sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
warnings.simplefilter("ignore")
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from trickbox.adapters.lightning import Tricks

assert "lightning" not in sys.modules
torch.set_num_threads(1)


class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def training_step(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch):
        self.log("val_loss", self.training_step(batch))  # of each rank its own

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


pl.seed_everything(1, verbose=False)
x = torch.randn(32, 4)
data = TensorDataset(x, (x.sum(1) > 0).long())
module = Lit()
stopping = {"trick": "early_stopping", "patience": 1, "mode": "max"}
tricks = Tricks(["dropout", "layer_norm", "one_cycle", "ema", stopping])
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer = pl.Trainer(accelerator="cpu", strategy="ddp", devices=2, max_epochs=4, callbacks=[tricks], **quiet)
trainer.fit(module, DataLoader(data, 8, shuffle=True), DataLoader(data, 8))
state = tricks.run.state
weights = [float(weight.detach().double().sum()) for weight in module.parameters()]
with open(f"rank{trainer.global_rank}.txt", "w") as file:
    print(state.step, state.history["val_loss"], state.stop_reason, weights, file=file)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_two_ranks_decide_alike_and_under_the_other_name(tmp_path):
    pytest.importorskip("pytorch_lightning", reason="Lightning is installed under one name only")
    (tmp_path / "script.py").write_text(TWO_RANKS)
    done = finished([sys.executable, "script.py"], timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one, other = (tmp_path / name for name in ("rank0.txt", "rank1.txt"))
    assert one.read_text() == other.read_text()
    assert one.read_text().startswith("4 "), "two of four epochs with two updates each"
