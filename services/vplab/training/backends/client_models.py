"""Segmenters, prompt sets and adapters in the registry, through the client."""

import json
from typing import Final

import structlog

from vplab.client.registry.area import AsyncRegistry
from vplab.client.registry.values import Alias, Lineage, Version
from vplab.errors import Aborted, FailedPrecondition, InvalidInput, NotFound, Unavailable
from vplab.training.errors import ModelUnsupported
from vplab.training.values import ModelRef, TuningPlan
from vplab.vision.specs import EncoderSpec, SegmenterSpec, spec_from_json
from vplab.wire.names import AliasName, VersionName, parse_version_name

_SPEC_FILE: Final = "model.json"
_MAX_SPEC_BYTES: Final = 1 << 20
_MOVES: Final = 10
"""How often an alias that others keep moving is tried to be moved."""

_log = structlog.get_logger(__name__)


class ClientModels:
    """Implements ModelSource."""

    def __init__(self, registry: AsyncRegistry) -> None:
        self._registry = registry

    async def find_segmenter(self, name: str) -> ModelRef:
        """Resolve a name and look at what the version says of itself."""
        version = await self._registry.get_version(name)
        spec = await self._spec(version, "a segmenter")
        if not isinstance(spec, SegmenterSpec):
            raise ModelUnsupported(version.name, "a segmenter", "it is an encoder")
        if spec.precision != "float32":
            why = f"its decoder computes in {spec.precision}; take one whose decoder computes in float32"
            raise ModelUnsupported(version.name, "a segmenter to tune", why)
        _lineage(version, "a segmenter", "image_encoder")
        return ModelRef(version.name, version.digest)

    async def early_channels(self, segmenter: ModelRef) -> int | None:
        """Follow the segmenter's lineage to its image encoder and look at what that says of itself."""
        base = _lineage(await self._registry.get_version(segmenter.name), "a segmenter", "image_encoder")
        version = await self._registry.get_version(base.version)
        spec = await self._spec(version, "an image encoder")
        if not isinstance(spec, EncoderSpec):
            raise ModelUnsupported(version.name, "an image encoder", "it is a segmenter")
        return spec.early_channels

    async def find_feature_encoder(self, name: str) -> ModelRef:
        """Resolve a name and look at what the version says of itself."""
        version = await self._registry.get_version(name)
        spec = await self._spec(version, "a feature encoder")
        if not isinstance(spec, EncoderSpec) or spec.output("patch_features") is None:
            raise ModelUnsupported(version.name, "a feature encoder", "it gives no patch features")
        return ModelRef(version.name, version.digest)

    async def find_prompt_set(self, name: str) -> tuple[ModelRef, str]:
        """Resolve a name; an artifact's own means its newest version, as in the segmentation service."""
        version = await (self._registry.get_version(name) if name.count("/") > 1 else self._newest(name))
        if version.kind != "prompt_set":
            raise ModelUnsupported(version.name, "a prompt set", f"it is a {version.kind}")
        segmenter = _lineage(version, "a prompt set", "segmenter")
        return ModelRef(version.name, version.digest), segmenter.digest

    async def adapter_base(self, adapter_id: str) -> str | None:
        """Look at the newest version of an artifact that may not exist."""
        name = f"artifacts/{adapter_id}"
        try:
            artifact = await self._registry.get_artifact(name)
            if artifact.kind != "adapter":
                raise FailedPrecondition(f"{name} holds {artifact.kind} versions; choose another adapter_id")
            if artifact.delete_time is not None:
                raise FailedPrecondition(f"{name} is deleted; restore it or choose another adapter_id")
            newest = await self._newest(name)
        except NotFound:
            return None
        return _lineage(newest, "an adapter", "segmenter").digest

    async def promoted(self, plan: TuningPlan) -> Version | None:
        """Return what ``plan.promote_alias`` names now, if that is an adapter of the plan's segmenter."""
        current = await self._alias(str(AliasName(plan.adapter_id, plan.promote_alias)))
        if current is None:
            return None
        version = await self._registry.get_version(current.version)
        segmenter = version.manifest.made_from("segmenter")
        return version if segmenter is not None and segmenter.digest == plan.segmenter.digest else None

    async def image_files(self, dataset: Lineage) -> frozenset[str]:
        """Return the sha256 of each image of a data set; empty where it was deleted."""
        try:
            version = await self._registry.get_version(dataset.version)
        except NotFound:
            return frozenset()
        return frozenset(file.sha256 for file in version.manifest.files if file.path.startswith("images/"))

    async def promote(self, plan: TuningPlan, version: str, reason: str, compared: ModelRef | None) -> str:
        """Move an alias, looking again whenever somebody else moved it in between."""
        alias = str(AliasName(plan.adapter_id, plan.promote_alias))
        for _ in range(_MOVES):
            current = await self._alias(alias)
            if await self._was_moved(alias, version, reason):  # by this job, before its trainer died
                return f"moved {alias} to {version}"
            if current is not None and _number(current.version) > _number(version):
                return f"not promoted: {alias} is already at {current.version}, which is newer"
            known = None if compared is None else compared.name
            if plan.promote_only_if_better and current is not None and current.version != known:
                return f"not promoted: {alias} names {current.version}, which it was not compared with"
            try:
                etag = "" if current is None else current.etag
                await self._registry.set_alias(alias, version, etag=etag, reason=reason)
            except Aborted:
                _log.info("alias_moved_meanwhile", alias=alias)
                continue
            return f"moved {alias} to {version}"
        raise Unavailable(f"{alias} was moved by others {_MOVES} times in a row")

    async def _alias(self, name: str) -> Alias | None:
        artifact = name.partition("/aliases/")[0]
        try:
            aliases = (await self._registry.list_aliases(artifact)).aliases
        except NotFound:
            return None
        return next((alias for alias in aliases if alias.name == name), None)

    async def _was_moved(self, alias: str, version: str, reason: str) -> bool:
        try:
            async for change in self._registry.list_alias_changes(alias):
                if change.version == version and change.reason == reason:
                    return True
        except NotFound:
            pass
        return False

    async def _newest(self, artifact: str) -> Version:
        async for version in self._registry.list_versions(artifact):
            return version
        raise NotFound(f"{artifact} has no version", metadata={"name": artifact})

    async def _spec(self, version: Version, role: str) -> EncoderSpec | SegmenterSpec:
        data = json.dumps(dict(version.manifest.spec)).encode() if version.manifest.spec else b""
        file = version.manifest.file(_SPEC_FILE)
        if not data and file is not None:
            data = await self._registry.read_blob(file.sha256, max_bytes=_MAX_SPEC_BYTES)
        if not data:
            raise ModelUnsupported(version.name, role, f"its files lack {_SPEC_FILE}")
        try:
            return spec_from_json(data)
        except InvalidInput as error:
            raise ModelUnsupported(version.name, role, error.message) from error


def _lineage(version: Version, role: str, relation: str) -> Lineage:
    found = version.manifest.made_from(relation)
    if found is None:
        raise ModelUnsupported(version.name, role, f"its manifest names no {relation}")
    return found


def _number(version: str) -> int:
    name: VersionName = parse_version_name(version, field="version")
    return name.number
