"""A loop under skorch: it builds model and optimizer, trains and validates by itself."""

from __future__ import annotations

from loops.common import EPOCHS, SpySGD, Trace, evaluate, example, loaders, start
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import nn

import trickbox as tb
from trickbox.testing import tiny_data


class Net(NeuralNet):
    def train_step_single(self, batch, **fit_params):
        batch = self.run.batch(*batch)  # trickbox: batches
        step = super().train_step_single(batch, **fit_params)
        self.trace.losses.append(step["loss"].item())
        return step


class Validate(Callback):
    def on_epoch_end(self, net, **kwargs):
        with net.run.evaluating():  # trickbox: validation
            val_loss = evaluate(net.module_, net.valid)
        net.trace.epochs += 1
        if net.run.epoch_end(val_loss=val_loss): raise KeyboardInterrupt  # trickbox  # fmt: skip # noqa: E701


def loop(tricks):
    net = Net(
        start(), criterion=nn.CrossEntropyLoss, optimizer=SpySGD, lr=0.1, max_epochs=EPOCHS, batch_size=16,
        train_split=None, callbacks=[Validate()], verbose=0, device="cpu", iterator_train__shuffle=False,
    )  # fmt: skip
    net.initialize()
    run = tb.attach(net.module_, tricks, example(), epochs=EPOCHS, steps_per_epoch=4)  # trickbox
    run.watch(net.optimizer_)  # trickbox
    net.run = run  # trickbox
    net.trace, net.valid = Trace(net.module_, net.optimizer_.rates), loaders()[1]
    net.partial_fit(*tiny_data(64))
    run.close()  # trickbox
    return net.trace
