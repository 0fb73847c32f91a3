"""What all tests and executed examples share."""

from __future__ import annotations

import sys
from types import ModuleType

import hypothesis
import pytest
import torch

# The wheel of torchvision is built for CUDA. Beside a torch for the CPU its operators are missing, which it puts up
# with, but for one module that describes them to torch; so that module is there already, and empty.
sys.modules.setdefault("torchvision._meta_registrations", ModuleType("torchvision._meta_registrations"))

# They cannot be imported without their frameworks, nor quickly with them; tests/adapters imports them.
collect_ignore = ["trickbox/adapters/lightning.py", "trickbox/adapters/transformers.py"]

# The same examples in every run, so that a failure is never chance. New ones: pytest --hypothesis-profile=default
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _one_thread():
    """Bits depend on the number of threads, and tests in parallel would fight for the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _nothing_stays_compiled():
    """Once something has been compiled, each opening of a model looks through all objects for what holds it."""
    yield
    if "torch._dynamo.utils" in sys.modules and torch._dynamo.utils.counters["frames"]:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
