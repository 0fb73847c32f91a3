"""The tricks of one run: fresh copies, named, checked, ordered, in one pluggy manager, compiled for the hot path."""

from __future__ import annotations

import graphlib
import inspect
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import pluggy
from attrs import define, evolve, field, frozen

from trickbox.catalog import origin, resolve, unwrap
from trickbox.errors import ConfigError, NoEffectError
from trickbox.hooks import HOOKS, PHASES, Hooks
from trickbox.state import State
from trickbox.surgery import builds_since, edits_of, seal, undo_since
from trickbox.trick import fresh, hooks_of, is_off, is_trick, name_of, names, to_config

UPDATES = "updates"
"""Where a note says how many batches share an update."""
LOSS = "loss"
"""Where a note says that the loss function was replaced."""
CORE = "core"
"""The name under which the run itself answers the phases, last of all."""

Call = Callable[[State], Any]


@frozen
class Member:
    """One trick of a run: its name there, the run's own copy, and why it stands where it stands."""

    name: str
    trick: Any
    why: str = ""
    optional: bool = False
    """Whether it is left out where it finds no place."""

    @property
    def kind(self) -> str:
        """The name of the trick itself, whatever it is called in this run."""
        return name_of(self.trick)

    @property
    def answers_to(self) -> set[str]:
        """The words by which other tricks may mean this one."""
        return {self.name, self.kind} | ({self.trick.family} if self.trick.family else set())


@define(eq=False, init=False)
class Box:
    """The tricks of one run, in the order in which their hooks are called.

    Each entry of *tricks* is a trick, a name, its JSON form, or a pair ``("alias", trick)``. What the caller passed is
    never run. Raises `ConfigError` for conflicts, missing requirements, circular order and names used twice.

    >>> [member.name for member in Box(["early_stopping", "dropout", ("second", "dropout")]).members]
    ['early_stopping', 'dropout', 'second']
    """

    members: tuple[Member, ...]
    manager: pluggy.PluginManager
    idle: set[tuple[str, str]]
    """Pairs of a trick and a hook in which, with its settings, it does nothing."""
    builders: list[Member]
    """The tricks that did more to the model than to overwrite values, known after `init`."""

    def __init__(self, tricks: Iterable[Any] = (), core: object | None = None) -> None:
        if isinstance(tricks, (str, dict)) or is_trick(tricks):
            raise ConfigError(f"tricks must be a list, got {tricks!r}; write tricks=[{tricks!r}]")
        if not isinstance(tricks, Iterable):
            raise ConfigError(f"tricks must be a list, got {tricks!r}; without any, write tricks=[]")
        members = _named(tricks)
        _check_relations(members)
        self.members = tuple(_ordered(members))
        self.idle = set()
        self.builders = []
        self.manager = _Manager("trickbox")
        self.manager.add_hookspecs(Hooks)
        # pluggy calls the last registered first, and its wrapper outermost.
        if core is not None:
            self.manager.register(core, CORE)
        for member in reversed(self.members):
            self.manager.register(member.trick, member.name)
        self.manager.check_pending()

    def init(self, state: State) -> None:
        """Run `init` of every trick. Raises `NoEffectError` for one that only edits the model and did not edit it.

        An optional one is left out instead, whatever hooks it has.
        """
        for member in self.members:
            if "init" not in hooks_of(member.trick):
                continue
            state.surgery.acting = member.name
            edits, tape, shared, loss = edits_of(state.model), state.surgery.tape, state.batches_per_update, state.loss
            try:
                self._init(member, state)
                self.builders += [member] if builds_since(state.model, edits) else []
            except NoEffectError as error:
                if not member.optional:
                    raise
                undo_since(state.model, edits)
                state.surgery.tape, state.batches_per_update, state.loss = tape, shared, loss
                state.surgery.leave_out(error)
                state.idle |= {(member.name, hook) for hook in HOOKS}
        self.idle = state.idle
        seal(state.model)

    def _init(self, member: Member, state: State) -> None:
        surgery, shared, loss = state.surgery, state.batches_per_update, state.loss
        with state.streams.forked("init", member.name):
            member.trick.init(state)
        if state.batches_per_update != shared:
            surgery.note(UPDATES, f"one for {state.batches_per_update} batches")
        if state.loss is not loss:
            surgery.note(LOSS, "replaced")
        acted = any(note.trick == member.name and note.kind == "edit" for note in surgery.notes)
        if hooks_of(member.trick) == ["init"] and not acted and not is_off(member.trick):
            surgery.require([], "a place to act")

    def each(self, moment: str) -> list[Call]:
        """The functions that implement a moment, in call order."""
        return [implementation.function for implementation in self._implementations(moment)]

    def wrappers(self, phase: str) -> list[Call]:
        """The generator functions that wrap a phase, the outermost first."""
        return [implementation.function for implementation in self._implementations(phase) if implementation.wrapper]

    def answers(self, phase: str) -> list[str]:
        """The names of the tricks that do the work of a phase themselves."""
        doing = [i.plugin_name for i in self._implementations(phase) if not i.wrapper]
        return [name for name in doing if name != CORE]

    def compiled(self, hook: str) -> Call | None:
        """One function for all implementations of *hook*; None where there are none, so that they cost nothing.

        Equal to ``manager.hook.<hook>(state=state)`` in calls, order, result and errors, without its cost; where a
        phase is wrapped, that very call.
        """
        caller, implementations = self._caller(hook), self._implementations(hook)
        if any(implementation.wrapper for implementation in implementations):
            return lambda state: caller(state=state)
        functions = tuple(implementation.function for implementation in implementations)
        if len(functions) <= 1:
            return functions[0] if functions else None
        return _first_answer(functions) if hook in PHASES else _tell_all(functions)

    def acting(self, hook: str) -> list[str]:
        """The names of the tricks that act at *hook*, in call order."""
        return [m.name for m in self.members if hook in hooks_of(m.trick) and (m.name, hook) not in self.idle]

    def _caller(self, hook: str) -> pluggy.HookCaller:
        idle = [self.manager.get_plugin(name) for name, declined in self.idle if declined == hook]
        return self.manager.subset_hook_caller(hook, idle)

    def _implementations(self, hook: str) -> list[pluggy.HookImpl]:
        return list(reversed(self._caller(hook).get_hookimpls()))

    def blame(self, error: BaseException) -> str | None:
        """The trick and hook that an exception came out of: the innermost frame that belongs to one of them."""
        owners = {
            (id(plugin), inspect.unwrap(getattr(type(plugin), hook)).__code__): (name, hook)
            for name, plugin in self.manager.list_name_plugin()
            for hook in hooks_of(plugin)
        }
        found, trace = None, error.__traceback__
        while trace is not None:
            frame = trace.tb_frame
            if owner := owners.get((id(frame.f_locals.get("self")), frame.f_code)):
                name, hook = owner
                found = f"hook {hook}" if name == CORE else f"trick {name!r}, hook {hook}"
            trace = trace.tb_next
        return found

    def order(self) -> str:
        """The loop with the tricks that act at each hook, in order, and why in that order."""
        lines = []
        for hook in HOOKS:
            acting = self.acting(hook)
            lines.append(f"  {hook:<13} {', '.join(acting) if acting else '-'}")
        reasons = [f"  {m.name}: {m.why}" for m in self.members if m.why]
        return "\n".join(["Hooks, and who acts there in this order", *lines, *(["Order", *reasons] if reasons else [])])

    def record(self) -> list[dict[str, Any]]:
        """What ran, for the record: name, settings and origin of every trick, in order."""
        return list(map(_recorded, self.members))

    def recipe(self) -> list[dict[str, Any]]:
        """What has to be put on a plain model to build what the tricks have built on this one."""
        return list(map(_recorded, self.builders))


@define(eq=False)
class Opened:
    """A phase whose work somebody else does: its wrappers run up to their ``yield``, and later on to the end."""

    _generators: list[Generator[Any, Any, Any]] = field(factory=list)

    def enter(self, wrappers: Iterable[Call], state: State) -> None:
        """Begin *wrappers*, the outermost first."""
        for function in wrappers:
            generator = function(state)
            try:
                next(generator)
            except BaseException as error:
                self.leave(None, error)
                raise
            self._generators.append(generator)

    def leave(self, result: Any, error: BaseException | None = None) -> Any:
        """End them, the innermost first, with the result of the work, or with the error that it ended in."""
        while self._generators:
            generator = self._generators.pop()
            try:
                _ = generator.send(result) if error is None else generator.throw(error)
            except StopIteration as end:
                result, error = end.value, None
            except BaseException as later:
                error = later
            else:
                error = RuntimeError(f"a wrapper of a phase must yield once: {generator!r}")
        if error is not None:
            raise error
        return result


class _Manager(pluggy.PluginManager):
    """A plugin manager that looks at the attributes with a hook's name only; a trick's class has been checked."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        return super().parse_hookimpl_opts(plugin, name) if name in HOOKS else None


def _recorded(member: Member) -> dict[str, Any]:
    optional = {"optional": True} if member.optional else {}
    return {"name": member.name, **to_config(member.trick), **optional, **origin(member.trick)}


def _tell_all(functions: tuple[Call, ...]) -> Call:
    def call(state: State) -> None:
        for function in functions:
            function(state)

    return call


def _first_answer(functions: tuple[Call, ...]) -> Call:
    def call(state: State) -> Any:
        for function in functions:
            result = function(state)
            if result is not None:
                return result
        return None

    return call


def _named(tricks: Iterable[Any]) -> list[Member]:
    members: list[Member] = []
    for spec in tricks:
        alias, trick = spec if isinstance(spec, tuple) and len(spec) == 2 else (None, spec)
        trick, optional = unwrap(trick)
        trick = fresh(resolve(trick))
        if not hooks_of(trick):
            raise ConfigError(f"{name_of(trick)} implements no hook, so it could never act")
        taken = {member.name for member in members}
        if alias is None:
            kind = name_of(trick)
            alias = next(n for n in (kind, *(f"{kind}#{i}" for i in range(2, 1000))) if n not in taken)
        if not isinstance(alias, str) or not alias or alias in taken or alias == CORE:
            raise ConfigError(f"the name of a trick must be a new word, got {alias!r}; taken: {sorted(taken)}")
        members.append(Member(alias, trick, optional=optional))
    return members


def _check_relations(members: list[Member]) -> None:
    for member in members:
        others = [other for other in members if other is not member]
        for word in names(member.trick, "conflicts"):
            for other in others:
                if word in other.answers_to:
                    raise ConfigError(f"{member.name} and {other.name} cannot be in the same run; drop one of them")
        for word in names(member.trick, "requires"):
            if not any(word in other.answers_to for other in others):
                raise ConfigError(f"{member.name} needs {word!r} in the same run; add it to tricks")


def _ordered(members: list[Member]) -> Iterator[Member]:
    """Sort by the declared relations; ties keep the order of the list."""
    before = {
        member.name: [
            other.name
            for other in members
            if other.kind != member.kind and other.answers_to & set(names(member.trick, "after"))
        ]
        for member in members
    }
    try:
        graphlib.TopologicalSorter(before).prepare()
    except graphlib.CycleError as error:
        circle = " after ".join(error.args[1])
        raise ConfigError(f"the order of the tricks is circular: {circle}; one of them must not say `after`") from error
    waiting, done = list(members), set[str]()
    while waiting:
        following = next(member for member in waiting if done.issuperset(before[member.name]))
        waiting.remove(following)
        done.add(following.name)
        why = f"after {', '.join(sorted(before[following.name]))}" if before[following.name] else ""
        yield evolve(following, why=why)
