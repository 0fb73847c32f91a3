"""Runs specs in worker processes of one thread each; only the parent writes, and a dead worker costs one result."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from typing import Any

from trickbox.errors import ConfigError, TrickboxError
from trickbox.study.run import failed, run_spec
from trickbox.study.spec import Spec
from trickbox.study.store import Outcome, Store

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_GUARD = (
    "study: worker processes could not start. A script that runs a study must do so under "
    "`if __name__ == '__main__':`, because every worker imports the script; see the messages above for what went wrong"
)


def execute(
    specs: Iterable[Spec],
    store: Store,
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    on_done: Callable[[Spec, Outcome], object] | None = None,
    retry: bool = False,
) -> dict[str, Outcome]:
    """Give every spec its result, by key: from *store* where it is there, else by training, in the order given.

    With *retry*, what is stored as an error is made again, such as a run whose worker had too little memory.

    *workers* processes (default: one per core); the numbers are the same for any count. *executor* is used instead, if
    given: any `concurrent.futures.Executor` of processes. A spec whose worker dies twice gets an error as its result.
    Ctrl-C keeps what is stored. Raises `ConfigError` where workers cannot start.
    """
    check_executor(workers, executor)
    outcomes: dict[str, Outcome] = {}
    todo: dict[str, Spec] = {}
    for spec in specs:
        key = spec.key
        if key in todo or key in outcomes:
            continue
        kept = store.get(key)
        if kept is None or (retry and kept["status"] == "error"):
            todo[key] = spec
        else:
            outcomes[key] = kept
            if on_done:
                on_done(spec, kept)
    if todo:
        pool = Lent(executor) if executor else Pool(min(workers or cores(), len(todo)))
        with pool:
            for key, outcome in _drain(todo, pool):
                store.put(key, outcome)
                outcomes[key] = outcome
                if on_done:
                    on_done(todo[key], outcome)
    return outcomes


def check_executor(workers: int | None, executor: Executor | None) -> None:
    """Raise `ConfigError` for executors that cannot give reproducible results, and for no workers."""
    if isinstance(executor, ThreadPoolExecutor):
        raise ConfigError("study: threads share one random generator, so runs would disturb each other; use processes")
    if workers is not None and workers < 1:
        raise ConfigError(f"study: workers must be at least 1, got {workers}")
    if multiprocessing.parent_process() is not None and getattr(
        multiprocessing.current_process(), "_inheriting", False
    ):
        raise ConfigError(_GUARD)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _drain(todo: dict[str, Spec], pool: Lent | Pool) -> Iterator[tuple[str, Outcome]]:
    """Yield results as they come. After a break, what was in flight runs again, one by one, to find the cause."""
    queue = deque(todo)
    while queue:
        suspects = yield from _fly(queue, todo, pool)
        for key in suspects:
            if (yield from _fly(deque([key]), todo, pool)):
                yield key, failed("the worker process died twice in this run; was there too little memory?")


def _fly(
    queue: deque[str], todo: dict[str, Spec], pool: Lent | Pool
) -> Generator[tuple[str, Outcome], None, list[str]]:
    """Yield the results of a queue. When the pool breaks, stop, renew it, and return what was in flight, in order."""
    flying: dict[Future[Outcome], str] = {}
    try:
        while queue or flying:
            while queue and len(flying) < pool.depth:
                key = queue.popleft()
                flying[pool.submit(todo[key])] = key
            broken = False
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                if isinstance(future.exception(), BrokenExecutor):
                    broken = True
                else:
                    yield flying.pop(future), future.result()
            if broken:
                pool.renew()
                return list(flying.values())
        return []
    finally:
        for future in flying:
            future.cancel()


class Lent:
    """An executor of the user's: never closed, never renewed, and it queues all runs by itself."""

    depth = sys.maxsize

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def submit(self, spec: Spec) -> Future[Outcome]:
        """Start a run."""
        return self._executor.submit(run_spec, spec.to_json())

    def renew(self) -> None:
        """Give up: what broke is not ours to mend."""
        raise TrickboxError("study: the executor broke; what is stored is kept, so run the study again with a new one")

    def __enter__(self) -> Lent:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class Pool:
    """Worker processes of our own: started before the first run, renewed when broken, ended with the block."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self.depth = 2 * workers

    def submit(self, spec: Spec) -> Future[Outcome]:
        """Start a run."""
        try:
            return self._executor.submit(run_spec, spec.to_json())
        except BrokenExecutor as error:
            # A worker that dies while idle breaks the pool between two runs.
            broken: Future[Outcome] = Future()
            broken.set_exception(error)
            return broken

    def renew(self) -> None:
        """Replace all workers."""
        self._stop(at_once=True)
        self._start()

    def __enter__(self) -> Pool:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._stop(at_once=kind is not None)

    def _start(self) -> None:
        others = set(multiprocessing.active_children())
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(self._workers, mp_context=context, initializer=_begin)
        try:
            with _environment(ONE_THREAD):
                ready = [self._executor.submit(_ready) for _ in range(self._workers)]
                for future in ready:
                    future.result()
        except BrokenExecutor as error:
            self._executor.shutdown()
            raise ConfigError(_GUARD) from error
        self._children = set(multiprocessing.active_children()) - others

    def _stop(self, at_once: bool) -> None:
        # After Ctrl-C, runs in flight are of no use to anyone any more, and may have minutes to go.
        for child in self._children if at_once else ():
            child.terminate()
        self._executor.shutdown(cancel_futures=True)


def _begin() -> None:
    """Prepare a worker: Ctrl-C is the parent's to answer, and a worker whose parent is gone ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent: Any = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _ready() -> bool:
    return True


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
