"""The small SAM with an adapter bank, and adapters for it that have no graph of their own."""

import asyncio
import functools
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from fakes.random_decoders import build_decoder, disturb
from fakes.segmentation_site import Site
from fakes.small_sam import (
    ENCODER_SPEC,
    GRID,
    SEGMENTER,
    SEGMENTER_SPEC,
    STRIDE,
    encoder_onnx,
    write_small_sam,
)
from vplab.client import AsyncClient, ClientOptions
from vplab.client.registry.values import Version
from vplab.runtime.onnx_session import OnnxSettings, create_session
from vplab.vision.adapters.adapt import AdaptedDecoder, adapt
from vplab.vision.adapters.bank import bank_to_onnx
from vplab.vision.adapters.spec import EPeftSpec
from vplab.vision.preprocessing import preprocess
from vplab.vision.prompts import ObjectPrompt, prompt_tokens
from vplab.vision.sam.onnx_decoder import PromptDecoder
from vplab.vision.specs import AdapterBankSpec

SPEC = SEGMENTER_SPEC.model_copy(update={"adapter_bank": AdapterBankSpec()})


@functools.cache
def base_decoder() -> PromptDecoder:
    """Return the small segmenter's modules."""
    return build_decoder(GRID, STRIDE)


@functools.cache
def adapter(number: int) -> AdaptedDecoder:
    """Return an adapter that no other number has."""
    return disturb(adapt(base_decoder(), EPeftSpec()), scale=0.05, seed=number).eval()


@functools.cache
def bank_onnx() -> bytes:
    """Return the bank's graph; making it takes half a minute."""
    return bank_to_onnx(base_decoder(), EPeftSpec()).SerializeToString()


def write_banked_sam(folder: Path) -> Path:
    """Write the small SAM with its bank below a folder, and return the folder."""
    write_small_sam(folder)
    (folder / SEGMENTER / "model.json").write_text(SPEC.model_dump_json())
    (folder / SEGMENTER / "bank.onnx").write_bytes(bank_onnx())
    return folder


def write_adapter(folder: Path, number: int) -> Path:
    """Write an adapter version that only a bank can serve."""
    folder.mkdir(parents=True)
    adapted = adapter(number)
    state = {name: value.numpy() for name, value in adapted.adapter_state().items()}
    save_file(state, folder / "adapter.safetensors")
    (folder / "adapter.json").write_text(f'{{"adapter": {adapted.spec.model_dump_json()}}}')
    (folder / "model.json").write_text(SEGMENTER_SPEC.model_dump_json())
    return folder


async def publish_adapter(site: Site, artifact_id: str, number: int, *, alias: str = "production") -> Version:
    """Publish adapter ``number`` as a version of an artifact. An empty alias moves none."""
    folder = await asyncio.to_thread(write_adapter, site.folder / f"adapter-{artifact_id}-{number}", number)
    async with AsyncClient(registry=site.registry_address, options=ClientOptions()) as client:
        base = await client.registry.get_version(f"artifacts/{SEGMENTER}")
    return await site.publish_adapter_files(folder, artifact_id, base=base, alias=alias)


def expected_logits(image_rgb: NDArray[np.uint8], click_xy: tuple[float, float], number: int) -> NDArray[np.float32]:
    """Return what torch answers to a click with an adapter, or as the base for 0: logits (4h, 4w) of plane 0."""
    prompt = ObjectPrompt(points_xy=np.array([click_xy], np.float32), point_labels=np.array([1]))
    prepared = preprocess(image_rgb, ENCODER_SPEC.preprocessing)
    tokens = prompt_tokens(prompt, prepared.transform, SPEC)
    inputs = (
        torch.from_numpy(_embedding(prepared.tensor.tobytes(), prepared.tensor.shape)),
        torch.zeros(1, dtype=torch.int64),
        torch.from_numpy(tokens.coords)[None],
        torch.from_numpy(tokens.labels)[None],
        torch.zeros(1, 1, *SPEC.low_res_hw),
        torch.zeros(1),
    )
    with torch.inference_mode():
        logits, _ = (adapter(number) if number else base_decoder())(*inputs)
    return logits[0, 0].numpy()


@functools.cache
def _embedding(image: bytes, shape: tuple[int, ...]) -> NDArray[np.float32]:
    session = create_session(encoder_onnx(), OnnxSettings(providers=("cpu",), intra_op_threads=1))
    return session.run(["image_embedding"], {"image": np.frombuffer(image, np.float32).reshape(1, *shape)})[0]
