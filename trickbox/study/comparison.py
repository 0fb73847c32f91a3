"""The answer to one question of a study, with all that a reader should know of it."""

from __future__ import annotations

from attrs import frozen

from trickbox.study.design import Question
from trickbox.study.pace import ToTarget
from trickbox.study.stats import Array
from trickbox.study.task import Metric
from trickbox.study.verdicts import Inference, Verdict


@frozen(eq=False)
class Comparison:
    """The answer to one question over the seeds whose runs all came through; effects in the metric's unit, as measured.

    `differences` has one entry for each seed, nan where a run failed. `inference` has the signs turned so that
    positive is better; its verdict and p hold for all `family` questions together. `time_ratio` compares the steps,
    timed alone, nan where none were; the ratios of single passes lie between `time_low` and `time_high`.
    `memory_ratio` is of what a step holds at once; `parameters` is how many there are more. `at_equal_time` is the
    inference on validation when both sides have trained for the same time, where a step takes longer or shorter, and
    `to_target` compares when they reached the target of the study, if it has one. `failures` counts failed runs of the
    arms that count for the question and of those that count against it, of `runs` each, and `collapses` those of them
    that learned nothing; `all_runs` is the inference with every failed run scored as guessing, where any failed.
    `same_bits` counts the seeds on which an arm and its control ended in the same bits, `outliers` names those whose
    difference stands far apart. `turns` says that what two arms do together points the other way in log odds.
    """

    question: Question
    metric: Metric
    margin: float
    differences: Array
    inference: Inference
    family: int
    sequential: bool
    time_ratio: float
    time_low: float
    time_high: float
    memory_ratio: float
    parameters: int
    at_equal_time: Inference | None
    to_target: ToTarget | None
    epochs: tuple[float, float]
    failures: tuple[int, int]
    collapses: tuple[int, int]
    runs: tuple[int, int]
    all_runs: Inference | None
    correlation: float
    same_bits: int
    outliers: tuple[int, ...]
    turns: bool

    @property
    def name(self) -> str:
        """What the question is called: the arm's name, where it is about one."""
        return self.question.name

    @property
    def verdict(self) -> Verdict:
        """helps, hurts, equivalent or inconclusive."""
        return "equivalent" if self.is_identical else self.inference.verdict

    @property
    def with_failures(self) -> Inference:
        """What all runs show, those that failed counted as guessing: what somebody gets who takes the advice."""
        return self.all_runs or self.inference

    @property
    def p(self) -> float:
        """The p value, adjusted for the family."""
        return self.inference.p

    @property
    def mean(self) -> float:
        """The mean difference, arm minus control."""
        return self.inference.mean if self.metric.higher_is_better else -self.inference.mean

    @property
    def low(self) -> float:
        """The lower end of the 95 % interval of the mean difference."""
        return self.inference.low if self.metric.higher_is_better else -self.inference.high

    @property
    def high(self) -> float:
        """The upper end of the 95 % interval of the mean difference."""
        return self.inference.high if self.metric.higher_is_better else -self.inference.low

    @property
    def n(self) -> int:
        """Pairs that the effect rests on."""
        return self.inference.n

    @property
    def detectable(self) -> float:
        """The smallest true effect that four of five such studies would call."""
        return self.inference.detectable

    @property
    def is_identical(self) -> bool:
        """Whether every pair of runs ended in the same bits."""
        return self.n > 0 and self.same_bits == self.n
