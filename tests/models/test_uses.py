"""Every trick that edits a model, inside what people put around a model or make of it."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from functools import cache, partial

import pytest
import torch
import torch.distributed as dist
from built_ins import edits_only, every_trick
from core.test_bake import assert_near, export, lived, outputs, outputs_of
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import trickbox as tb
from trickbox.authoring import forked
from trickbox.catalog import available, get
from trickbox.nest import call, map_tensors, tensors
from trickbox.surgery.ledger import Added, Converted, ledger
from trickbox.testing.zoo import ZOO, specimen
from trickbox.trick import fresh

pytestmark = pytest.mark.slow

STARTS = ("mlp", "resnet", "gpt")
"""A trick is tried on the first models of the zoo, counted from each of these and around, in which it acts."""

every = pytest.mark.parametrize("name", [*filter(lambda name: edits_only(get(name)), available()), "attention_dropout"])


@pytest.fixture(scope="module")
def tricked(tmp_path_factory):
    """A function that gives a model with a trick on, the same at each call, and inputs."""
    tricks = every_trick(tmp_path_factory.mktemp("weights"))
    tricks["attention_dropout"] = fresh(tricks["dropout"], where="attention")

    def make(name, model_name, kind=torch.float32):
        trick, (model, inputs) = tricks[name], specimen(model_name)
        if name == "transfer":
            trick = fresh(trick, weights=specimen(model_name, seed=7)[0].state_dict())
        inputs = map_tensors(lambda tensor: tensor.to(kind) if tensor.is_floating_point() else tensor, inputs)
        return tb.apply(model.to(kind), [trick], inputs), inputs

    return make


@pytest.fixture(scope="module")
def acts(tricked):
    """A function that says whether a trick acts in a model."""

    def found(name, model_name):
        try:
            tricked(name, model_name)
        except tb.NoEffectError:
            return False
        return True

    return cache(found)


@pytest.fixture
def models(acts, name):
    """The names of the models on which the trick *name* is tried."""
    turns = [list(ZOO).index(start) for start in STARTS]
    orders = [[*ZOO][turn:] + [*ZOO][:turn] for turn in turns]
    return list(dict.fromkeys(next(model for model in order if acts(name, model)) for order in orders))


def loss_of(model, inputs):
    """A loss in which the model's own dropouts draw the same at each call."""
    with forked(1):
        return sum(output.square().mean() for output in tensors(call(model, inputs)) if output.requires_grad)


def same(some, others):
    """Whether the same names stand for the same bits."""
    return some.keys() == others.keys() and all(torch.equal(value, others[name]) for name, value in some.items())


# -- DistributedDataParallel -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def alone(file):
    """A process group of this process only."""
    dist.init_process_group("gloo", store=dist.FileStore(str(file), 1), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def trained(wrapped, model, inputs):
    """The state of *model* after two steps of what is around it: a second one needs that all took part in the first."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(wrapped, inputs).backward()
        optimizer.step()
    return model.state_dict()


def trained_as_a_rank(model, inputs):
    """The state of *model* after its training as one of many ranks, and the parameters whose gradients were shared.

    What wraps the model goes before its group does: the last owner of a group waits for the group's thread while it
    holds Python's lock, and that thread needs the lock to let go of *share*.
    """
    wrapped, shared = DistributedDataParallel(model), set()

    def share(group, bucket):
        shared.update(bucket.parameters())
        return allreduce_hook(group, bucket)

    wrapped.register_comm_hook(None, share)
    return trained(wrapped, model, inputs), shared


@every
def test_one_rank_trains_as_no_rank_and_shares_all_gradients(tricked, models, name, tmp_path):
    for model_name in models:
        model, inputs = tricked(name, model_name)
        before = copy.deepcopy(model.state_dict())
        expected = trained(model, model, inputs)
        assert not same(before, expected), model_name
        with alone(tmp_path / model_name):
            model, inputs = tricked(name, model_name)
            found, shared = trained_as_a_rank(model, inputs)
            assert same(found, expected), model_name
        assert shared == {p for p in model.parameters() if p.requires_grad}, model_name


# -- torch.export ------------------------------------------------------------------------------------------------------


@every
def test_a_baked_model_is_exported_with_equal_outputs(tricked, models, name):
    for model_name in models:
        model, inputs = tricked(name, model_name, torch.float64)
        expected = outputs(lived(model), inputs)
        assert_near(outputs_of(export(tb.bake(model), inputs), inputs), expected)


# -- activation checkpointing ------------------------------------------------------------------------------------------


def hosts(model):
    """The modules on which a trick acts: what something is attached to, or what stands there instead."""
    edits = ledger(model).edits
    replaced = {model.get_submodule(edit.path) for edit in edits if isinstance(edit, Converted)}
    return replaced | {edit.host for edit in edits if isinstance(edit, Added)}


def gradients(model, inputs, around=lambda model: model):
    """The gradients of one backward through what is put *around* the model, and how often each host ran."""
    runs = Counter()
    for host in hosts(model):
        host.register_forward_pre_hook(lambda host, _: runs.update([host]))
    parameters = dict(model.named_parameters())
    loss_of(around(model), inputs).backward()
    return {name: p.grad for name, p in parameters.items() if p.grad is not None}, sorted(runs.values())


def layers(model):
    """*model* with each layer or block that holds parameters in a region of its own.

    What holds none may work in place, on what the region in front of it has given.
    """
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList):
            layers(child)
        elif list(child.parameters()):
            model._modules[name] = CheckpointWrapper(child)
    return model


@pytest.mark.parametrize("regions", [CheckpointWrapper, layers])
@every
def test_gradients_under_checkpointing_are_those_without(tricked, models, name, regions):
    for model_name in models:
        expected, once = gradients(*tricked(name, model_name))
        found, twice = gradients(*tricked(name, model_name), regions)
        assert same(found, expected), model_name
        assert twice == [2 * runs for runs in once], model_name


INSIDE = {
    "dropout": {"lstm": "lstm"},
    "stochastic_depth": {"convnext": "add"},
    "re_zero": {"mlp_mixer": "add"},
    "squeeze_excite": {"convnext": "add"},
    "qk_norm": {
        "vit": "scaled_dot_product_attention",
        "gpt": "scaled_dot_product_attention",
        "gpt2": "matmul",
        "transformer_encoder": "multi_head_attention_forward",
    },
    "attention_dropout": {
        "vit": "scaled_dot_product_attention",
        "gpt": "scaled_dot_product_attention",
        "transformer_encoder": "multi_head_attention_forward",
    },
}
"""Models in which a trick acts on a function that a module calls in its own forward."""


def repeating(forward):
    """*forward* of a class of modules, run in a region around which the hooks of the modules stand."""
    return lambda self, *args, **named: checkpoint(partial(forward, self), *args, use_reentrant=False, **named)


@every
def test_a_region_inside_a_forward_is_refused_by_the_name_of_a_function_that_a_trick_changes_there(
    tricked, models, name, monkeypatch
):
    functions = INSIDE.get(name, {})
    for model_name in dict.fromkeys([*models, *functions]):
        expected, _ = gradients(*tricked(name, model_name))
        model, inputs = tricked(name, model_name)
        words = f"a trick acts on {functions.get(model_name)}, which is called inside activation checkpointing"
        refused = pytest.raises(tb.SurgeryError, match=words) if model_name in functions else contextlib.nullcontext()
        with monkeypatch.context() as patch, refused:
            for kind in {type(host) for host in hosts(model)}:
                patch.setattr(kind, "forward", repeating(kind.forward))
            found, _ = gradients(model, inputs)
            assert same(found, expected), model_name
