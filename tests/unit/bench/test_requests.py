import numpy as np
import pytest

from vplab.bench.grpc_calls import split_stream, stream_body
from vplab.bench.pictures import make_pictures
from vplab.bench.requests import UNIQUE, Requests, unique_jpeg
from vplab.vision.images import decode_image


def test_bodies_are_taken_in_turn() -> None:
    requests = Requests([b"a", b"b", b"c"])
    assert [requests.body(index) for index in range(5)] == [b"a", b"b", b"c", b"a", b"b"]


def test_an_image_is_another_file_in_every_call_with_the_same_pixels() -> None:
    (picture,) = make_pictures(1, 96, num_points=3)
    requests = Requests([unique_jpeg(picture.data)])
    bodies = [requests.body(index) for index in range(20)]
    assert len(set(bodies)) == 20
    assert len({len(body) for body in bodies}) == 1
    for body in bodies[:3]:
        np.testing.assert_array_equal(decode_image(body), decode_image(picture.data))


def test_every_placeholder_of_a_body_is_filled_with_something_else() -> None:
    requests = Requests([UNIQUE + b"," + UNIQUE])
    parts = [*requests.body(0).split(b","), *requests.body(1).split(b",")]
    assert len(set(parts)) == 4
    assert UNIQUE not in b"".join(parts)


def test_two_generators_never_fill_in_the_same() -> None:
    assert Requests([UNIQUE]).body(0) != Requests([UNIQUE]).body(0)


def test_only_a_jpeg_can_be_made_unique() -> None:
    with pytest.raises(ValueError, match="JPEG"):
        unique_jpeg(b"\x89PNG")


def test_a_load_without_requests_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Requests([])


def test_a_stream_is_what_went_into_it() -> None:
    messages = [b"", b"one", b"\x00" * 70_000]
    assert split_stream(stream_body(messages)) == messages


@pytest.mark.parametrize("side", [128, 1100])
def test_pictures_have_clicks_on_their_defects(side: int) -> None:
    for picture in make_pictures(2, side, num_points=5, seed=4):
        assert decode_image(picture.data).shape == (side, side, 3)
        assert all(picture.mask[int(y), int(x)] for x, y in picture.points_xy)
