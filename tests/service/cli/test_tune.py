"""``vplab tune`` against a training service that follows a script, a real registry, and masks from brightness."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fakes.command_bench import ADAPTER, DARK, Bench
from fakes.vplab_command import CLEAN, QUIET
from vplab.api.segmentation.v1 import segmentation_service_pb2 as segmentation_pb
from vplab.api.training.v1 import training_service_pb2 as pb
from vplab.cli.connection import Where
from vplab.client.options import Area
from vplab.errors import InvalidInput
from vplab.training.errors import AdapterBaseMismatch
from vplab.vision.label_images import label_png, read_labels


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Six images with a dark grey square each, the object."""
    root = tmp_path / "parts"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(6):
        pixels, labels = np.full((40, 60), 30 + number, np.uint8), np.zeros((40, 60), np.uint8)
        pixels[5:25, 10:30] = DARK
        labels[5:25, 10:30] = 1
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        (root / "masks" / f"{number}.png").write_bytes(label_png(labels))
    return root


def test_a_folder_is_pushed_tuned_and_compared(bench: Bench, parts: Path, tmp_path: Path) -> None:
    ran = bench.tune("--dataset", parts)
    assert ran.exit_code == 0, ran.output
    figures = bench.figures
    assert figures["state"] == "succeeded"
    assert figures["adapter"] == {"name": ADAPTER, "digest": "c" * 64}
    assert figures["dataset"]["name"] == "artifacts/parts/versions/1"
    assert [pair["iou_before"] for pair in figures["compared"]] == [0.0] * 6
    assert [pair["iou_after"] for pair in figures["compared"]] == [1.0] * 6
    assert "IoU 0.500 -> 0.800 on validation images" in ran.stdout
    assert "mIoU 0.000 -> 1.000 over 6 of the data set's images, 0 of them not tuned on" in ran.stdout
    with Image.open(tmp_path / "tuned.jpg") as picture:
        assert picture.height > 6 * 300


def test_what_is_asked_for_reaches_the_service(bench: Bench, parts: Path) -> None:
    bench.run("dataset", "push", parts, "--name", "parts")
    bench.publish("s", "segmenter")
    ran = bench.tune(
        *("--dataset", "parts@1", "--method", "conv-lora", "--steps", 9, "--learning-rate", 0.5, "--rank", 3),
        *("--seed", 7, "--segmenter", "s@2", "--prompt-set", "p", "--promote", "production", "--only-if-better"),
        "--no-sheet",
    )
    assert ran.exit_code == 0, ran.output
    (request,) = bench.training.requests
    assert (request.dataset, request.adapter_id) == ("artifacts/parts/versions/1", "tuned")
    assert (request.method, request.options.num_steps, request.options.lora_rank) == (pb.TUNING_METHOD_CONV_LORA, 9, 3)
    assert (request.options.learning_rate, request.options.seed) == (0.5, 7)
    assert (request.segmenter, request.prompt_set) == ("artifacts/s/versions/2", "artifacts/p")
    assert (request.promote_alias, request.promote_only_if_better) == ("production", True)
    assert bench.figures["sheet"] is None


def test_shots_are_a_data_set_of_their_own_and_the_others_are_compared_first(bench: Bench, parts: Path) -> None:
    ran = bench.tune("--dataset", parts, "--shots", 2, "--sheet", "s.png")
    assert ran.exit_code == 0, ran.output
    assert bench.figures["dataset"]["name"] == "artifacts/parts-shots/versions/1"
    assert [pair["was_tuned_on"] for pair in bench.figures["compared"]] == [False] * 4 + [True] * 2
    bench.run("dataset", "show", "parts-shots", "--json", "f.json")
    assert bench.figures["num_images"] == 2
    too_many = bench.tune("--dataset", "parts", "--shots", 7)
    assert (too_many.exit_code, "6 of 6 images show a class" in too_many.stderr) == (3, True)


def test_the_end_says_how_to_serve_what_no_alias_names(bench: Bench, parts: Path) -> None:
    ran = bench.tune("--dataset", parts, "--no-sheet")
    assert "no alias names it yet: 'vplab models promote tuned@1'" in ran.stdout
    bench.training.promotion = "not promoted: its validation IoU is 0.1"
    ran = bench.tune("--dataset", parts, "--no-sheet", "--promote", "line-2")
    assert "'vplab models promote tuned@1 --alias line-2'" in ran.stdout
    bench.training.promotion = "moved artifacts/tuned/aliases/production to artifacts/tuned/versions/1"
    ran = bench.tune("--dataset", parts, "--no-sheet", "--promote", "production")
    assert "models promote" not in ran.stdout


def test_a_name_of_another_kind_is_refused_with_what_to_do(bench: Bench, parts: Path) -> None:
    bench.publish("scratches", "prompt_set")
    refused = bench.run("dataset", "push", parts, "--name", "scratches")
    assert refused.exit_code == 3
    assert "artifacts/scratches holds prompt_set versions, not dataset; choose another name" in refused.stderr


def test_a_missing_alias_is_told_with_the_versions_that_are_there(bench: Bench, parts: Path) -> None:
    bench.publish("scratches", "adapter")
    bench.publish("scratches", "adapter")
    asked = bench.run("models", "show", "scratches")
    assert asked.exit_code == 5
    assert "its newest version is scratches@2: name that" in asked.stderr
    assert "'vplab models promote scratches@2'" in asked.stderr
    asked = bench.run("models", "show", "scratches@line-2")
    assert "'vplab models promote scratches@2 --alias line-2'" in asked.stderr
    bench.publish("parts", "dataset")
    asked = bench.run("models", "show", "parts@line-2")
    assert "its newest version is parts@1: name that" in asked.stderr
    assert "promote" not in asked.stderr
    absent = bench.run("models", "show", "absent")
    assert (absent.exit_code, "newest" in absent.stderr) == (5, False)


def test_models_show_and_history_say_what_counts_of_data_sets(bench: Bench) -> None:
    for _ in range(2):
        bench.publish("parts", "dataset")
    shown = bench.run("models", "show", "parts")
    assert (shown.exit_code, "artifacts/parts/versions/2  dataset" in shown.stdout) == (0, True)
    moved = bench.run("models", "history", "parts")
    assert (moved.exit_code, "of a dataset the newest version is used" in moved.stderr) == (5, True)


def test_promoting_takes_a_version(bench: Bench) -> None:
    for _ in range(2):
        bench.publish("scratches", "adapter", metrics={"parity_passed": 1.0})
    refused = bench.run("models", "promote", "scratches")
    assert (refused.exit_code, "scratches@2 is the newest" in refused.stderr) == (3, True)
    assert bench.run("models", "history", "scratches").exit_code == 5  # nothing was moved
    assert bench.run("models", "promote", "scratches@2").exit_code == 0
    assert bench.run("models", "promote", "scratches@production", "--alias", "line-2").exit_code == 0


def test_a_prompt_set_segments_the_comparison(bench: Bench, parts: Path) -> None:
    classes = [segmentation_pb.SegmentClass(class_id=1, display_name="square")]
    bench.segmentation.prompt_sets["p"] = [segmentation_pb.PromptSet(classes=classes)]
    ran = bench.tune("--dataset", parts, "--prompt-set", "p")
    assert ran.exit_code == 0, ran.output
    assert bench.segmentation.num_segmented == 12
    assert {pair["iou_after"] for pair in bench.figures["compared"]} == {1.0}


def test_a_broken_stream_goes_on_where_it_was(bench: Bench, parts: Path) -> None:
    bench.training.breaks = 2
    ran = bench.tune("--dataset", parts, "--no-sheet")
    assert ran.exit_code == 0, ran.output
    assert bench.training.watched_from == [0, 2, 4]
    assert "step 2 of 4: loss 0.5000  IoU 0.600" in ran.stderr
    assert "step 4 of 4: loss 0.2500  IoU 0.800" in ran.stderr


def test_a_job_that_fails_or_is_refused_ends_with_its_reason(bench: Bench, parts: Path) -> None:
    bench.training.fails_with = "out of memory"
    failed = bench.tune("--dataset", parts, "--no-sheet")
    assert (failed.exit_code, "failed: out of memory" in failed.stderr) == (8, True)
    assert bench.figures["state"] == "failed"
    bench.training.refuses = InvalidInput("must be 1 to 256", field="options.lora_rank")
    refused = bench.tune("--dataset", parts, "--no-sheet", "--rank", 999)
    assert (refused.exit_code, "--rank: must be 1 to 256" in refused.stderr) == (3, True)


@pytest.mark.parametrize(
    ("break_it", "text"),
    [
        (lambda f: (f / "images" / "3.png").write_bytes(b"\x00\x7f" * (5 << 20)), "images/3.png: "),
        (lambda f: (f / "masks" / "3.png").write_bytes(label_png(np.ones((60, 40), np.uint8))), "masks/3.png: is 40 x"),
        (lambda f: (f / "masks" / "3.png").write_bytes(label_png(np.full((40, 60), 7, np.uint8))), "holds class 7"),
        (lambda f: [p.unlink() for p in f.glob("*/*")], "there is no image"),
        (
            lambda f: [p.write_bytes(label_png(np.zeros((40, 60), np.uint8))) for p in f.glob("masks/*")],
            "nothing to learn from",
        ),
    ],
)
def test_wrong_files_are_named_and_no_job_is_made(
    bench: Bench, parts: Path, break_it: Callable[[Path], object], text: str
) -> None:
    (parts / "classes.csv").write_text("class_id,class\n1,square\n", encoding="utf-8")
    break_it(parts)
    ran = bench.tune("--dataset", parts)
    assert (ran.exit_code, text in ran.stderr) == (3, True), ran.stderr
    assert bench.training.requests == []


def test_an_adapter_of_another_base_is_refused_by_name(bench: Bench, parts: Path) -> None:
    bench.training.refuses = AdapterBaseMismatch(
        "artifacts/tuned", field="adapter_id", expected="a" * 64, actual="b" * 64
    )
    ran = bench.tune("--dataset", parts, "--no-sheet", "--promote", "production")
    assert (ran.exit_code, "artifacts/tuned was made for segmenter bbbb" in ran.stderr) == (3, True), ran.stderr


def test_what_segment_wrote_is_corrected_pushed_and_tuned(bench: Bench, folder: Path, tmp_path: Path) -> None:
    saved = bench.run("prompt", folder / "0.png", "--point", "20,10", "--save", "bright")
    assert saved.exit_code == 0, saved.output
    assert bench.run("segment", "bright", folder, "--out", "out").exit_code == 0
    found = np.asarray(Image.open(tmp_path / "out" / "masks" / "1.png")).copy()
    found[:8] = 0  # a person takes away what is no defect, in an editor that saves what it likes
    (tmp_path / "out" / "masks" / "1.png").unlink()
    Image.fromarray(found, "L").save(tmp_path / "out" / "masks" / "1.png")
    pushed = bench.run("dataset", "push", "out", "--name", "corrected", "--json", "f.json")
    assert pushed.exit_code == 0, pushed.output
    assert bench.figures["num_images"] == 6
    bench.run("dataset", "export", "corrected", "--out", "again")
    for number in range(6):
        again = read_labels(tmp_path / "again" / "masks" / f"{number}.png")
        np.testing.assert_array_equal(again, read_labels(tmp_path / "out" / "masks" / f"{number}.png"))
    assert bench.tune("--dataset", "corrected", "--no-sheet").exit_code == 0
    assert bench.training.requests[-1].dataset == "artifacts/corrected/versions/1"


def test_images_that_were_tuned_on_are_not_called_validation_images(bench: Bench, parts: Path) -> None:
    bench.training.metrics["validation_is_held_out"] = 1.0
    assert "IoU 0.500 -> 0.800 on validation images" in bench.tune("--dataset", parts, "--no-sheet").stdout
    bench.training.metrics["validation_is_held_out"] = 0.0
    assert "IoU 0.500 -> 0.800 on the images it was tuned on" in bench.tune("--dataset", parts, "--no-sheet").stdout


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--dataset", "absent", "--class", "1=crack"], "--class"),
        (["--dataset", "absent", "--binary"], "--binary"),
        (["--dataset", "absent", "--class-ids"], "--class-ids"),
        (["--dataset", "parts", "--detach", "--sheet", "s.png"], "--sheet"),
        (["--dataset", "parts", "--detach", "--leave-on-interrupt"], "--leave-on-interrupt"),
        (["--dataset", "parts", "--no-sheet", "--sheet", "s.png"], "--sheet"),
    ],
)
def test_options_that_would_be_ignored_are_refused(bench: Bench, parts: Path, arguments: list[str], flag: str) -> None:
    ran = bench.tune(*arguments)
    assert (ran.exit_code, f"{flag} says nothing here: " in ran.stderr) == (3, True), ran.stderr
    assert bench.training.requests == []


def test_a_detached_job_whose_services_end_with_the_command_is_told(
    bench: Bench, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "nobody works on it" not in bench.tune("--dataset", parts, "--detach").stderr
    # The same services, as if this command had started them.
    monkeypatch.setattr(Where, "named", lambda self: {})

    @asynccontextmanager
    async def started(where: Where, areas: Sequence[Area]) -> AsyncIterator[dict[Area, str]]:
        yield {area: str(where.addresses[area]) for area in ("registry", "training")}  # type: ignore[index]

    monkeypatch.setattr("vplab.cli.connection._local_addresses", started)
    ran = bench.tune("--dataset", parts, "--detach", "--seed", 3)
    assert ran.exit_code == 0, ran.output
    assert "the services ended with this command. Run 'vplab serve', or 'vplab jobs watch 2'" in ran.stderr


def test_detached_jobs_are_not_waited_for(bench: Bench, parts: Path) -> None:
    bench.training.hold.clear()
    ran = bench.tune("--dataset", parts, "--detach")
    assert ran.exit_code == 0, ran.output
    assert (bench.figures["state"], bench.figures["job"]) == ("queued", "tuningJobs/1")


@pytest.mark.parametrize(
    ("choice", "state"), [("--leave-on-interrupt", "running"), ("--cancel-on-interrupt", "cancelled")]
)
def test_an_interrupt_leaves_or_cancels_the_job(bench: Bench, parts: Path, choice: str, state: str) -> None:
    bench.training.hold.clear()
    code, err = interrupted(bench, "--dataset", parts, "--no-sheet", choice)
    assert code == 130, err
    assert bench.figures["state"] == state
    assert ("goes on wherever its services run" if state == "running" else "is cancelled") in err
    bench.training.hold.set()
    again = bench.tune("--dataset", parts, "--no-sheet", choice)
    assert again.exit_code == 0, again.output
    # What was left is followed again; after a cancelled job the same command queues another.
    assert bench.figures["job"] == ("tuningJobs/1" if state == "running" else "tuningJobs/2")
    assert ("going on with tuningJobs/1" in again.stderr) == (state == "running")
    third = bench.tune("--dataset", parts, "--no-sheet", choice)
    assert third.exit_code == 0
    assert bench.figures["job"] == ("tuningJobs/2" if state == "running" else "tuningJobs/3")


def interrupted(bench: Bench, *arguments: object) -> tuple[int, str]:
    """Run the command as a process and press Ctrl-C when its job is about to end."""
    command = [*bench.arguments, "tune", "--adapter", "tuned", "--json", "f.json", *map(str, arguments)]
    process = subprocess.Popen(
        [sys.executable, "-m", "vplab.cli.main", *command],
        env={**CLEAN, **QUIET, **{k: v for k, v in os.environ.items() if k == "PATH"}},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=bench.folder,
    )
    with process:
        assert bench.training.is_held.wait(60), process.communicate()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--dataset", "absent"], 5, "absent"),
        (["--dataset", "parts", "--method", "magic"], 3, "none of e_peft"),
        (["--dataset", "parts", "--only-if-better"], 3, "--promote"),
        (["--dataset", "images"], 3, "a data set is images/NAME"),
        (["--dataset", "parts", "--shots", "0"], 2, "shots"),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    bench: Bench, tmp_path: Path, arguments: list[str], code: int, text: str
) -> None:
    (tmp_path / "images").mkdir()
    ran = bench.tune(*arguments)
    assert ran.exit_code == code
    assert text in ran.output
