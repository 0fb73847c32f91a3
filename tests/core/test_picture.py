"""The tree that `explain` prints and the table of `sites`: what is on them, and that looking changes nothing."""

# ruff: noqa: ARG005  # forwards have fixed signatures

from __future__ import annotations

import contextlib
import itertools
import re
import warnings
from collections import OrderedDict

import pytest
import torch
from attrs import field
from torch import nn

import trickbox as tb
from trickbox.authoring import Rank, Surgery, flag, forked, hookimpl, interval, trick
from trickbox.box import LOSS, UPDATES
from trickbox.loops import Run
from trickbox.nest import call
from trickbox.state import SCALABLE, Batch
from trickbox.surgery import is_tricked
from trickbox.surgery.ledger import LEDGER
from trickbox.surgery.picture import OF_THE_RUN, WIDTH, draw, left_over
from trickbox.surgery.places import choose
from trickbox.surgery.table import Row, table
from trickbox.testing.zoo import ZOO, specimen

GPT_WITH_DROPOUT = """\
Model: GPT (4, 12, 50)
  dropout: it has residual branches: those of dense layers at their ends, those of convolutions not at all
|- tok_emb        Embedding      (4, 12, 16)  embedding   dropout: StreamDropout(p=0.1, element)
|- pos_emb        Embedding      (12, 16)
|- blocks         Sequential     (4, 12, 16)
|  |- 0           PreNormBlock   (4, 12, 16)  block 1 of 2  + 2 skips
|  |  |- norm1    LayerNorm      (4, 12, 16)  norm
|  |  |- attn     SelfAttention  (4, 12, 16)
|  |  |  |- qkv   Linear         (4, 12, 48)
|  |  |  `- proj  Linear         (4, 12, 16)  branch end  dropout: StreamDropout(p=0.1, element)
|  |  |- norm2    LayerNorm      (4, 12, 16)  norm
|  |  `- mlp      Sequential     (4, 12, 16)
|  |     |- 0     Linear         (4, 12, 64)
|  |     `- 2     Linear         (4, 12, 16)  branch end  dropout: StreamDropout(p=0.1, element)
|  `- 1 as 0
|- ln_f           LayerNorm      (4, 12, 16)  norm
`- lm_head        Linear         (4, 12, 50)  head"""

FEW_MODELS = [pytest.param(name, marks=[pytest.mark.slow] * bool(number % 4)) for number, name in enumerate(ZOO)]

EVERYWHERE = ["dropout", "batch_norm", "group_norm", "layer_norm", "residual", "initialize", "freeze", "one_cycle"]


def surgery_of(model, *shape, acting="toy"):
    surgery = Surgery.on(model, torch.zeros(shape))
    surgery.acting = acting
    return surgery


def after(tricks, model, inputs):
    """The surgery of a run that has begun."""
    run = Run(model, tricks, seed=0, forward=call, wrap=None)
    run._begin(Batch(inputs, None, 0), has_loop=False)
    return run.state.surgery


def site(surgery, label):
    return next(s for s in surgery.sites(nn.Module) if s.label == label)


def names(text):
    """The names on the tree, with what they stand for where they are several."""
    return [re.split(r" {2,}", line.partition("- ")[2])[0] for line in text.splitlines() if "- " in line]


def labels(text):
    """The labels of all lines of a tree on which nothing is folded."""
    stack, found = [], set()
    for line in text.splitlines():
        if match := re.match(r"([| ]*)[|`]- (.*?)(?:  |$)", line):
            stack[len(match[1]) // 3 :] = [match[2]]
            found.add(".".join([*(re.sub(r"\[\d+\]$", "", name) for name in stack[:-1]), match[2]]))
    return found


def line_of(text, name):
    return next(line for line in text.splitlines() if f"- {name} " in f"{line} ")


def chain(layers, make):
    return nn.Sequential(*(make(n) for n in range(layers)))


# -- what is on the tree -----------------------------------------------------------------------------------------------


def test_the_picture_of_a_transformer_with_dropout():
    assert draw(after(["dropout"], *specimen("gpt"))) == GPT_WITH_DROPOUT


def test_a_projection_and_its_skip_path_are_shown():
    lines = draw(surgery_of(specimen("resnet")[0], 4, 3, 16, 16)).splitlines()
    assert "|- conv1             Conv2d             (4, 8, 16, 16)  stem" in lines
    assert "|  |- 0              BasicBlock         (4, 16, 4, 4)   block 3 of 4  + projection" in lines
    assert "|  |     |- 0        Conv2d             (4, 16, 4, 4)   skip" in lines


def test_joins_that_the_model_itself_makes_stand_in_the_title():
    assert draw(Surgery.on(*specimen("multihead_attention"))).startswith(
        "Model: TimeSeriesTransformer (4, 3)  + 2 skips\n"
    )


def test_gates_embeddings_dropouts_and_the_bottleneck_are_parts():
    squeeze, unet = (Surgery.on(*specimen(name)) for name in ("resnet_squeeze", "unet"))
    assert {row.part for row in table(squeeze)} >= {"gate", "skip", "norm", "head", "stem", "block 4 of 4"}
    assert [row.label for row in table(unet) if row.part == "bottleneck"] == ["bottleneck.0", "bottleneck.3"]
    rows = {row.label: row.part for row in table(Surgery.on(*specimen("gpt2")))}
    assert [rows[label] for label in ("wte", "wpe", "drop", "ln_f", "lm_head", "h.1", "h.1.mlp.c_proj")] == [
        "embedding", "", "dropout", "norm", "head", "block 2 of 2", "branch end",
    ]  # fmt: skip


class Pooled(nn.Module):
    """A stem with a pool, and a block with an activation and a pool of its own, which keeps the shape."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.act = nn.Conv1d(2, 4, 3, padding=1), nn.MaxPool1d(2), nn.ReLU()
        self.block = Inner()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    def forward(self, inputs):
        return self.head(self.block(self.act(self.pool(self.conv(inputs)))))


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv1d(4, 4, 3, padding=1), nn.GELU()
        self.down, self.up = nn.MaxPool1d(2), nn.Upsample(scale_factor=2)

    def forward(self, inputs):
        return inputs + self.up(self.down(self.act(self.conv(inputs))))


def test_what_has_no_weights_is_shown_where_it_changes_the_shape_outside_of_blocks():
    assert names(draw(surgery_of(Pooled(), 5, 2, 8))) == ["conv", "pool", "block", "conv", "head", "0", "1"]


@pytest.mark.parametrize("label", ["act", "block.act", "block.down"])
def test_what_has_no_weights_is_shown_where_a_trick_acted(label):
    surgery = surgery_of(Pooled(), 5, 2, 8)
    surgery.insert(site(surgery, label), nn.Dropout(0.5), Rank.DROPOUT)
    assert line_of(draw(surgery), label.rpartition(".")[2]).endswith("toy: Dropout(p=0.5, inplace=False)")


def test_norms_and_dropouts_without_weights_are_shown():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4, elementwise_affine=False), nn.Dropout(0.1), nn.Linear(4, 2))
    assert names(draw(surgery_of(model, 3, 4))) == ["0", "1", "2", "3"]


def test_each_call_has_a_line_with_its_number():
    assert names(draw(Surgery.on(*specimen("unet"))))[4:6] == ["4", "pool[0]"]
    towers = draw(Surgery.on(*specimen("siamese")))
    assert names(towers) == ["tower[0]", "0[0]", "2[0]", "tower[1] as tower[0]", "head"]


def test_modules_that_compute_weights_are_no_part_of_the_model():
    text = draw(Surgery.on(*specimen("spectral_norm")))
    assert "parametrizations" not in text
    assert names(text) == ["0", "2", "4", "5"]
    assert not [row for row in table(Surgery.on(*specimen("spectral_norm"))) if "parametrizations" in row.label]


def test_a_forward_that_calls_only_parts_of_the_model_has_a_tree_too():
    model = nn.ModuleDict({"one": nn.Linear(4, 4), "two": nn.Linear(4, 2)})
    surgery = Surgery.on(model, torch.zeros(3, 4), lambda model, inputs: model["two"](model["one"](inputs) + inputs))
    surgery.remark("it is in parts")
    assert draw(surgery).splitlines() == [
        "Model: ModuleDict  + skip",
        "  surgery: it is in parts",
        "|- one  Linear  (3, 4)  branch end",
        "`- two  Linear  (3, 2)  head",
    ]


def test_a_join_around_the_whole_model_stands_in_the_title():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
    text = draw(Surgery.on(model, torch.zeros(3, 4), lambda model, inputs: model(inputs) + inputs))
    assert text.splitlines()[0] == "Model: Sequential (3, 4)  + skip"


def test_a_model_that_is_called_twice_has_two_trees():
    surgery = Surgery.on(nn.Sequential(nn.Linear(4, 2)), torch.zeros(3, 4), lambda m, x: m(x) * m(x + 1))
    assert names(draw(surgery)) == ["(model)[0]", "0[0]", "(model)[1]", "0[1]"]


@pytest.mark.parametrize("name", ZOO)
def test_everything_that_matters_in_the_zoo_has_a_line(name, monkeypatch):
    surgery = Surgery.on(*specimen(name))
    text = draw(surgery)
    assert text == draw(Surgery.on(*specimen(name)))
    monkeypatch.setattr("trickbox.surgery.picture._folded", list)
    unfolded, anatomy = draw(surgery), surgery.anatomy
    wanted = [*anatomy.layers, *anatomy.norms, *anatomy.embeddings, *anatomy.recurrent]
    wanted += [place for place in surgery.sites(nn.Module) if place.path in anatomy.blocks and place.path]
    assert {place.label for place in wanted} <= labels(unfolded)
    assert len(text.splitlines()) <= len(unfolded.splitlines())


# -- what is folded ----------------------------------------------------------------------------------------------------


def block(width=4):
    return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, width))


def test_a_hundred_blocks_are_one_block_and_a_line():
    model = nn.Sequential(nn.Linear(3, 4), nn.ModuleDict({"layers": chain(100, lambda n: block())})["layers"])
    text = draw(surgery_of(model, 5, 3))
    assert names(text) == ["0", "1", "0", "0", "2", "1 .. 98 as 0", "99", "0", "2"]  # the last one holds the head


def test_a_model_of_a_hundred_layers_fits_on_a_page(data):
    with forked(0):
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(),
            *itertools.chain.from_iterable(
                (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(100)
            ),
            nn.Flatten(), nn.Linear(32, 3),
        )  # fmt: skip
    text = tb.explain(model, torch.zeros(2, 3, 4, 4), ["group_norm", "dropout", "residual", "initialize"])
    assert "|- 5 .. 300 as 2 .. 3" in text.splitlines()
    assert "  initialize: {0,2,5,8..299,303}.weight, {0,2,5,8..299,303}.bias: written" in text.splitlines()
    assert len(text.splitlines()) < 40


@pytest.mark.parametrize("edit", ["note", "skip", "insert"])
def test_what_a_trick_did_to_one_of_them_alone_is_not_folded(edit):
    surgery = surgery_of(chain(9, lambda n: block()), 5, 4)
    where = site(surgery, "4.0")
    if edit == "insert":
        surgery.insert(where, nn.Dropout(0.5), Rank.DROPOUT)
    else:
        getattr(surgery, edit)(where if edit == "skip" else "4.0", "it is special")
    text = draw(surgery)
    assert names(text) == ["0", "0", "2", "1 .. 3 as 0", "4", "0", "2", "5", "0", "2", "6 .. 7 as 5", "8", "0", "2"]
    assert text.count("toy: ") == 1


@pytest.mark.parametrize("around", ["", "h."])
def test_what_notes_say_of_a_layers_own_parts_does_not_keep_it_from_being_folded(around):
    def make(number):
        return nn.Sequential(OrderedDict(up=nn.Linear(4, 8), down=nn.Linear(8, 4)))

    model = chain(5, make)
    surgery = surgery_of(nn.Sequential(OrderedDict(h=model)) if around else model, 5, 4)
    for number in range(5):
        surgery.skip(site(surgery, f"{around}{number}.up"), f"{around}{number}.down follows")
    assert names(draw(surgery))[-7:] == ["0", "up", "down", "1 .. 3 as 0", "4", "up", "down"]


def test_what_notes_say_of_other_layers_keeps_them_apart():
    surgery = surgery_of(chain(4, lambda n: block()), 5, 4)
    for number in range(3):
        surgery.skip(site(surgery, f"{number}.0"), f"{number + 1}.0 follows")
    assert " as " not in draw(surgery)


@pytest.mark.parametrize(
    "what", [lambda n: f"p={n}.5", lambda n: f"rate {n}.5", lambda n: f"{n}", lambda n: f"x{n}.2 follows"]
)
def test_a_number_in_a_note_is_no_path(what):
    surgery = surgery_of(chain(4, lambda n: block()), 5, 4)
    for number in range(4):
        surgery.note(f"{number}.0", what(number))
    assert " as " not in draw(surgery)


def test_other_shapes_classes_and_parts_are_not_folded():
    widths = draw(surgery_of(nn.Sequential(block(), block(), nn.Linear(4, 6), block(6), block(6)), 5, 4))
    assert names(widths)[3:6] == ["1 as 0", "2", "3"]
    kinds = [block(), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Conv1d(5, 5, 1), nn.Linear(8, 4)), block()]
    assert " as " not in draw(surgery_of(nn.Sequential(*kinds), 5, 4))
    narrow = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))
    assert names(draw(surgery_of(narrow, 5, 3))) == ["0", "2", "4", "5"]


def test_layers_of_different_names_are_not_folded():
    text = draw(Surgery.on(*specimen("bert")))
    assert names(text)[6:10] == ["attention.self", "query", "key", "value"]
    assert "|- layer.1 as layer.0" in text.splitlines()


def test_groups_that_repeat_are_folded_together():
    kinds = (lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), lambda: nn.Sequential(nn.Linear(4, 4)))
    text = draw(surgery_of(nn.Sequential(*(kinds[n % 3 > 0]() for n in range(30)), nn.Linear(4, 2)), 5, 4))
    assert names(text) == ["0", "0", "1", "1", "0", "2 as 1", "3 .. 29 as 0 .. 2", "30"]


def test_calls_of_one_layer_are_folded():
    layer = nn.Linear(4, 4)
    text = draw(surgery_of(nn.Sequential(*[layer] * 9, nn.Linear(4, 2)), 5, 4))
    assert names(text) == ["0[0]", "0[1] .. 0[8] as 0[0]", "9"]


# -- what tricks did ---------------------------------------------------------------------------------------------------


def test_notes_say_what_was_done_on_which_side_with_how_many_parameters_and_what_was_left_alone():
    surgery = surgery_of(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), 3, 4)
    surgery.insert_before(site(surgery, "0"), nn.PReLU(), Rank.NORM)
    surgery.insert(site(surgery, "0"), nn.PReLU(6), Rank.NORM)
    surgery.skip(site(surgery, "2"), "it is the head")
    surgery.convert(site(surgery, "1"), nn.Tanh())
    assert draw(surgery).splitlines()[1:] == [
        "|- 0  Linear  (3, 6)        toy: before it, PReLU(num_parameters=1), +1 parameters",
        "|                           toy: PReLU(num_parameters=6), +6 parameters",
        "|- 1  Tanh    (3, 6)        toy: ReLU becomes Tanh",
        "`- 2  Linear  (3, 2)  head  toy: skipped: it is the head",
    ]


def test_the_shape_stays_in_a_note_where_it_is_not_that_of_the_line():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = nn.LSTM(4, 3, batch_first=True)

        def forward(self, inputs):
            return self.pair(inputs)[1][0]

    surgery = surgery_of(Two(), 5, 7, 4)
    surgery.insert(site(surgery, "pair"), nn.Dropout(0.5), Rank.DROPOUT)
    assert line_of(draw(surgery), "pair").endswith("toy: Dropout(p=0.5, inplace=False) on (1, 5, 3)")


def test_what_earlier_tricks_attached_is_there_already():
    model, inputs = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.zeros(3, 4)
    tb.apply(model, ["layer_norm"], inputs)
    text = tb.explain(model, inputs, ["dropout"])
    assert [line.partition("layer_norm")[2] for line in text.splitlines() if "layer_norm" in line] == [
        ": LayerNorm, there already"
    ]
    assert text.splitlines()[-1] == "Parameters: 56 before, 56 after"


def test_remarks_and_what_was_done_to_the_whole_model_stand_under_the_title():
    surgery = surgery_of(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), 3, 4)
    surgery.remark("it is small")
    surgery.freeze("")
    assert draw(surgery).splitlines()[:3] == [
        "Model: Sequential (3, 2)",
        "  toy: it is small",
        "  toy: frozen, 4 parameter tensors",
    ]


def test_what_belongs_to_no_layer_is_said_below_and_once():
    surgery = surgery_of(chain(6, lambda n: block()), 5, 4)
    for name in ("lr", "momentum"):
        surgery.note(name, "scaled")
    for number in (0, 1, 2, 3, 5):
        surgery.note(f"{number}.0.weight", "written")
    surgery.note("5.0.weight", "written")
    surgery.note("2.0.bias", "not loaded: it is not there")
    assert left_over(surgery) == [
        "Also",
        "  toy: lr, momentum: scaled",
        "  toy: {0..3,5}.0.weight: written",
        "  toy: 2.0.bias: not loaded: it is not there",
    ]
    assert "toy" not in draw(surgery)
    assert left_over(surgery_of(block(), 5, 4)) == []


def test_words_for_the_run_mean_no_module():
    assert set(OF_THE_RUN) == {LOSS, UPDATES, *SCALABLE}

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.loss = nn.Linear(4, 2)

        def forward(self, inputs):
            return self.loss(inputs)

    surgery = surgery_of(Odd(), 3, 4)
    surgery.note("loss", "replaced")
    assert left_over(surgery) == ["Also", "  toy: loss: replaced"]
    assert "toy" not in draw(surgery)


def test_notes_of_calls_and_of_frozen_modules_find_their_lines():
    surgery = Surgery.on(*specimen("siamese"))
    surgery.freeze("tower")
    surgery.skip(site(surgery, "tower.2[1]"), "second")
    text = draw(surgery)
    assert line_of(text, "tower[0]").endswith("surgery: frozen, 4 parameter tensors")
    assert line_of(text, "2[1]").endswith("surgery: skipped: second")
    assert left_over(surgery) == []


@pytest.mark.parametrize("length", [10, 50, 90, 200, 1000])
def test_no_line_is_wider_than_the_page_and_long_notes_are_cut(length):
    class Deep(nn.Module):
        def __init__(self, depth):
            super().__init__()
            self.a_rather_long_name = Deep(depth - 1) if depth else nn.Linear(4, 4)

        def forward(self, inputs):
            return self.a_rather_long_name(inputs)

    surgery = surgery_of(Deep(12), 3, 4)
    words = " ".join(str(n % 10) for n in range(length // 2))
    for place in surgery.sites(nn.Module)[1:]:
        surgery.note(place.label, words)
    surgery.remark(words)
    surgery.note("nowhere", words)
    text = "\n".join([draw(surgery), *left_over(surgery)])
    assert max(map(len, text.splitlines())) <= WIDTH
    assert (" ..." in text) == (length > 120)
    assert " ".join(text.split("Also")[1].split()) == f"toy: nowhere: {words}"
    assert " ".join(text.split("|")[0].split("`")[0].split("toy: ")[1].split()) == words


@pytest.mark.parametrize("name", FEW_MODELS)
def test_no_note_gets_lost(name):
    for acting in EVERYWHERE:
        with contextlib.suppress(tb.NoEffectError):
            assert_notes_are_there(after([acting], *specimen(name)))


def assert_notes_are_there(surgery):
    text = "\n".join([draw(surgery), *left_over(surgery)])
    assert max(map(len, text.splitlines())) <= WIDTH
    words = " ".join(word for word in text.split() if word not in {"|", "|-", "`-"}).replace("before it, ", "")
    assert surgery.notes
    for note in surgery.notes:
        said = re.sub(r" on \([^()]*\)$", "", note.what)
        if note.where in {"lr", "momentum", *surgery.model.state_dict()}:
            assert re.search(rf"{note.trick}: [^:]*{note.where.rpartition('.')[2]}[^:]*: {said}", words)
        else:
            way = re.match(r"(after|before|instead of) .*:", note.where)
            place = f"{way[1]} {note.where.rpartition(':')[2]}: " if way else ""
            assert f"{note.trick}: {place}{'skipped: ' * (note.kind == 'skip')}{said}" in words
        assert not note.parameters or f"{said}, {note.parameters:+d} parameters" in words


# -- the table ---------------------------------------------------------------------------------------------------------


def test_functions_have_rows_where_they_are_asked_for():
    rows = tb.sites(*specimen("convnext"), functions=True)
    assert [row.label for row in rows if row.kind == "function" and row.label.startswith("stages.0:")] == [
        f"stages.0:{name}" for name in ("permute[0]", "mul", "permute[1]", "add")
    ]
    assert rows[len(rows) - 1].label == "head"
    assert [row for row in rows if row.kind != "function"] == list(tb.sites(*specimen("convnext")))


def test_what_acts_on_functions_stands_with_the_module_that_calls_them():
    text = tb.explain(*specimen("convnext"), ["stochastic_depth", {"trick": "dropout", "at": "stages.1:mul"}])
    lines = [line for line in text.splitlines() if "stages" not in line and " add: " in line]
    assert [line.partition("stochastic_depth")[2].split(" on")[0] for line in lines] == [
        ": before add: RowDrop(p=0)",
        ": before add: RowDrop(p=0.1)",
    ]
    assert "dropout: after mul: StreamDropout(p=0.1, element)" in text
    assert "Also" not in text


def test_the_table_is_a_sequence_of_rows():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    rows = tb.sites(model, torch.zeros(4, 2))
    assert len(rows) == 4
    assert list(rows) == [rows[0], *rows[1:]]
    assert rows[-1] == Row("2", "Linear", (4, 1), "head")
    assert rows[-1] in rows
    assert [row.label for row in reversed(rows)] == ["2", "1", "0", "(model)"]
    assert str(rows) == repr(rows) == (
        "label    class       output  part\n"
        "(model)  Sequential  (4, 1)\n"
        "0        Linear      (4, 3)\n"
        "1        ReLU        (4, 3)\n"
        "2        Linear      (4, 1)  head"
    )  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_every_label_means_its_own_place(name, untouched):
    model, inputs = specimen(name)
    with untouched(model):
        rows = tb.sites(model, inputs)
    calls = Surgery.on(model, inputs).sites(nn.Module)
    assert [row.label for row in rows] == [s.label for s in calls if "parametrizations" not in s.path]
    for row in rows:
        assert [s.label for s in choose(calls, row.label, None) if s.label == row.label] == [row.label]
        assert row.kind in {type(s.module).__name__ for s in choose(calls, row.label, None)}


def test_the_table_of_a_model_with_tricks_is_that_of_the_model():
    model, inputs = specimen("gpt")
    before = tb.sites(model, inputs)
    tb.apply(model, ["dropout"], inputs)
    assert tb.sites(model, inputs) == before


def test_the_forward_of_the_caller_is_the_one_that_runs():
    model = nn.ModuleDict({"one": nn.Linear(4, 4), "two": nn.Linear(4, 2)})
    rows = tb.sites(model, torch.zeros(3, 4), forward=lambda model, inputs: model["two"](inputs))
    assert [row.label for row in rows] == ["two"]


def test_a_model_that_cannot_take_the_inputs_is_refused():
    with pytest.raises(tb.DataError, match=r"cannot take inputs of shape \(3, 5\)"):
        tb.sites(nn.Linear(4, 2), torch.zeros(3, 5))
    with pytest.raises(tb.ConfigError, match=r"model must be an nn\.Module"):
        tb.sites("model", torch.zeros(3, 5))


# -- looking changes nothing -------------------------------------------------------------------------------------------


def bits(tensor):
    return None if tensor is None else tensor.detach().numpy().tobytes()


def everything(model):
    """All that `explain` must put back, compared by identity and by bits."""
    book = vars(model).get(LEDGER)
    return {
        "modules": [(name, id(module), type(module), module.training) for name, module in model.named_modules()],
        "tensors": [(name, id(t), bits(t)) for name, t in (*model.named_parameters(), *model.named_buffers())],
        "grads": [(p.requires_grad, id(p.grad), bits(p.grad)) for p in model.parameters()],
        "hooks": [
            [list(getattr(module, kind).values()) for kind in vars(module) if kind.startswith("_forward")]
            + [list(getattr(module, kind)) for kind in vars(module) if kind.endswith("_with_kwargs")]
            for module in model.modules()
        ],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "global": (bits(torch.get_rng_state()), torch.is_grad_enabled()),
        "ledger": None if book is None else ([id(edit) for edit in book.edits], book.sealed),
    }


@trick
class Halves:
    """Write, insert, convert and freeze, then fail where it is told to. Cost: none."""

    fails: bool = field(default=False, validator=flag())

    @hookimpl
    def init(self, state):
        surgery = state.surgery
        layer = surgery.anatomy.layers[0]
        surgery.insert(layer, nn.LayerNorm(layer.output_shape[-1]), Rank.NORM)
        surgery.write(f"{layer.path}.weight", layer.module.weight / 2)
        surgery.convert(next(s for s in surgery.sites(nn.ReLU)), nn.Tanh())
        surgery.freeze("")
        if self.fails:
            raise KeyboardInterrupt


@trick
class Write:
    """Write a bias. Cost: none."""

    value: float = field(default=1.0, validator=interval("[0, 9]"))

    @hookimpl
    def init(self, state):
        state.surgery.write("0.bias", torch.full((6,), self.value))


@trick
class Breaks:
    """Insert what works for the sample's shape in eval mode only. Cost: none."""

    @hookimpl
    def init(self, state):
        class Broken(nn.Module):
            def forward(self, inputs):
                return inputs[:, :1] if self.training else inputs

        state.surgery.insert(state.surgery.anatomy.layers[0], Broken(), Rank.NORM)
        state.surgery.write("0.bias", torch.full((6,), 5.0))


def small(grads=False):
    with forked(1):
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.1), nn.Linear(6, 3))
    model[1].eval()
    if grads:
        model(torch.ones(3, 4)).sum().backward()
    return model


INPUTS = torch.linspace(-1, 1, 20).reshape(5, 4)


@pytest.mark.parametrize("name", FEW_MODELS)
def test_explaining_any_surgery_changes_no_bit_of_any_model(name):
    model, inputs = specimen(name)
    for acting in EVERYWHERE:
        before = everything(model)
        with contextlib.suppress(tb.NoEffectError):
            tb.explain(model, inputs, [acting])
        assert everything(model) == before, acting


@pytest.mark.parametrize("first", [[], ["layer_norm"], [Write()], ["dropout", Write(), "initialize"]])
@pytest.mark.parametrize("fails", [False, True])
def test_explaining_undoes_its_own_edits_alone_also_after_an_error(first, fails, untouched):
    model = small(grads=True)
    plain = everything(model)
    if first:
        tb.apply(model, first, INPUTS)
    before = everything(model)
    with untouched(model):
        if fails:
            with pytest.raises(KeyboardInterrupt):
                tb.explain(model, INPUTS, [Halves(fails=True)])
        else:
            assert "ReLU becomes Tanh" in tb.explain(model, INPUTS, [Halves()])
    assert everything(model) == before
    tb.undo(model)
    assert everything(model) == plain


def test_explaining_what_cannot_run_changes_nothing():
    model = small()
    tb.apply(model, [Write()], INPUTS)
    before = everything(model)
    with pytest.raises(tb.SurgeryError, match="cannot run in training mode"):
        tb.explain(model, INPUTS, [Breaks()])
    assert everything(model) == before
    with pytest.raises(tb.DataError):
        tb.explain(model, INPUTS[:, :2], ["dropout"])
    with pytest.raises(tb.ConfigError):
        tb.explain(model, INPUTS, ["dropout", "dropuot"])
    assert everything(model) == before


@pytest.mark.parametrize("tricks", [["layer_norm"], [Write(value=3.0)], [Halves()]])
def test_explaining_on_a_model_that_was_trained_with_tricks_leaves_what_undo_does(tricks):
    undone = []
    for explained in (False, True):
        model = small()
        tb.apply(model, [Write(value=1.0), {"trick": "dropout", "where": "before_head"}], INPUTS)
        with torch.no_grad():
            model[4].weight.add_(1)
        before = everything(model)
        if explained:
            tb.explain(model, INPUTS, tricks)
            assert everything(model) == before
        tb.undo(model)
        undone.append([value.tolist() for value in model.state_dict().values()])
        assert not is_tricked(model)
    assert undone[0] == undone[1]


def test_a_model_that_cannot_be_copied_is_explained():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))
    model(INPUTS).sum().backward()
    before = everything(model)
    assert line_of(tb.explain(model, INPUTS, ["dropout"]), "0").endswith("dropout: StreamDropout(p=0.1, element)")
    assert everything(model) == before
    assert tb.sites(model, INPUTS)[1].kind == "Linear"


@pytest.mark.parametrize("look", [lambda m, x: tb.explain(m, x, ["dropout"]), tb.sites], ids=["explain", "sites"])
@pytest.mark.parametrize("layer", [lambda: nn.LazyLinear(4), lambda: nn.LazyBatchNorm1d(affine=False)])
def test_a_lazy_model_stays_lazy_and_the_error_says_what_to_do(look, layer):
    model, kind = nn.Sequential(nn.Linear(4, 4), layer(), nn.ReLU(), nn.Linear(4, 2)), type(layer())
    with pytest.raises(tb.ConfigError, match="run it once on a batch before"):
        look(model, INPUTS)
    assert type(model[1]) is kind
    model(INPUTS)
    assert "Lazy" not in str(look(model, INPUTS))


def test_explain_says_order_picture_rest_and_size_in_this_order():
    text = tb.explain(small(), INPUTS, ["one_cycle", "dropout", "group_norm"])
    parts = ("Hooks, and who acts there", "Order\n", "Model: Sequential (5, 3)\n", "Also\n  one_cycle: lr, momentum: ")
    places = [text.index(part) for part in (*parts, "Parameters: 63 before, 63 after")]
    assert places == sorted(places)
