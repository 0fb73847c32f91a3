"""Batches from tensors, arrays, DataLoaders and iterables: sizes, orders, devices, and generators left alone."""

from __future__ import annotations

import math
from collections import UserDict
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import trickbox as tb
from trickbox.authoring import derive, forked, hookimpl, trick
from trickbox.data import (
    CHECKED_AT_ONCE,
    EVALUATION_BATCHES,
    KeptGenerators,
    _whole_batches,
    as_source,
    check_finite,
    length,
)

CPU = torch.device("cpu")


def source(data, batch_size=8):
    return as_source(data, name="train", batch_size=batch_size, device=CPU)


def numbered(samples):
    """Inputs that tell their own position: sample i is (i, i)."""
    return torch.arange(samples).float()[:, None].expand(-1, 2).clone(), torch.arange(samples)


def loader(samples=20, **options):
    return DataLoader(TensorDataset(*numbered(samples)), batch_size=8, **options)


# -- pairs -------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(samples=st.integers(1, 70), batch_size=st.integers(1, 40), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_an_epoch_is_the_documented_permutation_cut_into_batches(samples, batch_size, seed, epoch):
    batches = list(source(numbered(samples), batch_size).epoch(seed, epoch))
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(derive(seed, "order", epoch)))
    assert torch.equal(torch.cat([batch.targets for batch in batches]), order)
    assert torch.equal(torch.cat([batch.inputs[:, 0] for batch in batches]), order.float())
    assert [batch.size for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert [len(batch.targets) for batch in batches] == [batch.size for batch in batches]
    assert length(source(numbered(samples), batch_size)) == len(batches) == math.ceil(samples / batch_size)


@settings(deadline=None, max_examples=40)
@given(samples=st.integers(1, 70), batch_size=st.integers(1, 40))
def test_balanced_batches_are_equal_and_as_many_as_before(samples, batch_size):
    balanced = as_source(numbered(samples), name="train", batch_size=batch_size, device=CPU, last="balance")
    sizes = [batch.size for batch in balanced.epoch(0, 0)]
    assert len(sizes) == len(balanced) == math.ceil(samples / batch_size)
    assert sum(sizes) == samples
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= batch_size


def test_the_last_batch_is_kept_dropped_or_balanced():
    found = {
        last: [b.size for b in as_source(numbered(36), name="train", batch_size=16, device=CPU, last=last).epoch(0, 0)]
        for last in ("keep", "drop", "balance")
    }
    assert found == {"keep": [16, 16, 4], "drop": [16, 16], "balance": [12, 12, 12]}


def test_dropping_the_last_batch_sees_the_first_ones_unchanged(run, data, same_bits):
    inputs, targets = data
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(derive(0, "order", 0)))
    full = order[: len(order) // 8 * 8]
    batches = [(inputs[part], targets[part]) for part in full.split(8)]
    settings = {"max_epochs": 1, "batch_size": 8}
    same_bits(run(last_batch="drop", **settings).model, run(train=batches, max_epochs=1).model)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"last_batch": "spread"}, tb.ConfigError, "last_batch must be one of keep, drop, balance, got 'spread'"),
        ({"last_batch": "drop", "train": loader()}, tb.ConfigError, "train makes its own batches"),
        ({"last_batch": "drop", "batch_size": 10**6}, tb.DataError, "train has no full batch of 1000000"),
    ],
)
def test_a_last_batch_that_cannot_be_is_refused(run, settings, error, message):
    with pytest.raises(error, match=message):
        run(**settings)


def test_a_last_batch_on_which_a_norm_cannot_train_is_refused_before_training(data):
    inputs, targets = data[0][:17], data[1][:17]

    def go(**settings):
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = partial(torch.optim.SGD, lr=0.1)
        tricks = ["batch_norm"]
        arguments = {"loss": nn.CrossEntropyLoss(), "optimizer": optimizer, "tricks": tricks, "max_epochs": 1}
        return net, lambda: tb.fit(net, (inputs, targets), **arguments, batch_size=16, device="cpu", **settings)

    net, train = go()
    refused = r"the last batch has 1 samples, .* Expected more than 1 value .*'balance'"
    with (
        pytest.raises(tb.DataError, match=refused),
        pytest.warns(UserWarning, match="batch_norm: the last batch of an"),
    ):
        train()
    assert [name for name in net.state_dict() if "trickbox" in name] == []
    for last_batch in ("balance", "drop"):
        assert len(go(last_batch=last_batch)[1]().history) == 1


def test_the_order_uses_no_global_randomness(untouched):
    with untouched(None):
        list(source(numbered(20)).epoch(0, 0))


@settings(deadline=None, max_examples=20)
@given(samples=st.integers(1, 70), batch_size=st.integers(1, 10))
def test_evaluation_goes_through_everything_once_in_its_own_order_in_larger_batches(samples, batch_size):
    batches = list(source(numbered(samples), batch_size).once())
    assert torch.equal(torch.cat([batch.targets for batch in batches]), torch.arange(samples))
    assert sum(batch.size for batch in batches) == samples
    assert len(batches) == math.ceil(samples / (batch_size * EVALUATION_BATCHES))


def test_a_sample_is_the_first_batch():
    batch = source(numbered(20)).sample()
    assert batch.size == 8
    assert torch.equal(batch.targets, torch.arange(8))


def test_a_batch_unpacks_into_inputs_and_targets():
    inputs, targets = source(numbered(3)).sample()
    assert inputs.shape == (3, 2)
    assert targets.shape == (3,)


def test_what_a_batch_holds_is_not_the_caller_s_memory():
    inputs, targets = numbered(20)
    mine = source((inputs, targets))
    for batch in [*mine.epoch(0, 0), *mine.once(), mine.sample()]:
        batch.inputs.zero_()
        batch.targets.zero_()
    assert torch.equal(inputs, numbered(20)[0])
    assert torch.equal(targets, numbered(20)[1])


def test_a_model_that_works_in_place_does_not_change_the_data_of_the_run(run, valid):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, inputs):
            return self.layer(inputs.mul_(0.5))

    kept = valid[0].clone()
    losses = run(model=InPlace(), valid=valid, optimizer=lambda p: torch.optim.SGD(p, lr=0.0)).history["val_loss"]
    assert losses[0] == losses[1]
    assert torch.equal(valid[0], kept)


def test_numpy_arrays_become_tensors_and_float64_the_default_dtype():
    inputs, targets = numbered(20)
    array = np.asfortranarray(inputs.numpy().astype(np.float64))[::1]
    batch = source((array, targets.numpy())).sample()
    assert batch.inputs.dtype == torch.float32
    assert batch.targets.dtype == torch.int64
    assert torch.equal(batch.inputs, inputs[:8])


def test_reversed_and_read_only_arrays_are_fine():
    array = np.arange(20, dtype=np.float32)[::-1, None]
    array.setflags(write=False)
    batch = source((array, np.arange(20))).sample()
    assert batch.inputs[:, 0].tolist() == list(range(19, 11, -1))
    batch.inputs.zero_()
    assert array[0, 0] == 19


def test_a_read_only_array_is_copied_and_a_writable_one_is_not():
    """torch would give out a tensor that can be written to all the same, with a warning, once in a process."""
    array, targets = np.zeros((20, 2), np.float32), np.arange(20)
    assert source((array, targets))._inputs.data_ptr() == array.ctypes.data
    array.setflags(write=False)
    assert source((array, targets))._inputs.data_ptr() != array.ctypes.data


def test_double_tensors_are_meant():
    inputs, targets = numbered(20)
    assert source((inputs.double(), targets)).sample().inputs.dtype == torch.float64


@pytest.mark.parametrize("build", [lambda x: (x, 2 * x), lambda x: [x, 2 * x], lambda x: {"a": x, "b": 2 * x}])
def test_nests_are_cut_together_and_keep_their_type(build):
    inputs, targets = numbered(20)
    nest = build(inputs)
    for batch in [*source((nest, targets)).epoch(0, 0), *source((nest, targets)).once()]:
        assert type(batch.inputs) is type(nest)
        first, second = batch.inputs.values() if isinstance(nest, dict) else batch.inputs
        assert torch.equal(second, 2 * first)
        assert torch.equal(first[:, 0], batch.targets.float())


# -- loaders and iterables ---------------------------------------------------------------------------------------------


def order_of(batches):
    return torch.cat([batch.targets for batch in batches]).tolist()


def test_a_loader_with_its_own_generator_is_seeded_by_the_run_for_each_epoch():
    generator = torch.Generator().manual_seed(3)
    mine = source(loader(shuffle=True, generator=generator))
    first, again, later = order_of(mine.epoch(0, 0)), order_of(mine.epoch(0, 0)), order_of(mine.epoch(0, 1))
    assert first == again != later
    assert sorted(first) == sorted(later) == list(range(20))
    assert order_of(mine.epoch(1, 0)) != first


def test_a_sampler_with_its_own_generator_is_seeded_too():
    dataset = TensorDataset(*numbered(20))
    sampler = torch.utils.data.RandomSampler(dataset, generator=torch.Generator().manual_seed(3))
    mine = source(DataLoader(dataset, batch_size=8, sampler=sampler))
    assert order_of(mine.epoch(0, 0)) == order_of(mine.epoch(0, 0)) != order_of(mine.epoch(0, 1))


def test_looking_at_a_loader_moves_no_generator(untouched):
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    with untouched(None):
        source(loader(shuffle=True, generator=generator)).sample()
        source(loader(shuffle=True)).sample()
    assert torch.equal(generator.get_state(), before)


def test_kept_generators_are_put_back():
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    with KeptGenerators(loader(shuffle=True, generator=generator), None, [1, 2]):
        torch.rand(3, generator=generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("own", [True, False])
def test_a_run_on_a_shuffled_loader_is_reproducible_and_restores_its_generator(run, untouched, same_bits, own):
    found = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        generator = torch.Generator().manual_seed(noise) if own else None
        data = TensorDataset(torch.eye(4).repeat(5, 1), torch.arange(20) % 3)
        before = generator.get_state() if own else None
        with untouched(None):
            result = run(train=DataLoader(data, batch_size=8, shuffle=True, generator=generator))
        assert before is None or torch.equal(generator.get_state(), before)
        found.append(result.model)
    same_bits(*found)


def test_another_seed_is_another_order(run):
    def weights(seed):
        data = TensorDataset(torch.eye(4).repeat(5, 1), torch.arange(20) % 3)
        return run(train=DataLoader(data, batch_size=8, shuffle=True), seed=seed).model[0].weight

    assert not torch.equal(weights(0), weights(1))


class Endless(IterableDataset):
    def __iter__(self):
        yield from zip(*numbered(10), strict=True)


class Batches:
    """An iterable without length."""

    def __iter__(self):
        inputs, targets = numbered(20)
        yield from zip(inputs.split(8), targets.split(8), strict=True)


@pytest.mark.parametrize("data", [Batches(), DataLoader(Endless(), batch_size=8)])
def test_an_iterable_without_length_has_no_length(data):
    mine = source(data)
    assert length(mine) is None
    assert len(order_of(mine.epoch(0, 0))) == len(order_of(mine.epoch(0, 1)))


def test_the_length_of_a_run_on_an_iterable_without_length_is_a_clear_error(run):
    @trick
    class Asks:
        """Ask how long the run is. Cost: none."""

        @hookimpl
        def fit_start(self, state):
            state.total_steps  # noqa: B018

    class Mine:
        def __iter__(self):
            return iter([(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))])

    assert len(run(train=Mine()).history) == 2
    with pytest.raises(
        tb.ConfigError, match="the length of the run is asked for, but nothing tells it: give max_steps"
    ):
        run([Asks()], train=Mine())
    assert run([Asks()], train=Mine(), max_steps=2).history["step"] == [1, 2]


def test_a_list_of_batches_is_an_iterable_with_a_length():
    inputs, targets = numbered(20)
    batches = list(zip(inputs.split(8), targets.split(8), strict=True))
    assert length(source(batches)) == 3
    assert order_of(source(batches).epoch(0, 0)) == list(range(20))
    assert [batch.size for batch in source(batches).once()] == [8, 8, 4]


def test_two_batches_in_a_list_are_not_a_pair_of_tensors():
    inputs, targets = numbered(16)
    batches = list(zip(inputs.split(8), targets.split(8), strict=True))
    assert [batch.size for batch in source(batches).once()] == [8, 8]


def test_batches_of_arrays_are_converted():
    batch = source([(np.zeros((3, 2)), np.zeros(3, dtype=np.int64))]).sample()
    assert batch.inputs.dtype == torch.float32
    assert batch.size == 3


def test_a_mapping_is_a_batch_that_is_taken_by_name_and_its_labels_are_the_targets():
    inputs, targets = numbered(5)
    mine = UserDict({"x": inputs.numpy(), "labels": targets, "name": "text"})
    batch = source([mine]).sample()
    assert type(batch.inputs) is dict
    assert batch.inputs.keys() == mine.keys()
    assert torch.equal(batch.inputs["x"], inputs)
    assert batch.inputs["labels"] is batch.targets
    assert (batch.size, batch.inputs["name"]) == (5, "text")
    assert type(mine["x"]) is np.ndarray, "the caller's mapping was changed"
    (other,) = source([{"x": inputs}]).once()
    assert (other.targets, other.size) == (None, 5)


def test_the_size_of_a_batch_ignores_numbers_without_dimension():
    assert source([({"scale": torch.tensor(2.0), "x": torch.zeros(5, 2)}, torch.zeros(5))]).sample().size == 5


def test_a_loader_that_is_empty_the_second_time_is_an_error(run):
    class Once:
        def __init__(self):
            self.batches = iter([(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))] * 3)

        def __iter__(self):
            yield from self.batches

    with pytest.raises(tb.DataError, match=r"train gave no batch; .* every time it is gone through"):
        run(train=Once())


# -- how a model is called ---------------------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, left, right):
        return self.layer(left) - self.layer(right)


@pytest.mark.parametrize(
    "build",
    [lambda x: (x, -x), lambda x: [x, -x], lambda x: {"left": x, "right": -x}, lambda x: {"right": -x, "left": x}],
)
def test_tuples_lists_and_mappings_reach_the_model_as_arguments(run, data, same_bits, build):
    def one(inputs, model, **options):
        with forked(0):
            net = model()
        return run(model=net, train=(inputs, data[1]), **options).model

    class Direct(Two):
        def forward(self, inputs):
            return super().forward(inputs, -inputs)

    same_bits(one(build(data[0]), Two), one(data[0], Direct))


def test_forward_overrides_the_call(run, data, same_bits):
    with forked(0):
        one, other = Two(), Two()
    other.load_state_dict(one.state_dict())
    run(model=one, train=data, forward=lambda model, x: model(left=x, right=-x))
    run(model=other, train=((data[0], -data[0]), data[1]))
    same_bits(one, other)


@pytest.mark.parametrize("own_generator", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"shuffle": True}, {"shuffle": True, "drop_last": True}, {"sampler": [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]}],
    ids=str,
)
def test_a_plain_loader_is_read_in_whole_batches_with_the_same_bits_and_draws(options, own_generator):
    def loader():
        generator = torch.Generator().manual_seed(5) if own_generator else None
        return DataLoader(TensorDataset(*numbered(21)), batch_size=4, generator=generator, **options)

    one, other = loader(), loader()
    assert _whole_batches(one) is not None
    torch.manual_seed(7)
    expected = list(one)
    state = torch.get_rng_state()
    torch.manual_seed(7)
    found = list(source(other).once())
    assert torch.equal(torch.get_rng_state(), state)
    assert len(found) == len(expected)
    for batch, (inputs, targets) in zip(found, expected, strict=True):
        assert torch.equal(batch.inputs, inputs)
        assert torch.equal(batch.targets, targets)
    if own_generator:
        assert torch.equal(one.generator.get_state(), other.generator.get_state())


class Subclass(TensorDataset):
    def __getitem__(self, index):
        return tuple(2 * tensor for tensor in super().__getitem__(index))


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Subclass(*numbered(8)), batch_size=4),
        DataLoader(TensorDataset(*numbered(8)), batch_size=4, collate_fn=lambda samples: samples),
        DataLoader(TensorDataset(*numbered(8)), batch_size=None),
        DataLoader(TensorDataset(*numbered(8)), batch_size=4, num_workers=1),
        [numbered(8)],
    ],
    ids=["subclass", "collate_fn", "no batch", "workers", "no loader"],
)
def test_any_other_loader_is_asked_itself(loader):
    assert _whole_batches(loader) is None


# -- NaN and infinity --------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    shape=st.sampled_from([(1, 1), (7, 2), (8, 4), (9, 2, 3), (40, 1), (5, 64)]),
    cells=st.lists(st.integers(0, 10**4), min_size=1, max_size=6),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    at_once=st.sampled_from([1, 16, 40, 10**6]),
)
def test_samples_that_are_not_finite_are_counted_across_the_borders_of_what_is_checked_at_once(
    shape, cells, value, at_once
):
    inputs = torch.zeros(shape)
    for cell in cells:
        inputs.view(-1)[cell % inputs.numel()] = value
    bad = len({cell % inputs.numel() // inputs[0].numel() for cell in cells})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trickbox.data.CHECKED_AT_ONCE", at_once)
        with pytest.raises(tb.DataError, match=f"^train: {bad} samples of the inputs hold NaN or infinity; clean"):
            check_finite("train", inputs, torch.zeros(len(inputs)))
        check_finite("train", torch.nan_to_num(inputs), torch.zeros(len(inputs)))


FINITE = {
    "no axis": torch.tensor(1.0),
    "no sample": torch.zeros(0),
    "no sample of three": torch.zeros(0, 3),
    "samples of nothing": torch.zeros(3, 0, 2),
    "integers": torch.arange(3),
    "booleans": torch.ones(3, 2, dtype=torch.bool),
    "complex numbers": torch.full((3, 2), complex(math.nan, 0)),
    "bfloat16": torch.full((3, 2), 3e38, dtype=torch.bfloat16),
    "turned": torch.zeros(2, 3).t(),
    "repeated": torch.zeros(1, 3).expand(5, 3),
}


@pytest.mark.parametrize("kind", FINITE)
def test_data_that_holds_no_infinity_or_cannot_passes_the_check(kind):
    check_finite("train", FINITE[kind], {"one": FINITE[kind]})


@pytest.mark.parametrize("kind", ["no axis", "bfloat16", "turned"])
def test_infinity_is_found_in_every_kind_of_floats(kind):
    count = "some" if kind == "no axis" else "3"
    with pytest.raises(tb.DataError, match=f"{count} samples of the targets hold NaN"):
        check_finite("train", torch.zeros(3), torch.full_like(FINITE[kind], math.inf))


class Made(TorchDispatchMode):
    """The bytes of the largest tensor that is made, and how often the program waits to read one."""

    def __init__(self):
        super().__init__()
        self.largest = self.read = 0

    def __torch_dispatch__(self, function, types, args=(), named=None):
        result = function(*args, **(named or {}))
        self.read += function is torch.ops.aten._local_scalar_dense.default
        if isinstance(result, torch.Tensor) and not function.is_view:
            self.largest = max(self.largest, result.nbytes)
        return result


def test_the_check_of_large_data_makes_no_large_tensor_and_reads_one_number():
    inputs, targets = torch.zeros(2**11, 2**13), torch.zeros(2**11)
    with Made() as made:
        check_finite("train", inputs, targets)
    assert made.largest <= CHECKED_AT_ONCE <= inputs.nbytes / 4
    assert made.read == 2
