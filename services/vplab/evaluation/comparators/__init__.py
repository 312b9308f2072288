"""What a user would pick instead: makers by name, which import what is heavy only when they are called."""

from collections.abc import Callable

from vplab.evaluation.ports import ClickMethod, ShotMethod

SHOT_METHODS: dict[str, Callable[[], ShotMethod]] = {}
CLICK_METHODS: dict[str, Callable[[], ClickMethod]] = {}
