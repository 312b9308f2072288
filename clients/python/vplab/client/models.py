"""Which published versions made a result."""

from dataclasses import dataclass

from vplab.api.vision.v1 import vision_pb2


@dataclass(frozen=True)
class ModelReference:
    """Exactly one published version."""

    name: str
    """``artifacts/{artifact}/versions/{number}``."""
    digest: str
    """sha256 of the version's canonical manifest: equal digests mean equal bytes."""


@dataclass(frozen=True)
class Provenance:
    """Everything that determined a result, so that it can be replayed."""

    segmenter: ModelReference | None
    image_encoder: ModelReference | None
    feature_encoder: ModelReference | None
    """None where nothing was matched."""
    adapter: ModelReference | None
    """None for the base segmenter."""
    prompt_set: ModelReference | None
    """None where nothing was matched."""
    image_digest: str
    software: str
    """Version of the service that answered."""


def model_reference(message: vision_pb2.ModelReference) -> ModelReference:
    """Return the value of a model reference."""
    return ModelReference(message.name, message.digest)


def provenance(message: vision_pb2.Provenance) -> Provenance:
    """Return the value of a provenance message."""

    def part(field: str) -> ModelReference | None:
        return model_reference(getattr(message, field)) if message.HasField(field) else None  # type: ignore[arg-type]

    return Provenance(
        segmenter=part("segmenter"),
        image_encoder=part("image_encoder"),
        feature_encoder=part("feature_encoder"),
        adapter=part("adapter"),
        prompt_set=part("prompt_set"),
        image_digest=message.image_digest,
        software=message.software,
    )
