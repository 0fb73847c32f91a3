"""Programs that start programs of their own, ended with all of them when they take too long."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any


def finished(command: Sequence[Any], timeout: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run *command* to its end with its output as text; after *timeout* seconds kill it and whatever it has started.

    `subprocess.run` kills the program alone, and then waits for ever for the output of those that it has started.
    """
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as late:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        raise AssertionError(f"not done after {timeout} s; it said: {output[-2000:]}{errors[-2000:]}") from late
    return subprocess.CompletedProcess(command, process.returncode, output, errors)
