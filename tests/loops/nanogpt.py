"""The loop of a small language model's training: endless batches, accumulation, a GradScaler, clipping, a rate set by
hand in every iteration, a length in steps, validation every few of them."""

from __future__ import annotations

import itertools

import torch
from loops.common import CRITERION, EPOCHS, STEPS, SpySGD, Trace, evaluate, example, loaders, start

import trickbox as tb

ACCUMULATION, MAX_STEPS, EVERY = 2, EPOCHS * STEPS, STEPS


def loop(tricks):
    model = start()
    train, valid = loaders()
    run = tb.attach(model, tricks, example(), steps=MAX_STEPS)  # trickbox
    optimizer = SpySGD(model.parameters(), lr=0.1)
    run.watch(optimizer)  # trickbox
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    trace = Trace(model, optimizer.rates)
    batches = itertools.chain.from_iterable(itertools.repeat(train))
    for iteration in range(MAX_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + iteration // STEPS)
        model.train()
        for _ in range(ACCUMULATION):
            x, y = next(batches)
            x, y = run.batch(x, y)  # trickbox: batches
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
                loss = CRITERION(model(x), y) / ACCUMULATION
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        trace.losses.append(loss.item() * ACCUMULATION)
        if (iteration + 1) % EVERY == 0:
            with run.evaluating():  # trickbox: validation
                val_loss = evaluate(model, valid)
            trace.epochs += 1
            if run.epoch_end(val_loss=val_loss): break  # trickbox  # fmt: skip # noqa: E701
    run.close()  # trickbox
    return trace
