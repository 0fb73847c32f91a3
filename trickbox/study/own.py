"""Tasks of your own: a class or a function, in a file or in a module, by its place.

A place is ``file.py:name`` or ``module:name``. A class is a `Task`. A function takes a seed, and settings that all have
defaults, and returns model, data, loss and optimizer:

- the model, or a class or function that makes it;
- `Splits`, or a tuple of (train, valid) or (train, valid, test), each a pair of (inputs, targets);
- the loss, a function of (outputs, targets);
- the optimizer, or a function of the parameters.

It draws from nothing but the seed and torch's global generators, which are seeded for the call. Two settings have a
meaning: ``max_epochs`` (10) and ``batch_size`` (32).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import attrs
import torch

from trickbox.errors import ConfigError, near
from trickbox.streams import forked
from trickbox.study.guess import guess
from trickbox.study.task import ACCURACY, Metric, Splits, Task

_FILE = "trickbox_file_"
"""How modules are named that were loaded from a file."""


def task_class(place: str) -> type:
    """The class of the task at a place: the class that lies there, or one made of the function that does.

    Raises `ConfigError` for a place that is not there, or what is no task.
    """
    found = load(place)
    if isinstance(found, type) and attrs.has(found):
        return found
    if isinstance(found, type):
        raise ConfigError(f"task {place}: {found.__name__} must be an attrs class; decorate it with attrs.frozen")
    if not inspect.isfunction(found):
        raise ConfigError(f"task {place}: must be a class or a function of a seed, got {found!r}")
    return _class_of(found, place)


def load(place: str) -> Any:
    """What lies at ``file.py:name`` or ``module:name``. Raises `ConfigError` where nothing does."""
    where, _, path = place.rpartition(":")
    try:
        found: Any = _module_in(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except (ModuleNotFoundError, FileNotFoundError, ValueError) as error:
        raise ConfigError(f"task {place!r}: {error}; write file.py:name or module:name") from error
    for name in path.split("."):
        if not hasattr(found, name):
            names = [other for other in vars(found) if not other.startswith("_")]
            raise ConfigError(f"task {place!r}: {where} has no {name!r}.{near(name, names)}")
        found = getattr(found, name)
    return found


def place_of(cls: type) -> str:
    """The place of a class of tasks, from which a worker process can load it."""
    module = sys.modules[cls.__module__]
    is_file = cls.__module__.startswith(_FILE) or cls.__module__ == "__main__"
    where = module.__file__ if is_file else cls.__module__
    return f"{where}:{cls.__qualname__}"


def _module_in(path: Path) -> ModuleType:
    """The module in a file, loaded once as long as the file stays as it is."""
    path = path.resolve()
    source = path.read_bytes()
    name = f"{_FILE}{path.stem}_{hashlib.sha256(bytes(path) + source).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


# -- functions ---------------------------------------------------------------------------------------------------------


class FunctionTask:
    """The task that a function makes; its settings are fields of a class derived from this one."""

    function: Callable[..., Any]
    name: str
    _made: Any = None
    max_epochs = 10
    batch_size = 32
    class_names = ()

    def data(self, seed: int) -> Splits:
        """Call the function: model, loss and optimizer are those of this call until the next."""
        with forked(seed):
            made = type(self).function(seed, **attrs.asdict(cast(Any, self), recurse=False))
        if not isinstance(made, (tuple, list)) or len(made) != 4:
            raise ConfigError(f"task {self.name}: the function must return model, data, loss, optimizer, got {made!r}")
        data = made[1] if isinstance(made[1], Splits) else Splits(*made[1])
        object.__setattr__(self, "_made", made)  # the class is frozen, and this is none of its settings
        return data

    @property
    def _parts(self) -> tuple[Any, Any, Any, Any]:
        if self._made is None:
            self.data(0)
        parts: tuple[Any, Any, Any, Any] = self._made
        return parts

    @property
    def metric(self) -> Metric:
        """Accuracy where the targets are class numbers, and else the loss, with a hundredth of guessing as margin."""
        data = self.data(0)
        if not torch.as_tensor(data.valid[1]).is_floating_point():
            return ACCURACY
        guessed = guess(self.model(), data.train, data.comparison, self.loss)
        return Metric("loss", higher_is_better=False, unit="", scale=1.0, margin=abs(guessed.get("loss", 1.0)) / 100)

    @property
    def loss(self) -> Any:
        """The loss."""
        return self._parts[2]

    @property
    def optimizer(self) -> Any:
        """The optimizer, or what makes it."""
        return self._parts[3]

    def model(self) -> torch.nn.Module:
        """The model."""
        model = self._parts[0]
        made: torch.nn.Module = model if isinstance(model, torch.nn.Module) else model()
        return made


def _class_of(function: Callable[..., Any], place: str) -> type[Task]:
    """A class of tasks whose fields are the settings of a function."""
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].default is not inspect.Parameter.empty:
        raise ConfigError(f"task {place}: the function must take a seed first, such as def task(seed, lr=0.01)")
    for parameter in parameters[1:]:
        if parameter.default is parameter.empty:
            raise ConfigError(f"task {place}: the setting {parameter.name!r} needs a default")
    fields = {parameter.name: attrs.field(default=parameter.default) for parameter in parameters[1:]}
    made: Any = attrs.make_class(function.__name__, fields, bases=(FunctionTask,), frozen=True, slots=False)
    made.function, made.name = staticmethod(function), function.__name__
    made.__module__, made.__qualname__ = function.__module__, function.__qualname__
    found: type[Task] = made
    return found
