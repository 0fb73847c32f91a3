"""The loop of the beginner's example: epochs, batches, a validation, the user's own scheduler stepped once an epoch."""

from __future__ import annotations

import torch
from loops.common import CRITERION, EPOCHS, SpySGD, Trace, evaluate, example, loaders, start

import trickbox as tb


def loop(tricks):
    model = start()
    train, valid = loaders()
    run = tb.attach(model, tricks, example(), epochs=EPOCHS, steps_per_epoch=len(train))  # trickbox
    optimizer = SpySGD(model.parameters(), lr=0.1)
    run.watch(optimizer)  # trickbox
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    trace = Trace(model, optimizer.rates)
    for _ in range(EPOCHS):
        model.train()
        for x, y in train:
            x, y = run.batch(x, y)  # trickbox: batches
            optimizer.zero_grad()
            loss = CRITERION(model(x), y)
            loss.backward()
            optimizer.step()
            trace.losses.append(loss.item())
        scheduler.step()
        with run.evaluating():  # trickbox: validation
            val_loss = evaluate(model, valid)
        trace.epochs += 1
        if run.epoch_end(val_loss=val_loss): break  # trickbox  # fmt: skip # noqa: E701
    run.close()  # trickbox
    return trace
