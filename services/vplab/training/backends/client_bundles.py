"""Line bundles from versions in the registry to a version in the registry, through the client."""

import asyncio
import json
import shutil
import uuid
from pathlib import Path

from vplab.client import AsyncSnapshots, Snapshot
from vplab.client.registry import publishing
from vplab.client.registry.area import AsyncRegistry
from vplab.client.registry.values import Lineage, Manifest, Version
from vplab.errors import FailedPrecondition, NotFound
from vplab.training.errors import AdapterBaseMismatch, ModelUnsupported, naming_field
from vplab.training.values import ExportDraft, ExportPlan, ModelRef
from vplab.vision.images import ImageLimits
from vplab.vision.specs import Precision


class ClientBundles:
    """Implements BundleMaker."""

    def __init__(
        self,
        registry: AsyncRegistry,
        snapshots: AsyncSnapshots,
        work_dir: Path,
        limits: ImageLimits,
        precision: Precision,
        threads: int,
    ) -> None:
        """work_dir: where bundles are put together. precision: the segmentation service's, of embeddings.

        threads: of ONNX Runtime, for the references.
        """
        self._registry = registry
        self._snapshots = snapshots
        self._work_dir = work_dir
        self._limits = limits
        self._precision: Precision = precision
        self._threads = threads

    async def plan(self, draft: ExportDraft) -> ExportPlan:
        """Resolve the names of a request."""
        with naming_field("bundle_id"):
            await self._check_bundle(draft.bundle_id)
        with naming_field("prompt_set"):
            prompt_set = await self._prompt_set(draft.prompt_set)
            segmenter = _made_from(prompt_set, "segmenter")
            image_encoder = _made_from(await self._registry.get_version(segmenter.name), "image_encoder")
            feature_encoder = _made_from(prompt_set, "feature_encoder")
        adapter = None
        if draft.adapter:
            with naming_field("adapter"):
                version = await self._registry.get_version(draft.adapter)
                if version.kind != "adapter":
                    raise ModelUnsupported(version.name, "an adapter", f"it is a {version.kind}")
                base = _made_from(version, "segmenter")
            if base.digest != segmenter.digest:
                expected, actual = segmenter.digest, base.digest
                raise AdapterBaseMismatch(version.name, field="adapter", expected=expected, actual=actual)
            adapter = ModelRef(version.name, version.digest)
        return ExportPlan(
            bundle_id=draft.bundle_id,
            prompt_set=ModelRef(prompt_set.name, prompt_set.digest),
            segmenter=segmenter,
            image_encoder=image_encoder,
            feature_encoder=feature_encoder,
            adapter=adapter,
        )

    async def make(self, plan: ExportPlan, job_name: str) -> ModelRef:
        """Make a bundle in a folder of the job's own, and publish it."""
        published = await self._find(plan, job_name)
        if published is not None:
            return published
        folder = self._work_dir / job_name.rpartition("/")[2]
        snapshots: dict[str, Snapshot] = {}
        try:
            for relation, model in plan.lineage.items():
                snapshots[relation] = await self._fetch(model)
            await asyncio.to_thread(self._write, plan, snapshots, folder)
            return await self._publish(plan, job_name, folder)
        finally:
            for snapshot in snapshots.values():
                self._snapshots.release(snapshot.digest)
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _write(self, plan: ExportPlan, snapshots: dict[str, Snapshot], folder: Path) -> None:
        # Loads OpenCV's and the matchers' modules, which a service that makes no bundle does without.
        from vplab.training.line_bundle.writing import Source, write_bundle

        shutil.rmtree(folder, ignore_errors=True)  # of a try whose process died
        folder.mkdir(parents=True)
        sources = {relation: Source(s.folder, s.manifest.licence) for relation, s in snapshots.items()}
        write_bundle(plan, sources, folder, self._limits, self._precision, self._threads)

    async def _publish(self, plan: ExportPlan, job_name: str, folder: Path) -> ModelRef:
        uploaded = await publishing.upload_files(self._registry, publishing.files_of_folder(folder))
        await publishing.ensure_artifact(self._registry, plan.bundle_id, "bundle", "", {})
        said = json.loads(await asyncio.to_thread((folder / "bundle.json").read_bytes))
        licences = sorted({m["licence"] for m in said["made_from"].values() if m["licence"]})
        manifest = Manifest(
            files=uploaded,
            lineage=tuple(Lineage(relation, m.name, m.digest) for relation, m in sorted(plan.lineage.items())),
            licence="; ".join(licences),
            spec={"kind": "bundle", "classes": {str(c["class_id"]): c["display_name"] for c in said["classes"]}},
            description=_description(plan, job_name),
        )
        request_id = str(uuid.uuid5(uuid.NAMESPACE_URL, job_name))
        name = f"artifacts/{plan.bundle_id}"
        version = await self._registry.publish_version(name, manifest, request_id=request_id)
        return ModelRef(version.name, version.digest)

    async def _find(self, plan: ExportPlan, job_name: str) -> ModelRef | None:
        """Look for what the job published before its process died; each version says which job made it."""
        found = await publishing.find_among_newest(
            self._registry,
            f"artifacts/{plan.bundle_id}",
            lambda version: version.manifest.description == _description(plan, job_name),
        )
        return None if found is None else ModelRef(found.name, found.digest)

    async def _check_bundle(self, bundle_id: str) -> None:
        try:
            artifact = await self._registry.get_artifact(f"artifacts/{bundle_id}")
        except NotFound:
            return
        if artifact.kind != "bundle":
            raise FailedPrecondition(f"{artifact.name} holds {artifact.kind} versions; choose another bundle_id")
        if artifact.delete_time is not None:
            raise FailedPrecondition(f"{artifact.name} is deleted; restore it or choose another bundle_id")

    async def _prompt_set(self, name: str) -> Version:
        """Resolve a name; an artifact's own means its newest version, as in the segmentation service."""
        version = await (self._registry.get_version(name) if name.count("/") > 1 else self._newest(name))
        if version.kind != "prompt_set":
            raise ModelUnsupported(version.name, "a prompt set", f"it is a {version.kind}")
        return version

    async def _newest(self, artifact: str) -> Version:
        async for version in self._registry.list_versions(artifact):
            return version
        raise NotFound(f"{artifact} has no version", metadata={"name": artifact})

    async def _fetch(self, model: ModelRef) -> Snapshot:
        snapshot = await self._snapshots.fetch(model.name)
        if snapshot.digest != model.digest:
            metadata = {"expected": model.digest, "actual": snapshot.digest}
            message = f"{model.name} is not the version the job was made for"
            raise FailedPrecondition(message, reason="MODEL_MISMATCH", metadata=metadata)
        return snapshot


def _made_from(version: Version, relation: str) -> ModelRef:
    found = version.manifest.made_from(relation)
    if found is None:
        raise ModelUnsupported(version.name, f"a {version.kind}", f"its manifest names no {relation}")
    return ModelRef(found.version, found.digest)


def _description(plan: ExportPlan, job_name: str) -> str:
    return f"line bundle of {plan.prompt_set.name}, by {job_name}"
