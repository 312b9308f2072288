"""The failures that only this service has."""

from vplab.errors import FailedPrecondition, NotFound, ResourceExhausted


class EmbeddingNotCached(NotFound):
    """An image was named by digest and its embedding is gone; the caller sends the image again."""

    default_reason = "EMBEDDING_NOT_CACHED"

    def __init__(self, digest: str) -> None:
        super().__init__("The embedding is not cached; send the image again", metadata={"digest": digest})


class ModelUnsupported(FailedPrecondition):
    """A version cannot be served as an encoder."""

    default_reason = "MODEL_UNSUPPORTED"

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name} cannot be served as an encoder: {why}", metadata={"name": name})


class AnswerTooLarge(ResourceExhausted):
    """The tensors asked for do not fit into one message."""

    default_reason = "MESSAGE_TOO_LARGE"

    def __init__(self, num_bytes: int, limit: int) -> None:
        message = (
            f"The tensors take {num_bytes:,} bytes and a message at most {limit:,}; "
            "call again without include_tensors and read each embedding with GetEmbedding"
        )
        super().__init__(message, metadata={"limit": str(limit)})
