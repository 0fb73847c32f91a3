"""Policy gradient: no data set, actions drawn from the model, a loss of returns, and a length in updates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from loops.common import EPOCHS, STEPS, SpySGD, Trace, evaluate, example, loaders, start

import trickbox as tb
from trickbox.testing import tiny_data


def loop(tricks):
    model = start()
    _, valid = loaders()
    run = tb.attach(model, tricks, example(), steps=EPOCHS * STEPS)  # trickbox
    optimizer = SpySGD(model.parameters(), lr=0.1)
    run.watch(optimizer)  # trickbox
    chance = torch.Generator().manual_seed(2)
    trace = Trace(model, optimizer.rates)
    for update in range(EPOCHS * STEPS):
        x, right = tiny_data(16, seed=update)
        model.eval()
        with torch.no_grad():
            y = torch.multinomial(model(x).softmax(1), 1, generator=chance)[:, 0]
        returns = (y == right).float() - 0.3
        model.train()
        x, y = run.batch(x, y)  # trickbox: batches
        optimizer.zero_grad()
        loss = (F.cross_entropy(model(x), y, reduction="none") * returns).mean()
        loss.backward()
        optimizer.step()
        trace.losses.append(loss.item())
        if (update + 1) % STEPS == 0:
            with run.evaluating():  # trickbox: validation
                val_loss = evaluate(model, valid)
            trace.epochs += 1
            if run.epoch_end(val_loss=val_loss): break  # trickbox  # fmt: skip # noqa: E701
    run.close()  # trickbox
    return trace
