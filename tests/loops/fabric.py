"""A loop under Lightning Fabric: it wraps model and optimizer, and does the backward."""

from __future__ import annotations

import torch
from lightning.fabric import Fabric
from loops.common import CRITERION, EPOCHS, SpySGD, Trace, evaluate, example, loaders, start

import trickbox as tb


def loop(tricks):
    fabric = Fabric(accelerator="cpu", devices=1)
    model = start()
    train, valid = loaders()
    run = tb.attach(model, tricks, example(), epochs=EPOCHS, steps_per_epoch=len(train))  # trickbox
    optimizer = SpySGD(model.parameters(), lr=0.1)
    run.watch(optimizer)  # trickbox
    trace = Trace(model, optimizer.rates)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    model, optimizer = fabric.setup(model, optimizer)
    train, valid = fabric.setup_dataloaders(train, valid)
    for _ in range(EPOCHS):
        model.train()
        for x, y in train:
            x, y = run.batch(x, y)  # trickbox: batches
            optimizer.zero_grad()
            loss = CRITERION(model(x), y)
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=5.0)
            optimizer.step()
            trace.losses.append(loss.item())
        scheduler.step()
        with run.evaluating():  # trickbox: validation
            val_loss = evaluate(model, valid)
        trace.epochs += 1
        if run.epoch_end(val_loss=val_loss): break  # trickbox  # fmt: skip # noqa: E701
    run.close()  # trickbox
    return trace
