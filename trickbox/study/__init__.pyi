from .averages import Average, aggregate
from .comparison import Comparison
from .design import Arm, add_one, leave_one_out
from .findings import Findings
from .outcome import Outcome
from .planning import Plan
from .recommendation import Recommendation
from .search import recommend
from .study import Study
from .task import ACCURACY, LOSS, Metric, Splits, Task

__all__ = [
    "ACCURACY",
    "LOSS",
    "Arm",
    "Average",
    "Comparison",
    "Findings",
    "Metric",
    "Outcome",
    "Plan",
    "Recommendation",
    "Splits",
    "Study",
    "Task",
    "add_one",
    "aggregate",
    "leave_one_out",
    "recommend",
]
