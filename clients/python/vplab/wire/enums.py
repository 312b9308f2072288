"""Enumerations of the contract as short lower-case words: ``PRECISION_FLOAT16`` is ``"float16"``."""

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from vplab.errors import InvalidInput


class EnumWords:
    """The words of one enumeration, both ways."""

    def __init__(self, enum: EnumTypeWrapper) -> None:
        names = list(enum.keys())
        prefix = names[0].removesuffix("UNSPECIFIED")
        self._words: dict[int, str] = {enum.Value(name): name.removeprefix(prefix).lower() for name in names}
        self._values: dict[str, int] = {word: value for value, word in self._words.items()}

    def word(self, value: int) -> str:
        """Return the word of a value; ``"unspecified"`` also for a value that a newer peer knows and we do not."""
        return self._words.get(value, self._words[0])

    def value(self, word: str | None, *, field: str) -> int:
        """Return the value of a word, 0 for None or an empty one. Raises InvalidInput for an unknown word."""
        if not word:
            return 0
        value = self._values.get(word.lower())
        if value is None:
            known = ", ".join(sorted(w for v, w in self._words.items() if v))
            raise InvalidInput(f"{word!r} is none of {known}", field=field)
        return value
