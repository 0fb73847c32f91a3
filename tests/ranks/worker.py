"""Run under torchrun: everything that two ranks must hold, written as JSON, one file a rank."""

from __future__ import annotations

import json
import re
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from loops.families import FAMILIES, REFUSED
from loops.variants import variant
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import trickbox as tb
from trickbox import ranks
from trickbox.testing import tiny_data, tiny_model

warnings.filterwarnings("ignore", message=".*barrier.*")

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def net():
    model = tiny_model()
    model.own_dropout.p = 0.0
    return model


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def fit(tricks=(), wrap=DistributedDataParallel, batch_size=16, model=None, epochs=4, data=None, **more):
    return tb.fit(
        model or net(), data or tiny_data(384), tiny_data(50, seed=1), loss=nn.CrossEntropyLoss(), optimizer=SGD,
        tricks=tricks, max_epochs=epochs, batch_size=batch_size, device="cpu", wrap=wrap, seed=3, **more,
    )  # fmt: skip


def refusals(found):
    """What is refused, by the beginning of the message."""
    for name, attempt in {
        "no wrap": lambda: fit(wrap=None),
        "compiled only": lambda: fit(wrap=partial(torch.compile, backend="eager")),
        "apply on ddp": lambda: tb.apply(DistributedDataParallel(net()), ["batch_norm"], tiny_data(4)[0]),
        "apply on sharded": lambda: tb.apply(fully_shard(net()), ["batch_norm"], tiny_data(4)[0]),
    }.items():
        try:
            attempt()
            found[name] = "accepted"
        except tb.ConfigError as error:
            found[name] = str(error)


def attached():
    """A plain loop under DDP: attach, wrap, watch; metrics of one's own on every rank."""
    model = net()
    tricks = [tb.get("early_stopping")(patience=1), tb.get("reduce_on_plateau")(patience=0, factor=0.5), "dropout"]
    run = tb.attach(model, tricks, tiny_data(4)[0], epochs=4, steps_per_epoch=2, wrap=DistributedDataParallel)
    optimizer = run.watch(torch.optim.SGD(model.parameters(), lr=0.1))
    x, y = tiny_data(32, seed=ranks.rank())
    epochs = 0
    for epoch in range(4):
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(run.model(x), y).backward()
            optimizer.step()
        epochs += 1
        # Alone, the first rank would go on and the second one stop.
        own = (1.0 - 0.1 * epoch) if ranks.rank() == 0 else (1.0 + 0.3 * epoch)
        if run.epoch_end(val_loss=own):
            break
    run.close()
    return {"epochs": epochs, "lr": run.state.history["lr"], "val_loss": run.state.history["val_loss"],
            "weights": flat(model).tolist()}  # fmt: skip


def masks():
    """The first mask of a dropout, and the first mixing coefficient."""
    model, seen = net(), []
    with tb.Session(
        model, tiny_data(64), loss=nn.CrossEntropyLoss(), optimizer=SGD, tricks=[tb.get("dropout")(p=0.5), "mixup"],
        max_epochs=1, batch_size=16, device="cpu", wrap=DistributedDataParallel,
    ) as session:  # fmt: skip
        model.conv1.trickbox.dropout.register_forward_hook(lambda *call: seen.append(call[-1] != 0))
        for _ in session.epochs():
            for batch in session.batches():
                targets = batch.targets
                session.step(batch)
                break
    return {"mask": seen[0].flatten().tolist(), "targets": targets.flatten().tolist()}


def samples():
    """Which samples this rank trains on, where a loader draws its order from the global generator."""
    data = TensorDataset(torch.arange(96.0)[:, None, None].expand(96, 2, 24).clone(), torch.arange(96) % 3)
    seen = []
    with tb.Session(
        net(), DataLoader(data, batch_size=16, shuffle=True), loss=nn.CrossEntropyLoss(), optimizer=SGD, max_epochs=2,
        device="cpu", wrap=DistributedDataParallel,
    ) as session:  # fmt: skip
        seen.extend(
            torch.cat([batch.inputs[:, 0, 0] for batch in session.batches()]).int().tolist() for _ in session.epochs()
        )
    return seen


def cells():
    """A plain loop under DDP with every family: what acted, what was refused, and the weights it ended in."""
    original = variant("distributed", None)(None)
    found = {"original": flat(original.model).tolist()}
    found["without tricks"] = flat(variant("distributed", ("batches", "validation"))([]).model).tolist()
    for name, family in FAMILIES.items():
        trace = variant("distributed", family.needs)([family.made])
        weights = flat(trace.model).tolist()
        family.acted(trace, original)
        found[name] = weights
    for name, reason in REFUSED.items():
        with pytest.raises(tb.ConfigError, match=re.escape(reason)):
            variant("distributed", ("batches", "validation"))([name])
        found[name] = "refused"
    return found


def main():
    dist.init_process_group("gloo")
    found = {}
    found["plain"] = {"weights": flat((result := fit()).model).tolist(), "rows": result.history.rows}
    loader = DataLoader(TensorDataset(*tiny_data(384)), batch_size=16, shuffle=True)
    found["loader"] = fit(data=loader, epochs=1).history.rows
    decided = fit(["reduce_on_plateau", tb.get("early_stopping")(patience=1, min_delta=1.0), "batch_norm"])
    weights = flat(decided.model).tolist()
    found["decided"] = {"rows": decided.history.rows, "stop": decided.stop_reason, "weights": weights}
    sharded = fit(["layer_norm", tb.get("dropout")(p=0.1)], wrap=fully_shard, epochs=1)
    sharded.model.reshard()
    found["sharded"] = {
        "rows": sharded.history.rows,
        "weights": torch.cat([p.full_tensor().flatten() for p in sharded.model.parameters()]).tolist(),
        "kinds": sorted({type(p.data).__name__ for p in sharded.model.parameters()}),
    }
    found["attached"] = attached()
    found["masks"] = masks()
    found["order"] = [float(batch.inputs.sum()) for batch in _order()]
    found["cells"] = cells()
    found["samples"] = samples()
    refusals(found)
    (Path(sys.argv[1]) / f"{ranks.rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _order():
    from trickbox.data import as_source

    return as_source(tiny_data(80), name="train", batch_size=16, device=torch.device("cpu")).epoch(0, 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
