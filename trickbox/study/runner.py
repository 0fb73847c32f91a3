"""Runs specs in worker processes of one thread each; only the parent writes, and a dead worker costs one result."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from loky import ProcessPoolExecutor

from trickbox.errors import ConfigError, TrickboxError
from trickbox.study.own import load
from trickbox.study.run import failed, run_spec
from trickbox.study.spec import Spec
from trickbox.study.store import Outcome, Store

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_FIRST_LIMIT, _LEAST_LIMIT, _TIMES = 3600.0, 600.0, 20.0
"""Seconds that a run may take before another has ended; after that at least, and so many times the longest so far."""


def execute(
    specs: Iterable[Spec],
    store: Store,
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    on_done: Callable[[Spec, Outcome], object] | None = None,
    retry: bool = False,
    limit: float | None = None,
) -> dict[str, Outcome]:
    """Give every spec its result, by key: from *store* where it is there, else by training, in the order given.

    With *retry*, what is stored as an error is made again, such as a run whose worker had too little memory.

    *workers* processes (default: one per core); the numbers are the same for any count. A run may take *limit* seconds
    (default: twenty times the longest so far, but ten minutes at the least, and an hour for the first); then its worker
    is ended, and the result is an error that says where it was. A spec whose worker dies twice gets an error, too.

    *executor* is used instead, if given: any `concurrent.futures.Executor` of processes; its runs have no limit. Ctrl-C
    keeps what is stored. Raises `ConfigError` where workers cannot start.
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
        pool = Lent(executor) if executor else Pool(min(workers or cores(), len(todo)), limit, todo.values())
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
    if _is_worker:
        raise ConfigError(
            "study: a file with a task or a trick is imported by every worker, and this one runs a study when it is; "
            "put that under `if __name__ == '__main__':`, or into a file of its own"
        )


def _ready(places: Iterable[str]) -> None:
    """Load whatever runs will need; raises what is wrong with it before anything is trained."""
    for place in places:
        load(place)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _drain(todo: dict[str, Spec], pool: Lent | Pool) -> Iterator[tuple[str, Outcome]]:
    """Yield results as they come. After a break, what was in flight runs again, one by one, to find the cause."""
    queue = deque(todo)
    while queue:
        for suspect in (yield from _fly(queue, todo, pool)):
            if (yield from _fly(deque([suspect]), todo, pool)):
                yield suspect, failed("the worker process died twice in this run; was there too little memory?")


def _fly(
    queue: deque[str], todo: dict[str, Spec], pool: Lent | Pool
) -> Generator[tuple[str, Outcome], None, list[str]]:
    """Yield the results of a queue. When the pool breaks, stop, renew it, and return who may have broken it, in order.

    A run that took too long is known to have: it has its result, and the others go on where they were.
    """
    flying: dict[Future[Outcome], str] = {}
    try:
        while queue or flying:
            while queue and len(flying) < pool.depth:
                key = queue.popleft()
                flying[pool.submit(key, todo[key])] = key
            broken = False
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                if isinstance(future.exception(), BrokenExecutor):
                    broken = True
                else:
                    yield flying.pop(future), pool.received(future.result())
            if broken:
                pool.renew()
                late = {key: message for key in flying.values() if (message := pool.took_too_long(key))}
                for key, message in late.items():
                    yield key, failed(message)
                rest = [key for key in flying.values() if key not in late]
                if not late:
                    return rest
                queue.extendleft(reversed(rest))
                flying.clear()
        return []
    finally:
        for future in flying:
            future.cancel()


class Lent:
    """An executor of the user's: never closed, never renewed, and it queues all runs by itself."""

    depth = sys.maxsize

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def submit(self, key: str, spec: Spec) -> Future[Outcome]:
        """Start a run."""
        return self._executor.submit(run_spec, spec.to_json())

    def received(self, outcome: Outcome) -> Outcome:
        """The result as it came."""
        return outcome

    def took_too_long(self, key: str) -> None:
        """Nothing is known of that."""

    def renew(self) -> None:
        """Give up: what broke is not ours to mend."""
        raise TrickboxError("study: the executor broke; what is stored is kept, so run the study again with a new one")

    def __enter__(self) -> Lent:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class Pool:
    """Worker processes of our own: started before the first run, renewed when broken, ended with the block.

    loky's, which know when a worker has died, import nothing of the caller's script, and can be killed.
    """

    def __init__(self, workers: int, limit: float | None, specs: Iterable[Spec]) -> None:
        self._workers, self._limit = workers, limit
        self._places = sorted({part.place for spec in specs for part in (spec.task, *spec.tricks)})
        self._longest: float | None = None
        self.depth = 2 * workers

    def submit(self, key: str, spec: Spec) -> Future[Outcome]:
        """Start a run."""
        try:
            future: Future[Outcome] = self._executor.submit(_limited, spec.to_json(), self.limit, str(self._place(key)))
        except BrokenExecutor as error:
            # A worker that dies while idle breaks the pool between two runs.
            future = Future()
            future.set_exception(error)
        return future

    @property
    def limit(self) -> float:
        """How many seconds the next run may take."""
        if self._limit is not None:
            return self._limit
        return _FIRST_LIMIT if self._longest is None else max(_LEAST_LIMIT, _TIMES * self._longest)

    def received(self, outcome: Outcome) -> Outcome:
        """The result as it came; its time is remembered."""
        self._longest = max(self._longest or 0.0, outcome["wall_seconds"])
        return outcome

    def took_too_long(self, key: str) -> str | None:
        """What is known of a run that was ended for taking too long; None where it was not."""
        place = self._place(key)
        said = place.read_text(errors="replace") if place.exists() else ""
        place.unlink(missing_ok=True)
        if not said.startswith("Timeout"):
            return None
        head, *lines = said.splitlines()
        where = " < ".join(line.strip() for line in lines if line.strip().startswith("File"))
        limit = head.removeprefix("Timeout (").removesuffix(")!")
        return f"the run took longer than its limit of {limit} and was ended; it was at {where[:500]}"

    def renew(self) -> None:
        """Replace all workers."""
        self._executor.shutdown(kill_workers=True)
        self._start()

    def __enter__(self) -> Pool:
        self._folder = tempfile.TemporaryDirectory(prefix="trickbox-")
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        # After Ctrl-C, runs in flight are of no use to anyone any more, and may have minutes to go.
        self._executor.shutdown(kill_workers=kind is not None)
        self._folder.cleanup()

    def _place(self, key: str) -> Path:
        return Path(self._folder.name) / key

    def _start(self) -> None:
        self._executor = ProcessPoolExecutor(
            self._workers, timeout=None, env=ONE_THREAD, initializer=_begin, initargs=(os.getpid(),)
        )
        try:
            for future in [self._executor.submit(_ready, self._places) for _ in range(self._workers)]:
                future.result()
        except BrokenExecutor as error:
            self._executor.shutdown(kill_workers=True)
            raise ConfigError("study: worker processes could not start; see the messages above for why") from error


def _limited(facts: dict[str, Any], limit: float, place: str) -> Outcome:
    """Run a spec; after *limit* seconds write down where it is, and end this process whatever it is doing."""
    with Path(place).open("w") as file:
        faulthandler.dump_traceback_later(limit, exit=True, file=file)
        try:
            return run_spec(facts)
        finally:
            faulthandler.cancel_dump_traceback_later()


_is_worker = False


def _begin(parent: int) -> None:
    """Prepare a worker: Ctrl-C is the parent's to answer, and a worker whose parent is gone ends."""
    global _is_worker  # noqa: PLW0603
    _is_worker = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
