"""The failures that only this service has."""

from vplab.errors import FailedPrecondition, InvalidInput, NotFound, ResourceExhausted


class EmbeddingNotCached(NotFound):
    """An image was named by digest and is needed itself; the caller sends it again."""

    default_reason = "EMBEDDING_NOT_CACHED"

    def __init__(self, digest: str, why: str = "its embedding is not cached") -> None:
        super().__init__(f"The image is known by digest only and {why}; send it again", metadata={"digest": digest})


class ModelUnsupported(FailedPrecondition):
    """A version cannot be served as what it was named for."""

    default_reason = "MODEL_UNSUPPORTED"

    def __init__(self, name: str, role: str, why: str) -> None:
        super().__init__(f"{name} cannot be served as {role}: {why}", metadata={"name": name})


class ModelMismatch(FailedPrecondition):
    """Two models do not fit together."""

    default_reason = "MODEL_MISMATCH"

    def __init__(self, message: str, *, expected: str, actual: str) -> None:
        super().__init__(message, metadata={"expected": expected, "actual": actual})


class EarlyFeaturesMissing(ModelMismatch):
    """An adapter fuses an early feature that the segmenter's image encoder does not give, or not of that width."""

    def __init__(self, adapter: str, wanted: int, encoder: str, given: int | None) -> None:
        actual = "none" if given is None else str(given)
        message = f"adapter: {adapter} takes early features of {wanted} channels, {encoder} gives {actual}"
        super().__init__(message, expected=str(wanted), actual=actual)
        self.metadata = {**self.metadata, "field": "adapter"}


class AdapterBaseMismatch(FailedPrecondition):
    """An adapter was made for another segmenter."""

    default_reason = "ADAPTER_BASE_MISMATCH"

    def __init__(self, adapter: str, *, expected: str, actual: str) -> None:
        message = f"{adapter} was made for segmenter {expected[:12]}, this one is {actual[:12]}"
        super().__init__(message, metadata={"adapter": adapter, "expected": expected, "actual": actual})


class AnswerTooLarge(ResourceExhausted):
    """The logits asked for do not fit into one message."""

    default_reason = "MESSAGE_TOO_LARGE"

    def __init__(self, num_bytes: int, limit: int) -> None:
        message = f"The logits take {num_bytes:,} bytes and a message at most {limit:,}; send fewer prompts in one call"
        super().__init__(message, metadata={"limit": str(limit)})


def out_of_bounds(field: str, low: float, high: float) -> InvalidInput:
    """Return the refusal of a number."""
    return InvalidInput(f"must be from {low:g} to {high:g}", field=field)
