"""What tuning needs from outside: a decoder with something to train, and a place for its checkpoint."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from torch import Tensor, nn


class TunableDecoder(Protocol):
    """A prompt decoder whose base is frozen, such as ``vplab.vision.adapters.AdaptedDecoder``.

    A module that needs the early features of the images has a true attribute ``needs_early_features`` and takes them,
    (B, E, h, w), as a seventh argument.
    """

    def __call__(
        self,
        image_embedding: Tensor,
        image_index: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        /,
    ) -> tuple[Tensor, Tensor]:
        """Return logits (N, M, h, w) and predicted IoU (N, M), as ``vplab.vision.sam.onnx_decoder.PromptDecoder``."""
        ...

    def to(self, device: str) -> nn.Module:
        """Move to a device, in place."""
        ...

    def train(self, mode: bool) -> nn.Module:
        """Set what methods do only while they are trained; tuning leaves the mode off."""
        ...

    def adapter_parameters(self) -> Iterable[nn.Parameter]:
        """Return what is trained, always in the same order."""
        ...

    def adapter_state(self) -> Mapping[str, Tensor]:
        """Return the adapter under flat, stable keys."""
        ...

    def load_adapter_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``adapter_state`` returned."""
        ...


class CheckpointStore(Protocol):
    """Holds the last checkpoint of one job."""

    def load(self) -> bytes | None:
        """Return what was saved last, or None."""
        ...

    def save(self, data: bytes) -> None:
        """Replace the checkpoint; a crash at any moment leaves the old one or the new one, whole."""
        ...
