"""What the services copy for one call: bytes that their Python side allocates, by the line that does it.

``python tests/bench/copies.py --out FILE`` serves the nano models in this process, over sockets as always, and makes
three calls, one at a time: a click on a cached embedding, a JPEG file to be embedded, and a raw camera frame (RGB8) to
be embedded. It writes JSON, and with ``--readme`` the tables between services/README.md's ``copies`` marks.
``allocations.py`` says how; the README what can be seen that way and what cannot.
"""

import argparse
import asyncio
import hashlib
import json
import logging
import platform
import statistics
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import onnxruntime
import structlog
from allocations import OUTSIDE, Allocations, Seen
from main_job import write_between

from vplab.api.embedding.v1 import embedding_service_pb2 as embedding_pb
from vplab.api.segmentation.v1 import segmentation_service_pb2 as segmentation_pb
from vplab.api.vision.v1 import vision_pb2
from vplab.bench.pictures import Picture, make_pictures
from vplab.bench.requests import Requests, unique_jpeg
from vplab.client import AsyncClient, AsyncSnapshots, ClientOptions
from vplab.embedding.backends.client_models import ClientModels as EncoderModels
from vplab.embedding.composition import open_embedding
from vplab.embedding.config import EmbeddingConfig
from vplab.registry.composition import open_registry
from vplab.registry.config import RegistryConfig
from vplab.runtime.server import running_server
from vplab.segmentation.backends.client_models import ClientModels
from vplab.segmentation.backends.client_prompt_sets import ClientPromptSets
from vplab.segmentation.backends.grpc_embedding import GrpcEmbedding
from vplab.segmentation.composition import open_segmentation
from vplab.segmentation.config import SegmentationConfig

ROOT = Path(__file__).resolve().parents[2]
LOOKED_AT = (ROOT / "services" / "vplab", ROOT / "clients" / "python" / "vplab")
LEAST_BYTES = 64 << 10
SETTLE_S = 0.3
"""After an answer: what it leaves to be done, such as storing an embedding, is part of the call."""
MAX_MESSAGE_BYTES = 64 << 20
_PREDICT = "/vplab.api.segmentation.v1.SegmentationService/PredictMasks"
_EMBED = "/vplab.api.embedding.v1.EmbeddingService/EmbedImage"
_ENCODER = "artifacts/nano-encoder"

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--side", type=int, default=1024, help="of the square images, in pixels")
    parser.add_argument("--calls", type=int, default=5, help="of each kind; medians over them")
    parser.add_argument("--warm-up", type=int, default=3, help="calls of each kind before those")
    parser.add_argument("--readme", action="store_true", help="write the tables into services/README.md")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with Allocations(LOOKED_AT, LEAST_BYTES) as allocations, tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(allocations, Path(folder), arguments.side, arguments.warm_up, arguments.calls))
    report = {"rows": rows, "side": arguments.side, "calls": arguments.calls, **described()}
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    tables = tables_of(report)
    print(tables)
    if arguments.readme:
        write_between(ROOT / "services" / "README.md", "copies", tables)


@dataclass(frozen=True)
class Call:
    """One kind of call."""

    name: str
    address: str
    method: str
    body: Callable[[int], bytes]
    """Of the call with that number."""


async def measure(allocations: Allocations, folder: Path, side: int, num_warm_up: int, num_calls: int) -> list[Row]:
    """Return what each kind of call allocates."""
    (picture,) = make_pictures(1, side, num_points=16)
    async with services(folder) as (embedding, segmentation):
        await _send(segmentation, _PREDICT, click_body(vision_pb2.Image(encoded=picture.data), picture, 0))
        known = vision_pb2.Image(digest=hashlib.sha256(picture.data).hexdigest())
        files = Requests([embed_body(vision_pb2.Image(encoded=unique_jpeg(picture.data)))])
        calls = (
            Call("a click on a cached embedding", segmentation, _PREDICT, lambda i: click_body(known, picture, i)),
            Call("a JPEG file to be embedded", embedding, _EMBED, files.body),
            Call("a raw frame (RGB8) to be embedded", embedding, _EMBED, lambda i: embed_body(frame(side, i))),
        )
        return [await _measure(allocations, call, side, num_warm_up, num_calls) for call in calls]


async def _measure(allocations: Allocations, call: Call, side: int, num_warm_up: int, num_calls: int) -> Row:
    seen: list[Seen] = []
    for number in range(num_warm_up + num_calls):
        body = call.body(number)
        with allocations.recording() as found:
            answer = await _send(call.address, call.method, body)
            await asyncio.sleep(SETTLE_S)
        seen.append(found)
    return {
        "call": call.name,
        "input_bytes": len(body),
        "output_bytes": len(answer),
        "picture_bytes": 3 * side * side,
        **medians(seen[num_warm_up:]),
    }


def medians(seen: Sequence[Seen]) -> Row:
    """Return the medians over calls: what only few of them allocated is not of a call."""
    by_site = {
        site: int(statistics.median(one.by_site.get(site, 0) for one in seen))
        for site in dict.fromkeys(site for one in seen for site in one.by_site)
    }
    sites = [
        {"file": _short(file), "line": line, "function": function, "bytes": num_bytes}
        for (file, line, function), num_bytes in sorted(by_site.items(), key=lambda item: -item[1])
        if num_bytes
    ]
    return {
        "allocated_bytes": sum(by_site.values()),
        "peak_bytes": int(statistics.median(one.peak for one in seen)),
        "sites": sites,
    }


async def _send(address: str, method: str, body: bytes) -> bytes:
    """Call as any client would, with bytes that are neither made nor read here."""
    limits = [(f"grpc.max_{way}_message_length", MAX_MESSAGE_BYTES) for way in ("send", "receive")]
    async with grpc.aio.insecure_channel(address, options=limits) as channel:
        answer: bytes = await channel.unary_unary(method)(body)
    return answer


def click_body(image: vision_pb2.Image, picture: Picture, number: int) -> bytes:
    """Return a click on an image."""
    x, y = picture.points_xy[number % len(picture.points_xy)]
    point = vision_pb2.Point(x=x, y=y, label="POINT_LABEL_FOREGROUND")
    prompts = [segmentation_pb.ObjectPrompt(points=[point])]
    return segmentation_pb.PredictMasksRequest(image=image, prompts=prompts).SerializeToString()


def embed_body(image: vision_pb2.Image) -> bytes:
    """Return an image to be embedded."""
    return embedding_pb.EmbedImageRequest(image=image, encoders=[_ENCODER]).SerializeToString()


def frame(side: int, number: int) -> vision_pb2.Image:
    """Return a camera's frame that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
    raw = vision_pb2.RawFrame(width=side, height=side, pixel_format="PIXEL_FORMAT_RGB8", data=pixels.tobytes())
    return vision_pb2.Image(frame=raw)


@asynccontextmanager
async def services(folder: Path) -> AsyncIterator[tuple[str, str]]:
    """Serve with the settings of ``vplab serve``; gives the addresses of embedding and segmentation."""
    registry, embedding, segmentation = (f"unix:{folder}/{name}.sock" for name in "res")
    stores = {"database_url": f"sqlite:///{folder}/registry.db", "blob_url": (folder / "blobs").as_uri()}
    of_registry = RegistryConfig(listen=registry, gc_interval_hours=0, **stores)
    of_embedding = EmbeddingConfig(listen=embedding, cache_dir=folder / "embedding")
    of_segmentation = SegmentationConfig(listen=segmentation, cache_dir=folder / "segmentation")
    async with (
        open_registry(of_registry) as kept,
        running_server([kept.registration], of_registry, service="registry", ready=kept.ready),
        AsyncClient(registry=registry, embedding=embedding, options=ClientOptions()) as upstream,
    ):
        snapshots = AsyncSnapshots(upstream.registry, folder / "models")
        models = ClientModels(upstream.registry, snapshots, folder / "encoders")
        prompt_sets = ClientPromptSets(upstream.registry, snapshots, folder / "names")
        embedder = GrpcEmbedding(upstream.embedding, of_segmentation.embedding_precision)
        try:
            async with (
                open_embedding(of_embedding, EncoderModels(upstream.registry, snapshots)) as embeds,
                running_server([embeds.registration], of_embedding, service="embedding"),
                open_segmentation(of_segmentation, models, prompt_sets, embedder) as segments,
                running_server([segments.registration], of_segmentation, service="segmentation"),
            ):
                yield embedding, segmentation
        finally:
            snapshots.close()


def tables_of(report: Row) -> str:
    """Return calls, then lines, as Markdown."""
    lines = [
        "| call | in | out | allocated | of in and out | of the picture | peak |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in report["rows"]:
        allocated, wire = row["allocated_bytes"], row["input_bytes"] + row["output_bytes"]
        sizes = (row["input_bytes"], row["output_bytes"], allocated)
        lines.append(
            f"| {row['call']} | {' | '.join(map(_size, sizes))} | {_times(allocated, wire)} "
            f"| {_times(allocated, row['picture_bytes'])} | {_size(row['peak_bytes'])} |"
        )
    lines += ["", "| call | bytes | of the picture | line |", "|---|--:|--:|---|"]
    for row in report["rows"]:
        for site in row["sites"]:
            at = f"`{site['file']}:{site['line']}`, {site['function']}" if site["file"] else site["function"]
            times = _times(site["bytes"], row["picture_bytes"])
            lines.append(f"| {row['call']} | {_size(site['bytes'])} | {times} | {at} |")
    side = report["side"]
    made = f"{report['machine']}, Python {report['python']}, ONNX Runtime {report['onnxruntime']}"
    text = f"Nano models, images of {side} x {side} pixels ({_size(3 * side * side)} decoded), medians of"
    return "\n".join([*lines, "", f"{text} {report['calls']} calls; {made}, commit {report['commit']}."])


def _times(num_bytes: int, of: int) -> str:
    return f"{num_bytes / of:.1f} x" if num_bytes < 100 * of else f"{num_bytes / of:,.0f} x"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):.2f} MiB" if num_bytes >= LEAST_BYTES else f"{num_bytes / 1024:.1f} KiB"


def _short(file: str) -> str:
    if file == OUTSIDE[0]:
        return ""
    root = next(root for root in LOOKED_AT if Path(file).is_relative_to(root))
    return str(Path(file).relative_to(root.parent))


def described() -> Row:
    """Return what made the figures."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    machine = {"machine": platform.machine(), "python": platform.python_version()}
    return {"commit": commit, "onnxruntime": onnxruntime.__version__, **machine}


if __name__ == "__main__":
    main()
