"""The training loop: stages of rising resolution, checkpoints that resume to the same next step, a log of metrics."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vplab.training.foundation.crops import ViewSampler
from vplab.training.foundation.losses import low_res_targets, segmenter_loss
from vplab.training.foundation.prompting import PromptGroup, first_round, next_round
from vplab.training.foundation.sources import Source
from vplab.vision.nano.architecture import NanoSegmenter

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class Stage:
    """A part of the run with one input size; the learning rate goes linearly from start to end."""

    size: int
    steps: int
    num_images: int
    prompts_per_image: int
    lr_start: float
    lr_end: float


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides what a run computes, apart from data and starting weights."""

    stages: tuple[Stage, ...]
    mix: dict[str, float]
    """Share of each source."""
    rounds: tuple[float, float, float, float] = (0.5, 0.25, 0.17, 0.08)
    """Probability of taking the loss after 1, 2, 3 or 4 prompt rounds; earlier rounds carry no gradient."""
    trunk_lr_scale: float = 0.3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    average_decay: float = 0.99
    """Decay of the running mean of the weights, which is what is measured and exported."""
    seed: int = 0

    @property
    def total_steps(self) -> int:
        """Number of steps of all stages together."""
        return sum(s.steps for s in self.stages)

    def stage_at(self, step: int) -> tuple[Stage, float]:
        """Return the stage of a step and its learning rate."""
        first = 0
        for stage in self.stages:
            if step < first + stage.steps:
                progress = (step - first) / stage.steps
                rate = stage.lr_start + (stage.lr_end - stage.lr_start) * progress
                return stage, rate * min(1.0, (step + 1) / self.warmup_steps)
            first += stage.steps
        raise IndexError(f"step {step} is past the last of {first}")

    @classmethod
    def from_json(cls, text: str) -> "TrainingConfig":
        """Read what ``to_json`` wrote."""
        raw = json.loads(text)
        stages = tuple(Stage(**s) for s in raw.pop("stages"))
        return cls(stages=stages, rounds=tuple(raw.pop("rounds")), **raw)

    def to_json(self) -> str:
        """Write as indented JSON."""
        return json.dumps(asdict(self), indent=1)


@dataclass
class Trainer:
    """One run in a folder. Not thread-safe."""

    folder: Path
    config: TrainingConfig
    sources: Sequence[Source]
    model: NanoSegmenter
    device: str = "cpu"
    step: int = 0
    average: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        trainable = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        trunk = [p for n, p in trainable.items() if n.startswith("encoder.trunk.")]
        rest = [p for n, p in trainable.items() if not n.startswith("encoder.trunk.")]
        self.optimizer = torch.optim.AdamW(
            [{"params": trunk, "scale": self.config.trunk_lr_scale}, {"params": rest, "scale": 1.0}],
            lr=0.0,
            weight_decay=self.config.weight_decay,
        )
        self.start_average()
        self.numpy_rng = np.random.default_rng(self.config.seed)
        self.torch_rng = torch.Generator().manual_seed(self.config.seed)

    def run(self, until: int | None = None) -> Iterator[dict[str, float]]:
        """Train to step ``until`` (default: the end), yielding the metrics of every step."""
        last = min(self.config.total_steps, until or self.config.total_steps)
        size, decoder, sampler = 0, None, None
        while self.step < last:
            stage, rate = self.config.stage_at(self.step)
            if stage.size != size or decoder is None or sampler is None:
                size = stage.size
                decoder = self.model.decoder(size).to(self.device)
                sampler = ViewSampler(self.sources, self.config.mix, size, stage.prompts_per_image)
            started = time.perf_counter()
            images, masks = self._batch(sampler, stage)
            loaded = time.perf_counter()
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            metrics = self._step(images, masks, decoder, stage)
            self.step += 1
            now = time.perf_counter()
            yield {"step": self.step, "lr": rate, "load_s": loaded - started, "step_s": now - started, **metrics}

    def _batch(self, sampler: ViewSampler, stage: Stage) -> tuple[Tensor, Tensor]:
        views = [sampler.draw(self.numpy_rng) for _ in range(stage.num_images)]
        images = torch.from_numpy(np.stack([v.image for v in views])).permute(0, 3, 1, 2)
        masks = torch.from_numpy(np.concatenate([v.masks for v in views]))
        return images.float().sub_(127.5).div_(127.5), masks

    def _step(self, images: Tensor, masks: Tensor, decoder: Any, stage: Stage) -> dict[str, float]:
        grid = 4 * stage.size // self.model.stride
        targets = low_res_targets(masks.float(), (grid, grid))
        image_index = torch.arange(stage.num_images).repeat_interleave(stage.prompts_per_image)
        num_rounds = 1 + int(torch.multinomial(torch.tensor(self.config.rounds), 1, generator=self.torch_rng))
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        with self._autocast():
            embedding = self.model.encoder.embed(images)
        groups = first_round(masks, targets, image_index, self.torch_rng)
        total = torch.zeros((), device=self.device)
        metrics: dict[str, float] = {"rounds": num_rounds}
        for name, group in zip(("box", "click"), groups, strict=True):
            for _ in range(num_rounds - 1):
                with torch.no_grad(), self._autocast():
                    logits, iou = self._to_device(group).decode(decoder, embedding.detach())
                group = next_round(group, logits.cpu(), iou.cpu(), stage.size, self.torch_rng)
            group = self._to_device(group)
            with self._autocast():
                logits, iou = group.decode(decoder, embedding)
            loss, ious = segmenter_loss(logits, iou, group.targets)
            total = total + loss
            metrics[f"{name}_single"] = ious[:, 0].mean().item()
            metrics[f"{name}_best"] = ious[:, 1:].amax(1).mean().item()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
            self._update_average()
        return {"loss": total.item(), "grad_norm": norm.item(), **metrics}

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.split(":")[0], torch.bfloat16)

    def _to_device(self, group: PromptGroup) -> PromptGroup:
        if self.device == "cpu":
            return group
        return PromptGroup(**{name: value.to(self.device) for name, value in vars(group).items()})

    def _update_average(self) -> None:
        decay = min(self.config.average_decay, (1 + self.step) / (10 + self.step))
        current = dict(self.model.named_parameters())
        torch._foreach_lerp_(list(self.average.values()), [current[name].detach() for name in self.average], 1 - decay)

    def start_average(self) -> None:
        """Let the running mean begin at the weights as they are now."""
        self.average = {n: p.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad}

    def averaged(self) -> NanoSegmenter:
        """Return a copy of the model, on the CPU, with the averaged weights."""
        copy = NanoSegmenter(stride=self.model.stride)
        copy.load_state_dict({**self.model.state_dict(), **self.average})
        return copy.eval()

    def save(self) -> None:
        """Write the checkpoint; a kill at any moment leaves the last whole one."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "numpy_rng": json.dumps(self.numpy_rng.bit_generator.state),
            "torch_rng": self.torch_rng.get_state(),
        }
        temporary = self.folder / f"{CHECKPOINT}.tmp"
        torch.save(state, temporary)
        os.replace(temporary, self.folder / CHECKPOINT)

    def resume(self) -> bool:
        """Continue from the folder's checkpoint; False where there is none."""
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
        self.step = state["step"]
        self.numpy_rng.bit_generator.state = json.loads(state["numpy_rng"])
        self.torch_rng.set_state(state["torch_rng"].cpu())
        return True
