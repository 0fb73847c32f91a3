"""Functions in the middle of a forward: told apart, changed as a hand-written net would, and given back."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trickbox.errors import SurgeryError
from trickbox.surgery import Rank, Site, Surgery, try_out, undo
from trickbox.surgery.inside import name_of
from trickbox.testing.zoo import specimen

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


class Inner(nn.Module):
    """Adds and activates too, which is its own business."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.linear(x)) + 1)


class Net(nn.Module):
    """Functions between modules, in several spellings; `marked` is what a test changes by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = Inner(), Inner(), nn.Linear(4, 4)

    def marked(self, x: Tensor, name: str) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.marked(self.first(x) + x, "sum")
        x = torch.relu(self.second(x))
        x = x.add(self.marked(torch.tanh(x), "tanh"))
        x += 1
        return self.last(self.marked(F.relu(x), "relu"))


class Pooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool1d(x, 2)


class Tripled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 3


class Shifted(nn.Module):
    """Instead of a function: the function of something else, and more."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.5))

    def forward(self, function: Callable[..., Tensor], *args: Any, **settings: Any) -> Tensor:
        return function(*args, **settings) + self.shift


def by_hand(**marks: Callable[[Tensor], Tensor]) -> nn.Module:
    class ByHand(Net):
        def marked(self, x: Tensor, name: str) -> Tensor:
            return marks[name](x) if name in marks else x

    return ByHand()


def site(surgery: Surgery, label: str) -> Site:
    return next(each for each in surgery.functions() if each.label == label)


def operated(model: nn.Module, label: str, child: nn.Module, way: str = "insert", inputs: Any = X) -> nn.Module:
    surgery = Surgery.on(model, inputs)
    getattr(surgery, way)(site(surgery, label), child, Rank.DROPOUT)
    try_out(surgery)
    return model


def is_plain(model: nn.Module) -> bool:
    hooks = [hook for m in model.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    return not hooks and not any("forward" in vars(m) or "trickbox" in m._modules for m in model.modules())


CASES = {
    "after an operator": ("(model):add[0]", Tripled(), "insert", by_hand(sum=lambda x: x * 3)),
    "after a function": ("(model):tanh", Tripled(), "insert", by_hand(tanh=lambda x: x * 3)),
    "before a method's second input": ("(model):add[1]", Tripled(), "second", by_hand(tanh=lambda x: x * 3)),
    "instead": ("(model):relu[1]", Shifted(), "insert_instead", by_hand(relu=lambda x: x + 0.5)),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    label, child, way, expected = CASES[request.param]
    model = Net()
    if way == "second":
        surgery = Surgery.on(model, X)
        surgery.insert_before(site(surgery, label), copy.deepcopy(child), Rank.DROPOUT, tensor=1)
        return model, copy.deepcopy(expected)
    return operated(model, label, copy.deepcopy(child), way), copy.deepcopy(expected)


def test_every_function_of_a_forward_is_a_site_and_none_of_the_modules_inside() -> None:
    labels = [each.label for each in Surgery.on(Net(), X).functions() if each.path == ""]
    assert " ".join(labels).replace("(model):", "") == "add[0] relu[0] tanh add[1] add[2] relu[1]"


@pytest.mark.parametrize("training", [False, True])
def test_it_is_the_hand_written_net_bit_for_bit(case: tuple[nn.Module, nn.Module], training: bool) -> None:
    model, expected = case
    outputs = [each.train(training)(X) for each in (model, expected)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    own = [p.grad for name, p in model.named_parameters() if "trickbox" not in name]
    assert all(map(torch.equal, own, [p.grad for p in expected.parameters()]))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_does_the_same_with_children_of_its_own(clone: Any) -> None:
    model = operated(Net(), "(model):relu[1]", Shifted(), "insert_instead").eval()
    copied = clone(model)
    assert torch.equal(copied(X), model(X))
    with torch.no_grad():
        copied.trickbox.get_submodule(next(name for name, _ in copied.trickbox.named_children())).shift.fill_(9.0)
    assert not torch.equal(copied(X), model(X))
    undo(copied)
    assert is_plain(copied)
    assert torch.equal(copied(X), Net().eval()(X))


@pytest.mark.parametrize("training", [False, True])
def test_it_compiles_into_one_graph(case: tuple[nn.Module, nn.Module], training: bool) -> None:
    model, _ = case
    model.train(training)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager")
    assert torch.equal(compiled(X), model(X))
    assert torch.equal(compiled(X + 1), model(X + 1))


def test_undo_leaves_no_trace(case: tuple[nn.Module, nn.Module]) -> None:
    model, _ = case
    undo(model)
    assert is_plain(model)
    assert torch.equal(model.eval()(X), Net().eval()(X))


def test_one_of_two_edits_can_be_taken_back() -> None:
    model = operated(Net(), "(model):tanh", Tripled()).eval()
    before = model(X)
    surgery = Surgery.on(model, X)
    from trickbox.surgery import edits_of, undo_since

    made = edits_of(model)
    surgery.insert(site(surgery, "(model):relu[1]"), Tripled(), Rank.DROPOUT)
    assert not torch.equal(model(X), before)
    undo_since(model, made)
    assert torch.equal(model(X), before)


def test_a_module_inside_a_module_is_a_host_of_its_own() -> None:
    model = operated(Net(), "(model):add[0]", Tripled())
    model = operated(model, "first:add", Tripled()).eval()

    class ByHandInner(Inner):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu((self.norm(self.linear(x)) + 1) * 3)

    expected = by_hand(sum=lambda x: x * 3)
    expected.first.__class__ = ByHandInner
    assert torch.equal(model(X), expected.eval()(X))


def test_what_other_tricks_attach_inside_is_not_counted() -> None:
    model = operated(Net(), "(model):add[0]", Tripled())

    class Adds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    surgery = Surgery.on(model, X)
    surgery.insert(next(s for s in surgery.sites(Inner) if s.path == "first"), Adds(), Rank.NORM)
    expected = by_hand(sum=lambda x: (x + 1) * 3)
    torch.testing.assert_close(model.eval()(X), expected.eval()(X))


def test_each_call_of_a_host_is_told_apart() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x))

    plain = Twice().eval()
    model = operated(copy.deepcopy(plain), "inner[1]:add", Tripled())
    inner = plain.inner
    once = inner(X)
    assert torch.equal(model(X), F.relu((inner.norm(inner.linear(once)) + 1) * 3))
    assert torch.equal(model(X), model(X))


@pytest.mark.parametrize("times", [1, 3])
def test_other_calls_than_planned_are_an_error(times: int) -> None:
    class Varies(nn.Module):
        times = 2

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.times):
                x = torch.tanh(x)
            return x

    model = operated(Varies(), "(model):tanh[0]", Tripled())
    model.times = times
    with pytest.raises(
        SurgeryError, match=rf"Varies called tanh {times} times in one forward, .* planned for 2; apply"
    ):
        model(X)


def test_a_forward_that_failed_leaves_the_next_one_in_order() -> None:
    class Fails(Inner):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] == 1:
                raise ValueError("too short")
            return super().forward(x)

    plain = Net()
    plain.first.__class__ = Fails
    model = operated(copy.deepcopy(plain), "(model):add[0]", Tripled()).eval()
    before = model(X)
    with pytest.raises(ValueError, match="too short"):
        model(X[:1])
    assert torch.equal(model(X), before)


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_checkpointing_gradients_stay(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self, part: nn.Module) -> None:
            super().__init__()
            self.part = part

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.part, x, use_reentrant=reentrant)

    x = X.clone().requires_grad_()
    model = Checkpointed(Net().eval())
    operated(model, "part:tanh", Tripled(), inputs=x)
    model(x).sum().backward()
    found, x.grad = x.grad, None
    by_hand(tanh=lambda t: t * 3).eval()(x).sum().backward()
    assert torch.equal(found, x.grad)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_within_the_forward_is_refused(reentrant: bool) -> None:
    class Inside(nn.Module):
        checkpoints = False

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(torch.tanh, x, use_reentrant=reentrant) if self.checkpoints else torch.tanh(x)

    model = operated(Inside(), "(model):tanh", Tripled())
    model.checkpoints = True
    with pytest.raises(SurgeryError, match="acts on tanh, which is called inside activation checkpointing"):
        model(X.clone().requires_grad_())


def test_a_forward_set_on_the_object_is_refused() -> None:
    model = Net()
    model.forward = model.forward
    with pytest.raises(SurgeryError, match="Net has a forward that was set on the object"):
        operated(model, "(model):tanh", Tripled())


def test_before_a_method_that_changes_its_tensor_in_place_is_refused() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            y.add_(x)
            return y

    with pytest.raises(SurgeryError, match=r"\(model\):add changes its first input in place; act after it instead"):
        operated(InPlace(), "(model):add", Tripled(), "insert_before")
    second = operated(InPlace(), "(model):mul", Tripled())
    assert torch.equal(second(X), X * 2 * 3 + X)


@pytest.mark.parametrize(
    "spelling", [lambda x: x + x, lambda x: torch.add(x, x), lambda x: x.add(x), lambda x: x.clone().add_(x)]
)
def test_all_spellings_of_a_function_are_one(spelling: Callable[[Tensor], Tensor]) -> None:
    class Spelt(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return spelling(x)

    assert torch.equal(operated(Spelt(), "(model):add", Tripled())(X), X * 6)
    assert name_of(torch.add) == name_of(Tensor.add_) == name_of(Tensor.__add__) == "add"


def test_a_container_that_runs_its_children_in_a_row_runs_past_what_is_attached() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    expected = model(X) * 3
    surgery = Surgery.on(model, X)
    surgery.insert(surgery.sites(nn.Sequential)[0], Tripled(), Rank.DROPOUT)
    try_out(surgery)
    assert torch.equal(model(X), expected)
    assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(X), expected)


@pytest.mark.parametrize("name", ["convnext", "gpt", "gpt2", "bert", "mlp_mixer", "mixture_of_experts"])
def test_every_function_of_a_model_can_be_reached(name: str) -> None:
    """The identity behind each of them, alone and all together, changes no bit in any mode."""
    model, inputs = specimen(name)
    model.eval()
    from trickbox.nest import call, tensors

    before = list(tensors(call(model, inputs)))
    surgery = Surgery.on(model, inputs)
    for each in surgery.functions():
        surgery.insert(each, nn.Identity(), Rank.DROPOUT)
    try_out(surgery)
    assert all(map(torch.equal, tensors(call(model, inputs)), before))
    undo(model)
    assert is_plain(model)


def test_functions_that_no_pickle_holds_can_be_acted_on_in_a_copy() -> None:
    model = operated(Pooled(), "(model):max_pool1d", Tripled())
    assert torch.equal(pickle.loads(pickle.dumps(model))(X), F.max_pool1d(X, 2) * 3)
