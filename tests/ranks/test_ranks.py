"""Two ranks under torchrun: as one process with batches of twice the size, and never of two minds."""

from __future__ import annotations

import json
import os
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from loops.families import FAMILIES, REFUSED
from loops.variants import marked
from processes import finished
from torch import nn

import trickbox as tb
from trickbox import ranks
from trickbox.testing import tiny_data, tiny_model

pytestmark = pytest.mark.slow
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
TESTS = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two ranks wrote down."""
    folder = tmp_path_factory.mktemp("ranks")
    worker = Path(__file__).with_name("worker.py")
    command = [*LAUNCH, worker, folder]
    done = finished(command, timeout=120, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def alone():
    model = tiny_model()
    model.own_dropout.p = 0.0
    return tb.fit(
        model, tiny_data(384), tiny_data(50, seed=1), loss=nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9), max_epochs=4, batch_size=32, device="cpu", seed=3,
    )  # fmt: skip


def test_two_ranks_of_16_are_one_process_of_32_after_48_steps(found):
    one = alone()
    assert one.history["step"][-1] == 48
    expected = torch.cat([p.detach().flatten() for p in one.model.parameters()])
    for rank in found:
        assert (torch.tensor(rank["plain"]["weights"]) - expected).abs().max() < 1e-5
        for row, alike in zip(rank["plain"]["rows"], one.history.rows, strict=True):
            assert row == pytest.approx(alike, abs=1e-5)


def test_both_ranks_end_with_the_same_weights_metrics_and_decisions(found):
    for what in ("plain", "loader", "decided", "sharded", "attached"):
        assert found[0][what] == found[1][what], what
    assert found[0]["decided"]["stop"].startswith("early_stopping")


def test_a_plain_loop_decides_on_the_means_of_all_ranks(found):
    own = [[1.0 - 0.1 * e for e in (0, 1)], [1.0 + 0.3 * e for e in (0, 1)]]
    assert found[0]["attached"]["val_loss"] == pytest.approx([sum(pair) / 2 for pair in zip(*own, strict=True)])
    assert found[0]["attached"]["epochs"] == 2
    assert found[0]["attached"]["lr"] == [0.1, 0.1]


def test_every_family_acts_in_a_plain_loop_under_ddp(found):
    cells = [rank["cells"] for rank in found]
    assert cells[0].keys() == cells[1].keys() == {"original", "without tricks", *FAMILIES, *REFUSED}
    assert cells[0] == cells[1]
    assert cells[0]["original"] == cells[0]["without tricks"]
    assert marked("distributed") == {"": 4, "batches": 1, "validation": 1}


def test_shards_train_what_tricks_added(found):
    assert found[0]["sharded"]["kinds"] == ["DTensor"]
    assert found[0]["sharded"]["rows"][0]["val_loss"] > 0


def test_no_two_ranks_share_a_mask_or_a_mixing_coefficient(found):
    assert found[0]["masks"]["mask"] != found[1]["masks"]["mask"]
    assert found[0]["masks"]["targets"] != found[1]["masks"]["targets"]


def test_one_order_is_shared_out_and_the_incomplete_round_is_dropped(found):
    order = torch.randperm(80, generator=torch.Generator().manual_seed(_order_seed()))
    sums = [float(tiny_data(80)[0][index].sum()) for index in order.split(16)]
    assert [found[0]["order"], found[1]["order"]] == [
        pytest.approx([sums[0], sums[2]], rel=1e-5),
        pytest.approx([sums[1], sums[3]], rel=1e-5),
    ]


def _order_seed():
    from trickbox.authoring import derive

    return derive(0, "order", 0)


def test_a_loader_that_draws_its_order_globally_is_shared_out_without_repeats(found):
    for one, other in zip(found[0]["samples"], found[1]["samples"], strict=True):
        assert sorted([*one, *other]) == list(range(96))


def test_what_would_train_apart_is_refused(found):
    for rank in found:
        assert rank["no wrap"].startswith("2 processes would each train a model of their own; pass wrap=")
        assert rank["compiled only"].startswith("2 processes would each train a model of their own")
        assert rank["apply on ddp"].startswith("model is wrapped in DistributedDataParallel; pass the module inside")
        assert rank["apply on sharded"].startswith("model is sharded already")


def test_a_launcher_without_a_process_group_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(tb.ConfigError, match=r"2 processes were launched.*init_process_group"):
        alone()


def test_the_page_about_many_processes_does_what_it_shows(tmp_path):
    page = (TESTS.parent / "docs" / "how-to" / "many-processes.md").read_text()
    (tmp_path / "train.py").write_text(re.search(r"```python\n# train\.py\n(.*?)```", page, re.DOTALL)[1])
    command = [*LAUNCH, "train.py"]
    done = finished(command, timeout=120, cwd=tmp_path, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-4000:]
    said = re.findall(r"rank \d: \[[^]]*\]", done.stdout)  # two processes write one stream: a line may hold both
    assert sorted(said) == ["rank 0: [4, 8]", "rank 1: [4, 8]"]
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]


def test_alone_there_is_one_rank():
    assert (ranks.rank(), ranks.world(), ranks.joined()) == (0, 1, False)
    assert ranks.totals([1.0, 2.0]) == [1.0, 2.0]
