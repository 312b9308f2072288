"""One decoder for all: adapting leaves it as it is, and a test holds that."""

from collections.abc import Iterator

import pytest
import torch

from fakes.random_decoders import Inputs, build_decoder, make_inputs
from vplab.vision.sam.onnx_decoder import PromptDecoder


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def decoder() -> PromptDecoder:
    return build_decoder()


@pytest.fixture(scope="session")
def inputs(decoder: PromptDecoder) -> Inputs:
    return make_inputs(decoder)
