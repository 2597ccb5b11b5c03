"""The condition language: comparisons over documented features, as in a Python comparison. Read, never evaluated, here.

Nothing of it imports torch, so that a bad condition is refused before a job starts.
"""

from pruning_server.spec.condition.catalogue import FEATURES, FeatureInfo, FeatureLevel, Role
from pruning_server.spec.condition.errors import CONDITION_FIELD, ConditionError
from pruning_server.spec.condition.language import Condition, check_granularity, natural_granularity, parse_condition

__all__ = [
    "CONDITION_FIELD",
    "FEATURES",
    "Condition",
    "ConditionError",
    "FeatureInfo",
    "FeatureLevel",
    "Role",
    "check_granularity",
    "natural_granularity",
    "parse_condition",
]
