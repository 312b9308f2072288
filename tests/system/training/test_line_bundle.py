"""A line bundle beside the services it was made from: equal masks from both programs, and no service is loaded."""

import asyncio
import filecmp
import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from safetensors.numpy import save_file

from fakes.cpp_line_program import SOURCE, build_line_program
from fakes.hq_adapters import adapt_small_sam, write_hq_adapter
from fakes.line_site import line_site
from fakes.random_decoders import disturb
from fakes.segmentation_site import Site, as_png, iou
from fakes.small_sam import (
    EARLY,
    EARLY_ENCODER_SPEC,
    ENCODER,
    ENCODER_SPEC,
    encoder_onnx,
    small_site,
    write_small_sam,
)
from fakes.small_sam import SEGMENTER as SMALL_SEGMENTER
from fakes.training_site import NANO, SEGMENTER, nano_site, training_beside
from vplab.client import AsyncClient, AsyncSnapshots
from vplab.client.segmentation.values import MatcherName, PromptSetDraft, Reference, SegmentClass, SegmentOptions
from vplab.training.worker.decoder_weights import load_decoder
from vplab.training.worker.graph_templates import half_precision, save_graph
from vplab.vision.adapters.adapt import adapt
from vplab.vision.adapters.spec import EPeftSpec
from vplab.vision.sam.onnx_decoder import module_to_onnx
from vplab.vision.specs import SegmenterSpec, spec_from_json
from vplab.vision.synthesis import synthesize_inspection_set

# Runs the program without site-packages' start files, so that only what is there in so many words can be imported,
# and refuses what a line need not have; then tells what was loaded from outside the standard library, and from where.
RUNNER = """
import json, runpy, sys
bundle, packages, *arguments = sys.argv[1:]
sys.path.append(packages)
class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"grpc", "google", "torch", "PIL", "pydantic", "simplejpeg", "structlog", "fakes"}:
            raise ImportError(f"{name} is not on this line")
sys.meta_path.insert(0, Refusal())
sys.argv = [bundle + "/segment.py", *arguments]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    status = end.code
loaded = {name.split(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
loaded = {name for name in loaded if "cython" not in name}  # numpy's own
print(json.dumps({"status": status, "loaded": sorted(loaded), "vplab": sys.modules["vplab"].__file__}))
"""
CLASSES = [SegmentClass(3, "patch"), SegmentClass(9, "scratch")]
SIZE_HW = (192, 256)


Run = Callable[[Path, Path, Path], None]
"""Runs a bundle's program, on an image, into a folder."""


def run_program(bundle: Path, *arguments: str | Path) -> dict[str, Any]:
    """Run a bundle's segment.py apart from everything else, and return what it says of its process."""
    packages = sysconfig.get_paths()["purelib"]
    command = [sys.executable, "-I", "-S", "-c", RUNNER, str(bundle), packages, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd="/", env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def run_python(bundle: Path, image: Path, out: Path) -> None:
    said = run_program(bundle, image, "--out", out, "--check", "--threads", "1")
    assert said["status"] == 0
    alone = {"numpy", "cv2", "onnxruntime", "vplab", "line_program", "__main__", "__mp_main__"}
    assert set(said["loaded"]) <= alone
    assert said["vplab"] == str(bundle / "vplab" / "__init__.py")


@pytest.fixture(scope="module")
def cpp_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_line_program(tmp_path_factory.mktemp("cpp"))


def run_cpp(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=300, cwd="/", env={})


@pytest.fixture(params=["python", "cpp"])
def run(request: pytest.FixtureRequest) -> Run:
    if request.param == "python":
        return run_python
    program = request.getfixturevalue("cpp_program")

    def run(bundle: Path, image: Path, out: Path) -> None:
        assert not filecmp.dircmp(bundle / "cpp", SOURCE).diff_files
        done = run_cpp(program, bundle, image, "--out", out, "--threads", "1")
        assert done.returncode == 0, done.stderr

    return run


def write_shifted_adapter(folder: Path, shift: float) -> Path:
    """Write an adapter of the nano segmenter that adds to all logits."""
    folder.mkdir()
    graph = onnx.load(NANO / "nano-segmenter" / "decoder.onnx")
    for node in graph.graph.node:
        for index, name in enumerate(node.output):
            if name == "low_res_logits":
                node.output[index] = "logits_before"
    graph.graph.initializer.append(numpy_helper.from_array(np.array(shift, np.float32), "shift"))
    graph.graph.node.append(helper.make_node("Add", ["logits_before", "shift"], ["low_res_logits"]))
    onnx.save(graph, folder / "decoder.onnx")
    (folder / "model.json").write_bytes((NANO / "nano-segmenter" / "model.json").read_bytes())
    (folder / "parity.json").write_text('{"passed": true}')
    return folder


def write_tuned_adapter(folder: Path, *, has_graph: bool) -> Path:
    """Write an E-PEFT adapter of the nano segmenter in which every part does something.

    Without a graph only the segmenter's bank can serve it.
    """
    folder.mkdir()
    spec = spec_from_json((NANO / "nano-segmenter" / "model.json").read_bytes())
    assert isinstance(spec, SegmenterSpec)
    adapted = disturb(adapt(load_decoder(NANO / "nano-segmenter", spec), EPeftSpec()), scale=0.1).eval()
    save_file({name: value.numpy() for name, value in adapted.adapter_state().items()}, folder / "adapter.safetensors")
    (folder / "adapter.json").write_text(f'{{"adapter": {adapted.spec.model_dump_json()}}}')
    (folder / "model.json").write_text(spec.without_bank.model_dump_json())
    (folder / "parity.json").write_text('{"passed": true}')
    if has_graph:
        merged = half_precision(adapted.merged().eval())
        save_graph(module_to_onnx(merged, adapted.base.prompt_encoder).model_proto, folder / spec.graph)
    return folder


def write_feature_encoder(folder: Path) -> Path:
    """Write an encoder that stretches images, for their features alone."""
    folder.mkdir()
    stretched = ENCODER_SPEC.preprocessing.model_copy(update={"resize": "fixed", "interpolation": "bicubic"})
    spec = ENCODER_SPEC.model_copy(update={"preprocessing": stretched, "outputs": ENCODER_SPEC.outputs[1:]})
    (folder / "model.json").write_text(spec.model_dump_json())
    (folder / spec.graph).write_bytes(encoder_onnx())
    return folder


async def bundled(
    client: AsyncClient, bundle_id: str, adapter: str, folder: Path, prompt_set: str = "artifacts/parts"
) -> Path:
    """Have a bundle made, and return the folder of its files."""
    job = await client.training.create_export_job(bundle_id, prompt_set, adapter=adapter)
    async with asyncio.timeout(300):
        while not job.is_done:
            await asyncio.sleep(0.1)
            job = await client.training.get_export_job(job.name)
    assert (job.state, job.message) == ("succeeded", "")
    assert job.bundle is not None
    snapshots = AsyncSnapshots(client.registry, folder)
    try:
        return (await snapshots.fetch(job.bundle.name)).folder
    finally:
        snapshots.close()


async def create_prompt_set(client: AsyncClient, options: SegmentOptions) -> None:
    shown = {c: synthesize_inspection_set(2, SIZE_HW, c.display_name, seed=2) for c in CLASSES}
    references = [Reference(as_png(i.image_rgb), {c.class_id: i.mask}) for c, found in shown.items() for i in found]
    await client.segmentation.create_prompt_set(PromptSetDraft("parts", CLASSES, references, options=options))


def pictures(folder: Path, size_hw: tuple[int, int]) -> list[Path]:
    """Write images of both classes that no reference shows."""
    paths = []
    for item in CLASSES:
        for index, image in enumerate(synthesize_inspection_set(2, size_hw, item.display_name, seed=77)):
            path = folder / f"{item.display_name}-{index}.png"
            path.write_bytes(as_png(image.image_rgb))
            paths.append(path)
    return paths


async def compare(
    client: AsyncClient, bundle: Path, paths: Sequence[Path], out: Path, run: Run, adapter: str = ""
) -> list[NDArray[np.uint8]]:
    """Segment images both ways and require equal masks; return the label images."""
    labels, num_found = [], 0
    for path in paths:
        served = await client.segmentation.segment_image(
            path.read_bytes(), "artifacts/parts", adapter=adapter, options=SegmentOptions(include_instances=True)
        )
        await asyncio.to_thread(run, bundle, path, out)
        label = cv2.imread(str(out / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED)
        assert label.shape == served.image_size_hw
        written = json.loads((out / f"{path.stem}.json").read_text())
        assert [c["class_id"] for c in written["classes"]] == [c.class_id for c in served.classes]
        for mine, theirs in zip(written["classes"], served.classes, strict=True):
            assert mine["is_present"] == theirs.present
            assert mine["presence_score"] == pytest.approx(theirs.presence_score, abs=1e-3)
            assert len(mine["instances"]) == len(theirs.instances)
            values = np.arange(len(mine["runs"])) % 2 == 1
            assert iou(np.repeat(values, mine["runs"]).reshape(label.shape), theirs.mask) >= 0.99
            num_found += theirs.present
        assert (label == served.label_image()).mean() >= 0.999
        labels.append(label)
    assert num_found >= len(paths) // 2, "too little was found for the comparison to mean much"
    return labels


def serving(site: Site) -> Any:
    return site.segmentation(
        default_segmenter=SEGMENTER,
        default_feature_encoder="artifacts/nano-encoder",
        embedding_precision="float16",
        refines="auto",
    )


@pytest.mark.slow
async def test_a_bundle_gives_the_masks_of_the_services_and_loads_nothing_of_them(tmp_path: Path, run: Run) -> None:
    async with nano_site(tmp_path) as site, training_beside(site) as training, serving(site) as segmentation:
        await create_prompt_set(segmentation.client, SegmentOptions(max_points=12))
        paths = pictures(tmp_path, SIZE_HW)
        bundle = await bundled(training.client, "line-a", "", tmp_path / "cache")
        plain = await compare(segmentation.client, bundle, paths, tmp_path / "plain", run)
        base = await training.client.registry.get_version(SEGMENTER)
        folder = write_shifted_adapter(tmp_path / "adapter", 2.0)
        adapter = await site.publish_adapter_files(folder, "scratches", base=base)
        tuned_bundle = await bundled(training.client, "line-b", adapter.name, tmp_path / "cache")
        assert json.loads((tuned_bundle / "parity" / "adapter.json").read_text()) == {"passed": True}
        reports = {"image_encoder", "feature_encoder", "segmenter", "adapter", "matcher"}
        assert {path.stem for path in (tuned_bundle / "parity").iterdir()} == reports
        assert json.loads((tuned_bundle / "bundle.json").read_text())["parity"] == dict.fromkeys(reports, "passed")
        tuned = await compare(segmentation.client, tuned_bundle, paths, tmp_path / "tuned", run, adapter.name)
        assert sum(int((a != b).sum()) for a, b in zip(plain, tuned, strict=True)) > 0


@pytest.mark.slow
async def test_a_tuned_adapter_gives_the_same_masks_merged_as_in_the_services_bank(tmp_path: Path, run: Run) -> None:
    """The service reads a row of half-precision factors, the bundle has them in half-precision weights."""
    folders = [
        await asyncio.to_thread(write_tuned_adapter, tmp_path / name, has_graph=name == "merged")
        for name in ("row", "merged")
    ]
    async with nano_site(tmp_path) as site, training_beside(site) as training, serving(site) as segmentation:
        await create_prompt_set(segmentation.client, SegmentOptions(max_points=12))
        base = await training.client.registry.get_version(SEGMENTER)
        row, merged = [await site.publish_adapter_files(folder, "scratches", base=base) for folder in folders]
        bundle = await bundled(training.client, "line-a", merged.name, tmp_path / "cache")
        paths = pictures(tmp_path, SIZE_HW)
        tuned = await compare(segmentation.client, bundle, paths, tmp_path / "tuned", run, row.name)
        plain = [
            (await segmentation.client.segmentation.segment_image(path.read_bytes(), "artifacts/parts")).label_image()
            for path in paths
        ]
        changed = sum(int((a != b).sum()) for a, b in zip(plain, tuned, strict=True))
        assert changed > 50, "the adapter changes too little for the comparison to mean much"


@pytest.mark.slow
@pytest.mark.parametrize("matcher", ["softmatch", "graph"])
async def test_a_bundle_cuts_large_images_into_the_services_tiles(
    tmp_path: Path, run: Run, matcher: MatcherName
) -> None:
    async with nano_site(tmp_path) as site, training_beside(site) as training, serving(site) as segmentation:
        await create_prompt_set(segmentation.client, SegmentOptions(max_points=12, tile_side=200, matcher=matcher))
        bundle = await bundled(training.client, "line-a", "", tmp_path / "cache")
        paths = pictures(tmp_path, (230, 300))[:2]
        await compare(segmentation.client, bundle, paths, tmp_path / "out", run)


@pytest.mark.slow
async def test_a_bundle_refines_where_the_services_do_and_knows_other_feature_encoders(
    tmp_path: Path, run: Run
) -> None:
    models = {"default_segmenter": f"artifacts/{SMALL_SEGMENTER}", "default_feature_encoder": "artifacts/features"}
    async with (
        small_site(tmp_path) as site,
        training_beside(site, **models) as training,
        site.segmentation(**models, embedding_precision="float16", refines="auto") as segmentation,
    ):
        await site.publish_model(write_feature_encoder(tmp_path / "features"), "features")
        await create_prompt_set(segmentation.client, SegmentOptions(max_points=12, matcher="prototype"))
        bundle = await bundled(training.client, "line-a", "", tmp_path / "cache")
        assert json.loads((bundle / "bundle.json").read_text())["options"]["refines"]
        # Tall images are resized down before across.
        await compare(segmentation.client, bundle, pictures(tmp_path, (320, 140)), tmp_path / "out", run)


@pytest.mark.slow
async def test_an_adapter_that_fuses_an_early_feature_finds_it_in_a_bundle_too(tmp_path: Path, run: Run) -> None:
    models = {"default_segmenter": f"artifacts/{SMALL_SEGMENTER}", "default_feature_encoder": f"artifacts/{ENCODER}"}
    folder = await asyncio.to_thread(write_small_sam, tmp_path / "models", EARLY_ENCODER_SPEC)
    async with (
        small_site(tmp_path, folder) as site,
        training_beside(site, **models) as training,
        site.segmentation(**models, embedding_precision="float16", refines="auto") as segmentation,
    ):
        await create_prompt_set(segmentation.client, SegmentOptions(max_points=12, presence_threshold=-1.0))
        base = await training.client.registry.get_version(f"artifacts/{SMALL_SEGMENTER}")
        paths = pictures(tmp_path, SIZE_HW)
        adapted = await asyncio.to_thread(adapt_small_sam, folder, scale=0.05)
        fitting = await asyncio.to_thread(write_hq_adapter, tmp_path / "fitting", adapted)
        adapter = await site.publish_adapter_files(fitting, "sharp", base=base)
        bundle = await bundled(training.client, "line-a", adapter.name, tmp_path / "cache")
        tuned = await compare(segmentation.client, bundle, paths, tmp_path / "out", run, adapter.name)
        plain = [
            (await segmentation.client.segmentation.segment_image(path.read_bytes(), "artifacts/parts")).label_image()
            for path in paths
        ]
        assert sum(int((a != b).sum()) for a, b in zip(plain, tuned, strict=True)) > 50

        wide = await asyncio.to_thread(adapt_small_sam, folder, EARLY + 4)
        foreign = await asyncio.to_thread(write_hq_adapter, tmp_path / "foreign", wide)
        other = await site.publish_adapter_files(foreign, "sharp", base=base)
        job = await training.client.training.create_export_job("line-b", "artifacts/parts", adapter=other.name)
        while not job.is_done:
            await asyncio.sleep(0.1)
            job = await training.client.training.get_export_job(job.name)
        assert job.state == "failed"
        assert job.message.startswith(f"adapter: {other.name} takes early features of {EARLY + 4} channels")


@pytest.mark.slow
async def test_what_is_wrong_with_a_bundle_or_a_call_is_said(tmp_path: Path, cpp_program: Path) -> None:
    async with line_site(tmp_path) as training:
        bundle = await bundled(training.client, "line-a", "", tmp_path / "cache", "artifacts/patches")
    image = pictures(tmp_path, SIZE_HW)[0]
    for arguments in ([bundle], [bundle, image, "--out"], [bundle, image, "--no", "1"]):
        said = run_cpp(cpp_program, *arguments)
        assert (said.returncode, said.stderr[:6]) == (2, "usage:")
    (tmp_path / "text.png").write_text("no image")
    for path in (tmp_path / "none.png", tmp_path / "text.png"):
        said = run_cpp(cpp_program, bundle, path)
        assert (said.returncode, path.name in said.stderr) == (1, True)
    for name, content in (
        ("references/rows.npy", b""),
        ("references/centres.npy", (bundle / "references" / "centres.npy").read_bytes()[:-1]),
        ("decoder/decoder.onnx", b"no graph"),
        ("image_encoder/model.json", b"{}"),
        ("bundle.json", b"{"),
    ):
        broken = tmp_path / "broken"
        await asyncio.to_thread(shutil.copytree, bundle, broken)
        (broken / name).write_bytes(content)
        said = run_cpp(cpp_program, broken, image)
        assert (said.returncode, name in said.stderr) == (1, True), said.stderr
        if name != "bundle.json":
            checked = await asyncio.to_thread(run_program, broken, image, "--check")
            assert checked["status"] == 1
        await asyncio.to_thread(shutil.rmtree, broken)
