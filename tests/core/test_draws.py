"""What layers draw: functions of numbers, in eager and in a compiled graph."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from built_ins import edits_only, every_trick
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import trickbox as tb
from trickbox.authoring import derive
from trickbox.surgery.draws import Clock, Draws, mixed
from trickbox.testing import tiny_data, tiny_model, tiny_model_for

numbers = st.integers(0, 2**47 - 1)


@given(numbers, numbers, st.integers(0, 1000))
def test_a_seed_is_a_function_of_three_numbers(key, time, count):
    assert 0 <= mixed(key, time, count) < 2**63
    assert mixed(key, time, count) == mixed(key, time, count)
    assert mixed(key, time, count) != mixed(key, time + 1, count)
    assert mixed(key, time, count) != mixed(key, time, count + 1)
    assert mixed(key, time, count) != mixed(key + 1, time, count)


def test_the_low_half_of_the_seeds_is_mixed_too():
    # The generator of the CPU looks at 32 bits only.
    seeds = {mixed(key, time, count) % 2**32 for key in range(10) for time in range(100) for count in range(10)}
    assert len(seeds) >= 10_000 - 2


def test_a_mask_is_that_of_a_generator_with_the_seed():
    clock = Clock()
    clock.set(3)
    drawn = Draws(key=11, clock=clock).bernoulli((4, 5), 0.25, torch.ones(1))
    expected = torch.empty(4, 5).bernoulli_(0.25, generator=torch.Generator().manual_seed(mixed(11, 3, 0)))
    assert torch.equal(drawn, expected)


def test_type_and_device_are_those_of_the_layer():
    assert Draws(1, Clock()).bernoulli((2,), 0.5, torch.ones(1, dtype=torch.float64)).dtype == torch.float64


def test_no_global_generator_moves():
    before = torch.get_rng_state()
    Draws(1, Clock()).bernoulli((2,), 0.5, torch.ones(1))
    assert torch.equal(before, torch.get_rng_state())


def test_torchs_seed_varies_what_nobody_times():
    draws = Draws(1, Clock())
    found = []
    with torch.random.fork_rng():
        for seed in (1, 2, 1):
            torch.manual_seed(seed)
            found.append(draws.bernoulli((32,), 0.5, torch.ones(1)))
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_copies_and_pickles_draw_for_themselves():
    draws = Draws(1, Clock())
    draws.clock.set(4)
    twins = [copy.deepcopy(draws), pickle.loads(pickle.dumps(draws))]
    expected = draws.bernoulli((16,), 0.5, torch.ones(1))
    draws.clock.set(5)
    for twin in twins:
        assert torch.equal(twin.bernoulli((16,), 0.5, torch.ones(1)), expected)


def dropout_net():
    net = tiny_model()
    net.own_dropout.p = 0.0
    return tb.apply(net, [tb.get("dropout")(p=0.5)], tiny_data(16)[0], seed=1).train()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_graph_draws_what_eager_draws_and_is_compiled_once(backend):
    eager = dropout_net()
    compiled = copy.deepcopy(eager)
    torch._dynamo.reset()
    from torch._dynamo.testing import CompileCounterWithBackend  # slow to import

    graphs = CompileCounterWithBackend(backend)
    call = torch.compile(compiled, fullgraph=True, backend=graphs)
    x, y = tiny_data(16)
    seen = []
    for _ in range(3):
        for net, run in ((eager, eager), (compiled, call)):
            net.zero_grad()
            F.cross_entropy(run(x), y).backward()
        assert torch.equal(eager.conv1.weight.grad, compiled.conv1.weight.grad)
        seen.append(eager.conv1.weight.grad.clone())
    assert not torch.equal(seen[0], seen[1])
    assert graphs.frame_count == 2  # the forward in one graph, and the count of forwards, once each


@pytest.fixture(scope="module")
def tricks(tmp_path_factory):
    return every_trick(tmp_path_factory.mktemp("weights"))


@pytest.mark.slow
def test_every_surgery_compiles_into_one_graph(tricks):
    x, _ = tiny_data(16)
    for name, trick in tricks.items():
        if not edits_only(trick):
            continue
        torch._dynamo.reset()
        net = tb.apply(tiny_model_for(trick), [trick], x, seed=1).train()
        net.own_dropout.p = 0.0
        compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend="eager")
        assert torch.equal(compiled(x), net(x)), name


def test_masks_differ_between_sites_batches_epochs_and_seeds_and_not_between_arms():
    def masks(seed, tricks=()):
        found = []
        net = tiny_model()
        with tb.Session(
            net,
            tiny_data(32),
            loss=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD,
            tricks=[tb.get("dropout")(p=0.5), *tricks],
            max_epochs=2,
            batch_size=16,
            seed=seed,
            device="cpu",
        ) as session:
            layer = net.fc1.trickbox.dropout if hasattr(net.fc1, "trickbox") else net.own_dropout
            layer.register_forward_hook(lambda *call: found.append(call[-1].detach() != 0))
            for _ in session.epochs():
                for batch in session.batches():
                    session.step(batch)
        return [mask for mask in found if mask.any()]

    def drawn(layer_outputs):
        return [tuple(mask.flatten().tolist()) for mask in layer_outputs]

    one, again, other = drawn(masks(0)), drawn(masks(0)), drawn(masks(1))
    assert one == again
    assert len(set(one)) == len(one)
    assert not set(one) & set(other)


def test_no_two_ranks_share_a_mask():
    from trickbox.streams import Streams

    keys = {Streams(seed=0, rank=rank).derive("trick:dropout", "conv1") for rank in range(4)}
    assert len(keys) == 4
    assert derive(0, "trick:dropout", "conv1") in keys
