"""Train an adapter on cached embeddings: folds that find how far to go, and whose mean is the adapter.

Folds begin at the same tensors and end near each other, so that their mean is as good as one more run on all images
would be, at no cost (Wortsman et al., "Model soups", arXiv 2203.05482). One or two images have no folds: all are
trained on.

How far is a number of steps and a share of what they changed: between the base's tensors and the trained ones lies
often one that keeps the gain and loses less of what the base could do (Wortsman et al., "Robust fine-tuning of
zero-shot models", arXiv 2109.01903).

Deterministic: on one machine with one number of threads, equal examples, options and initial adapter give bit-identical
adapters, whether or not the run was interrupted.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vplab.errors import Cancelled, Internal, InvalidInput
from vplab.training.tuning.batches import batches
from vplab.training.tuning.checkpoints import job_digest, pack, unpack
from vplab.training.tuning.losses import tuning_loss
from vplab.training.tuning.ports import CheckpointStore, TunableDecoder
from vplab.training.tuning.prompting import DrawnPrompt, PromptDrawer
from vplab.training.tuning.refining import hands_its_object_back, refined_prompts
from vplab.training.tuning.schedule import (
    Run,
    candidates_at,
    check_steps,
    choose,
    learning_rate,
    mean_metrics,
    plan_runs,
)
from vplab.training.tuning.validation import validate
from vplab.training.tuning.values import (
    BASE,
    Candidate,
    TuningExample,
    TuningMetrics,
    TuningOptions,
    TuningPreview,
    TuningProgress,
    TuningResult,
    ValidationKind,
)
from vplab.vision.specs import SegmenterSpec

REFINED_SHARE = 0.5
"""Of a step's proposals, those that are also trained on in the second pass."""


def tune(
    decoder: TunableDecoder,
    examples: Sequence[TuningExample],
    segmenter: SegmenterSpec,
    options: TuningOptions,
    *,
    validation: Sequence[TuningExample] = (),
    checkpoint: CheckpointStore | None = None,
    on_progress: Callable[[TuningProgress], None] = lambda _: None,
    is_cancelled: Callable[[], bool] = lambda: False,
    device: str = "cpu",
    num_threads: int | None = None,
) -> TuningResult:
    """Train the adapter of ``decoder`` in place, starting from the state it is in.

    examples: from ``build_examples``. validation: original views of other images; without, from three images up each
    fold leaves some out. ``checkpoint`` is read at the start and written every ``options.checkpoint_every`` steps; one
    of another job or a damaged one is passed over. ``is_cancelled`` is asked before each step.
    float32 on the CPU, bfloat16 autocast on CUDA. ``num_threads`` holds for the process while this runs.
    Raises InvalidInput for examples that cannot be trained on, Cancelled, and Internal if the loss is not finite.
    """
    if not any(m.any() for e in examples for m in e.masks.values()):
        raise InvalidInput("no training image shows a class", field="images")
    with _threads(num_threads), _tiny_is_zero():
        tuning = _Tuning(decoder, examples, segmenter, options, validation, device, on_progress)
        return tuning.run(checkpoint, is_cancelled)


@dataclass
class _Position:
    """Where a tuning is: what a checkpoint holds beside tensors."""

    run_index: int = 0
    step: int = 0
    """Steps done in the present run."""
    chosen: tuple[int, float] = BASE
    """A Candidate; a plain tuple in a checkpoint, as are those of the curves."""
    curves: dict[str, list[tuple[tuple[int, float], dict[str, float | None]]]] = field(default_factory=dict)
    """By run, what was measured."""


class _Tuning:
    def __init__(
        self,
        decoder: TunableDecoder,
        examples: Sequence[TuningExample],
        segmenter: SegmenterSpec,
        options: TuningOptions,
        validation: Sequence[TuningExample],
        device: str,
        on_progress: Callable[[TuningProgress], None],
    ) -> None:
        decoder.to(device)
        self._decoder, self._segmenter, self._options, self._device = decoder, segmenter, options, device
        self._examples, self._validation = examples, [e for e in validation if e.is_original]
        self._on_progress = on_progress
        self._runs = plan_runs([e.image_index for e in examples], bool(self._validation), options)
        self._parameters = list(decoder.adapter_parameters())
        self._initial = _snapshot(decoder)
        self._groups = self._rate_groups()
        self._best = self._initial
        self._sums: dict[str, dict[str, Tensor]] = {}
        """By step that is checked, the sum over the folds of what they had learnt."""
        self._at = _Position()
        self._optimizer = self._new_optimizer()

    def run(self, checkpoint: CheckpointStore | None, is_cancelled: Callable[[], bool]) -> TuningResult:
        digest = job_digest(self._options, self._examples, self._validation, self._initial) if checkpoint else ""
        if checkpoint and (saved := checkpoint.load()) and (content := unpack(saved, digest)):
            self._restore(content)
        while self._at.run_index < len(self._runs):
            for _ in self._steps(self._runs[self._at.run_index], is_cancelled):
                if checkpoint and self._at.step % self._options.checkpoint_every == 0:
                    checkpoint.save(pack(digest, self._content()))
            self._end_run()
        return self._result()

    def _steps(self, run: Run, is_cancelled: Callable[[], bool]) -> Iterator[None]:
        """Train the run to its end, yielding after every step."""
        drawer = PromptDrawer(self._trained_on(run), self._segmenter)
        checks = self._checks()
        if self._at.step == 0 and checks:
            self._check(run)
        while self._at.step < self._options.num_steps:
            if is_cancelled():
                raise Cancelled("the tuning was cancelled")
            loss = self._step(drawer, run)
            self._at.step += 1
            metrics, previews = self._check(run) if self._at.step in checks else (None, ())
            self._on_progress(
                TuningProgress(
                    step=self._at.run_index * self._options.num_steps + self._at.step,
                    num_steps=len(self._runs) * self._options.num_steps,
                    run=run.name,
                    loss=loss,
                    validation=metrics,
                    previews=previews,
                )
            )
            yield

    def _step(self, drawer: PromptDrawer, run: Run) -> float:
        """Take one optimiser step and return its loss."""
        seeds = [self._options.seed, 1 + self._at.run_index, self._at.step]
        rng = np.random.default_rng(seeds)
        torch_rng = torch.Generator().manual_seed(int(rng.integers(2**62)))
        prompts = drawer.draw(self._options.batch_size, rng)
        examples = self._trained_on(run)
        total, refined = 0.0, list[DrawnPrompt]()
        self._decoder.train(True)
        self._optimizer.zero_grad(set_to_none=True)
        for is_second in (False, True):
            for members, batch in batches(refined if is_second else prompts, examples, self._segmenter, self._device):
                with autocast(self._device):
                    logits, ious = batch.decode(self._decoder)
                logits, ious = logits.float(), ious.float()
                # Each group weighs as many prompts as it has, so the step's loss is a mean over prompts.
                loss = tuning_loss(batch.sharpened(logits), ious, batch.targets, torch_rng)
                loss = loss * (len(members) / len(prompts))
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
                if not is_second and self._segmenter.refines:
                    chosen = [prompts[i] for i in members]
                    refined += self._second_pass(chosen, logits, ious, examples, rng)
        if not np.isfinite(total):
            raise Internal(f"the loss is not finite at step {self._at.step + 1} of {run.name}")
        torch.nn.utils.clip_grad_norm_(self._parameters, self._options.clip_norm)
        rate = learning_rate(self._at.step, self._options)
        for group, (factor, _) in zip(self._optimizer.param_groups, self._groups, strict=True):
            group["lr"] = rate * factor
        self._optimizer.step()
        self._pull_back(rate)
        return total

    def _second_pass(
        self,
        prompts: Sequence[DrawnPrompt],
        logits: Tensor,
        ious: Tensor,
        examples: Sequence[TuningExample],
        rng: np.random.Generator,
    ) -> list[DrawnPrompt]:
        """Return the second prompts of some proposals, made of what the decoder answered now."""
        rows = [i for i, p in enumerate(prompts) if p.kind == "proposal" and rng.random() < REFINED_SHARE]
        if not rows:
            return []
        again = refined_prompts(
            [prompts[i] for i in rows],
            logits[rows].detach().cpu().numpy(),
            ious[rows].detach().cpu().numpy(),
            [examples[prompts[i].example].proposals[prompts[i].class_id].similarity for i in rows],
            self._segmenter,
        )
        return [p for p in again if p is not None and hands_its_object_back(p, self._segmenter)]

    @torch.no_grad()
    def _pull_back(self, rate: float) -> None:
        """Decay towards where training began, which is the base, and not towards zero: a scale of zero is no base."""
        if self._options.weight_decay:
            for factor, pairs in self._groups:
                parameters, anchors = ([*side] for side in zip(*pairs, strict=True))
                torch._foreach_lerp_(parameters, anchors, rate * factor * self._options.weight_decay)

    def _trained_on(self, run: Run) -> list[TuningExample]:
        kept = [e for e in self._examples if e.image_index not in run.left_out]
        # A fold that leaves out the only image of a class still has the others; without any, it learns from all.
        return kept if any(m.any() for e in kept for m in e.masks.values()) else list(self._examples)

    def _validated_on(self, run: Run) -> list[TuningExample]:
        if self._validation:
            return self._validation
        originals = [e for e in self._examples if e.is_original]
        return [e for e in originals if e.image_index in run.left_out] if run.left_out else originals

    def _checks(self) -> list[int]:
        """Return the steps to validate at."""
        return check_steps(self._options) if self._kind != "training" else [self._options.num_steps]

    def _candidates(self) -> list[Candidate]:
        """Return what is measured at the present step."""
        if self._kind == "training":
            return [Candidate(self._at.step, self._options.unchecked_share)] if self._at.step else [BASE]
        return candidates_at(self._at.step, self._options)

    @property
    def _kind(self) -> ValidationKind:
        if self._validation:
            return "given"
        return "held_out" if self._runs[0].is_fold else "training"

    def _check(self, run: Run) -> tuple[TuningMetrics, tuple[TuningPreview, ...]]:
        """Measure the candidates of this step; the decoder keeps what it had learnt. Returns of the best one."""
        trained = _snapshot(self._decoder)
        if run.is_fold and self._at.step:
            self._add(trained)
        curve = self._at.curves.setdefault(run.name, [])
        measured = []
        for candidate in self._candidates():
            self._decoder.load_adapter_state(_mixed(self._initial, trained, candidate.share))
            self._decoder.train(False)
            with autocast(self._device):
                metrics, previews = validate(self._decoder, self._validated_on(run), self._segmenter, self._device)
            curve.append(((candidate.step, candidate.share), asdict(metrics)))
            measured.append((metrics, previews))
            if not run.is_fold and choose(_read(curve)) == candidate:
                self._best, self._at.chosen = _snapshot(self._decoder), candidate
        self._decoder.load_adapter_state(trained)
        return max(measured, key=lambda pair: pair[0].iou)

    def _add(self, trained: Mapping[str, Tensor]) -> None:
        """Add what a fold has learnt to what the folds before it had at the same step."""
        so_far = self._sums.get(str(self._at.step))
        self._sums[str(self._at.step)] = {
            name: value if so_far is None else so_far[name] + value for name, value in trained.items()
        }

    def _end_run(self) -> None:
        """Go on to the next run, which starts over; after the last one the result is known."""
        if self._kind == "training":  # nothing could choose
            self._at.chosen = Candidate(self._at.step, self._options.unchecked_share)
            self._best = _mixed(self._initial, _snapshot(self._decoder), self._at.chosen[1])
        self._at.run_index += 1
        self._at.step = 0
        if self._at.run_index < len(self._runs):
            self._decoder.load_adapter_state(self._initial)
            self._optimizer = self._new_optimizer()
        elif self._kind == "held_out":
            self._at.chosen = choose(self._metrics())
            self._best = self._mean_of_folds(Candidate(*self._at.chosen))

    def _mean_of_folds(self, chosen: Candidate) -> dict[str, Tensor]:
        if chosen == BASE:
            return dict(self._initial)
        mean = {name: total / len(self._runs) for name, total in self._sums[str(chosen.step)].items()}
        return _mixed(self._initial, mean, chosen.share)

    def _metrics(self) -> list[tuple[Candidate, TuningMetrics]]:
        """Return what was measured, the mean over the folds where there are some."""
        checks = zip(*(_read(curve) for curve in self._at.curves.values()), strict=True)
        return [(same[0][0], mean_metrics([metrics for _, metrics in same])) for same in checks]

    def _result(self) -> TuningResult:
        self._decoder.train(False)
        self._decoder.load_adapter_state(self._best)
        metrics, chosen = dict(self._metrics()), Candidate(*self._at.chosen)
        return TuningResult(
            adapter_state=self._best,
            chosen=chosen,
            metrics_before=metrics[BASE],
            metrics_after=metrics[chosen],
            validation_kind=self._kind,
            curve=tuple((candidate, measured.iou) for candidate, measured in metrics.items()),
        )

    def _new_optimizer(self) -> torch.optim.AdamW:
        groups = [{"params": [parameter for parameter, _ in pairs]} for _, pairs in self._groups]
        return torch.optim.AdamW(groups, lr=self._options.learning_rate, weight_decay=0.0)

    def _rate_groups(self) -> list[tuple[float, list[tuple[Tensor, Tensor]]]]:
        """Return by factor on the learning rate what is trained, each tensor with where it began."""
        groups: dict[float, list[tuple[Tensor, Tensor]]] = {}
        for name, parameter in zip(self._initial, self._parameters, strict=True):
            pair = (parameter, parameter.detach().clone())
            groups.setdefault(self._options.rate_factor(name), []).append(pair)
        return list(groups.items())

    def _content(self) -> dict[str, Any]:
        return {
            "position": asdict(self._at) | {"chosen": tuple(self._at.chosen)},
            "adapter": _snapshot(self._decoder),
            "best": dict(self._best),
            "sums": self._sums,
            "optimizer": self._optimizer.state_dict(),
        }

    def _restore(self, content: Mapping[str, Any]) -> None:
        self._at = _Position(**content["position"])
        self._decoder.load_adapter_state(content["adapter"])
        self._best = content["best"]
        self._sums = content["sums"]
        self._optimizer.load_state_dict(content["optimizer"])


def forward_dtype(device: str) -> torch.dtype:
    """Return what the decoder computes in on a device; what trains, the loss and the optimiser are float32 on each."""
    return torch.bfloat16 if device.startswith("cuda") else torch.float32


def autocast(device: str) -> contextlib.AbstractContextManager[Any]:
    """Have the decoder compute in its device's dtype inside."""
    dtype = forward_dtype(device)
    return contextlib.nullcontext() if dtype is torch.float32 else torch.autocast("cuda", dtype)


def _read(
    curve: Sequence[tuple[tuple[int, float], Mapping[str, float | None]]],
) -> list[tuple[Candidate, TuningMetrics]]:
    return [(Candidate(*candidate), TuningMetrics(**metrics)) for candidate, metrics in curve]  # type: ignore[arg-type]


def _mixed(initial: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return what lies a share of the way from the initial tensors to the trained ones."""
    if share == 1:
        return dict(trained)
    return {name: torch.lerp(initial[name], value, share) for name, value in trained.items()}


def _snapshot(decoder: TunableDecoder) -> dict[str, Tensor]:
    return {name: value.detach().cpu().float().clone() for name, value in decoder.adapter_state().items()}


@contextlib.contextmanager
def _tiny_is_zero() -> Iterator[None]:
    """Have this thread, and those that it starts, take for zero what is too small for a float's full precision.

    Gradients of sure pixels are that small, and a processor takes many times as long for a product with them.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
