"""What one run of ``vplab bench`` is to measure, and which of its options go together."""

from collections.abc import Mapping
from dataclasses import dataclass

from vplab.bench.names import AXES, BULKS, WORKS, AxisName, BulkName, WorkName
from vplab.cli.typed_values import artifact_name
from vplab.client.options import Area
from vplab.errors import InvalidInput

_BESIDE = tuple(f"--beside {name}" for name in BULKS)
_CLICKS = ("--work click", "--work click-image", *_BESIDE)
_EMBEDDING_AXES = ("--growth images", "--growth embed-size")
# Whatever is measured is one of these words; an option that none of them uses was a mistake.
_USERS: Mapping[str, tuple[str, ...]] = {
    "--work": tuple(f"--work {name}" for name in WORKS),
    "--adapters": ("--work click", "--work click-image", "--work segment", *_BESIDE),
    "--objects": _CLICKS,
    "--prompt-set": ("--work segment", "--beside segment"),
    "--encoder": ("--work embed", "--beside precompute", "--beside stream", *_EMBEDDING_AXES),
    "--segmenter": (
        *_CLICKS, "--work segment",
        *(growth for name in AXES if (growth := f"--growth {name}") not in _EMBEDDING_AXES),
    ),
    "--beside-rate": _BESIDE,
    "--pairs": _BESIDE,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    work: WorkName | None
    """Of ``concurrency`` and ``rates``; None is clicks."""
    concurrency: tuple[int, ...]
    rates: tuple[float, ...]
    beside: BulkName | None
    growth: tuple[AxisName, ...]
    adapters: str | None
    num_objects: int | None
    segmenter: str
    encoder: str
    prompt_set: str
    seconds: float
    warm_up_s: float
    timeout_s: float
    num_images: int
    side_px: int
    beside_rate: float | None
    num_pairs: int | None
    num_processes: int | None
    metrics_urls: tuple[str, ...]
    seed: int

    def check(self) -> None:
        """Raise InvalidInput for an option that nothing measured would use, and for two that contradict each other."""
        measured = self._measured()
        for option in self._given():
            users = _USERS[option]
            if not set(users) & set(measured):
                raise InvalidInput(
                    f"goes with {' or '.join(users)}; {' and '.join(measured)} would not use it", field=option
                )
        if self.prompt_set and self.segmenter:
            raise InvalidInput("a prompt set has its segmenter: --prompt-set does not go with it", field="--segmenter")
        if self.adapters is not None and not self.adapter_names and not self.num_adapters:
            raise InvalidInput("takes a number above 0, or names", field="--adapters")

    @property
    def work_name(self) -> WorkName:
        """Which calls callers and rates make."""
        return self.work or "click"

    @property
    def objects_of_click(self) -> int:
        """How many objects each click asks for."""
        return self.num_objects or 1

    @property
    def num_adapters(self) -> int:
        """How many adapters were asked for by number; 0 where none were, or names."""
        return int(self.adapters) if self.adapters and self.adapters.isdecimal() else 0

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """The adapters that were named."""
        text = self.adapters or ""
        words = [] if text.isdecimal() else [word.strip() for word in text.split(",")]
        return tuple(artifact_name(word) for word in words if word)

    @property
    def names_of_models(self) -> list[str]:
        """Return the options that name what only the user's own services have."""
        named = {
            "--segmenter": self.segmenter, "--encoder": self.encoder, "--prompt-set": self.prompt_set,
            "--adapters": self.adapter_names,
        }  # fmt: skip
        return [option for option, value in named.items() if value]

    @property
    def publishes_prompt_set(self) -> bool:
        """Whether images are segmented by a prompt set that has to be made."""
        return not self.prompt_set and bool(set(_USERS["--prompt-set"]) & set(self._measured()))

    def needs(self) -> list[Area]:
        """Return the services that calls and preparation go to."""
        needs: set[Area] = set()
        if self.concurrency or self.rates:
            needs.add("embedding" if self.work_name == "embed" else "segmentation")
        if self.publishes_prompt_set or self.num_adapters or {"adapters", "references"} & set(self.growth):
            needs |= {"registry", "segmentation"}
        if self.beside:
            needs.add("segmentation")
            if self.beside != "segment":
                needs.add("embedding")
            if self.beside == "precompute":
                needs.add("registry")
        if self.growth:
            needs.add("segmentation")
        if {"images", "embed-size"} & set(self.growth):
            needs.add("embedding")
        return sorted(needs)

    def _measured(self) -> list[str]:
        work = [f"--work {self.work_name}"] if self.concurrency or self.rates else []
        beside = [f"--beside {self.beside}"] if self.beside else []
        return [*work, *beside, *(f"--growth {name}" for name in self.growth)]

    def _given(self) -> list[str]:
        given = {
            "--work": self.work, "--adapters": self.adapters, "--objects": self.num_objects,
            "--prompt-set": self.prompt_set or None, "--encoder": self.encoder or None,
            "--segmenter": self.segmenter or None, "--beside-rate": self.beside_rate, "--pairs": self.num_pairs,
        }  # fmt: skip
        return [option for option, value in given.items() if value is not None]
