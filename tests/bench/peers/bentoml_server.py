"""The work behind BentoML: a service whose workers are processes, called over HTTP.

Runs in its own virtual environment by ``bentoml serve bentoml_server:Nano``, with its settings in the environment. With
batching a click goes as JSON and its mask comes back in base64, since BentoML batches lists and numpy arrays only;
without, the mask comes back as bytes. Images are uploaded as files.
"""

import base64
import os
from pathlib import Path
from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType
from starlette.responses import Response
from work import Click, Work

_BATCH = int(os.environ["PEER_BATCH"])


@bentoml.service(
    workers=int(os.environ["PEER_WORKERS"]),
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
)
class Nano:
    """Clicks to masks, and files to digests."""

    def __init__(self) -> None:
        self.work = Work(intra_op_threads=int(os.environ["PEER_INTRA_OP"]), store=Path(os.environ["PEER_STORE"]))

    @bentoml.api(route="/embed")
    def embed(self, image: Annotated[Path, ContentType("image/jpeg")]) -> str:
        return self.work.embed([image.read_bytes()])[0]

    if _BATCH > 1:

        @bentoml.api(route="/click", batchable=True, max_batch_size=_BATCH)
        def click(self, clicks: list[str]) -> list[str]:
            masks = self.work.click([Click.from_text(text) for text in clicks])
            return [base64.b64encode(mask.to_bytes()).decode() for mask in masks]

    else:

        @bentoml.api(route="/click")
        def click(self, click: str) -> Any:
            return Response(self.work.click([Click.from_text(click)])[0].to_bytes())
