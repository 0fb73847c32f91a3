"""The class decorator: every refusal when a class is defined, validators, copies, and JSON both ways."""

# ruff: noqa: ARG005  # hooks, losses and metrics have fixed signatures

from __future__ import annotations

import copy
import json
import math
import pickle
from typing import ClassVar

import pytest
from attrs import field
from hypothesis import given, settings
from hypothesis import strategies as st

import trickbox as tb
from trickbox.authoring import at_depth, by_depth, choice, flag, hookimpl, integer, interval, places, side, text, trick
from trickbox.hooks import MOMENTS
from trickbox.trick import fields_of, fresh, hooks_of, is_off, is_trick, make, name_of, to_config


@trick
class Shade:
    """Multiply by a factor. Cost: none."""

    off: ClassVar = {"p": 0.0}
    p: float = field(default=0.5, validator=interval("[0, 1)"))
    kind: str = field(default="element", validator=choice("element", "channel"))
    steps: int = field(default=3, validator=integer(1))
    loud: bool = field(default=False, validator=flag())
    label: str = field(default="x", validator=text())
    seen: list[int] = field(factory=list, init=False)

    @hookimpl
    def batch(self, state):
        self.seen.append(1)

    @hookimpl(wrapper=True)
    def update(self, state):
        return (yield)


# -- refused when the class is defined ---------------------------------------------------------------------------------


def refused(body, *words):
    """Define a trick with these members and expect a `TypeError` that says the words."""
    with pytest.raises(TypeError) as caught:
        trick(type("Bad", (), {"__doc__": "Bad.", **body}))
    for word in words:
        assert word in str(caught.value)


def test_a_method_with_the_name_of_a_hook_must_be_marked():
    refused({"batch": lambda self, state: None}, "Bad.batch", "hookimpl")


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_a_static_method_with_the_name_of_a_hook_is_refused(kind):
    refused({"batch": kind(lambda state: None)}, "Bad.batch")


def test_a_misspelt_hook_is_refused_with_the_near_match():
    def epoch_strat(self, state): ...

    refused({"epoch_strat": hookimpl(epoch_strat)}, "epoch_strat", "no such hook", "Did you mean 'epoch_start'?")


def test_an_override_without_mark_is_refused():
    with pytest.raises(TypeError, match=r"Child\.batch has the name of a hook"):

        @trick
        class Child(Shade):
            """Override without mark. Cost: none."""

            def batch(self, state): ...


def extra(self, state, loss): ...
def default(self, state=None): ...
def keyword_only(self, *, state): ...
def keyword_extra(self, state, *, loss=None): ...
def starred(self, *state): ...
def double_starred(self, state, **others): ...
def no_state(self): ...
def other_name(self, run): ...
def positional_only(self, state, /): ...


@pytest.mark.parametrize(
    "function",
    [
        extra,
        default,
        keyword_only,
        keyword_extra,
        starred,
        double_starred,
        no_state,
        other_name,
        positional_only,
    ],
)
def test_a_hook_takes_self_and_state_and_nothing_else(function):
    refused({"batch": hookimpl(function)}, "Bad.batch", "(self, state)")


@pytest.mark.parametrize("option", ["tryfirst", "trylast"])
def test_order_by_tryfirst_and_trylast_is_refused(option):
    refused({"batch": hookimpl(**{option: True})(lambda self, state: None)}, "`after`")


def test_a_wrapper_that_is_no_generator_is_refused():
    refused({"update": hookimpl(wrapper=True)(lambda self, state: True)}, "generator")


@pytest.mark.parametrize("hook", MOMENTS)
def test_only_phases_can_be_wrapped(hook):
    def wrapper(self, state):
        return (yield)

    refused({hook: hookimpl(wrapper=True)(wrapper)}, f"Bad.{hook}", "only the phases", "is a moment")


def test_a_generator_that_is_no_wrapper_is_refused():
    def update(self, state):
        return (yield)

    refused({"update": hookimpl(update)}, "wrapper=True")


@pytest.mark.parametrize("doc", [None, "", "   \n"])
def test_a_trick_without_docstring_is_refused(doc):
    refused({"__doc__": doc, "batch": hookimpl(lambda self, state: None)}, "Bad", "docstring")


def test_a_setting_without_validator_is_refused():
    refused({"__annotations__": {"p": float}, "p": field(default=0.1)}, "'p'", "validator")
    refused({"__annotations__": {"p": float}, "p": 0.1}, "'p'", "validator")


def test_run_state_needs_no_validator():
    assert trick(type("Good", (), {"__doc__": "Good.", "__annotations__": {"n": int}, "n": field(init=False)}))


def test_a_setting_whose_name_begins_with_an_underscore_is_refused():
    # attrs would call its argument "p", so that the JSON form could not be read back.
    body = {"__annotations__": {"_p": float}, "_p": field(default=0.1, validator=interval("[0, 1]"))}
    refused(body, "'_p'", "underscore")


# -- identity, copies, state -------------------------------------------------------------------------------------------


def test_equality_is_identity_and_every_object_is_hashable():
    one, other = Shade(), Shade()
    assert one != other
    assert one == one  # noqa: PLR0124
    assert len({one, other, one}) == 2


def test_a_misspelt_attribute_is_an_error():
    with pytest.raises(AttributeError):
        Shade().stepz = 4


def test_a_fresh_copy_keeps_settings_takes_changes_and_forgets_the_run():
    used = Shade(0.25, steps=7)
    used.seen.append(1)
    clone = fresh(used, steps=8)
    assert (clone.p, clone.steps, clone.seen) == (0.25, 8, [])
    assert clone.seen is not used.seen
    assert used.seen == [1]
    assert used.steps == 7


def test_changes_of_a_fresh_copy_are_validated():
    with pytest.raises(tb.ConfigError, match="shade: p must be"):
        fresh(Shade(), p=2)


def test_assigning_a_bad_setting_is_refused_too():
    trick = Shade()
    with pytest.raises(tb.ConfigError, match="shade: p must be"):
        trick.p = -1


def test_deepcopy_and_pickle_keep_settings():
    for clone in (copy.deepcopy(Shade(0.25)), pickle.loads(pickle.dumps(Shade(0.25)))):
        assert to_config(clone) == to_config(Shade(0.25))


def test_facts_have_defaults_and_are_inherited():
    assert (Shade.after, Shade.conflicts, Shade.requires, Shade.tunes, Shade.family) == ((), (), (), (), None)

    @trick
    class Darker(Shade):
        """More of it. Cost: none."""

    assert Darker.off == {"p": 0.0}
    assert hooks_of(Darker) == ["batch", "update"]


def test_hooks_are_listed_in_the_order_of_the_loop():
    @trick
    class All:
        """Everything. Cost: none."""

        @hookimpl
        def fit_end(self, state): ...

        @hookimpl
        def init(self, state): ...

        @hookimpl
        def batch(self, state): ...

        def helper(self, state): ...

    assert hooks_of(All) == hooks_of(All()) == ["init", "batch", "fit_end"]


def test_is_off_compares_with_the_declared_off_settings():
    assert is_off(Shade(0.0))
    assert not is_off(Shade(0.1))
    assert is_off(Shade(0))


def test_a_trick_that_declares_no_off_settings_is_never_off():
    @trick
    class Always:
        """Always on. Cost: none."""

        @hookimpl
        def batch(self, state): ...

    assert not is_off(Always())


def test_is_trick_tells_tricks_from_everything_else():
    class Undecorated(Shade):
        pass

    assert is_trick(Shade)
    assert is_trick(Shade())
    assert not any(map(is_trick, (object(), "shade", None, dict, Undecorated, Undecorated())))


@pytest.mark.parametrize(
    ("cls", "expected"),
    [("Dropout", "dropout"), ("OneCycle", "one_cycle"), ("EMA", "ema"), ("LRFinder", "lr_finder"), ("L2SP", "l2_sp")],
)
def test_the_name_is_the_class_name_in_snake_case(cls, expected):
    assert name_of(type(cls, (), {})) == name_of(type(cls, (), {})()) == expected


# -- JSON both ways ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    p=st.floats(0, 1, exclude_max=True),
    kind=st.sampled_from(["element", "channel"]),
    steps=st.integers(1, 10**9),
    loud=st.booleans(),
    label=st.text(min_size=1),
)
def test_json_and_back_gives_the_same_settings(p, kind, steps, loud, label):
    trick = Shade(p, kind, steps, loud, label)
    config = json.loads(json.dumps(to_config(trick)))
    assert config == {"trick": "shade", "p": p, "kind": kind, "steps": steps, "loud": loud, "label": label}
    assert config.pop("trick") == "shade"
    again = make(Shade, config)
    assert (again.p, again.kind, again.steps, again.loud, again.label) == (p, kind, steps, loud, label)


def test_run_state_is_no_setting():
    assert list(fields_of(Shade)) == ["p", "kind", "steps", "loud", "label"]
    assert "seen" not in to_config(Shade())
    with pytest.raises(tb.ConfigError, match="no setting 'seen'"):
        make(Shade, {"seen": []})


def test_an_unknown_setting_is_refused_with_the_near_match():
    with pytest.raises(tb.ConfigError, match=r"shade: no setting 'stepz'; it has p, .*\. Did you mean 'steps'\?"):
        make(Shade, {"stepz": 3})


def test_a_missing_setting_is_named():
    @trick
    class Needs:
        """Needs a path. Cost: none."""

        path: str = field(validator=text())

    with pytest.raises(tb.ConfigError, match=r"needs: .*'path'"):
        make(Needs, {})


# -- validators --------------------------------------------------------------------------------------------------------


def accepts(validator, value):
    body = {"__doc__": "Probe.", "__annotations__": {"v": object}, "v": field(validator=validator)}
    try:
        trick(type("Probe", (), body))(value)
    except tb.ConfigError:
        return False
    return True


@settings(deadline=None, max_examples=60)
@given(value=st.floats(allow_nan=True) | st.sampled_from([0.0, 1.0, -1.0, 0, 1, 2, math.nextafter(1, 0)]))
@pytest.mark.parametrize("notation", ["[0, 1]", "[0, 1)", "(0, 1]", "(0, 1)", "[-1, inf)", "(0, inf)", "(-inf, 1]"])
def test_an_interval_means_what_mathematics_means(notation, value):
    low, high = (float(end) for end in notation[1:-1].split(","))
    inside = not math.isnan(value) and low <= value <= high
    inside &= not (value == low and notation[0] == "(") and not (value == high and notation[-1] == ")")
    assert accepts(interval(notation), value) == inside


@pytest.mark.parametrize("value", [math.nan, True, False, None, "0.5", [0.5], 0.5j, math.inf, -0.01])
def test_an_interval_takes_finite_numbers_only(value):
    assert not accepts(interval("[0, inf)"), value)


@pytest.mark.parametrize(("value", "expected"), [(1, True), (7, True), (0, False), (-3, False)])
def test_an_integer_has_its_minimum(value, expected):
    assert accepts(integer(1), value) == expected


@pytest.mark.parametrize("value", [True, 1.0, 2.5, "3", None, math.nan])
def test_an_integer_is_whole_and_no_bool(value):
    assert not accepts(integer(0), value)


def test_a_choice_is_one_of_its_words_and_the_error_has_the_near_match():
    with pytest.raises(tb.ConfigError) as caught:
        Shade(kind="chanel")
    assert str(caught.value) == ("shade: kind must be one of element, channel, got 'chanel' Did you mean 'channel'?")
    assert not accepts(choice("a", "b"), "c")
    assert not accepts(choice("a", "b"), None)
    assert not accepts(choice("a", "b"), ["a"])


@trick
class Deep:
    """Act at a depth. Cost: none."""

    p: float = field(default=0.5, validator=by_depth("[0, 1)"))
    at: str | None = field(default=None, validator=places())
    side: str = field(default="output", validator=side())


def test_a_setting_by_depth_is_a_number_or_a_function():
    assert [at_depth(Deep(0.3), "p", depth) for depth in (0.0, 1.0)] == [0.3, 0.3]
    assert [at_depth(Deep(lambda depth: depth / 4), "p", depth) for depth in (0.0, 1.0)] == [0.0, 0.25]
    with pytest.raises(tb.ConfigError, match=r"deep: p must be in \[0, 1\), got 1.5"):
        Deep(1.5)


@pytest.mark.parametrize("value", [1.0, None, "half", math.nan, lambda depth: depth])
def test_what_a_function_of_depth_gives_is_checked(value):
    with pytest.raises(tb.ConfigError, match=r"deep: p must be in \[0, 1\), got .* at depth 0.50"):
        at_depth(Deep(lambda depth: value), "p", 0.5)


def test_an_input_is_that_of_a_named_place():
    assert Deep(at="fc1", side="input").side == "input"
    with pytest.raises(tb.ConfigError, match="deep: side='input' needs at=, which says of what"):
        Deep(side="input")
    with pytest.raises(tb.ConfigError, match="deep: side must be one of output, input, got 'inptu' Did you mean"):
        Deep(at="fc1", side="inptu")


@pytest.mark.parametrize("value", [0, 1, None, "True"])
def test_a_flag_is_true_or_false_only(value):
    assert not accepts(flag(), value)
    assert accepts(flag(), True)


@pytest.mark.parametrize("value", ["", None, b"x", 3])
def test_text_is_a_string_with_something_in_it(value):
    assert not accepts(text(), value)
    assert accepts(text(), "x")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"p": 1.5}, "shade: p must be in [0, 1), got 1.5"),
        ({"p": True}, "shade: p must be in [0, 1), got True"),
        ({"steps": 0}, "shade: steps must be a whole number of at least 1, got 0"),
        ({"loud": 1}, "shade: loud must be True or False, got 1"),
        ({"label": ""}, "shade: label must be a non-empty string, got ''"),
    ],
)
def test_an_error_names_trick_setting_expectation_and_value(bad, message):
    with pytest.raises(tb.ConfigError) as caught:
        Shade(**bad)
    assert str(caught.value) == message
    with pytest.raises(ValueError, match="shade"):
        Shade(**bad)
