"""A real process killed in the middle of a job: the next start has what was embedded and goes on."""

import asyncio
import signal
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from fakes import tiny_models
from fakes.embedding_server import png
from fakes.registry_process import RegistryProcess, registry_config
from fakes.service_process import answering, service_process, socket_address
from vplab.client import AsyncClient, ClientOptions

NUM_IMAGES = 300
NUM_KILLS = 3


def embedding(folder: Path) -> "AbstractContextManager[subprocess.Popen[bytes]]":
    variables = {
        "REGISTRY_ADDRESS": f"unix:{folder}/r.sock",
        "CACHE_DIR": str(folder / "cache"),
        "INTRA_OP_THREADS": "1",
    }
    return service_process("embedding", folder, variables)


@pytest.mark.slow
async def test_a_job_ends_though_its_process_is_killed_again_and_again(tmp_path: Path) -> None:
    registry = RegistryProcess(registry_config(tmp_path / "registry", listen=f"unix:{tmp_path}/r.sock"))
    addresses = {"registry": f"unix:{tmp_path}/r.sock", "embedding": socket_address(tmp_path, "embedding")}
    async with registry.running(), AsyncClient(**addresses, options=ClientOptions()) as client:
        tiny_models.write_encoder(tmp_path / "model")
        files = {path.name: path for path in (tmp_path / "model").iterdir()}
        await client.registry.publish_files(
            files, "tiny-encoder", "encoder", metrics=tiny_models.OWN_REFERENCE, alias="production"
        )
        blobs = [await client.registry.upload_bytes(png(i), as_path=f"{i}.png") for i in range(NUM_IMAGES)]
        job = None
        for kill in range(NUM_KILLS):
            with embedding(tmp_path) as process:
                await answering(client, "embedding", process)
                if job is None:
                    digests = [blob.sha256 for blob in blobs]
                    job = await client.embedding.precompute("artifacts/tiny-encoder", blob_digests=digests)
                await asyncio.sleep(0.15 * kill)
                process.send_signal(signal.SIGKILL)
        assert job is not None
        with embedding(tmp_path) as process:
            await answering(client, "embedding", process)
            while not job.end_time:
                await asyncio.sleep(0.05)
                job = await client.embedding.get_precompute_job(job.name)
            assert (job.state, job.num_done, job.num_failed) == ("succeeded", NUM_IMAGES, 0)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 30) == 0
        assert not list((tmp_path / "cache" / "embeddings").glob("*/*#*"))
