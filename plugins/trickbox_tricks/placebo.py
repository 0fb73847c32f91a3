"""A trick that does nothing, as the control in a comparison."""

from __future__ import annotations

from typing import ClassVar

from trickbox.authoring import State, hookimpl, trick


@trick
class Placebo:
    """Do nothing at all: what a comparison finds between a run with and one without it is noise.

    Cost: one empty call a run.

    >>> Placebo()
    Placebo()
    """

    off: ClassVar[dict[str, object]] = {}

    @hookimpl
    def fit_start(self, state: State) -> None:
        """Do nothing."""
