"""The tricks of one run: spellings, names, relations, order, and a compiled dispatch that equals pluggy's."""

# ruff: noqa: ARG005  # hooks, losses and metrics have fixed signatures

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from attrs import field
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import trickbox as tb
from trickbox.authoring import integer, trick
from trickbox.box import Box
from trickbox.hooks import HOOKS, MOMENTS, PHASES, Hooks, hookimpl
from trickbox.trick import to_config


def make(name, log=None, **facts):
    """A trick class called *name* that writes its name into *log* in every batch."""

    @hookimpl
    def batch(self, state):
        if log is not None:
            log.append(name)

    return trick(type(name, (), {"__doc__": "Toy. Cost: none.", "batch": batch, **facts}))


A, B, C = make("Ant"), make("Bee", family="insects"), make("Cat")


def names(box):
    return [member.name for member in box.members]


# -- spellings and names -----------------------------------------------------------------------------------------------


def test_three_spellings_mean_the_same():
    box = Box(
        [tb.get("dropout")(), "dropout", {"trick": "dropout"}, ("head", "dropout"), ("json", {"trick": "dropout"})]
    )
    assert len({str(to_config(member.trick)) for member in box.members}) == 1
    assert names(box) == ["dropout", "dropout#2", "dropout#3", "head", "json"]


def test_settings_of_the_json_form_arrive():
    assert Box([{"trick": "dropout", "p": 0.25}]).members[0].trick.p == 0.25


def test_the_caller_s_mapping_stays_as_it_is():
    spec = {"trick": "dropout", "p": 0.25}
    Box([spec])
    assert spec == {"trick": "dropout", "p": 0.25}


def test_two_of_one_kind_are_numbered():
    assert names(Box([A(), A(), C(), A()])) == ["ant", "ant#2", "cat", "ant#3"]


def test_a_number_never_takes_a_name_that_is_there():
    assert names(Box([("ant#2", A()), A(), A()])) == ["ant#2", "ant", "ant#3"]


@pytest.mark.parametrize("alias", ["", "core", 3, None.__class__])
def test_an_alias_must_be_a_new_word(alias):
    with pytest.raises(tb.ConfigError, match="the name of a trick must be a new word"):
        Box([(alias, A())])


def test_an_alias_used_twice_is_refused():
    with pytest.raises(tb.ConfigError, match=r"got 'x'; taken: \['x'\]"):
        Box([("x", A()), ("x", C())])


def test_an_unknown_trick_has_a_near_match():
    with pytest.raises(tb.ConfigError, match=r"no trick 'dropuot' is installed\. Did you mean 'dropout'\?"):
        Box(["dropuot"])


def test_a_class_instead_of_an_object_is_refused_with_the_fix():
    with pytest.raises(tb.ConfigError, match=r"Ant is a class; make an object of it: Ant\(\)"):
        Box([A])


@pytest.mark.parametrize("tricks", [A(), "dropout", {"trick": "dropout"}, A, None])
def test_one_trick_instead_of_a_list_is_refused_with_the_fix(tricks):
    with pytest.raises(tb.ConfigError, match=r"tricks must be a list, .*write tricks=\["):
        Box(tricks)


@pytest.mark.parametrize("spec", [3, object(), dict, None, ["dropout"]])
def test_what_is_no_trick_is_refused(spec):
    with pytest.raises(tb.ConfigError, match="a trick is"):
        Box([spec])


def test_a_subclass_that_is_not_decorated_is_refused():
    class Child(A):
        def batch(self, state):
            """Would vanish silently."""

    with pytest.raises(tb.ConfigError, match=r"@trickbox\.authoring\.trick"):
        Box([Child()])


@pytest.mark.parametrize("spec", [{}, {"p": 0.1}, {"trick": 3}])
def test_a_mapping_without_a_name_is_refused(spec):
    with pytest.raises(tb.ConfigError, match="in JSON form needs its name"):
        Box([spec])


def test_a_trick_without_hooks_is_refused():
    with pytest.raises(tb.ConfigError, match="idle implements no hook"):
        Box([trick(type("Idle", (), {"__doc__": "Idle."}))()])


def test_a_generator_of_tricks_is_a_list_too():
    assert names(Box(cls() for cls in (A, C))) == ["ant", "cat"]


# -- copies ------------------------------------------------------------------------------------------------------------


@trick
class Counter:
    """Count batches. Cost: none."""

    step: int = field(default=1, validator=integer(1))
    seen: list[int] = field(factory=list, init=False)

    @hookimpl
    def batch(self, state):
        self.seen.append(self.step)


def test_two_boxes_share_no_state_and_leave_the_caller_s_object_alone():
    mine = Counter(step=2)
    mine.seen.append(99)
    boxes = [Box([mine, mine]), Box([mine])]
    call = boxes[0].compiled("batch")
    call(None)
    call(None)
    assert [m.trick.seen for box in boxes for m in box.members] == [[2, 2], [2, 2], []]
    assert mine.seen == [99]
    assert len({id(m.trick) for box in boxes for m in box.members} | {id(mine)}) == 4


# -- relations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["bee", "insects"])
def test_conflicts_by_name_and_family_whichever_stands_first(word):
    D = make("Dog", conflicts=(word,))
    for tricks in ([D(), B()], [B(), D()]):
        with pytest.raises(tb.ConfigError, match="dog and bee cannot be in the same run"):
            Box(tricks)
    assert names(Box([D(), A()])) == ["dog", "ant"]


def test_a_trick_that_conflicts_with_its_own_family_may_stand_alone():
    D = make("Dog", conflicts="pets", family="pets")
    assert names(Box([D()])) == ["dog"]
    with pytest.raises(tb.ConfigError, match="dog and dog#2"):
        Box([D(), D()])


@pytest.mark.parametrize("word", ["bee", "insects", "maya"])
def test_requires_by_name_family_and_alias(word):
    D = make("Dog", requires=word)
    with pytest.raises(tb.ConfigError, match=f"dog needs '{word}' in the same run; add it"):
        Box([D(), A()])
    assert names(Box([D(), ("maya", B())])) == ["dog", "maya"]


def test_a_trick_does_not_satisfy_its_own_requirement():
    with pytest.raises(tb.ConfigError, match="dog needs 'pets'"):
        Box([make("Dog", requires=("pets",), family="pets")()])


@pytest.mark.parametrize("word", ["bee", "insects", "maya"])
def test_after_by_name_family_and_alias(word):
    log = []
    D, E = make("Dog", log, after=word), make("Bee", log, family="insects")
    box = Box([D(), A(), ("maya", E())])
    assert names(box) == ["ant", "maya", "dog"]
    box.compiled("batch")(None)
    assert log == ["Bee", "Dog"]


def test_two_of_one_kind_do_not_wait_for_each_other():
    D = make("Dog", after=("dog", "pets"), family="pets")
    assert names(Box([D(), D()])) == ["dog", "dog#2"]


def test_after_names_what_is_absent_without_harm():
    assert names(Box([make("Dog", after=("wolf", "insects"))(), A()])) == ["dog", "ant"]


def test_a_circle_is_an_error_that_names_its_tricks():
    D, E = make("Dog", after="eel"), make("Eel", after="dog")
    with pytest.raises(tb.ConfigError, match=r"circular: (dog after eel after dog|eel after dog after eel)"):
        Box([A(), D(), E()])


@settings(deadline=None, max_examples=60)
@given(relations=st.lists(st.sets(st.integers(0, 4), max_size=2), min_size=1, max_size=5), data=st.data())
def test_the_order_is_the_first_one_that_holds_every_after(relations, data):
    size = len(relations)
    order = data.draw(st.permutations(range(size)))
    wanted = {i: {j for j in relations[i] if j < size and j != i} for i in range(size)}
    tricks = [make(f"T{i}", after=tuple(f"t{j}" for j in sorted(wanted[i])))() for i in order]
    # Oracle: of all orders that hold every relation, the first in the order of the list.
    valid = (
        found
        for found in itertools.permutations(order)
        if all(found.index(j) < found.index(i) for i in found for j in wanted[i])
    )
    expected = next(valid, None)
    if expected is None:
        with pytest.raises(tb.ConfigError, match="circular"):
            Box(tricks)
    else:
        assert names(Box(tricks)) == [f"t{i}" for i in expected]


def test_order_tells_who_acts_where_and_why():
    D = make("Dog", after=("insects", "ant"))
    text = Box([D(), B(), A()]).order().splitlines()
    assert [line.split()[0] for line in text[1:11]] == list(HOOKS)
    assert next(line for line in text if line.split()[0] == "batch").split(maxsplit=1)[1] == "bee, ant, dog"
    assert next(line for line in text if line.split()[0] == "update").split() == ["update", "-"]
    assert text[-1].strip() == "dog: after ant, bee"
    assert "Order" not in Box([A(), C()]).order()


# -- init --------------------------------------------------------------------------------------------------------------


def editing(name, body, **facts):
    return trick(type(name, (), {"__doc__": "Toy. Cost: none.", "init": hookimpl(body), **facts}))


def test_a_trick_that_only_edits_and_did_not_edit_is_an_error(run):
    def init(self, state): ...

    with pytest.raises(tb.NoEffectError, match="lazy acted nowhere: it looked for a place to act; the model ran"):
        run([editing("Lazy", init)()])


def test_a_trick_that_skipped_everything_did_not_edit(run):
    def init(self, state):
        for site in state.surgery.anatomy.layers:
            state.surgery.skip(site, "too small")

    with pytest.raises(tb.NoEffectError, match="Left alone: 0: too small; 2: too small"):
        run([editing("Picky", init)()])


def test_a_trick_at_its_off_settings_need_not_act(run):
    def init(self, state): ...

    assert len(run([editing("Quiet", init, off={})()]).history) == 2


def test_the_edit_of_one_trick_does_not_excuse_another(run):
    def edit(self, state):
        state.surgery.note("here", "done")

    def init(self, state): ...

    with pytest.raises(tb.NoEffectError, match="lazy acted nowhere"):
        run([editing("Busy", edit)(), editing("Lazy", init)()])


# -- dispatch ----------------------------------------------------------------------------------------------------------


def test_the_specifications_are_the_ten_hooks():
    assert [name for name in vars(Hooks) if not name.startswith("_")] == list(HOOKS)
    assert sorted(MOMENTS + PHASES) == sorted(HOOKS)
    assert len(HOOKS) == 10
    for hook in HOOKS:
        assert getattr(Hooks, hook).trickbox_spec["firstresult"] == (hook in PHASES)


def test_no_implementation_is_none_and_one_is_the_method_itself():
    box = Box([A()])
    assert all(box.compiled(hook) is None for hook in HOOKS if hook != "batch")
    assert box.compiled("batch") == box.members[0].trick.batch
    assert all(Box([]).compiled(hook) is None for hook in HOOKS)


class PlantedError(Exception):
    pass


class OtherPlantedError(Exception):
    pass


PLAIN = ("none", "answer", "zero", "raise")
WRAPPERS = ("pass", "replace", "finally", "raise_before", "raise_after", "swallow", "convert")


def implementation(hook, kind, label, log):
    """A hook of one kind: what it does is told by the kind, and every step of it is logged."""

    def plain(self, state):
        log.append((label, kind))
        if kind == "raise":
            raise PlantedError(label)
        return {"none": None, "answer": label, "zero": 0}[kind]

    def wrapper(self, state):
        log.append((label, "before"))
        if kind == "raise_before":
            raise PlantedError(label)
        try:
            result = yield
        except PlantedError:
            log.append((label, "saw"))
            if kind == "swallow":
                return f"{label} instead"
            if kind == "convert":
                raise OtherPlantedError(label) from None
            raise
        finally:
            log.append((label, "after"))
        if kind == "raise_after":
            raise PlantedError(label)
        return f"{label} over {result}" if kind == "replace" else result

    function = plain if kind in PLAIN else wrapper
    function.__name__ = hook
    return hookimpl(wrapper=kind in WRAPPERS)(function)


def outcome(call, log):
    log.clear()
    try:
        result = call()
    except (PlantedError, OtherPlantedError) as error:
        return "raised", type(error), str(error), list(log)
    return "returned", result, list(log)


@settings(deadline=None, max_examples=150)
@given(
    case=st.sampled_from(["batch", "fit_end", "backward", "update"]).flatmap(
        lambda hook: st.tuples(
            st.just(hook),
            st.lists(st.sampled_from(PLAIN + WRAPPERS if hook in PHASES else PLAIN), min_size=1, max_size=5),
        )
    )
)
def test_the_compiled_dispatch_equals_pluggy(case):
    (hook, kinds), log = case, []
    tricks = [
        trick(type(f"T{i}", (), {"__doc__": "Toy.", hook: implementation(hook, kind, f"t{i}", log)}))()
        for i, kind in enumerate(kinds)
    ]
    box = Box(tricks)
    state = SimpleNamespace()
    compiled = outcome(lambda: box.compiled(hook)(state), log)
    pluggy = outcome(lambda: getattr(box.manager.hook, hook)(state=state), log)
    if hook in MOMENTS and compiled[0] == pluggy[0] == "returned":  # nobody asks for the result of a moment
        compiled, pluggy = compiled[2], pluggy[2]
    assert compiled == pluggy
    # Oracle for the order, without pluggy: wrappers in the order of the list, then plain ones in that order.
    first = list(dict.fromkeys(label for label, step in log if step not in ("after", "saw")))
    wrapped = [f"t{i}" for i, kind in enumerate(kinds) if kind in WRAPPERS]
    plain = [f"t{i}" for i, kind in enumerate(kinds) if kind in PLAIN]
    assert first == (wrapped + plain)[: len(first)]


def test_the_core_is_asked_last_and_wrapped_by_all():
    log = []

    class Core:
        @hookimpl
        def backward(self, state):
            log.append("core")
            return "core"

    tricks = [
        trick(type(f"T{i}", (), {"__doc__": "Toy.", "backward": implementation("backward", kind, f"t{i}", log)}))()
        for i, kind in enumerate(["none", "replace", "none", "pass"])
    ]
    assert Box(tricks, Core()).compiled("backward")(None) == "t1 over core"
    assert log == [
        ("t1", "before"), ("t3", "before"), ("t0", "none"), ("t2", "none"), "core", ("t3", "after"), ("t1", "after"),
    ]  # fmt: skip


def test_the_first_answer_wins_and_nobody_after_it_is_asked():
    log = []
    tricks = [
        trick(type(f"T{i}", (), {"__doc__": "Toy.", "update": implementation("update", kind, f"t{i}", log)}))()
        for i, kind in enumerate(["none", "zero", "answer"])
    ]
    assert Box(tricks).compiled("update")(None) == 0
    assert log == [("t0", "none"), ("t1", "zero")]


def test_the_implementations_of_a_hook_come_in_call_order():
    box = Box([make("Dog", after="ant")(), A(), ("x", C())])
    assert box.acting("batch") == ["ant", "dog", "x"]
    assert [function.__self__ for function in box.each("batch")] == [member.trick for member in box.members]
    assert box.each("update") == box.wrappers("update") == box.answers("update") == []


# -- the record --------------------------------------------------------------------------------------------------------


def test_the_record_has_name_settings_and_origin_of_every_trick():
    record = Box([("head", {"trick": "dropout", "p": 0.25}), Counter(3)]).record()
    assert [entry["name"] for entry in record] == ["head", "counter"]
    assert record[0]["trick"] == "dropout"
    assert record[0]["p"] == 0.25
    assert record[0]["class"] == "trickbox_tricks.dropout:Dropout"
    assert record[0]["distribution"].startswith("trickbox ")
    assert record[1]["step"] == 3
    assert record[1]["distribution"] == "not registered"


class Facts:
    """Only to see that facts of a plain base class arrive."""

    after: ClassVar = "ant"


def test_facts_may_come_from_a_base_class():
    D = trick(type("Dog", (Facts,), {"__doc__": "Toy.", "batch": hookimpl(lambda self, state: None)}))
    assert names(Box([D(), A()])) == ["ant", "dog"]


def test_an_optional_trick_without_a_place_is_left_out_with_a_note():
    bare = nn.Sequential(nn.Linear(2, 2))
    tricks = [tb.optional("residual"), tb.optional("dropout")]
    found = tb.explain(bare, torch.zeros(4, 2), tricks)
    assert "left out: residual acted nowhere: it looked for chains" in found
    assert "left out: dropout acted nowhere" in found
    assert list(tb.apply(bare, tricks, torch.zeros(4, 2)).state_dict()) == ["0.weight", "0.bias"]
    with pytest.raises(tb.NoEffectError, match="residual acted nowhere"):
        tb.apply(bare, ["residual"], torch.zeros(4, 2))


def test_an_optional_trick_that_finds_its_place_acts_as_ever(run, same_bits):
    same_bits(run([tb.optional("dropout")]).model, run(["dropout"]).model)


def test_what_an_optional_trick_did_before_it_gave_up_is_undone(run, same_bits):
    def init(self, state):
        state.batches_per_update = 2
        state.surgery.write("0.weight", torch.zeros_like(state.model[0].weight))
        state.surgery.require([], "the impossible")

    def batch(self, state):
        raise AssertionError("it was left out")

    kind = trick(type("Halfway", (), {"__doc__": "Toy. Cost: none.", "init": hookimpl(init), "batch": hookimpl(batch)}))
    same_bits(run([tb.optional(kind())]).model, run().model)


def test_optional_has_a_json_form_and_stands_in_the_record(run):
    box = Box([{"trick": "dropout", "p": 0.2, "optional": True}, ("mine", tb.optional(A()))])
    assert [member.optional for member in box.members] == [True, True]
    record = box.record()
    assert record[0]["optional"] is True
    spec = {name: value for name, value in record[0].items() if name not in ("name", "class", "distribution")}
    assert Box([spec]).members[0].optional
    assert "optional" not in Box([A()]).record()[0]
    with pytest.raises(tb.ConfigError, match="optional must be true or false, got 'yes'"):
        Box([{"trick": "dropout", "optional": "yes"}])
