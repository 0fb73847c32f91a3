"""The command line: ``trickbox compare``, ``list``, ``info`` and ``explain``."""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from trickbox.catalog import available, distribution, entries, get, resolve
from trickbox.errors import ConfigError, TrickboxError, near
from trickbox.trick import FACTS, fields_of, hooks_of

if TYPE_CHECKING:
    from trickbox.study import Study


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for a mistake in the command, 130 after Ctrl-C."""
    try:
        options = _parser().parse_args(arguments)
        options.run(options)
    except TrickboxError as error:
        print(f"trickbox: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("trickbox: interrupted; finished runs are kept, the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


# -- commands --------------------------------------------------------------------------------------------------------


def compare(options: argparse.Namespace) -> None:
    """Train all arms over paired seeds, print the table, write the report."""
    folder = Path(options.out) if options.out else cache_folder()
    study = _study(options, folder)
    runs = len({spec.key for spec in study.specs})
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{len(study.arms)} arms on {len(study.seeds)} paired seeds: {runs} runs, kept in {folder}", file=sys.stderr)
    outcome = study.run(workers=options.workers, store=folder)
    print(outcome.table())
    print()
    print("\n".join(outcome.sentences()))
    name = "course" if options.course else "report"
    print(f"\nReport: {outcome.save(folder / f'{name}.html')}")


def list_tricks(options: argparse.Namespace) -> None:
    """Print the installed tricks; imports none of them."""
    rows = [(entry.name, entry.value, distribution(entry)) for entry in entries()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def info(options: argparse.Namespace) -> None:
    """Print what a trick promises, its settings and the hooks where it acts."""
    cls = get(options.name)
    print(f"{options.name}: {inspect.cleandoc(cls.__doc__ or '')}")
    print("\nSettings")
    for name, attribute in fields_of(cls).items():
        default = "required" if attribute.default.__class__.__name__ == "_Nothing" else repr(attribute.default)
        print(f"  {name:<22} {default:<12} {_type_name(attribute.type)}")
    print(f"\nHooks: {', '.join(hooks_of(cls))}")
    for fact in FACTS:
        if value := getattr(cls, fact):
            print(f"{fact.capitalize()}: {value if isinstance(value, (str, dict)) else ', '.join(value)}")
    found = next(entry for entry in entries() if entry.name == options.name.rpartition(":")[2])
    print(f"From: {found.value}, {distribution(found)}")


def explain(options: argparse.Namespace) -> None:
    """Print what tricks would do to the model of a task: order and why, sites, parameters. Changes nothing."""
    from trickbox.loops import explain as explain_tricks

    task = _task(options)
    inputs = task.data(0).train[0][: task.batch_size]
    print(explain_tricks(task.model(), inputs, parse_tricks(options.tricks)))


def _study(options: argparse.Namespace, folder: Path) -> Study:
    own = [f"--{name}" for name in ("tricks", "set", "design") if getattr(options, name)]
    if options.course:
        if options.task or own:
            raise ConfigError(f"--course has its own task and tricks; leave out {options.task or own[0]}")
        from trickbox.tasks.lesson import course_study

        return course_study(options.seeds, options.margin)
    if options.task is None and not own:
        from trickbox.tasks.lesson import lesson_study

        return lesson_study(folder, options.seeds, options.margin)
    if not options.tricks:
        raise ConfigError(
            f"name the tricks to compare: --tricks dropout,batch_norm. Installed: {', '.join(available())}"
        )
    from trickbox.study import Study

    design = options.design or "add_one"
    return Study(
        _task(options), parse_tricks(options.tricks), design=design, seeds=options.seeds, margin=options.margin
    )


def _task(options: argparse.Namespace) -> Any:
    from trickbox import tasks

    settings = {}
    for setting in options.set or []:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set takes name=value, such as noise=0.3, got {setting!r}")
        settings[name] = _value(value)
    return tasks.get(options.task or "waveforms", **settings)


# -- reading the command line ----------------------------------------------------------------------------------------


def parse_tricks(text: str) -> list[Any]:
    """The tricks in a list of names, each with settings where wanted.

    >>> parse_tricks("batch_norm, dropout(p=0.3, kind='channel')")
    ['batch_norm', {'trick': 'dropout', 'p': 0.3, 'kind': 'channel'}]
    """
    found: list[Any] = []
    for part in re.split(r",\s*(?![^()]*\))", text.strip()):
        match = re.fullmatch(r"\s*([\w:-]+)\s*(?:\((.*)\))?\s*", part)
        if match is None:
            raise ConfigError(f"cannot read the trick {part!r}; write a name or name(setting=value)")
        name, settings = match[1], match[2]
        spec = {"trick": name, **_keywords(part, settings)} if settings else name
        resolve(spec)
        found.append(spec)
    return found


def _keywords(part: str, settings: str) -> dict[str, Any]:
    try:
        call = ast.parse(f"f({settings})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args:
            raise ValueError
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"cannot read the settings of {part!r}; write name(setting=value, other=value)") from error


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def cache_folder() -> Path:
    """Where results go when no folder is named: the user's cache, never the working folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "trickbox" / "compare"


class _Parser(argparse.ArgumentParser):
    """An argument parser that guesses what a misspelt word was meant to be."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [option for action in _actions(self) for option in action.option_strings]
            self.error(f"unknown: {unknown[0]}.{near(unknown[0].partition('=')[0], known)}")
        return found

    def error(self, message: str) -> NoReturn:
        if match := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            options = re.findall(r"[\w-]+", match[2])
            message = f"no {match[1]!r}; there is {', '.join(options)}.{near(match[1], options)}"
        raise ConfigError(f"{message} See: {self.prog} --help")


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """All options of a parser and of its commands."""
    found = list(parser._actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [inner for command in action.choices.values() for inner in command._actions]
    return found


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="trickbox", description="Training tricks as plugins: switch one on, then measure it.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    command = commands.add_parser("compare", help="train tricks over paired seeds and say which help")
    command.set_defaults(run=compare)
    command.add_argument("task", nargs="?", metavar="TASK", help="a task, such as waveforms; none: the lesson")
    command.add_argument("--tricks", metavar="A,B", help="tricks, such as 'batch_norm,dropout(p=0.3)'")
    command.add_argument("--course", action="store_true", help="the course's own experiments, as it ran them")
    command.add_argument("--seeds", type=_count(2), default=10, metavar="N", help="paired seeds (default: 10)")
    command.add_argument("--margin", type=float, default=1.0, help="the smallest effect of interest (default: 1 point)")
    command.add_argument("--design", help="add_one (the default) or leave_one_out")
    command.add_argument("--workers", type=_count(1), metavar="N", help="processes (default: one for each core)")
    command.add_argument("--out", metavar="DIR", help="folder for runs and report (default: the user's cache)")
    _add_settings(command)

    command = commands.add_parser("list", help="the installed tricks")
    command.set_defaults(run=list_tricks)

    command = commands.add_parser("info", help="what a trick promises, its settings and hooks")
    command.set_defaults(run=info)
    command.add_argument("name", metavar="NAME")

    command = commands.add_parser("explain", help="what tricks would do to the model of a task")
    command.set_defaults(run=explain)
    command.add_argument("tricks", metavar="A,B", help="tricks, such as 'batch_norm,dropout(p=0.3)'")
    command.add_argument("--task", default="waveforms", help="a task (default: waveforms)")
    _add_settings(command)
    return parser


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set", action="append", metavar="NAME=VALUE", help="a setting of the task, such as noise=0.3"
    )


def _count(least: int) -> Any:
    def count(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return int(text)

    return count


def _type_name(kind: Any) -> str:
    return kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
