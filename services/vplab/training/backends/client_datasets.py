"""Data sets in the registry, checked before a job depends on them."""

import asyncio
import io
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vplab.client import AsyncClient, AsyncSnapshots, SegmentClass
from vplab.client.datasets import Dataset, DatasetItem, DatasetLimits, PackedMasks, publish_dataset, read_dataset
from vplab.errors import FieldViolation, InvalidInput
from vplab.training.errors import at_file
from vplab.training.values import (
    DatasetVersion,
    DraftDataset,
    DraftImage,
    DraftMask,
    EncodedImage,
    FrameImage,
    ModelRef,
)
from vplab.vision.images import ImageLimits, decode_image, frame_to_rgb
from vplab.vision.masks import decode_runs

_MAX_REMEMBERED: Final = 1000


class ClientDatasets:
    """Implements DatasetSource."""

    def __init__(
        self,
        client: AsyncClient,
        snapshots: AsyncSnapshots,
        limits: ImageLimits,
        *,
        max_images: int,
        max_inline_pixels: int,
        threads: int,
    ) -> None:
        """threads: images decoded at a time. max_inline_pixels: of all images, and of all masks, of a draft."""
        self._client = client
        self._snapshots = snapshots
        self._limits = limits
        self._max_images = max_images
        self._max_inline_pixels = max_inline_pixels
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="dataset-checks")
        self._checked: OrderedDict[str, int] = OrderedDict()

    def close(self) -> None:
        """Wait for checks under way."""
        self._threads.shutdown(cancel_futures=True)

    async def find(self, name: str) -> DatasetVersion:
        """Resolve a name and read the version's files, once in this process."""
        version = await self._client.registry.get_version(name)
        model = ModelRef(version.name, version.digest)
        if version.kind != "dataset":
            raise InvalidInput(f"{version.name} is a {version.kind}, not a dataset", field="dataset")
        if version.digest not in self._checked:
            limits = DatasetLimits(max_images=self._max_images, image=self._limits)
            snapshot = await self._snapshots.fetch(version.name)
            try:
                dataset = await asyncio.to_thread(read_dataset, snapshot.folder, limits)
                await self._decode_all(dataset)
            except InvalidInput as error:
                raise _in_dataset(version.name, error) from error
            finally:
                self._snapshots.release(version.digest)
            self._remember(version.digest, len(dataset.items))
        return DatasetVersion(model, self._checked[version.digest])

    async def publish(self, dataset_id: str, draft: DraftDataset, request_id: str) -> DatasetVersion:
        """Check and publish what came with a request."""
        loop = asyncio.get_running_loop()
        dataset = await loop.run_in_executor(self._threads, self._read_draft, draft)
        description = "sent along with a tuning job"
        try:
            model = await publish_dataset(self._client, dataset_id, dataset, request_id, description=description)
        except InvalidInput as error:
            raise _in_draft(draft, error) from error
        self._remember(model.digest, len(dataset.items))
        return DatasetVersion(ModelRef(model.name, model.digest), len(dataset.items))

    def _remember(self, digest: str, num_images: int) -> None:
        self._checked[digest] = num_images
        while len(self._checked) > _MAX_REMEMBERED:
            self._checked.popitem(last=False)

    async def _decode_all(self, dataset: Dataset) -> None:
        """Find images whose header is right and whose pixels are not all there."""

        def check(item: DatasetItem) -> None:
            try:
                decode_image(item.image, self._limits)
            except InvalidInput as error:
                raise at_file(error, item.file_name, item.file_name) from error

        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self._threads, check, item) for item in dataset.items))

    def _read_draft(self, draft: DraftDataset) -> Dataset:
        items = []
        image_pixels = mask_pixels = 0
        for index, image in enumerate(draft.images):
            field = f"inline.images[{index}]"
            size_hw, data = self._read_image(image, f"{field}.image")
            image_pixels += size_hw[0] * size_hw[1]
            mask_pixels += size_hw[0] * size_hw[1] * len(image.masks)
            if max(image_pixels, mask_pixels) > self._max_inline_pixels:
                message = f"more than {self._max_inline_pixels:,} pixels in one request; publish the data set first"
                metadata = {"limit": str(self._max_inline_pixels), "actual": str(max(image_pixels, mask_pixels))}
                raise InvalidInput(message, field="inline.images", reason="IMAGE_TOO_LARGE", metadata=metadata)
            masks = {mask.class_id: _mask(image.file_name, mask, size_hw) for mask in image.masks}
            shown = PackedMasks({class_id: mask for class_id, mask in masks.items() if mask.any()})
            items.append(DatasetItem(image.file_name, data, size_hw, shown))
        if not any(item.masks for item in items):
            raise InvalidInput("no image holds any class: there is nothing to learn from", field="inline.images")
        classes = tuple(SegmentClass(class_id, name) for class_id, name in sorted(draft.classes.items()))
        return Dataset(classes, tuple(items))

    def _read_image(self, draft: DraftImage, field: str) -> tuple[tuple[int, int], bytes]:
        """Return the size of a picture as people see it, and the file to keep: a frame becomes a PNG."""
        try:
            match draft.image:
                case EncodedImage(data):
                    height, width = decode_image(data, self._limits).shape[:2]
                    return (height, width), data
                case FrameImage(data, width, height, stride_bytes, pixel_format):
                    rgb = frame_to_rgb(data, width, height, stride_bytes, pixel_format, self._limits)
                    file = io.BytesIO()
                    Image.fromarray(rgb).save(file, format="PNG", compress_level=1)
                    return (height, width), file.getvalue()
        except InvalidInput as error:
            raise at_file(error, draft.file_name, field) from error


def _mask(file_name: str, draft: DraftMask, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    height, width = draft.size_hw
    if draft.size_hw != size_hw:
        message = f"mask is {width}x{height}; its image is {size_hw[1]}x{size_hw[0]}"
        raise at_file(InvalidInput(message), file_name, draft.field)
    runs = np.array(draft.runs, np.uint32)
    total = int(runs.sum(dtype=np.uint64))
    if total != height * width or (runs[1:] == 0).any():
        message = f"runs sum to {total}; {width}x{height} needs {height * width}, and only the first run may be 0"
        raise at_file(InvalidInput(message), file_name, f"{draft.field}.runs")
    return decode_runs(runs, size_hw)


def _in_draft(draft: DraftDataset, error: InvalidInput) -> InvalidInput:
    """Return an error about files as one about the request's fields."""
    positions: Mapping[str, int] = {image.file_name: index for index, image in enumerate(draft.images)}

    def field(name: str) -> str:
        return f"inline.images[{positions[name]}]" if name in positions else f"inline.{name}"

    violations = [FieldViolation(field(v.field), f"{v.field}: {v.description}") for v in error.violations]
    return InvalidInput(error.message, violations=violations, reason=error.reason, metadata=error.metadata)


def _in_dataset(name: str, error: InvalidInput) -> InvalidInput:
    violations = [FieldViolation("dataset", f"{v.field}: {v.description}") for v in error.violations]
    message = f"{name} cannot be tuned on: {error.message}"
    return InvalidInput(message, violations=violations, reason=error.reason, metadata={**error.metadata, "name": name})
