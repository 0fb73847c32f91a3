"""Train on large batches in small pieces."""

from __future__ import annotations

from typing import ClassVar

from attrs import field

from trickbox.authoring import State, hookimpl, integer, trick


@trick
class Accumulate:
    """Make one update for every `batches` batches, with the gradient that all of them would give as one batch.

    The last update of an epoch has what is left, a mean over its own samples. Schedules count updates, losses and
    metrics stay means over samples. The gradient is exact for a loss that is a mean over samples; a batch norm sees the
    single batches. 1 is off. Cost: none measurable; fewer updates. Raises `ConfigError` in a loop that steps its
    optimizer itself: accumulate there. Source: Ott et al. 2018.

    >>> Accumulate(batches=8)
    Accumulate(batches=8)
    """

    family: ClassVar = "accumulation"
    off: ClassVar = {"batches": 1}
    conflicts: ClassVar = ("accumulation",)
    tunes: ClassVar = ("batches",)

    batches: int = field(default=4, validator=integer(1))

    @hookimpl
    def init(self, state: State) -> None:
        """Let the run accumulate."""
        if self.batches > 1:
            state.batches_per_update = self.batches
