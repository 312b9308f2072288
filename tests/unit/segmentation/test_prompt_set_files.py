"""Prompt sets as files and back."""

import hashlib
import json

import numpy as np
import pytest

from vplab.errors import InvalidInput
from vplab.segmentation.prompt_set_files import INDEX, content_of, files_of, mask_paths, picture_paths, read_picture
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
from vplab.vision.images import PixelFormat, frame_digest
from vplab.vision.masks import encode_runs

MASK = np.eye(4, 6, dtype=bool)
STORED = StoredMask((4, 6), encode_runs(MASK))
JPEG = EncodedImage(b"\xff\xd8\xff and the rest")
FRAME = FrameImage(bytes(range(4 * 16)), 6, 4, 16, PixelFormat.MONO16)
OPTIONS = Options(matcher=MatcherName.GRAPH, max_points=3, presence_threshold=-0.5, seed=2**63, include_points=True)


def written(*images):
    masks = {7: STORED, 2: STORED}
    references = tuple(DraftReference(image, masks) for image in images)
    content = PromptSetContent(
        "Näme",
        (SegmentClass(7, "seven"), SegmentClass(2, "two")),
        tuple(Reference("d" * 64, (4, 6), masks) for _ in images),
        OPTIONS,
        {7: 0.25, 2: -0.125},
    )
    return files_of(references, content)


def test_files_come_back_as_the_same_content():
    files = {path: data for path, data, _ in written(JPEG, FRAME)}
    index = json.loads(files[INDEX])
    content = content_of(index, {path: files[path] for path in mask_paths(index)})
    assert content.display_name == "Näme"
    assert content.classes == (SegmentClass(7, "seven"), SegmentClass(2, "two"))
    assert content.options == OPTIONS
    assert content.presence_thresholds == {7: 0.25, 2: -0.125}
    assert [r.image_digest for r in content.references] == ["d" * 64] * 2
    for reference in content.references:
        assert list(reference.masks) == [2, 7]
        np.testing.assert_array_equal(reference.masks[7].pixels(), MASK)
    assert next(read_picture(path, files[path]) for path in picture_paths(index)) == JPEG


def test_equal_input_gives_equal_bytes():
    assert written(JPEG, FRAME) == written(JPEG, FRAME)


def test_a_frame_is_stored_as_what_its_digest_is_of_and_loses_only_its_padding():
    path, data, _ = next(f for f in written(FRAME) if f[0].endswith(".frame"))
    expected = frame_digest(FRAME.data, FRAME.width, FRAME.height, FRAME.stride_bytes, FRAME.pixel_format)
    assert hashlib.sha256(data).hexdigest() == expected
    back = read_picture(path, data)
    assert isinstance(back, FrameImage)
    assert (back.width, back.height, back.stride_bytes, back.pixel_format) == (6, 4, 12, PixelFormat.MONO16)
    assert back.data == b"".join(FRAME.data[16 * row : 16 * row + 12] for row in range(4))


def test_media_types_tell_pictures_from_masks():
    kinds = {path: kind for path, _, kind in written(JPEG)}
    assert kinds["references/0/image.jpg"] == "image/jpeg"
    assert kinds["references/0/mask-7.png"] == "image/png"


def test_a_schema_of_the_future_and_a_damaged_frame_are_refused():
    files = {path: data for path, data, _ in written(JPEG)}
    index = json.loads(files[INDEX])
    with pytest.raises(InvalidInput, match="schema"):
        content_of(index | {"schema": 2}, files)
    with pytest.raises(InvalidInput):
        read_picture("references/0/image.frame", b"frame:axb:MONO8:")


def test_options_of_a_call_go_before_those_of_a_set():
    call = Options(max_points=9, include_instances=True)
    together = call.over(OPTIONS)
    assert together.max_points == 9
    assert together.matcher is MatcherName.GRAPH
    assert together.include_instances
    assert together.include_points
