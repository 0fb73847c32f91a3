"""A loop under accelerate: it prepares model, optimizer, loaders and scheduler, and does the backward."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from loops.common import CRITERION, EPOCHS, SpySGD, Trace, evaluate, example, loaders, start

import trickbox as tb


def loop(tricks):
    accelerator = Accelerator(cpu=True)
    model = start()
    train, valid = loaders()
    run = tb.attach(model, tricks, example(), epochs=EPOCHS, steps_per_epoch=len(train))  # trickbox
    optimizer = SpySGD(model.parameters(), lr=0.1)
    run.watch(optimizer)  # trickbox
    trace = Trace(model, optimizer.rates)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 8, gamma=0.5)
    model, optimizer, train, valid, scheduler = accelerator.prepare(model, optimizer, train, valid, scheduler)
    for _ in range(EPOCHS):
        model.train()
        for x, y in train:
            x, y = run.batch(x, y)  # trickbox: batches
            with accelerator.accumulate(model):
                optimizer.zero_grad()
                loss = CRITERION(model(x), y)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                scheduler.step()
            trace.losses.append(loss.item())
        with run.evaluating():  # trickbox: validation
            val_loss = evaluate(model, valid)
        trace.epochs += 1
        if run.epoch_end(val_loss=val_loss): break  # trickbox  # fmt: skip # noqa: E701
    run.close()  # trickbox
    return trace
