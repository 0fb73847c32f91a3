"""The command line: ``trickbox compare``, ``recommend``, ``list``, ``info``, ``explain`` and ``sites``."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from trickbox.catalog import available, distribution, entries, get
from trickbox.errors import ConfigError, TrickboxError, near
from trickbox.files import write_whole
from trickbox.spelling import parse_tricks, parse_value
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
    """Train all arms over paired seeds, confirm the winner on fresh ones, print what came out, write the report."""
    from trickbox.study.answers import answer, confirmation
    from trickbox.study.planning import seconds_of

    limit = seconds_of(options.limit) if options.limit else None
    folder = Path(options.out) if options.out else cache_folder()
    if options.aggregate:
        _aggregate(options, folder)
        return
    study = _study(options, folder)
    runs = len({spec.key for spec in study.specs})
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{len(study.arms)} arms on {len(study.seeds)} paired seeds: {runs} runs, kept in {folder}", file=sys.stderr)
    if options.plan:
        print(study.plan(options.plan, workers=options.workers, store=folder))
        return
    how = {"workers": options.workers, "store": folder, "retry": options.retry, "limit": limit}
    found = study.run(**how)
    found.confirmed = study.confirm(found, **how)
    print("\n".join([*answer(found), *confirmation(found.confirmed), "", found.table(), "", *found.sentences()]))
    name = "course" if options.course else "report"
    print(f"\nReport: {found.save(folder / f'{name}.html')}")


def _aggregate(options: argparse.Namespace, folder: Path) -> None:
    """Ask the same of several tasks, and print what holds over all of them."""
    from trickbox.study import aggregate
    from trickbox.study.averages import table

    if options.task or options.course or options.set or options.plan:
        raise ConfigError("--aggregate names the tasks itself; leave out the task, --course, --set and --plan")
    outcomes = []
    for task in options.aggregate.split(","):
        study = _study(argparse.Namespace(**{**vars(options), "task": task}), folder)
        outcomes.append(study.run(workers=options.workers, store=folder, retry=options.retry))
        print(f"{outcomes[-1].table()}\n\nReport: {outcomes[-1].save(folder / f'{study.task.name}.html')}\n")
    print(f"Over {len(outcomes)} tasks:\n\n{table(aggregate(outcomes))}")


def recommend(options: argparse.Namespace) -> None:
    """Find out within a budget which tricks to use on a task; print the answer, write it as recipe.json."""
    from trickbox.study import recommend as search

    folder = Path(options.out) if options.out else cache_folder("recommend")
    found = search(
        _task(options),
        parse_tricks(options.tricks) if options.tricks else None,
        budget=options.budget,
        metric=options.metric,
        margin=options.margin,
        workers=options.workers,
        store=folder,
    )
    print(found)
    path = folder / "recipe.json"
    write_whole(path, json.dumps(found.recipe(), indent=2) + "\n")
    print(f"\nRecipe: {path}")


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

    print(explain_tricks(*_model_and_inputs(options), parse_tricks(options.tricks)))


def sites(options: argparse.Namespace) -> None:
    """Print what can be named in `at=` in the model of a task."""
    from trickbox.loops import sites as sites_of

    print(sites_of(*_model_and_inputs(options), functions=options.functions))


def _model_and_inputs(options: argparse.Namespace) -> tuple[Any, Any]:
    """The model of a task, and a batch for it."""
    task = _task(options)
    return task.model(), task.data(0).train[0][: task.batch_size]


def _study(options: argparse.Namespace, folder: Path) -> Study:
    own = [f"--{name}" for name in ("tricks", "set", "design", "metric", "target", "tune") if getattr(options, name)]
    margin = [] if options.margin is None else [options.margin]
    if options.course:
        if options.task or own:
            raise ConfigError(f"--course has its own task and tricks; leave out {options.task or own[0]}")
        from trickbox.tasks.lesson import course_study

        return course_study(options.seeds, *margin)
    if options.task is None and not own:
        from trickbox.tasks.lesson import lesson_study

        return lesson_study(folder, options.seeds, *margin)
    if not options.tricks:
        raise ConfigError(
            f"name the tricks to compare: --tricks dropout,batch_norm. Installed: {', '.join(available())}"
        )
    from trickbox.study import Study

    design = options.design or "add_one"
    return Study(
        _task(options),
        parse_tricks(options.tricks),
        design=design,
        seeds=options.seeds,
        margin=options.margin,
        metric=options.metric,
        target=options.target,
        tune=dict(map(_knob, options.tune or [])),
    )


def _knob(text: str) -> tuple[str, list[Any]]:
    """A knob and its values, from ``lr=0.001,0.01``."""
    name, equals, values = text.partition("=")
    if not equals:
        raise ConfigError(f"--tune takes name=value,value, such as lr=0.001,0.01, got {text!r}")
    return name, [parse_value(value) for value in values.split(",")]


def _task(options: argparse.Namespace) -> Any:
    from trickbox import tasks

    settings = {}
    for setting in options.set or []:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set takes name=value, such as noise=0.3, got {setting!r}")
        settings[name] = parse_value(value)
    return tasks.get(options.task or "waveforms", **settings)


def cache_folder(command: str = "compare") -> Path:
    """Where results go when no folder is named: the user's cache, never the working folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "trickbox" / command


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

    _add_studies(commands)

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

    command = commands.add_parser("sites", help="what can be named in at= in the model of a task")
    command.set_defaults(run=sites)
    command.add_argument("task", nargs="?", default="waveforms", metavar="TASK", help="a task (default: waveforms)")
    command.add_argument("--functions", action="store_true", help="also functions that modules call themselves")
    _add_settings(command)
    return parser


def _add_studies(commands: Any) -> None:
    """The commands that train."""
    command = commands.add_parser("compare", help="train tricks over paired seeds and say which help")
    command.set_defaults(run=compare)
    command.add_argument(
        "task",
        nargs="?",
        metavar="TASK",
        help="a shipped one, such as digits, or your own: mytask.py:MyTask; none: the lesson",
    )
    command.add_argument("--tricks", metavar="A,B", help="tricks, such as 'batch_norm,dropout(p=0.3)'")
    command.add_argument("--aggregate", metavar="TASK,TASK", help="ask the same of several tasks, and sum up")
    command.add_argument("--course", action="store_true", help="the course's own experiments, as it ran them")
    command.add_argument("--seeds", type=_count(2), default=10, metavar="N", help="paired seeds (default: 10)")
    command.add_argument(
        "--margin", type=float, help="the smallest effect of interest (default: the metric's, 1 point)"
    )
    command.add_argument("--metric", help="what is compared: accuracy or loss (default: the task's)")
    command.add_argument("--target", type=float, help="say when validation reaches this value, such as 95 points")
    command.add_argument("--design", help="add_one (the default), leave_one_out, dose, factorial, screen or shapley")
    command.add_argument("--workers", type=_count(1), metavar="N", help="processes (default: one for each core)")
    command.add_argument(
        "--tune", action="append", metavar="NAME=A,B", help="let each arm choose, such as lr=0.001,0.003,0.01"
    )
    command.add_argument("--plan", metavar="TIME", help="train three runs only, and say what fits into '10 min'")
    command.add_argument("--limit", metavar="TIME", help="how long a run may take before it is ended, such as '1 h'")
    command.add_argument("--retry", action="store_true", help="make runs again that are stored as errors")
    command.add_argument("--out", metavar="DIR", help="folder for runs and report (default: the user's cache)")
    _add_settings(command)

    command = commands.add_parser("recommend", help="find out in a given time which tricks to use, and confirm them")
    command.set_defaults(run=recommend)
    command.add_argument(
        "task", nargs="?", metavar="TASK", help="a shipped one (default: waveforms), or your own: mytask.py:MyTask"
    )
    command.add_argument("--budget", default="10 min", metavar="TIME", help="how long it may take (default: 10 min)")
    command.add_argument(
        "--tricks", metavar="A,B", help="the candidates (default: all of trickbox that need no setting)"
    )
    command.add_argument("--metric", help="what is compared: accuracy or loss (default: the task's)")
    command.add_argument("--margin", type=float, help="the smallest effect of interest (default: the metric's)")
    command.add_argument("--workers", type=_count(1), metavar="N", help="processes (default: one for each core)")
    command.add_argument("--out", metavar="DIR", help="folder for runs and recipe.json (default: the user's cache)")
    _add_settings(command)


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
