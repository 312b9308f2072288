"""A real process killed in the middle of a job: the next start has what was embedded and goes on."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fakes import tiny_models
from fakes.embedding_server import png
from fakes.registry_process import RegistryProcess, registry_config
from vplab.client import AsyncClient, ClientOptions
from vplab.errors import VPLabError

NUM_IMAGES = 300
NUM_KILLS = 3


@contextmanager
def embedding_process(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run ``python -m vplab.embedding`` on a socket in the folder; whatever is left of it at the end is killed."""
    environment = os.environ | {
        "VPLAB_EMBEDDING_LISTEN": f"unix:{folder}/e.sock",
        "VPLAB_EMBEDDING_REGISTRY_ADDRESS": f"unix:{folder}/r.sock",
        "VPLAB_EMBEDDING_CACHE_DIR": str(folder / "cache"),
        "VPLAB_EMBEDDING_INTRA_OP_THREADS": "1",
    }
    with (folder / "embedding.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "vplab.embedding"], env=environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(10)


async def answering(client: AsyncClient, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        assert process.poll() is None, "the service ended by itself"
        try:
            if (await client.replica("embedding").health(timeout_s=1))[""] == "serving":
                return
        except VPLabError:
            await asyncio.sleep(0.1)
    raise AssertionError("the service does not answer")


@pytest.mark.slow
async def test_a_job_ends_though_its_process_is_killed_again_and_again(tmp_path: Path) -> None:
    registry = RegistryProcess(registry_config(tmp_path / "registry", listen=f"unix:{tmp_path}/r.sock"))
    addresses = {"registry": f"unix:{tmp_path}/r.sock", "embedding": f"unix:{tmp_path}/e.sock"}
    async with registry.running(), AsyncClient(**addresses, options=ClientOptions()) as client:
        tiny_models.write_encoder(tmp_path / "model")
        files = {path.name: path for path in (tmp_path / "model").iterdir()}
        await client.registry.publish_files(files, "tiny-encoder", "encoder", alias="production")
        blobs = [await client.registry.upload_bytes(png(i), as_path=f"{i}.png") for i in range(NUM_IMAGES)]
        job = None
        for kill in range(NUM_KILLS):
            with embedding_process(tmp_path) as process:
                await answering(client, process)
                if job is None:
                    digests = [blob.sha256 for blob in blobs]
                    job = await client.embedding.precompute("artifacts/tiny-encoder", blob_digests=digests)
                await asyncio.sleep(0.15 * kill)
                process.send_signal(signal.SIGKILL)
        assert job is not None
        with embedding_process(tmp_path) as process:
            await answering(client, process)
            while not job.end_time:
                await asyncio.sleep(0.05)
                job = await client.embedding.get_precompute_job(job.name)
            assert (job.state, job.num_done, job.num_failed) == ("succeeded", NUM_IMAGES, 0)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 30) == 0
        assert not list((tmp_path / "cache" / "embeddings").glob("*/*#*"))
