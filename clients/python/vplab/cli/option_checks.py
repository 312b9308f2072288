"""Options that do not go together: what would be ignored is refused."""

from vplab.errors import InvalidInput


def refuse_ignored(why: str, **given: object) -> None:
    """Raise InvalidInput for the first option that was given; given: its name with underscores to its value.

    None, False, zero and what is empty count as not given.
    """
    for name, value in given.items():
        if value:
            flag = f"--{name.replace('_', '-')}"
            raise InvalidInput(f"{flag} says nothing here: {why}", field=flag)
