"""The loop of a script under torchrun: DistributedDataParallel, a sampler for each rank, a validation on every rank."""

from __future__ import annotations

import torch
from loops.common import CRITERION, EPOCHS, SpySGD, Trace, evaluate, example, loaders, start
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

import trickbox as tb


def loop(tricks):
    model = start()
    train, valid = loaders()
    sampler = DistributedSampler(train.dataset, shuffle=True, seed=0)
    train = DataLoader(train.dataset, batch_size=8, sampler=sampler)
    run = tb.attach(model, tricks, example(), epochs=EPOCHS, steps_per_epoch=len(train))  # trickbox
    optimizer = SpySGD(model.parameters(), lr=0.1)
    run.watch(optimizer)  # trickbox
    trace = Trace(model, optimizer.rates)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    model = DistributedDataParallel(model)
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
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
