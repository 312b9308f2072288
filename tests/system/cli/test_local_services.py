"""Verbs that start services for their own duration, and share them."""

import json
import signal
from pathlib import Path

from fakes.vplab_command import Vplab, ended, wait_for


def test_a_verb_starts_only_what_it_needs_and_leaves_nothing_behind(vplab: Vplab, tmp_path: Path) -> None:
    ran = vplab.run("models", "list", "--json", tmp_path / "models.json")
    assert ran.returncode == 0, ran.stderr
    assert not vplab.services()
    assert sorted(path.stem for path in (vplab.home / "logs").iterdir()) == ["registry"]
    artifacts = json.loads((tmp_path / "models.json").read_text())["artifacts"]
    assert {artifact["name"] for artifact in artifacts} >= {"artifacts/nano-encoder", "artifacts/nano-segmenter"}
    assert vplab.run("status").returncode == 4


def test_verbs_at_the_same_time_share_one_home(vplab: Vplab) -> None:
    with ended(vplab.start("models", "list")) as one, ended(vplab.start("models", "list")) as two:
        outputs = [process.communicate(timeout=120) for process in (one, two)]
        assert [one.returncode, two.returncode] == [0, 0], outputs
        assert outputs[0][0] == outputs[1][0]


def test_services_do_not_outlive_a_verb_that_was_killed(vplab: Vplab) -> None:
    with ended(vplab.start("models", "list")) as process:
        wait_for(lambda: bool(vplab.services()))
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_for(lambda: not vplab.services(), timeout_s=45)
    assert vplab.run("models", "list").returncode == 0


def test_a_service_that_cannot_start_ends_the_verb_with_its_log(tmp_path: Path) -> None:
    vplab = Vplab(tmp_path / "home", {"VPLAB_REGISTRY_THREADS": "many"})
    ran = vplab.run("models", "list")
    assert ran.returncode == 3
    assert "VPLAB_REGISTRY_THREADS" in ran.stderr
    assert "Traceback" not in ran.stderr
