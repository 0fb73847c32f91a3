"""A loop under Ignite: a function of an update, and handlers of events."""

from __future__ import annotations

from ignite.engine import Engine, Events
from loops.common import CRITERION, EPOCHS, SpySGD, Trace, evaluate, example, loaders, start

import trickbox as tb


def loop(tricks):
    model = start()
    train, valid = loaders()
    run = tb.attach(model, tricks, example(), epochs=EPOCHS, steps_per_epoch=len(train))  # trickbox
    optimizer = SpySGD(model.parameters(), lr=0.1)
    run.watch(optimizer)  # trickbox
    trace = Trace(model, optimizer.rates)

    def update(engine, batch):
        model.train()
        x, y = batch
        x, y = run.batch(x, y)  # trickbox: batches
        optimizer.zero_grad()
        loss = CRITERION(model(x), y)
        loss.backward()
        optimizer.step()
        trace.losses.append(loss.item())
        return loss.item()

    trainer = Engine(update)

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine):
        with run.evaluating():  # trickbox: validation
            val_loss = evaluate(model, valid)
        trace.epochs += 1
        if run.epoch_end(val_loss=val_loss): engine.terminate()  # trickbox  # fmt: skip # noqa: E701
        engine.state.val_loss = val_loss

    trainer.run(train, max_epochs=EPOCHS)
    run.close()  # trickbox
    return trace
