"""The files of a prompt set version: ``prompt_set.json``, and below ``references/`` the pictures and masks it names."""

import json
from collections.abc import Mapping
from typing import Any, Final

from vplab.errors import InvalidInput
from vplab.segmentation.values import (
    DraftReference,
    EncodedImage,
    FrameImage,
    MatcherName,
    Options,
    PromptSetContent,
    Reference,
    SegmentClass,
    StoredMask,
)
from vplab.vision.images import PixelFormat
from vplab.vision.masks import encode_runs, mask_to_png, png_to_mask

INDEX: Final = "prompt_set.json"
_SCHEMA: Final = 1
_FRAME_TYPE: Final = "application/x-vplab-frame"
_SIGNATURES: Final = (
    (b"\xff\xd8\xff", "jpg", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png", "image/png"),
    (b"BM", "bmp", "image/bmp"),
    (b"II*\0", "tif", "image/tiff"),
    (b"MM\0*", "tif", "image/tiff"),
    (b"RIFF", "webp", "image/webp"),
)
_SCALARS: Final = (
    "max_points",
    "num_background_points",
    "min_relative_score",
    "presence_threshold",
    "min_mask_score",
    "seed",
    "tile_side",
    "include_instances",
    "include_points",
)

File = tuple[str, bytes, str]
"""Path, content and media type."""


def picture_file(index: int, image: EncodedImage | FrameImage) -> File:
    """Return how a reference's picture is stored: as it came, so that its sha256 is its image digest.

    A frame is stored as the text and rows whose sha256 the contract makes its digest.
    """
    if isinstance(image, FrameImage):
        head = f"frame:{image.width}x{image.height}:PIXEL_FORMAT_{image.pixel_format}:".encode()
        row_bytes = image.width * image.pixel_format.num_bytes
        rows = b"".join(
            image.data[r * image.stride_bytes : r * image.stride_bytes + row_bytes] for r in range(image.height)
        )
        return f"references/{index}/image.frame", head + rows, _FRAME_TYPE
    suffix, media_type = next(
        ((suffix, kind) for start, suffix, kind in _SIGNATURES if image.data.startswith(start)), ("bin", "")
    )
    return f"references/{index}/image.{suffix}", image.data, media_type


def read_picture(path: str, data: bytes) -> EncodedImage | FrameImage:
    """Return a stored picture. Raises InvalidInput for a damaged frame."""
    if not path.endswith(".frame"):
        return EncodedImage(data)
    try:
        _, size, pixel_format, rows = data.split(b":", 3)
        width, height = (int(n) for n in size.split(b"x"))
        kind = PixelFormat(pixel_format.decode().removeprefix("PIXEL_FORMAT_"))
    except ValueError as error:
        raise InvalidInput(f"{path} is no stored frame", field=path) from error
    return FrameImage(rows, width, height, width * kind.num_bytes, kind)


def mask_file(index: int, class_id: int, mask: StoredMask) -> File:
    """Return how a reference's mask is stored: a 1-bit PNG."""
    return f"references/{index}/mask-{class_id}.png", mask_to_png(mask.pixels(), bits=1), "image/png"


def files_of(draft_references: tuple[DraftReference, ...], content: PromptSetContent) -> list[File]:
    """Return every file of a version; equal input gives equal bytes."""
    files: list[File] = []
    entries = []
    for index, (draft, reference) in enumerate(zip(draft_references, content.references, strict=True)):
        picture = picture_file(index, draft.image)
        masks = {class_id: mask_file(index, class_id, mask) for class_id, mask in sorted(reference.masks.items())}
        files += [picture, *masks.values()]
        entries.append(
            {
                "image": picture[0],
                "image_digest": reference.image_digest,
                "height": reference.image_hw[0],
                "width": reference.image_hw[1],
                "masks": {str(class_id): file[0] for class_id, file in masks.items()},
            }
        )
    document = {
        "schema": _SCHEMA,
        "display_name": content.display_name,
        "classes": [
            {
                "class_id": c.class_id,
                "display_name": c.display_name,
                "presence_threshold": content.presence_thresholds[c.class_id],
            }
            for c in content.classes
        ],
        "references": entries,
        "options": _options_to_json(content.options),
    }
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return [(INDEX, text.encode(), "application/json"), *files]


def picture_paths(index: Mapping[str, Any]) -> list[str]:
    """Return where the references' pictures are, in order."""
    return [entry["image"] for entry in index["references"]]


def content_of(index: Mapping[str, Any], read: Mapping[str, bytes]) -> PromptSetContent:
    """Return what the files say; ``read`` has the masks' files by path.

    Raises InvalidInput for a schema of the future or a damaged mask; KeyError, TypeError or ValueError for files that
    this service did not write.
    """
    if index["schema"] != _SCHEMA:
        raise InvalidInput(f"prompt_set.json has schema {index['schema']}, this service reads {_SCHEMA}", field=INDEX)
    references = []
    for entry in index["references"]:
        size_hw = (int(entry["height"]), int(entry["width"]))
        masks = {int(class_id): _read_mask(read[path], size_hw, path) for class_id, path in entry["masks"].items()}
        references.append(Reference(str(entry["image_digest"]), size_hw, masks))
    return PromptSetContent(
        display_name=str(index["display_name"]),
        classes=tuple(SegmentClass(int(c["class_id"]), str(c["display_name"])) for c in index["classes"]),
        references=tuple(references),
        options=_options_from_json(index["options"]),
        presence_thresholds={int(c["class_id"]): float(c["presence_threshold"]) for c in index["classes"]},
    )


def mask_paths(index: Mapping[str, Any]) -> list[str]:
    """Return where all masks are."""
    return [path for entry in index["references"] for path in entry["masks"].values()]


def _read_mask(data: bytes, size_hw: tuple[int, int], path: str) -> StoredMask:
    mask = png_to_mask(data)
    if mask.shape != size_hw:
        raise InvalidInput(f"the mask is {mask.shape}, its image {size_hw}", field=path)
    return StoredMask(size_hw, encode_runs(mask))


def _options_to_json(options: Options) -> dict[str, Any]:
    said = {name: getattr(options, name) for name in _SCALARS if getattr(options, name) is not None}
    return said if options.matcher is None else said | {"matcher": options.matcher.value}


def _options_from_json(said: Mapping[str, Any]) -> Options:
    matcher = said.get("matcher")
    scalars = {name: said[name] for name in _SCALARS if name in said}
    return Options(matcher=None if matcher is None else MatcherName(matcher), **scalars)
