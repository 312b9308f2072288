"""From a data set in memory to a published version."""

import asyncio
import uuid

from vplab.client.aio import AsyncClient
from vplab.client.datasets.checks import check_dataset
from vplab.client.datasets.files import INDEX, dataset_files
from vplab.client.datasets.values import Dataset
from vplab.client.models import ModelReference
from vplab.client.registry import publishing
from vplab.client.registry.values import BlobFile, Manifest

_UPLOADS_AT_ONCE = 8


async def publish_dataset(
    client: AsyncClient, dataset_id: str, dataset: Dataset, request_id: str | None = None, *, description: str = ""
) -> ModelReference:
    """Upload a data set's files and publish them as a version of ``artifacts/{dataset_id}``, made where it is missing.

    An equal data set returns the version that has it already. request_id: a UUID, so that a repeat of an interrupted
    call cannot publish twice; None draws one. Raises InvalidInput as ``check_dataset``, FailedPrecondition when the
    artifact is of another kind, and what the registry raises.
    """
    await asyncio.to_thread(check_dataset, dataset)
    await publishing.ensure_artifact(client.registry, dataset_id, "dataset", "", {})
    turns = asyncio.Semaphore(_UPLOADS_AT_ONCE)

    async def upload(path: str, data: bytes) -> BlobFile:
        try:
            return await client.registry.upload_bytes(data, as_path=path, media_type=publishing.media_type(path))
        finally:
            turns.release()

    # Files are made one by one as room comes free: thousands of masks as PNG would otherwise be in memory at once.
    uploads: list[asyncio.Task[BlobFile]] = []
    files = dataset_files(dataset)
    try:
        while True:
            await turns.acquire()
            made = await asyncio.to_thread(next, files, None)
            if made is None:
                break
            uploads.append(asyncio.create_task(upload(*made)))
        stored = await asyncio.gather(*uploads)
    finally:
        for task in uploads:
            task.cancel()
        await asyncio.gather(*uploads, return_exceptions=True)
    manifest = Manifest(
        files=tuple(sorted(stored, key=lambda file: file.path)), spec=_summary(dataset), description=description
    )
    version = await client.registry.publish_version(
        f"artifacts/{dataset_id}", manifest, request_id=request_id or str(uuid.uuid4())
    )
    return ModelReference(version.name, version.digest)


def _summary(dataset: Dataset) -> dict[str, object]:
    """Return what a list of data sets shows without reading their files."""
    return {
        "index": INDEX,
        "num_images": len(dataset.items),
        "classes": [
            {
                "class_id": item.class_id,
                "display_name": item.display_name,
                "num_images": sum(item.class_id in image.masks for image in dataset.items),
            }
            for item in dataset.classes
        ],
    }
