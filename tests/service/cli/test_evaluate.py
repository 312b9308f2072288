"""``vplab evaluate`` as a command: its files, its refusals, and what a second run does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fakes.command_bench import DARK, Bench
from fakes.evaluation_folders import write_pair, write_squares
from fakes.segmentation_server import FakeSegmentation
from vplab.client import Client
from vplab.errors import InvalidInput, Unimplemented
from vplab.evaluation.splits import make_splits

Vplab = Callable[..., Any]
OURS = ("--methods", "softmatch,segmenter", "--shots", "0,1", "--seeds", "2")


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    return write_squares(tmp_path / "set", 16)


def figures(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "out" / "results.json").read_text())


def test_a_folder_becomes_tables_figures_a_plot_and_sheets(vplab: Vplab, squares: Path, tmp_path: Path) -> None:
    ran = vplab("evaluate", squares, "--out", "out", *OURS, "--json", "figures.json")
    assert ran.code == 0, ran.text
    assert "Foreground IoU over shots" in ran.out
    found = figures(tmp_path)
    assert found == json.loads((tmp_path / "figures.json").read_text())
    assert found["is_complete"]
    assert found["num_test"] == 8
    # The service without models finds every bright pixel, and that is the class.
    assert found["shots"]["softmatch"]["1"]["iou"] == {"mean": 1.0, "std": 0.0, "seeds": {"0": 1.0, "1": 1.0}}
    assert found["shots"]["softmatch"]["0"]["iou"]["mean"] == 1.0
    assert found["clicks"]["segmenter"]["box"]["iou"]["mean"] == 1.0
    assert found["models"]["segmenter"]["name"] == "artifacts/fake-segmenter/versions/1"
    assert found["versions"]["vplab"]
    out = tmp_path / "out"
    assert "| softmatch | **100.0 ± 0.0** | **100.0 ± 0.0** |" in (out / "results.md").read_text()
    splits = json.loads((out / "splits.json").read_text())
    assert len(splits["test"]) == 8
    assert sorted(splits["shots"]) == ["0", "1"]
    for picture in ("sheets/softmatch-1-shots.jpg", "sheets/segmenter-objects.jpg", "shots.png"):
        with Image.open(out / picture) as image:
            assert image.width > 400


def test_methods_of_no_service_need_none(
    vplab: Vplab, squares: Path, tmp_path: Path, segmentation: FakeSegmentation
) -> None:
    ran = vplab("evaluate", squares, "--out", "out", "--methods", "plain_box")
    assert ran.code == 0, ran.text
    assert figures(tmp_path)["clicks"]["plain_box"]["box"]["iou"]["mean"] == 1.0  # squares fill their boxes
    assert not segmentation.predictions_asked


def test_a_second_run_measures_nothing_again_and_further_methods_join(
    vplab: Vplab, squares: Path, tmp_path: Path, segmentation: FakeSegmentation
) -> None:
    vplab("evaluate", squares, "--out", "out", *OURS)
    first, num_segmented = figures(tmp_path), segmentation.num_segmented
    assert num_segmented == 8 * 2 * 2
    assert vplab("evaluate", squares, "--out", "out", *OURS).code == 0
    assert segmentation.num_segmented == num_segmented
    assert set(segmentation.priorities_asked) == {"batch"}
    assert vplab("evaluate", squares, "--out", "out", "--methods", "graph", "--shots", "1", "--seeds", "2").code == 0
    assert segmentation.num_segmented == num_segmented + 16
    last = figures(tmp_path)
    assert last["shots"]["softmatch"] == first["shots"]["softmatch"]
    assert "graph" in last["shots"]


def test_a_changed_folder_or_setting_is_refused_until_a_restart(vplab: Vplab, squares: Path) -> None:
    assert vplab("evaluate", squares, "--out", "out", *OURS).code == 0
    ran = vplab("evaluate", squares, "--out", "out", *OURS, "--max-test", "4")
    assert ran.code == 3
    assert "max_test: 40 then, 4 now" in ran.err
    Image.fromarray(np.full((40, 60), 255, np.uint8)).save(squares / "masks" / "03.png")
    ran = vplab("evaluate", squares, "--out", "out", *OURS)
    assert ran.code == 3
    assert "holds results of another run (folder:" in ran.err
    assert vplab("evaluate", squares, "--out", "out", *OURS, "--restart").code == 0


def test_more_shots_than_the_folder_has_are_left_out_with_a_reason(vplab: Vplab, squares: Path, tmp_path: Path) -> None:
    ran = vplab("evaluate", squares, "--out", "out", "--methods", "softmatch", "--seeds", "1")
    assert ran.code == 0, ran.text
    found = figures(tmp_path)
    assert sorted(found["shots"]["softmatch"]) == ["0", "1", "5"]
    assert [(s["method"], s["num_shots"]) for s in found["skipped"]] == [("softmatch", 10), ("softmatch", 40)]
    assert "softmatch with 10, 40 shots left out:" in ran.err


def test_an_image_that_fails_makes_the_run_partly_failed_and_is_tried_again(
    vplab: Vplab, squares: Path, tmp_path: Path, segmentation: FakeSegmentation
) -> None:
    from vplab.errors import InvalidInput
    from vplab.evaluation.folder import FolderOptions, read_folder

    folder = read_folder(squares, FolderOptions())
    bad = folder.encoded(make_splits(folder, 40, 1).test[0])

    def refuse(data: bytes) -> None:
        if data == bad:
            raise InvalidInput("this one not")

    segmentation.before_segment = refuse
    command = ("evaluate", squares, "--out", "out", "--methods", "softmatch", "--shots", "1", "--seeds", "1")
    ran = vplab(*command)
    assert ran.code == 1
    assert "this one not" in ran.err
    assert figures(tmp_path)["shots"]["softmatch"]["1"]["num_failed"] == 1
    segmentation.before_segment = lambda data: None
    assert vplab(*command).code == 0
    assert figures(tmp_path)["shots"]["softmatch"]["1"]["num_failed"] == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--methods", "softmatch,magic"), "'magic' is none of softmatch"),
        (("--shots", "one"), "'one' is no list of numbers"),
        (("--classes", "7"), "no mask holds 7"),
        (("--binary", "--classes", "255"), "--binary"),
        (("--segments", "--binary"), "--binary says nothing here: segments have no classes"),
        (("--ids", "missing.txt"), "cannot read missing.txt"),
    ],
)
def test_wrong_arguments_are_refused_by_name(
    vplab: Vplab, squares: Path, arguments: tuple[str, ...], named: str
) -> None:
    ran = vplab("evaluate", squares, "--out", "out", *arguments)
    assert ran.code == 3
    assert named in ran.err.replace("\n", " ")
    assert not Path("out/results.json").exists()


def test_faulty_files_are_named(vplab: Vplab, squares: Path) -> None:
    (squares / "masks" / "03.png").unlink()
    (squares / "images" / "05.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(squares / "masks" / "07.png")
    ran = vplab("evaluate", squares, "--out", "out", *OURS)
    assert ran.code == 3
    for name in ("images/03.png: has no mask 03.png", "images/05.png", "images/07.png: is 60x40, its masks/07.png 5x4"):
        assert name in ran.err


def test_a_folder_that_is_not_there_is_refused(vplab: Vplab, tmp_path: Path) -> None:
    ran = vplab("evaluate", tmp_path / "nowhere", "--out", "out")
    assert ran.code == 3
    assert "no folder images/" in ran.err


def test_ids_restrict_the_images(vplab: Vplab, squares: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("".join(f"{number:02d}\n" for number in range(8)))
    ran = vplab("evaluate", squares, "--out", "out", *OURS, "--ids", "ids.txt")
    assert ran.code == 0, ran.text
    assert figures(tmp_path)["num_images"] == 8


@pytest.fixture
def tuning(bench: Bench, tmp_path: Path) -> Bench:
    """A bench whose training service publishes one adapter for whatever it is asked."""
    weights = tmp_path / "adapter.safetensors"
    weights.write_bytes(b"weights" * 100)
    registry = bench.arguments[bench.arguments.index("--registry") + 1]
    with Client(registry=registry) as client:
        published = client.registry.publish_files({weights.name: weights}, "tuned", "adapter")
    bench.training.adapter_digest = published.digest
    return bench


@pytest.fixture
def dark_squares(tmp_path: Path) -> Path:
    """Squares whose dark half the segmenter sees only with the adapter; the last three of ten images show none."""
    for number in range(10):
        pixels = np.full((40, 60, 3), 30 + number, np.uint8)
        if number < 7:
            pixels[5:15, 10:30], pixels[15:25, 10:30] = DARK, 200
        write_pair(tmp_path / "dark", f"{number}", pixels, (pixels[..., 0] >= DARK).astype(np.uint8))
    return tmp_path / "dark"


TUNED = ("--methods", "e-peft,ia3,softmatch+e-peft", "--shots", "0,1,all", "--seeds", "2", "--max-test", "4")


def test_tuned_methods_become_the_paper_s_tables(tuning: Bench, dark_squares: Path, tmp_path: Path) -> None:
    ran = tuning.run("evaluate", dark_squares, "--out", "out", *TUNED)
    assert ran.exit_code == 0, ran.output
    found = figures(tmp_path)
    assert found["num_all"] == 6
    assert found["clicks"]["segmenter"]["box"]["iou"]["mean"] == 0.5
    for method in ("e-peft", "ia3"):
        assert found["tuned"][method]["1"]["box"]["iou"] == {"mean": 1.0, "std": 0.0, "seeds": {"0": 1.0, "1": 1.0}}
        assert found["tuned"][method]["6"]["1"]["iou"]["mean"] == 1.0
    assert [found["shots"]["softmatch+e-peft"][number]["iou"]["mean"] for number in ("0", "1", "6")] == [0.5, 1.0, 1.0]
    assert found["tunings"]["e-peft"]["adapter_bytes"] == 700
    # Two methods, two numbers of shots, two seeds; the matcher has none of its own.
    assert len(tuning.training.jobs) == 8
    assert {request.options.seed for request in tuning.training.requests} == {0, 1}
    written = (tmp_path / "out" / "results.md").read_text()
    assert (
        "**Table 1: mean IoU of a marked object after tuning on 6 images, all images that are not tested**" in written
    )
    assert "**Table 2: mean IoU of a marked object after few shots**" in written
    assert "| segmenter | 50.0 | 50.0 |" in written
    assert "| softmatch+e-peft | **50.0 ± 0.0** | **100.0 ± 0.0** | **100.0 ± 0.0** | +100 | +100 |" in written
    for picture in ("tuned.png", "sheets/e-peft-6-shots-objects.jpg", "sheets/softmatch+e-peft-6-shots.jpg"):
        assert (tmp_path / "out" / picture).is_file()

    # Everything is there: nothing is asked for again, until something else is wanted.
    assert tuning.run("evaluate", dark_squares, "--out", "out", *TUNED).exit_code == 0
    assert len(tuning.training.requests) == 8


def test_a_tuning_that_fails_makes_the_run_partly_failed_and_is_tried_again(
    tuning: Bench, dark_squares: Path, tmp_path: Path
) -> None:
    command = ("evaluate", dark_squares, "--out", "out", "--methods", "lora", "--shots", "1", "--seeds", "1")
    tuning.training.fails_with = "the loss is not finite"
    ran = tuning.run(*command)
    assert ran.exit_code == 1
    assert "the loss is not finite" in ran.stderr
    found = figures(tmp_path)
    assert found["tuned"]["lora"]["1"]["num_failed"] > 0
    assert found["tuned"]["lora"]["1"]["box"]["iou"] == {"mean": None, "std": None, "seeds": {}}  # no measured zero
    assert "the loss is not finite" in found["not_learned"][0]["reason"]
    written = (tmp_path / "out" / "results.md").read_text()
    assert "| lora | - | - | - |" in written
    assert "- lora with 1 shot was not measured for seed 0, it could not learn: " in written
    tuning.training.fails_with = ""
    assert tuning.run(*command).exit_code == 0
    assert figures(tmp_path)["tuned"]["lora"]["1"]["num_failed"] == 0


def test_a_set_that_is_too_large_to_tune_on_says_so_instead_of_zero(
    tuning: Bench, dark_squares: Path, tmp_path: Path
) -> None:
    tuning.training.refuses = InvalidInput("6 images; at most 5", field="dataset")
    ran = tuning.run(
        *("evaluate", dark_squares, "--out", "out", "--methods", "e-peft,softmatch+e-peft", "--shots", "0,all"),
        *("--seeds", "1", "--max-test", "4"),
    )
    assert ran.exit_code == 1
    assert "e-peft with 6 shots was not measured for seed 0, it could not learn: 6 images; at most 5" in ran.stderr
    written = (tmp_path / "out" / "results.md").read_text()
    assert "| e-peft | - | - | - | - | - | - |" in written
    assert "| softmatch+e-peft | **50.0** | - | - |" in written


def test_models_are_named_by_their_first_parts(bench: Bench, squares: Path, tmp_path: Path) -> None:
    for name, kind in (("sam-vit-b-segmenter", "segmenter"), ("sam-vit-b-encoder", "encoder"),
                       ("dinov2-vits14-encoder", "encoder"), ("sam-vit-b-fp16-segmenter", "segmenter")):  # fmt: skip
        bench.publish(name, kind)
    ran = bench.run(
        *("evaluate", squares, "--out", "out", "--methods", "softmatch,segmenter", "--shots", "1", "--seeds", "1"),
        *("--segmenter", "sam-vit-b", "--encoder", "dinov2-vits14@1"),
    )
    assert ran.exit_code == 0, ran.output
    assert {r.models.segmenter for r in bench.segmentation.predictions_asked} == {"artifacts/sam-vit-b-segmenter"}
    assert bench.segmentation.created[0].segmenter == "artifacts/sam-vit-b-segmenter"
    assert bench.segmentation.created[0].feature_encoder == "artifacts/dinov2-vits14-encoder/versions/1"
    unknown = bench.run("evaluate", squares, "--out", "o", "--segmenter", "sam-vit-h")
    assert unknown.exit_code == 3
    assert "'sam-vit-h' is none of the registry's segmenters: sam-vit-b-fp16-segmenter, " in unknown.stderr
    ambiguous = bench.run("evaluate", squares, "--out", "o", "--segmenter", "sam")
    assert "'sam' may be each of the registry's segmenters: sam-vit-b-fp16-segmenter, sam-vit-b-" in ambiguous.stderr


def test_a_service_that_cannot_train_stops_the_run_with_its_reason(tuning: Bench, dark_squares: Path) -> None:
    tuning.training.refuses = Unimplemented("this server cannot train: torch is not installed")
    ran = tuning.run("evaluate", dark_squares, "--out", "out", "--methods", "e-peft", "--shots", "1", "--seeds", "1")
    assert ran.exit_code not in (0, 1)
    assert "torch is not installed" in ran.stderr


def test_a_misspelt_adapter_or_number_is_refused_by_name(vplab: Vplab, squares: Path) -> None:
    ran = vplab("evaluate", squares, "--out", "out", "--methods", "e_pft")
    assert ran.code == 3
    assert "'e_pft' is none of" in ran.err
    ran = vplab("evaluate", squares, "--out", "out", "--methods", "e-peft", "--shots", "some")
    assert ran.code == 3
    assert "'some' is no list of numbers" in ran.err
