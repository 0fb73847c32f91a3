"""Two models, two optimizers, two losses: tricks on the one that tells real from made."""

from __future__ import annotations

import torch
from loops.common import CRITERION, EPOCHS, SpySGD, Trace, evaluate, example, loaders, start
from torch import nn

import trickbox as tb


def loop(tricks):
    model = start()  # three classes: two of real series, and made
    train, valid = loaders()
    generator = nn.Sequential(nn.Linear(8, 48), nn.Tanh(), nn.Unflatten(1, (2, 24)))
    run = tb.attach(model, tricks, example(), epochs=EPOCHS, steps_per_epoch=len(train))  # trickbox
    optimizer = SpySGD(model.parameters(), lr=0.1)
    run.watch(optimizer)  # trickbox
    optimizer_of_generator = torch.optim.Adam(generator.parameters(), lr=0.01)
    noise = torch.Generator().manual_seed(1)
    trace = Trace(model, optimizer.rates)
    for _ in range(EPOCHS):
        model.train()
        for real, y in train:
            z = torch.randn(len(real), 8, generator=noise)
            made = generator(z)
            x, y = torch.cat([real, made.detach()]), torch.cat([y % 2, torch.full_like(y, 2)])
            x, y = run.batch(x, y)  # trickbox: batches
            optimizer.zero_grad()
            loss = CRITERION(model(x), y)
            loss.backward()
            optimizer.step()
            trace.losses.append(loss.item())
            optimizer_of_generator.zero_grad()
            CRITERION(model(generator(z)), torch.zeros(len(z), dtype=torch.long)).backward()
            optimizer_of_generator.step()
        with run.evaluating():  # trickbox: validation
            val_loss = evaluate(model, valid)
        trace.epochs += 1
        if run.epoch_end(val_loss=val_loss): break  # trickbox  # fmt: skip # noqa: E701
    run.close()  # trickbox
    return trace
