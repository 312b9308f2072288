"""Adapters as versions in the registry, through the client."""

import uuid
from collections.abc import Mapping
from pathlib import Path

from vplab.client.registry import publishing
from vplab.client.registry.area import AsyncRegistry
from vplab.client.registry.values import Lineage, Manifest, Version
from vplab.training.values import PARITY_PASSED, ModelRef, TuningPlan, TuningResult


class ClientAdapterVersions:
    """Publishes adapters and finds those that a job published before its trainer died."""

    def __init__(self, registry: AsyncRegistry) -> None:
        self._registry = registry

    async def find(self, plan: TuningPlan, job_name: str) -> TuningResult | None:
        """Look for a job's adapter among the newest versions; each says in its description which job made it."""
        found = await publishing.find_among_newest(
            self._registry,
            f"artifacts/{plan.adapter_id}",
            lambda version: version.manifest.description == _description(plan, job_name),
        )
        return None if found is None else _result(found)

    async def publish(
        self,
        plan: TuningPlan,
        job_name: str,
        folder: Path,
        metrics: Mapping[str, float],
        licence: str,
        image_encoder: ModelRef,
        compared: ModelRef | None = None,
    ) -> TuningResult:
        """Upload a folder's files and publish them, once for each job.

        image_encoder: whose embeddings it was tuned on. compared: the adapter that the metrics compare this one with.

        Raises FailedPrecondition if the artifact is of another kind, Unavailable, ResourceExhausted.
        """
        files = publishing.files_of_folder(folder)
        uploaded = await publishing.upload_files(self._registry, files)
        await publishing.ensure_artifact(self._registry, plan.adapter_id, "adapter", "", {})
        made_from = {
            "segmenter": plan.segmenter,
            "image_encoder": image_encoder,
            "dataset": plan.dataset,
            "prompt_set": plan.prompt_set,
            "feature_encoder": plan.feature_encoder,
            "compared_with": compared,
        }
        lineage = tuple(Lineage(relation, m.name, m.digest) for relation, m in made_from.items() if m is not None)
        manifest = Manifest(
            files=uploaded,
            lineage=lineage,
            metrics=metrics,
            licence=licence,
            spec=publishing.read_spec(files),
            description=_description(plan, job_name),
        )
        request_id = str(uuid.uuid5(uuid.NAMESPACE_URL, job_name))
        name = f"artifacts/{plan.adapter_id}"
        version = await self._registry.publish_version(name, manifest, request_id=request_id)
        return _result(version)


def _description(plan: TuningPlan, job_name: str) -> str:
    return f"{plan.method} on {plan.dataset.name}, by {job_name}"


def _result(version: Version) -> TuningResult:
    metrics, earlier = dict(version.manifest.metrics), version.manifest.made_from("compared_with")
    return TuningResult(
        ModelRef(version.name, version.digest),
        metrics,
        parity_passed=bool(metrics.get(PARITY_PASSED)),
        compared=None if earlier is None else ModelRef(earlier.version, earlier.digest),
    )
