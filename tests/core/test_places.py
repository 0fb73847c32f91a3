"""The grammar of `at=` and `not_at=`: what each form matches, what is refused, and what a misspelt one is told."""

# ruff: noqa: ARG005  # predicates take a site

from __future__ import annotations

import functools
import json
import re

import pytest
import torch
from attrs import evolve, field
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import trickbox as tb
from trickbox.authoring import Surgery, trick
from trickbox.surgery.places import Places, check_matched, choose, fault, matches, to_json, unmatched
from trickbox.surgery.sites import sites_of
from trickbox.surgery.tape import record
from trickbox.testing import tiny_data, tiny_model
from trickbox.trick import fresh, make, to_config
from trickbox.validators import places


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, inputs):
        return self.proj(self.qkv(inputs).chunk(3, -1)[2])


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attention, self.mlp = nn.LayerNorm(4), Attention(), nn.Linear(4, 4)

    def forward(self, inputs):
        return self.mlp(self.attention(self.norm(inputs)))


class Transformer(nn.Module):
    """Two blocks, a pool that is called twice beside one whose name ends in a digit, and a head."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(Block(), Block())
        self.pool, self.pool1, self.head = nn.Identity(), nn.Identity(), nn.Linear(4, 2)

    def forward(self, inputs):
        return self.head(self.pool1(self.pool(self.pool(self.layer(inputs)))))


def sites_in(model, inputs):
    return sites_of(model, record(model, inputs), (nn.Module,))


SITES = sites_in(Transformer(), torch.zeros(2, 4))
LABELS = [site.label for site in SITES]
LINEAR = [site.label for site in SITES if isinstance(site.module, nn.Linear)]
WIDE = f"{__name__}.is_wide()"


def is_wide(site):
    return site.output_shape[-1] > 4


class Wide:
    """A predicate with a setting."""

    def __call__(self, site):
        return is_wide(site)

    def method(self, site):
        return is_wide(site)


def chosen(at=None, not_at=None, sites=SITES):
    return [site.label for site in choose(sites, at, not_at)]


def at_path(path, label=None):
    """A site at *path*; with a *label* that differs, one of two calls."""
    return evolve(SITES[0], path=path, calls=1 if label is None else 2, call=int(label[-2]) if label else 0)


@trick
class Mark:
    """Act where it is told. Cost: none."""

    at: Places | None = field(default=None, validator=places())
    not_at: Places | None = field(default=None, validator=places())


# -- what matches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("(model)", ["(model)"]),
        ("head", ["head"]),
        ("layer.*", ["layer.0", "layer.1"]),
        ("layer.*.mlp", ["layer.0.mlp", "layer.1.mlp"]),
        ("layer.[1-9].mlp", ["layer.1.mlp"]),
        ("layer.[!0].mlp", ["layer.1.mlp"]),
        ("layer.?.m*", ["layer.0.mlp", "layer.1.mlp"]),
        ("**.proj", ["layer.0.attention.proj", "layer.1.attention.proj"]),
        ("**.head", ["head"]),
        ("layer.0.**.proj", ["layer.0.attention.proj"]),
        ("layer.1.attention.**", ["layer.1.attention", "layer.1.attention.qkv", "layer.1.attention.proj"]),
        ("**.1.**.q*", ["layer.1.attention.qkv"]),
        ("**", LABELS),
        ("*", ["layer", "pool[0]", "pool[1]", "pool1", "head"]),
        ("h*d", ["head"]),
        ("pool", ["pool[0]", "pool[1]"]),
        ("pool[0]", ["pool[0]"]),
        ("pool[1]", ["pool[1]", "pool1"]),
        (":Linear", LINEAR),
        (":Attention", ["layer.0.attention", "layer.1.attention"]),
        (":Module", LABELS),
        (nn.Linear, LINEAR),
        (nn.Module, LABELS),
        (is_wide, ["layer.0.attention.qkv", "layer.1.attention.qkv"]),
        (Wide(), ["layer.0.attention.qkv", "layer.1.attention.qkv"]),
        (lambda site: None, []),
        (["head", nn.LayerNorm], ["layer.0.norm", "layer.1.norm", "head"]),
        (("(model)", ":Sequential", is_wide), [LABELS[0], "layer", *[n for n in LABELS if n.endswith("qkv")]]),
    ],
)
def test_a_place_means_these_sites(place, expected):
    assert chosen(place) == expected
    assert chosen(not_at=place) == [label for label in LABELS if label not in expected]


@pytest.mark.parametrize(
    "place",
    ["layer.mlp", "mlp", "Head", "hea", "head.*", "layer.0.mlp.**.weight", "linear", "model", "pool[2]", "head[0]",
     "*.proj", "(mod*", ":linear", ":nn", ":Linea", nn.Conv1d, ""],
)  # fmt: skip
def test_a_place_that_is_not_the_whole_path_or_name_means_nothing(place):
    assert chosen(place) == []


def test_a_class_by_name_is_that_of_the_module_or_of_a_base():
    model = tiny_model()
    sites = sites_in(model, tiny_data(5)[0])
    assert chosen(":_ConvNd", sites=sites) == chosen(nn.modules.conv._ConvNd, sites=sites) == ["conv1", "conv2"]


def test_a_class_means_itself_where_its_name_means_all_of_that_name():
    other = type("Linear", (nn.Module,), {})
    assert chosen(other) == []
    assert chosen(":Linear") == chosen(to_json(other)) == LINEAR


def test_without_places_all_sites_are_chosen_and_not_at_wins():
    assert chosen() == LABELS
    assert chosen("layer.*.mlp", "layer.0.**") == ["layer.1.mlp"]
    assert chosen("head", "head") == []
    assert choose(iter(SITES), None, None) == SITES


@pytest.mark.parametrize("path", ["a[0]", "a*", "**", "[!a]", "a?.b", "[", "a(1)"])
def test_every_path_means_at_least_itself_whatever_signs_it_holds(path):
    assert matches(path, at_path(path))
    assert matches(path, at_path(path, f"{path}[1]"))
    assert matches(f"{path}[1]", at_path(path, f"{path}[1]"))


def test_a_path_of_many_parts_and_patterns_is_matched_at_once():
    path = ".".join("a" * 200)
    assert matches("**.a." * 60 + "**", at_path(path))
    assert not matches("**.a." * 60 + "b", at_path(path))


# -- the glob against an oracle ----------------------------------------------------------------------------------------


def expression(pattern):
    """The same pattern as one regular expression over the path with a dot after every part: how an oracle reads it."""
    signs = {"*": r"[^.]*", "?": r"[^.]"}

    def part(text):
        pieces = re.findall(r"\[!?[^]]+\]|.", text)
        return "".join(signs.get(p) or (p.replace("!", "^") if len(p) > 1 else re.escape(p)) for p in pieces) + r"\."

    return "".join(r"([^.]+\.)*" if piece == "**" else part(piece) for piece in pattern.split("."))


NAMES = st.text("ab1", min_size=1, max_size=2)
PATHS = st.lists(NAMES, max_size=5).map(".".join)
PIECES = st.sampled_from(["**", "*", "?", "a*", "*b", "a?", "[ab]", "[!a]", "[a1]*", "**b"]) | NAMES
PATTERNS = st.lists(PIECES, min_size=1, max_size=5).map(".".join)


@settings(deadline=None, max_examples=500)
@given(pattern=PATTERNS, path=PATHS)
@example(pattern="**", path="")
@example(pattern="*", path="")
@example(pattern="**.**", path="a")
@example(pattern="a.**.b", path="a.b")
@example(pattern="**.a.**.a", path="a.a.b.a")
def test_a_pattern_matches_as_its_regular_expression_does(pattern, path):
    expected = re.fullmatch(expression(pattern), path + "." if path else "") is not None
    assert matches(pattern, at_path(path)) == expected


@settings(deadline=None, max_examples=200)
@given(path=PATHS.filter(bool), data=st.data())
def test_a_pattern_made_from_a_path_matches_it(path, data):
    parts = [data.draw(st.sampled_from([p, "*", f"{p[0]}*", "?" * len(p), "**", f"**.{p}"])) for p in path.split(".")]
    assert matches(".".join(parts), at_path(path))


@settings(deadline=None, max_examples=200)
@given(at=st.lists(PATTERNS, min_size=1, max_size=3), not_at=st.none() | PATTERNS, paths=st.lists(PATHS))
def test_a_list_is_any_of_its_places_and_every_site_is_chosen_once_or_left_out(at, not_at, paths):
    sites = [at_path(path) for path in paths]
    found, left = choose(sites, at, not_at), choose(sites, None, at)
    assert [s for s in sites if any(matches(p, s) for p in at)] == choose(sites, at, None)
    assert sorted(s.path for s in [*choose(sites, at, None), *left]) == sorted(paths)
    assert found == [s for s in choose(sites, at, None) if not_at is None or not matches(not_at, s)]


# -- the setting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [None, "fc", "(model)", "**", "a[0]", ":_BatchNorm", "user:item", nn.Linear, is_wide, Wide(), Wide().method,
     functools.partial(is_wide), ["fc", nn.Linear, is_wide], ("fc",)],
)  # fmt: skip
def test_a_setting_takes_the_grammar_and_keeps_what_was_written(value):
    assert Mark(at=value).at is value
    assert fresh(Mark(not_at=value)).not_at is value


FORMS = "a path, a class, ':Name', a predicate of a site, or a list of these"
WHOLE = "a path without empty parts, '(model)' for the model itself"
NAME = "a colon and the bare name of a class or a function, such as ':Linear' or ':add[1]'"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", f"{WHOLE}, got ''"),
        ("a..b", f"{WHOLE}, got 'a..b'"),
        (".a", f"{WHOLE}, got '.a'"),
        ("a.", f"{WHOLE}, got 'a.'"),
        (":", f"{NAME}, got ':'"),
        (":nn.Linear", f"{NAME}, got ':nn.Linear'"),
        (":Conv*", f"{NAME}, got ':Conv*'"),
        (WIDE, f"the predicate itself, of which a record holds the name only, got {WIDE!r}"),
        ([], "at least one place, or None, got []"),
        ((), "at least one place, or None, got ()"),
        (["fc", ""], f"{WHOLE}, got ''"),
        (["fc", 3], f"{FORMS}, got 3"),
        (["fc", None], f"{FORMS}, got None"),
        (["fc", ["fc"]], f"{FORMS}, got ['fc']"),
        (3, f"{FORMS}, got 3"),
        (True, f"{FORMS}, got True"),
        (b"fc", f"{FORMS}, got b'fc'"),
        ({"fc"}, f"{FORMS}, got {{'fc'}}"),
        ({}, f"{FORMS}, got {{}}"),
        (
            nn.ReLU(),
            "the path or the class of a module, not the module itself, got ReLU()",
        ),
    ],
)
def test_a_setting_refuses_anything_else_and_says_what_it_must_be(value, expected):
    with pytest.raises(tb.ConfigError) as caught:
        Mark(at=value)
    assert str(caught.value) == f"mark: at must be {expected}"
    with pytest.raises(tb.ConfigError, match=r"^mark: not_at must be"):
        Mark(not_at=value)
    assert fault(value) is not None


def test_assigning_a_bad_place_is_refused_too():
    mark = Mark("fc")
    with pytest.raises(tb.ConfigError, match="mark: at must be"):
        mark.at = []


# -- JSON --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("**.proj", "**.proj"),
        (":Linear", ":Linear"),
        (nn.Linear, ":Linear"),
        (["fc", nn.modules.batchnorm._BatchNorm], ["fc", ":_BatchNorm"]),
        (("fc",), ["fc"]),
    ],
)
def test_json_and_back_gives_the_same_places_with_classes_by_name(value, expected):
    config = json.loads(json.dumps(to_config(Mark(value, not_at=value))))
    assert config == {"trick": "mark", "at": expected, "not_at": expected}
    again = make(Mark, {"at": config["at"], "not_at": config["not_at"]})
    assert to_config(again) == config
    if value is not None:
        assert chosen(again.at) == chosen(value)


@pytest.mark.parametrize(
    ("predicate", "expected"),
    [
        (is_wide, "is_wide"),
        (Wide(), "Wide"),
        (Wide().method, "Wide.method"),
        (lambda site: True, "<lambda>"),
    ],
)
def test_a_predicate_is_recorded_by_name_and_its_record_cannot_be_taken_for_a_path(predicate, expected):
    written = to_config(Mark([predicate]))["at"][0]
    assert written == f"{__name__}.{expected}()"
    with pytest.raises(tb.ConfigError, match="must be the predicate itself, of which a record holds the name only"):
        make(Mark, {"at": written})


@pytest.mark.parametrize(
    ("predicate", "expected"),
    [(functools.partial(is_wide), "functools.partial()"), (str.islower, "builtins.str.islower()")],
)
def test_predicates_that_are_no_plain_functions_have_names_too(predicate, expected):
    assert to_json(predicate) == expected


@pytest.mark.parametrize("value", [nn.ReLU(), {"weights": 1}, 0.5, True, None, "x"])
def test_settings_that_are_no_places_stay_what_they_are(value):
    assert to_json(value) is value


# -- places that match nothing -----------------------------------------------------------------------------------------


def refused(at, sites=SITES, **options):
    with pytest.raises(tb.ConfigError) as caught:
        check_matched("dropout", at, sites, **options)
    return str(caught.value)


def test_places_that_match_nothing_are_told_apart_from_the_others():
    places = ["head", "haed", nn.Linear, nn.Conv1d, is_wide, ":LayerNorm", ":Norm", "**.proj"]
    assert unmatched(places, SITES) == ["haed", nn.Conv1d, ":Norm"]
    assert unmatched("haed", iter(SITES)) == ["haed"]
    assert unmatched(None, SITES) == []
    assert check_matched("dropout", None, SITES) is None
    assert check_matched("dropout", ["head", "**.proj", is_wide], iter(SITES)) is None


LAST = [site for site in SITES if site.path.startswith(("pool", "head"))]


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (
            "haed",
            "no path matches, got 'haed'; there are pool[0], pool[1], pool1, head. Did you mean 'head'?",
        ),
        (["head", "zzz"], "no path matches, got 'zzz'; there are pool[0], pool[1], pool1, head."),
        (
            "pool[2]",
            "no path matches, got 'pool[2]'; there are pool[0], pool[1], pool1, head. Did you mean 'pool[1]'?",
        ),
        (
            ":Linaer",
            "no module is of this class, got ':Linaer'; there are :Identity, :Module, :Linear. Did you mean ':Linear'?",
        ),
        (nn.Conv1d, "no module is of this class, got ':Conv1d'; there are :Identity, :Module, :Linear."),
        (
            [is_wide, "head"],
            f"the predicate is true for none of 4 sites, got {WIDE!r}",
        ),
    ],
)
def test_a_place_that_matches_nothing_is_refused_with_what_there_is(at, expected):
    assert refused(at, LAST) == f"dropout: at: {expected}"


def test_of_many_paths_the_nearest_are_shown():
    message = refused("layer.0.attention.prj")
    assert message == (
        "dropout: at: no path matches, got 'layer.0.attention.prj'; there are layer.0.attention.proj, "
        "layer.1.attention.proj, layer.0.attention, layer.0.attention.qkv, layer.1.attention, layer.1.attention.qkv "
        f"and {len(LABELS) - 6} more. Did you mean 'layer.0.attention.proj'?"
    )


@pytest.mark.parametrize(
    ("at", "hint"),
    [
        ("layr.*.mlp", "layer.*.mlp"),
        ("layr.0.m*", "layer.0.m*"),
        ("layer.[01].atention.p*j", "layer.[01].attention.p*j"),
        ("layer.*.atention.proj", "layer.*.attention.proj"),
        ("**.porj", "**.proj"),
        ("**.poool", "**.pool"),
        ("blocks.0.mlp", "layer.0.mlp"),
    ],
)
def test_a_misspelt_pattern_is_answered_by_a_pattern_that_matches(at, hint):
    assert refused(at).endswith(f" Did you mean '{hint}'?")
    assert chosen(hint)


@pytest.mark.parametrize("at", ["fc", ":Linear", nn.Linear, "**"])
def test_without_sites_it_says_so(at):
    assert refused(at, []).endswith("; there are no sites.")
    assert refused(is_wide, []).startswith("dropout: at: the predicate is true for none of 0 sites")


def test_the_setting_is_named_as_the_user_wrote_it():
    assert refused("haed", LAST, setting="not_at").startswith("dropout: not_at: no path matches, got 'haed'; ")


# -- places that the model has, where the trick cannot act ------------------------------------------------------------


class Odd(nn.Module):
    """Blocks in a list, a layer of two names, a norm that is called twice, and a layer that is never called."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.spare = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2)])
        self.head = nn.Linear(4, 2)
        self.twin = self.head

    def forward(self, inputs):
        hidden = self.norm(self.stem(inputs))
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden))


CAN = "it can act at the weight layers"
LAYERS = "stem, blocks.0.0, blocks.1.0, head"


def answer(places, setting="at", among=None, model=None):
    """What the tricks hear that look for weight layers."""
    surgery = Surgery.on(model or Odd(), torch.zeros(2, 4))
    surgery.acting = "layer_norm"
    layers = surgery.anatomy.layers if among is None else surgery.sites(*among)
    with pytest.raises(tb.ConfigError) as caught:
        surgery.choose(layers, layers, **{setting: places, {"at": "not_at", "not_at": "at"}[setting]: None})
    return str(caught.value).removeprefix(f"layer_norm: {setting}: ")


@pytest.mark.parametrize("setting", ["at", "not_at"])
@pytest.mark.parametrize(
    ("place", "why", "hint"),
    [
        ("norm[1]", "it cannot act at norm[1] (LayerNorm)", ""),
        ("norm", "it cannot act at norm[0] (LayerNorm), norm[1] (LayerNorm)", ""),
        ("blocks.0.1", "it cannot act at blocks.0.1 (ReLU)", ""),
        ("blocks.*.1", "it cannot act at blocks.0.1 (ReLU), blocks.1.1 (ReLU)", ""),
        ("(model)", "it cannot act at (model) (Odd)", " Did you mean '**'?"),
        ("blocks.1", "it cannot act at blocks.1 (Sequential)", " Did you mean 'blocks.1.**'?"),
        ("blocks.?", "it cannot act at blocks.0 (Sequential), blocks.1 (Sequential)", " Did you mean 'blocks.?.**'?"),
        (":LayerNorm", "it cannot act at norm[0] (LayerNorm), norm[1] (LayerNorm)", ""),
        (nn.ReLU, "it cannot act at blocks.0.1 (ReLU), blocks.1.1 (ReLU)", ""),
        ("blocks", "the model never calls blocks (ModuleList)", " Did you mean 'blocks.**'?"),
        (":ModuleList", "the model never calls blocks (ModuleList)", ""),
        ("spare", "the model never calls spare (Linear)", ""),
        ("twin", "twin is another name of head", ""),
    ],
)
def test_a_place_that_the_model_has_is_not_called_misspelt(setting, place, why, hint):
    told = answer(place, setting)
    assert told.startswith(f"{why}, got {to_json(place)!r}; {CAN} ")
    assert told.endswith(f".{hint}")
    shown = told.removeprefix(f"{why}, got {to_json(place)!r}; {CAN} ").removesuffix(f".{hint}")
    assert sorted(shown.split(", ")) == sorted(LAYERS.split(", "))


def test_every_hint_for_such_a_place_is_one_that_the_trick_takes():
    surgery = Surgery.on(Odd(), torch.zeros(2, 4))
    layers = surgery.anatomy.layers
    for place in ("(model)", "blocks.1", "blocks.?", "blocks"):
        hint = re.search(r"Did you mean '(.*)'", answer(place))[1]
        assert surgery.choose([], layers, hint, None)


def test_what_is_misspelt_is_still_called_so_and_a_predicate_is_asked_about_the_candidates_alone():
    assert answer("blocks.0.2").startswith("no path matches, got 'blocks.0.2'; there are ")
    assert answer(":Conv2d") == "no module is of this class, got ':Conv2d'; there are :Linear, :Module."
    assert answer(lambda site: site.module.weight.ndim > 2).startswith(
        "the predicate is true for none of 4 weight layers"
    )


def test_of_several_places_the_first_that_cannot_be_is_answered():
    assert answer(["head", "stme", "norm"]).startswith("no path matches, got 'stme'")
    assert answer(["head", "norm", "stme"]).startswith("it cannot act at norm[0]")


def test_other_candidates_are_not_called_weight_layers():
    assert answer("stem", among=[nn.LayerNorm]) == (
        "it cannot act at stem (Linear), got 'stem'; it can act at norm[0], norm[1]."
    )


def test_where_there_is_no_candidate_at_all_it_says_so():
    assert answer("0", model=nn.Sequential(nn.ReLU())) == "it cannot act at 0 (ReLU), got '0'; it can act at no sites."


def test_of_many_places_some_are_shown():
    deep = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(9)])
    told = answer(":ReLU", model=deep)
    assert told.startswith(
        "it cannot act at 0.1 (ReLU), 1.1 (ReLU), 2.1 (ReLU), 3.1 (ReLU), 4.1 (ReLU), 5.1 (ReLU) and 3 "
    )
    assert " and 3 more." in told.partition("; ")[2]


def test_what_is_attached_is_no_place_of_the_model():
    model, inputs = Odd(), torch.zeros(2, 4)
    tb.apply(model, [{"trick": "dropout", "at": "stem"}], inputs)
    assert answer("stem.trickbox.dropout", model=model).startswith("no path matches, got 'stem.trickbox.dropout'; ")
