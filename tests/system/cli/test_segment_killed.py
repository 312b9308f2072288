"""``vplab segment`` killed at many moments: what is on disk is always whole, and the next run ends the work."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fakes.segmentation_server import FakeSegmentation, serving_in_threads
from fakes.vplab_command import Vplab, ended, wait_for
from vplab.vision.label_images import read_labels

NUM_IMAGES = 40
IN_FLIGHT = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(NUM_IMAGES):
        pixels = np.full((60, 80), 40, np.uint8)
        pixels[5 : 10 + number, 10:30] = 200
        Image.fromarray(pixels).save(images / f"{number:02d}.png")
    return images


def teach(vplab: Vplab, folder: Path, address: str) -> None:
    ran = vplab.run("--address", address, "prompt", folder / "00.png", "--point", "20,8", "--save", "bright",
                    "--picture", folder.parent / "prompt.png")  # fmt: skip
    assert ran.returncode == 0, ran.stderr


def test_a_run_killed_at_any_moment_goes_on_and_ends_with_every_mask(
    vplab: Vplab, tmp_path: Path, folder: Path
) -> None:
    segmentation, out = FakeSegmentation(), tmp_path / "out"
    segmentation.before_segment = lambda data: time.sleep(0.05)
    num_kills = 0
    with serving_in_threads(segmentation) as address:
        teach(vplab, folder, address)
        command = ("--address", address, "segment", "bright", folder, "--out", out, "--in-flight", IN_FLIGHT)
        for target in (1, 9, 17, 25, 33):
            with ended(vplab.start(*command)) as process:
                wait_for(lambda: process.poll() is not None or len(masks(out)) >= target)  # noqa: B023
                process.send_signal(signal.SIGKILL)
                process.wait()
                num_kills += 1
            for path in masks(out):
                assert read_labels(path).shape == (60, 80)
        assert vplab.run(*command).returncode == 0
    assert len(masks(out)) == NUM_IMAGES
    for path in masks(out):
        with Image.open(folder / path.name) as image:
            np.testing.assert_array_equal(read_labels(path), np.asarray(image) >= 128)
    # A kill costs at most what was in hand, once as work that is lost and once as a result that was not recorded.
    assert segmentation.num_segmented <= NUM_IMAGES + 2 * IN_FLIGHT * num_kills
    assert len((out / "results.csv").read_text().splitlines()) == NUM_IMAGES + 1
    assert not list(out.rglob(".*.part"))


def test_an_interrupted_run_says_how_to_go_on(vplab: Vplab, tmp_path: Path, folder: Path) -> None:
    segmentation, out = FakeSegmentation(), tmp_path / "out"
    segmentation.before_segment = lambda data: time.sleep(0.2)
    with serving_in_threads(segmentation) as address:
        teach(vplab, folder, address)
        with ended(vplab.start("--address", address, "segment", "bright", folder, "--out", out)) as process:
            wait_for(lambda: len(masks(out)) >= 3)
            process.send_signal(signal.SIGINT)
            out_text, err_text = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "the same command goes on from here" in err_text
        assert "images segmented into" in out_text
        assert (out / "results.csv").exists()


def masks(out: Path) -> list[Path]:
    return [path for path in sorted((out / "masks").glob("*.png")) if not path.name.startswith(".")]
