"""The client's registry calls against the real registry."""

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from vplab.client import AsyncClient
from vplab.client.registry import blobs, publishing
from vplab.client.registry.values import BlobFile, Lineage, Manifest
from vplab.errors import Aborted, DataLoss, FailedPrecondition, InvalidInput, NotFound, ResourceExhausted

PASSED = {"parity_passed": 1.0}


async def published(client: AsyncClient, artifact_id: str, content: bytes) -> str:
    file = await client.registry.upload_bytes(content, as_path="a.bin")
    await client.registry.create_artifact(artifact_id, "encoder")
    version = await client.registry.publish_version(f"artifacts/{artifact_id}", Manifest((file,), metrics=PASSED))
    return version.name


async def test_a_published_version_reads_back_as_it_was(client: AsyncClient) -> None:
    base = await client.registry.get_version(await published(client, "base", b"base"))
    file = await client.registry.upload_bytes(b"x" * 10, as_path="folder/b.onnx", media_type="application/onnx")
    manifest = Manifest(
        files=(file,),
        lineage=(Lineage("image_encoder", base.name, base.digest),),
        metrics={"validation_iou": 0.5},
        licence="Apache-2.0",
        spec={"kind": "segmenter", "nested": {"list": [1, "a", None, True]}},
        description="made up",
    )
    await client.registry.create_artifact("made", "segmenter", display_name="Made", labels={"site": "north"})
    version = await client.registry.publish_version("artifacts/made", manifest)
    read = await client.registry.get_version(version.name)
    assert read == version
    assert read.manifest == manifest
    assert read.kind == "segmenter"
    assert (await client.registry.get_artifact("artifacts/made")).labels == {"site": "north"}
    assert [a.name async for a in client.registry.list_artifacts(kind="segmenter")] == ["artifacts/made"]
    assert [v.name async for v in client.registry.list_versions("artifacts/made")] == [version.name]


async def test_long_lists_are_read_page_by_page(client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vplab.client.registry.area.PAGE_SIZE", 2)
    for number in range(5):
        await client.registry.create_artifact(f"a{number}", "dataset")
    assert [a.name async for a in client.registry.list_artifacts()] == [f"artifacts/a{n}" for n in range(5)]


async def test_an_alias_moves_only_for_who_saw_it_last(client: AsyncClient) -> None:
    version = await published(client, "base", b"base")
    alias = await client.registry.set_alias("artifacts/base/aliases/production", version)
    with pytest.raises(Aborted):
        await client.registry.set_alias(alias.name, version, etag='"0"')
    moved = await client.registry.set_alias(alias.name, version, etag=alias.etag, reason="again")
    assert (await client.registry.list_aliases("artifacts/base")).aliases == (moved,)
    changes = [change async for change in client.registry.list_alias_changes(alias.name)]
    assert changes[0].reason == "again"
    assert (await client.registry.get_version("artifacts/base")).name == version


async def test_a_file_is_uploaded_and_downloaded_unchanged(client: AsyncClient, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3_500_000))
    file = await client.registry.upload_file(source)
    assert file == BlobFile("source", hashlib.sha256(source.read_bytes()).hexdigest(), 3_500_000)
    target = await client.registry.download_file(file.sha256, tmp_path / "deep" / "target")
    assert target.read_bytes() == source.read_bytes()
    assert await client.registry.read_blob(file.sha256) == source.read_bytes()
    assert list(target.parent.iterdir()) == [target]


async def test_an_empty_blob_goes_both_ways(client: AsyncClient, tmp_path: Path) -> None:
    file = await client.registry.upload_bytes(b"", as_path="empty")
    assert file.size_bytes == 0
    assert (await client.registry.download_file(file.sha256, tmp_path / "empty")).read_bytes() == b""


async def test_an_interrupted_upload_goes_on_where_it_stopped(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(3 << 20)
    digest = hashlib.sha256(content).hexdigest()
    parts = blobs._upload_parts(blobs.BytesSource(content), blobs.pb.BlobHeader(sha256=digest, size_bytes=len(content)))
    call = client.registry._stub.UploadBlob()
    for _ in range(3):
        await call.write(await anext(parts))
    await asyncio.sleep(0.3)
    call.cancel()
    async with asyncio.timeout(5):
        while (state := await client.registry.query_upload(digest)).committed_bytes == 0:
            await asyncio.sleep(0.05)
    assert 0 < state.committed_bytes < len(content)

    started_at: list[int] = []
    whole = blobs._upload_parts

    def watched(source: blobs.Source, header: Any) -> Any:
        started_at.append(header.offset_bytes)
        return whole(source, header)

    monkeypatch.setattr(blobs, "_upload_parts", watched)
    await client.registry.upload_bytes(content, as_path="a")
    assert started_at == [state.committed_bytes]
    assert await client.registry.read_blob(digest) == content


async def test_an_interrupted_download_goes_on_where_it_stopped(client: AsyncClient, tmp_path: Path) -> None:
    content = os.urandom(2_500_000)
    file = await client.registry.upload_bytes(content, as_path="a")
    (tmp_path / "a.part").write_bytes(content[:1_000_000])
    assert (await client.registry.download_file(file.sha256, tmp_path / "a")).read_bytes() == content


@pytest.mark.parametrize("left_over", [b"other", b"longer than the blob ever was"])
async def test_a_left_over_part_of_something_else_is_never_taken_for_the_blob(
    client: AsyncClient, tmp_path: Path, left_over: bytes
) -> None:
    file = await client.registry.upload_bytes(b"the content", as_path="a")
    (tmp_path / "a.part").write_bytes(left_over)
    if len(left_over) < 11:
        with pytest.raises(DataLoss):
            await client.registry.download_file(file.sha256, tmp_path / "a")
    assert (await client.registry.download_file(file.sha256, tmp_path / "a")).read_bytes() == b"the content"


async def test_a_blob_above_the_limit_is_not_read_into_memory(client: AsyncClient) -> None:
    file = await client.registry.upload_bytes(bytes(1000), as_path="a")
    with pytest.raises(ResourceExhausted, match="999"):
        await client.registry.read_blob(file.sha256, max_bytes=999)


async def test_what_does_not_exist_is_not_found(client: AsyncClient, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await client.registry.get_version("artifacts/absent")
    with pytest.raises(NotFound):
        await client.registry.download_file("0" * 64, tmp_path / "absent")
    with pytest.raises(InvalidInput, match="cannot read"):
        await client.registry.upload_file(tmp_path / "absent")


async def test_a_folder_becomes_a_version_with_its_spec(client: AsyncClient, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.json").write_text('{"kind": "encoder", "size": 5}')
    (folder / "sub" / "weights.onnx").write_bytes(b"weights")
    files = publishing.files_of_folder(folder)
    version = await client.registry.publish_files(
        files, "made", "encoder", licence="MIT", metrics=PASSED, alias="production"
    )
    assert [f.path for f in version.manifest.files] == ["model.json", "sub/weights.onnx"]
    assert version.manifest.spec == {"kind": "encoder", "size": 5}
    assert (await client.registry.get_version("artifacts/made")).digest == version.digest
    again = await client.registry.publish_files(files, "made", "encoder", licence="MIT", metrics=PASSED)
    assert again.name == version.name
    with pytest.raises(FailedPrecondition, match="encoder versions"):
        await client.registry.publish_files(files, "made", "adapter")
    with pytest.raises(InvalidInput, match="no folder"):
        publishing.files_of_folder(tmp_path / "absent")
    with pytest.raises(InvalidInput, match="at least one file"):
        await client.registry.publish_files({}, "made", "encoder")


async def test_leases_are_made_renewed_and_ended(client: AsyncClient) -> None:
    version = await published(client, "base", b"base")
    lease = await client.registry.create_lease(version, holder="test", ttl_s=60)
    renewed = await client.registry.renew_lease(lease.name, ttl_s=600)
    assert lease.expire_time is not None
    assert renewed.expire_time is not None
    assert renewed.expire_time > lease.expire_time
    await client.registry.delete_lease(lease.name)
    with pytest.raises(NotFound):
        await client.registry.renew_lease(lease.name, ttl_s=60)


async def test_garbage_is_reported_before_it_is_removed(client: AsyncClient) -> None:
    garbage = await client.registry.collect_garbage(validate_only=True)
    assert garbage.artifacts == ()


async def test_a_deleted_artifact_can_be_restored(client: AsyncClient) -> None:
    await published(client, "base", b"base")
    deleted = await client.registry.delete_artifact("artifacts/base")
    assert deleted.expire_time is not None
    assert [a async for a in client.registry.list_artifacts()] == []
    assert len([a async for a in client.registry.list_artifacts(show_deleted=True)]) == 1
    assert (await client.registry.undelete_artifact("artifacts/base")).delete_time is None
