"""A spec is the whole truth about a run: same key, same result; other key, another run."""

from __future__ import annotations

import importlib
import json
import linecache
import sys
from pathlib import Path

import attrs
import pytest
from torch import nn

from trickbox import catalog
from trickbox.authoring import Places, choice, trick
from trickbox.errors import ConfigError
from trickbox.study.design import Arm, add_one
from trickbox.study.spec import Part, Spec, build_task, build_trick, part_of_task, part_of_trick, plan, versions
from trickbox.tasks.waveforms import Waveforms
from trickbox.trick import to_config
from trickbox.validators import places


def planned(**fields: object) -> list[Spec]:
    return plan(Waveforms(**fields), add_one(["dropout"]).arms, seeds=(0, 7))  # type: ignore[arg-type]


def test_all_arms_of_a_seed_come_before_the_next_seed() -> None:
    assert [(spec.seed, spec.arm) for spec in planned()] == [
        (0, "baseline"), (0, "placebo"), (0, "dropout"), (7, "baseline"), (7, "placebo"), (7, "dropout"),
    ]  # fmt: skip


def test_keys_are_stable_and_differ_with_whatever_matters() -> None:
    first = planned()

    assert [spec.key for spec in first] == [spec.key for spec in planned()]
    assert len({spec.key for spec in [*first, *planned(noise=0.3)]}) == 12
    for change in ({"threads": 2}, {"device": "cuda"}, {"versions": {"torch": "0"}}, {"schema": 99}):
        assert attrs.evolve(first[0], **change).key != first[0].key


def test_the_name_of_an_arm_does_not_matter() -> None:
    first, second = (plan(Waveforms(), [Arm(name, ["dropout"])], [0])[0] for name in "ab")

    assert first.key == second.key


def test_edited_code_is_another_run() -> None:
    spec = planned()[0]

    assert attrs.evolve(spec, task=attrs.evolve(spec.task, code="edited")).key != spec.key


def test_a_spec_survives_json_and_builds_what_it_describes() -> None:
    spec = plan(Waveforms(noise=0.3), [Arm("x", [("head", {"trick": "dropout", "p": 0.3})])], [1])[0]

    again = Spec.from_json(json.loads(json.dumps(spec.to_json())))

    assert again.key == spec.key
    assert build_task(again.task) == Waveforms(noise=0.3)
    alias, trick = build_trick(again.tricks[0])
    assert (alias, type(trick), trick.p) == ("head", catalog.get("dropout"), 0.3)


def test_weights_are_known_by_what_is_in_them(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.pt", "b.pt", "c.pt")]
    for file, content in zip(files, (b"one", b"one", b"two"), strict=True):
        file.write_bytes(content)
    task = part_of_task(Waveforms())

    one, same, other = (Spec("x", 0, task, (Part("m:C", {"weights": str(file)}, "code"),)).key for file in files)

    assert one == same != other


def test_overrides_change_the_task_of_their_arm_only() -> None:
    arms = [Arm("slow", control=None), Arm("fast", control="slow", overrides={"lr": 0.1})]

    slow, fast = plan(Waveforms(), arms, [0])

    assert (build_task(slow.task), build_task(fast.task)) == (Waveforms(), Waveforms(lr=0.1))


@attrs.frozen
class Odd:
    name = "odd"
    file: object = object()


def test_what_workers_could_not_make_again_is_refused() -> None:
    @attrs.frozen
    class Inner:
        name = "inner"

    with pytest.raises(ConfigError, match="overrides 'rate', which waveforms does not have"):
        plan(Waveforms(), [Arm("fast", overrides={"rate": 0.1})], [0])
    with pytest.raises(ConfigError, match="Inner is made inside a function"):
        part_of_task(Inner())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Odd must be plain JSON"):
        part_of_task(Odd())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be an attrs class"):
        plan(object(), [Arm("a")], [0])  # type: ignore[arg-type]
    assert part_of_trick(catalog.resolve("dropout")).place == "trickbox_tricks.dropout:Dropout"


@trick
class Marked:
    """Act where it is told. Cost: none."""

    at: Places | None = attrs.field(default=None, validator=places())
    kind: object = attrs.field(default="a", validator=choice("a", "b"))


def is_wide(site: object) -> bool:
    return True


class Wide:
    def __call__(self, site: object) -> bool:
        return True


@pytest.mark.parametrize(
    ("at", "written"),
    [
        ("**.fc", "**.fc"),
        (["fc1", ":Linear"], ["fc1", ":Linear"]),
        (nn.Linear, ":Linear"),
        (["fc1", nn.Conv1d], ["fc1", ":Conv1d"]),
        (("fc1", nn.modules.batchnorm._BatchNorm), ["fc1", ":_BatchNorm"]),
    ],
)
def test_places_go_to_workers_as_text_with_classes_by_name(at: object, written: object) -> None:
    arms = [Arm("x", [("early", {"trick": "dropout", "at": at, "not_at": at})])]
    spec = plan(Waveforms(), arms, [0])[0]
    again = Spec.from_json(json.loads(json.dumps(spec.to_json())))

    _, dropout = build_trick(again.tricks[0])

    assert (dropout.at, dropout.not_at) == (written, written)
    assert spec.tricks[0].settings == {k: v for k, v in to_config(dropout).items() if k != "trick"}
    assert again.key == spec.key == plan(Waveforms(), [Arm("x", [("early", dropout)])], [0])[0].key


def test_another_place_is_another_run() -> None:
    arms = [Arm(str(at), [{"trick": "dropout", "at": at}]) for at in (None, "fc1", "fc*", ["fc1"])]

    assert len({spec.key for spec in plan(Waveforms(), arms, [0])}) == 4


@pytest.mark.parametrize(
    ("at", "named"),
    [
        (is_wide, f"{__name__}.is_wide"),
        (["fc1", Wide()], f"{__name__}.Wide"),
        (lambda _: True, f"{__name__}.<lambda>"),
    ],
)
@pytest.mark.parametrize("setting", ["at", "not_at"])
def test_a_predicate_cannot_go_to_workers_and_is_named_with_what_to_write(at: object, named: str, setting: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(Waveforms(), [Arm("x", [("early", {"trick": "dropout", setting: at})])], [0])

    assert str(caught.value) == (
        f"study: dropout: {setting}: the function {named} cannot be sent to workers; write places as text: a path such "
        "as '**.fc1', a class as ':Linear', or a list of these"
    )


def test_a_class_in_a_setting_that_takes_no_text_is_refused() -> None:
    marked = Marked(at=nn.Linear)
    assert build_trick(part_of_trick(marked)).at == ":Linear"
    object.__setattr__(marked, "kind", nn.Linear)
    with pytest.raises(ConfigError, match="marked: kind must be one of a, b, got ':Linear'"):
        part_of_trick(marked)


def test_settings_that_are_no_json_are_refused_as_before() -> None:
    with pytest.raises(ConfigError, match="settings of Transfer must be plain JSON values"):
        part_of_trick(catalog.get("transfer")(nn.Linear(2, 2)))


def test_an_edit_of_the_file_of_a_trick_finds_no_older_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "edited_trick.py"
    text = (
        "from trickbox.authoring import hookimpl, trick\n\nSTRENGTH = {}\n\n\n@trick\nclass Edited:\n"
        "    'Do nothing.'\n\n    @hookimpl\n    def fit_start(self, state):\n        return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    codes = []
    for strength in (1, 2, 1):
        file.write_text(text.format(strength))
        linecache.clearcache()
        sys.modules.pop("edited_trick", None)
        importlib.invalidate_caches()
        codes.append(part_of_trick(importlib.import_module("edited_trick").Edited()).code)
    sys.modules.pop("edited_trick", None)
    assert codes[0] == codes[2] != codes[1]
    assert "source" in versions()
