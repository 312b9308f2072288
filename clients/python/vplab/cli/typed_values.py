"""Values that stand in options: ``120,80`` and ``10,20,110,120``."""

import math

import typer


def parse_point(text: str) -> tuple[float, float]:
    """Return x and y of ``X,Y``. Raises typer.BadParameter."""
    x, y = _numbers(text, 2, "X,Y")
    return x, y


def parse_box(text: str) -> tuple[float, float, float, float]:
    """Return the edges of ``X0,Y0,X1,Y1``. Raises typer.BadParameter."""
    x_min, y_min, x_max, y_max = _numbers(text, 4, "X0,Y0,X1,Y1")
    return x_min, y_min, x_max, y_max


def artifact_name(text: str) -> str:
    """Return a resource name for what a person types: ``scratches``, ``scratches@3``, ``scratches@production``."""
    if not text or text.startswith("artifacts/"):
        return text
    artifact, _, which = text.partition("@")
    if not which:
        return f"artifacts/{artifact}"
    return f"artifacts/{artifact}/{'versions' if which.isdigit() else 'aliases'}/{which}"


def _numbers(text: str, count: int, form: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise typer.BadParameter(f"{text!r} is not {form} in pixels")
    return numbers
