"""What a user would pick instead: makers by name, which import what is heavy only when they are called."""

from vplab.evaluation.comparators.names import CLICK_METHODS, SHOT_METHODS

__all__ = ["CLICK_METHODS", "SHOT_METHODS"]
