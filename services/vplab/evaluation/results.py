"""Everything measured so far, on disk line by line, so that a killed run goes on where it stopped."""

import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from vplab.client.json_lines import JsonLines
from vplab.errors import FailedPrecondition
from vplab.evaluation.scores import ClassScore, ClickScore, ShotScore, StepScore
from vplab.evaluation.values import Tuning

ShotKey = tuple[str, int, int, str]
ClickKey = tuple[str, int, int, int, str]
FitKey = tuple[str, int, int]


@dataclass
class Results:
    """The scores of one folder. A later line about the same thing takes the place of an earlier one."""

    lines: JsonLines
    shots: dict[ShotKey, ShotScore] = field(default_factory=dict)
    """By method, number of shots, seed, image."""
    clicks: dict[ClickKey, ClickScore] = field(default_factory=dict)
    """By method, number of shots, seed, class, image."""
    fit_s: dict[FitKey, float] = field(default_factory=dict)
    """Seconds of learning, by method, number of shots, seed."""
    models: dict[str, dict[str, str]] = field(default_factory=dict)
    """Role to name and digest of the version that served."""
    tunings: dict[FitKey, Tuning] = field(default_factory=dict)
    """By method, number of shots, seed."""
    run_id: str = ""
    """What artifacts of this evaluation are named by, the same after a kill; empty until ``begin_run``."""

    @staticmethod
    def open(path: Path, settings: dict[str, Any]) -> "Results":
        """Open or begin a journal. Raises FailedPrecondition if it was begun with other settings, OSError."""
        results = Results(JsonLines(path, settings))
        for line in results.lines.lines:
            results._take(line)
        return results

    def add_shot(self, score: ShotScore) -> None:
        """Record an image; once this returns it survives a kill."""
        self.shots[score.method, score.num_shots, score.seed, score.image] = score
        self.lines.append({"kind": "shot", **asdict(score)})

    def add_click(self, score: ClickScore) -> None:
        """Record an object."""
        self.clicks[_click_key(score)] = score
        self.lines.append({"kind": "click", **asdict(score)})

    def add_fit(self, method: str, num_shots: int, seed: int, seconds: float) -> None:
        """Record how long learning took; information only."""
        self.fit_s[method, num_shots, seed] = seconds = round(seconds, 4)
        self.lines.append({"kind": "fit", "method": method, "num_shots": num_shots, "seed": seed, "seconds": seconds})

    def add_tuning(self, tuning: Tuning) -> None:
        """Record an adapter, so that nobody tunes it again."""
        self.tunings[tuning.method, tuning.num_shots, tuning.seed] = tuning
        self.lines.append({"kind": "tuning", **asdict(tuning)})

    def begin_run(self) -> str:
        """Return the run's id: that of an earlier, interrupted command, or a new one."""
        if not self.run_id:
            self._note_run(uuid.uuid4().hex[:12])
        return self.run_id

    def end_run(self) -> None:
        """Note that the artifacts of this evaluation are gone; whoever goes on makes others."""
        self._note_run("")

    def note_model(self, role: str, name: str, digest: str) -> None:
        """Record which version serves; figures of two versions must not be mixed. Raises FailedPrecondition."""
        known = self.models.get(role)
        if known is None:
            self.models[role] = {"name": name, "digest": digest}
            self.lines.append({"kind": "model", "role": role, **self.models[role]})
        elif known["digest"] != digest:
            message = (
                f"the {role.replace('_', ' ')} was {known['name']} and is {name} now: "
                f"{self.lines.path.parent} holds results of the former; choose another --out or add --restart"
            )
            raise FailedPrecondition(message)

    def has_shot(self, key: ShotKey) -> bool:
        """Say whether an image was answered; failures are tried again."""
        score = self.shots.get(key)
        return score is not None and not score.error

    def has_click(self, key: ClickKey) -> bool:
        """Say whether an object was answered."""
        score = self.clicks.get(key)
        return score is not None and not score.error

    def __enter__(self) -> "Results":
        """Return the results."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.lines.close()

    def _note_run(self, run_id: str) -> None:
        self.run_id = run_id
        self.lines.append({"kind": "run", "run_id": run_id})

    def _take(self, line: dict[str, Any]) -> None:
        try:
            match line.pop("kind"):
                case "shot":
                    classes = tuple(ClassScore(**score) for score in line.pop("classes"))
                    shot = ShotScore(**line, classes=classes)
                    self.shots[shot.method, shot.num_shots, shot.seed, shot.image] = shot
                case "click":
                    steps = tuple(StepScore(**step) for step in line.pop("steps"))
                    click = ClickScore(**line, steps=steps)
                    self.clicks[_click_key(click)] = click
                case "fit":
                    self.fit_s[line["method"], line["num_shots"], line["seed"]] = line["seconds"]
                case "tuning":
                    tuning = Tuning(**line)
                    self.tunings[tuning.method, tuning.num_shots, tuning.seed] = tuning
                case "run":
                    self.run_id = str(line["run_id"])
                case "model":
                    self.models[line["role"]] = {"name": line["name"], "digest": line["digest"]}
        except (TypeError, KeyError):
            return  # a line that somebody edited: its image is measured again


def _click_key(score: ClickScore) -> ClickKey:
    return (score.method, score.num_shots, score.seed, score.class_id, score.image)
