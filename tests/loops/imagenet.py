"""The loop of a large image training: a function an epoch, clipping, a rate every batch, the best state kept."""

from __future__ import annotations

import copy
import math

import torch
from loops.common import CRITERION, EPOCHS, SpySGD, Trace, evaluate, example, loaders, start

import trickbox as tb


def loop(tricks):
    model = start()
    train, valid = loaders()
    run = tb.attach(model, tricks, example(), epochs=EPOCHS, steps_per_epoch=len(train))  # trickbox
    optimizer = SpySGD(model.parameters(), lr=0.1)
    run.watch(optimizer)  # trickbox
    total = EPOCHS * len(train)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.5 * (1 + math.cos(math.pi * s / total)))
    trace = Trace(model, optimizer.rates)
    best, best_state = math.inf, None

    def train_one_epoch():
        model.train()
        for x, y in train:
            x, y = run.batch(x, y)  # trickbox: batches
            output = model(x)
            loss = CRITERION(output, y)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            scheduler.step()
            trace.losses.append(loss.item())

    for _ in range(EPOCHS):
        train_one_epoch()
        with run.evaluating():  # trickbox: validation
            val_loss = evaluate(model, valid)
        if val_loss < best:
            best, best_state = val_loss, copy.deepcopy(model.state_dict())
        trace.epochs += 1
        if run.epoch_end(val_loss=val_loss): break  # trickbox  # fmt: skip # noqa: E701
    run.close()  # trickbox
    trace.extra["best"] = best_state
    return trace
