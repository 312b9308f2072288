"""The work behind LitServe: two routes, raw bytes both ways, workers in processes of their own.

Runs in its own virtual environment: ``python litserve_server.py PORT WORKERS INTRA_OP BATCH STORE``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import litserve as ls
from fastapi import Body, Response
from work import Click, Mask, Work

Bytes = Annotated[bytes, Body(media_type="application/octet-stream")]


class _Api(ls.LitAPI):
    def __init__(self, route: str, batch: int, intra_op: int, store: Path) -> None:
        # It gathers a batch only while it waits: two milliseconds, and without batching not at all.
        super().__init__(api_path=route, max_batch_size=batch, batch_timeout=0.002 if batch > 1 else 0.0)
        self.settings = intra_op, store

    def setup(self, device: str) -> None:
        intra_op, store = self.settings
        self.work = Work(intra_op_threads=intra_op, store=store)


class ClickApi(_Api):
    """Clicks to masks."""

    def decode_request(self, request: Bytes) -> Click:
        return Click.from_bytes(request)

    def predict(self, x: Any) -> Any:
        return self.work.click(x) if self.max_batch_size > 1 else self.work.click([x])[0]

    def encode_response(self, output: Mask) -> Response:
        return Response(output.to_bytes(), media_type="application/octet-stream")


class EmbedApi(_Api):
    """Files to digests."""

    def decode_request(self, request: Bytes) -> bytes:
        return request

    def predict(self, x: Any) -> Any:
        return self.work.embed(x) if self.max_batch_size > 1 else self.work.embed([x])[0]

    def encode_response(self, output: str) -> Response:
        return Response(output, media_type="text/plain")


def main(arguments: Sequence[str]) -> None:
    port, workers, intra_op, batch = map(int, arguments[:4])
    apis = [
        api(route, batch, intra_op, Path(arguments[4])) for route, api in (("/click", ClickApi), ("/embed", EmbedApi))
    ]
    # The queue of messages is what its documentation recommends for many requests; a server process for each worker
    # is its default.
    server = ls.LitServer(apis, accelerator="cpu", workers_per_device=workers, fast_queue=True)
    server.run(host="127.0.0.1", port=port, num_api_servers=workers, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main(sys.argv[1:])
