"""Which images are learned from and which are tested: the same for every method, number of shots and seed.

Orders come from sha256 of names, so they depend on nothing but the folder's names: not on a library's generator, nor on
which methods and numbers of shots are asked for.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from vplab.client.datasets.shots import MIN_SHOT_PX, shot_order
from vplab.errors import InvalidInput
from vplab.evaluation.folder import LabelledFolder


@dataclass(frozen=True)
class Splits:
    """The split of one folder."""

    test: tuple[str, ...]
    """Tested images; no shot is among them."""
    shots: dict[int, tuple[str, ...]]
    """Seed to an order of shots; k shots are its first k, so they are nested; see ``shot_order``."""
    others: tuple[str, ...] = ()
    """Images that are not tested and show no class: learned from only together with all shots."""
    num_needed: int = 1
    """Fewest shots that show every class, whatever the seed; 1 where an image shows all."""

    @property
    def num_candidates(self) -> int:
        """Return the largest number of shots."""
        return min((len(order) for order in self.shots.values()), default=0)

    @property
    def num_all(self) -> int:
        """Return how many images are not tested: the whole of what there is to learn from."""
        return self.num_candidates + len(self.others)

    def has(self, num_shots: int) -> bool:
        """Say whether there are so many shots; between all shots and all images there is nothing."""
        least = self.num_needed if num_shots else 1  # without a shot as many references are proposed as are needed
        return least <= max(1, num_shots) <= self.num_candidates or (
            num_shots == self.num_all and self.num_candidates > 0
        )

    def shots_of(self, seed: int, num_shots: int) -> tuple[str, ...]:
        """Return the images to learn from; for zero shots those whose masks are then proposed."""
        return (self.shots[seed] + self.others)[: num_shots or self.num_needed]

    @property
    def test_digest(self) -> str:
        """sha256 of the tested images' names."""
        return hashlib.sha256("\n".join(self.test).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the split for people and programs."""
        return json.dumps(asdict(self), indent=1) + "\n"


def make_splits(folder: LabelledFolder, max_test: int, num_seeds: int) -> Splits:
    """Split a folder: half of its images are tested, ``max_test`` at most; the others may become shots.

    Further seeds leave the earlier ones as they are. Raises InvalidInput where no tested image shows a class.
    """
    order = _ordered(folder.images, "test")
    test = order[: min(max_test, max(1, len(order) // 2))]
    if not folder.options.is_segments:
        for target in folder.classes:
            if not any(folder.area_of(name, target) for name in test):
                message = f"none of the {len(test)} tested images shows {target.name}: raise --max-test"
                raise InvalidInput(message, field="--classes")
    others = order[len(test) :]
    shown = {name: {t.class_id for t in folder.classes if folder.area_of(name, t) >= MIN_SHOT_PX} for name in others}
    wanted = {target.class_id for target in folder.classes}
    ordered = [shot_order(shown, wanted, seed) for seed in range(num_seeds)]
    orders = {seed: tuple(order) for seed, (order, _) in enumerate(ordered)}
    candidates = set(ordered[0][0]) if ordered else set()
    needed = max((num_needed for _, num_needed in ordered), default=1)
    return Splits(tuple(sorted(test)), orders, tuple(sorted(set(others) - candidates)), max(1, needed))


def _ordered(names: Iterable[str], salt: str) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"{salt}\n{name}".encode()).digest())
