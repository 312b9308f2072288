"""The encoder that ships with the project serves as it is."""

from pathlib import Path

import numpy as np
import pytest

import vplab.registry
from fakes.embedding_server import Serving, png
from vplab.api.embedding.v1 import embedding_service_pb2 as pb
from vplab.api.vision.v1 import vision_pb2
from vplab.vision.specs import EncoderSpec, spec_from_json
from vplab.wire.tensors import tensor_from_proto

FOLDER = Path(vplab.registry.__file__).parent / "builtin" / "nano-encoder"


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the nano encoder is not in this checkout")
@pytest.mark.parametrize("size_hw", [(300, 500), (640, 480), (40, 40)])
async def test_the_nano_encoder_gives_what_its_spec_says(serving: Serving, size_hw: tuple[int, int]) -> None:
    serving.source.publish("nano-encoder", 1, FOLDER)
    spec = spec_from_json((FOLDER / "model.json").read_bytes())
    assert isinstance(spec, EncoderSpec)
    image = vision_pb2.Image(encoded=png(1, *size_hw))
    request = pb.EmbedImageRequest(image=image, encoders=["artifacts/nano-encoder"], include_tensors=True)
    (embedding,) = (await serving.stub.EmbedImage(request)).embeddings
    arrays = {t.name: tensor_from_proto(t.tensor, field=t.name).astype(np.float32) for t in embedding.tensors}
    assert {name: array.shape for name, array in arrays.items()} == {o.name: o.shape for o in spec.outputs}
    features = spec.output("patch_features")
    assert features is not None
    # float16 keeps three digits.
    assert np.allclose(np.linalg.norm(arrays[features.name], axis=-1), 1, atol=5e-3)
