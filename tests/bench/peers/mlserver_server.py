"""The work behind MLServer: two models of the Open Inference Protocol, called over gRPC.

Runs in its own virtual environment; ``python mlserver_server.py PORT WORKERS BATCH FOLDER`` writes the settings into
FOLDER and serves it. Intra-op threads and the store come in the environment: models are made in other processes.
"""

import json
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from work import Click, Work


@cache
def _work() -> Work:
    """Return the work of this process: both models of a worker share it."""
    return Work(intra_op_threads=int(os.environ["PEER_INTRA_OP"]), store=Path(os.environ["PEER_STORE"]))


class _Model(MLModel):
    async def load(self) -> bool:
        _work()
        return True

    def answer(self, items: list[bytes]) -> InferenceResponse:
        output = ResponseOutput(name="answer", shape=[len(items), 1], datatype="BYTES", data=items)
        return InferenceResponse(model_name=self.name, outputs=[output])


class ClickModel(_Model):
    """Clicks to masks."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        clicks = [Click.from_bytes(item) for item in payload.inputs[0].data]
        return self.answer([mask.to_bytes() for mask in _work().click(clicks)])


class EmbedModel(_Model):
    """Files to digests."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        return self.answer([digest.encode() for digest in _work().embed(list(payload.inputs[0].data))])


def main(arguments: Sequence[str]) -> None:
    port, workers, batch = map(int, arguments[:3])
    folder = Path(arguments[3])
    server = {
        "host": "127.0.0.1", "http_port": port + 1, "grpc_port": port, "metrics_port": port + 2, "debug": False,
        "parallel_workers": workers, "grpc_max_message_length": 33_554_432,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(server))
    for name, model in (("click", "ClickModel"), ("embed", "EmbedModel")):
        (folder / name).mkdir(exist_ok=True)
        settings = {"name": name, "implementation": f"mlserver_server.{model}"}
        if batch > 1:
            settings |= {"max_batch_size": batch, "max_batch_time": 0.002}
        (folder / name / "model-settings.json").write_text(json.dumps(settings))
    command = str(Path(sys.executable).with_name("mlserver"))
    os.execv(command, [command, "start", str(folder)])


if __name__ == "__main__":
    main(sys.argv[1:])
