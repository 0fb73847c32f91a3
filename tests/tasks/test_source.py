"""Weights for transfer: one file, the same bytes each time, that the plain network loads."""

from __future__ import annotations

from pathlib import Path

import torch

from trickbox.tasks.source import pretrain
from trickbox.tasks.waveforms import PlainNet, Waveforms


def test_pretraining_is_deterministic_and_loads(tmp_path: Path) -> None:
    small = Waveforms(samples=60, max_epochs=1, fresh_samples=3, noise=0.1)

    first, second = pretrain(tmp_path / "a.pt", small), pretrain(tmp_path / "deeper" / "b.pt", small)

    assert first.read_bytes() == second.read_bytes()
    net = PlainNet()
    net.load_state_dict(torch.load(first, weights_only=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "deeper"]
