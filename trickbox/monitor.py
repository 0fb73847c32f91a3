"""Watching one metric: which way is better, and what counts as an improvement. Shared by tricks that act on metrics."""

from __future__ import annotations

from collections.abc import Mapping

from trickbox.errors import ConfigError, near


def resolve_monitor(trick: str, monitor: str, mode: str | None, metric_modes: Mapping[str, str | None] | None) -> str:
    """Return the better direction of the metric *monitor*: ``min`` or ``max``; *mode* wins over what is declared.

    *metric_modes* are the metrics that a run records (`State.metric_modes`). To be called in `init`, so that
    `ConfigError` comes before any training: for a metric that the run does not record, or one of unknown direction; and
    again with each value, since a loop that measures by itself (None) tells its metrics only with the first ones.

    >>> resolve_monitor("early_stopping", "val_loss", None, {"train_loss": "min", "val_loss": "min"})
    'min'
    """
    if metric_modes is None:
        return mode or "min"
    if monitor not in metric_modes:
        needs_data = monitor.startswith("val_") and not any(name.startswith("val_") for name in metric_modes)
        fix = " Give validation data." if needs_data else near(monitor, metric_modes)
        recorded = ", ".join(metric_modes) or "none"
        raise ConfigError(f"{trick}: monitor must be a metric of this run ({recorded}), got {monitor!r}.{fix}")
    direction = mode or metric_modes[monitor]
    if direction is None:
        raise ConfigError(f"{trick}: metric {monitor!r} declares no better direction; set mode='min' or mode='max'")
    return direction


def is_better(value: float, best: float, mode: str, min_delta: float = 0.0) -> bool:
    """Whether *value* is better than *best* by more than *min_delta*; NaN never is.

    >>> is_better(0.9, 1.0, "min"), is_better(0.9, 1.0, "min", min_delta=0.2), is_better(float("nan"), 1.0, "max")
    (True, False, False)
    """
    return value + min_delta < best if mode == "min" else value - min_delta > best


def worst(mode: str) -> float:
    """The value that every finite one is better than.

    >>> worst("min"), worst("max")
    (inf, -inf)
    """
    return float("inf") if mode == "min" else float("-inf")
