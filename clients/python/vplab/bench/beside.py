"""Clicks while the same machine embeds or segments in bulk."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from vplab.bench.generators import Generators
from vplab.bench.load import Step
from vplab.bench.measuring import Measuring, Row, Stopped
from vplab.bench.names import BulkName
from vplab.bench.pictures import Picture
from vplab.bench.requests import Requests, unique_jpeg
from vplab.bench.samples import figures
from vplab.bench.site import Site
from vplab.bench.stages import read_series
from vplab.bench.works import Work

_CALLERS = 8
"""Images in flight: more than a machine works on at once."""
_PROBE_S = 2.0
_SURPLUS = 1.5
"""A job gets this much more than the machine was seen to embed in the time, so that it lasts until the end."""
_MAX_IMAGES = 4000
_MORE_S = 3.0
"""Beside the clicks' time: until the job begins, and until it is asked how it stands."""
_POLL_S = 0.05


@dataclass(frozen=True)
class Bulk:
    """Work in bulk that goes on while clicks are measured."""

    kind: BulkName
    site: Site
    pictures: Sequence[Picture]
    measuring: Measuring
    prompt_set: str = ""
    """What ``segment`` segments by."""
    adapters: Sequence[str] = ("",)
    """What it names in turn."""

    @contextmanager
    def going_on(self) -> Iterator[Row]:
        """Keep the machine busy; the row is filled when the context ends."""
        done: Row = {"kind": self.kind}
        with self._precomputing(done) if self.kind == "precompute" else self._calling(done):
            yield done

    @contextmanager
    def _calling(self, done: Row) -> Iterator[None]:
        with self._segmenting() if self.kind == "segment" else self._embedding() as generators:
            generators.begin(self._step(self._needed_s() + self.measuring.timeout_s))
            try:
                yield
            finally:
                parts, ended = generators.stop()
                found = figures(parts)
                done.update(images_per_s=found["throughput_per_s"], lasted=not ended, errors=found["errors"])

    @contextmanager
    def _precomputing(self, done: Row) -> Iterator[None]:
        with self._embedding() as generators:
            parts, is_whole = generators.run(self._step(_PROBE_S))
        if not is_whole:
            raise Stopped({})
        rate = figures(parts)["throughput_per_s"]
        number = min(_MAX_IMAGES, max(20, round(_SURPLUS * rate * (self._needed_s() + _MORE_S))))
        client = self.site.client
        files = Requests([unique_jpeg(picture.data) for picture in self.pictures])
        digests = [
            client.registry.upload_bytes(files.body(index), as_path="image.jpg").sha256 for index in range(number)
        ]
        job = client.embedding.precompute(self.site.called.encoder, blob_digests=digests)
        try:
            while job.state == "queued":
                time.sleep(_POLL_S)
                job = client.embedding.get_precompute_job(job.name)
            began, before = time.monotonic(), self._num_embedded()
            yield
            seen, seen_s = self._num_embedded(), time.monotonic() - began
            job = client.embedding.get_precompute_job(job.name)
            lasted = not job.is_done
            if lasted:
                job = client.embedding.cancel_precompute_job(job.name)
            if seen is None or before is None:  # a job notes its progress by the dozen, which is coarse
                before, seen, seen_s = 0.0, job.num_done, time.monotonic() - began
            done.update(images_per_s=(seen - before) / seen_s, lasted=lasted, num_failed=job.num_failed)
        finally:
            if not job.is_done:
                client.embedding.cancel_precompute_job(job.name)

    def _num_embedded(self) -> float | None:
        """Return how many images of jobs the encoder has begun, by the service's own series; None where it has none."""
        url = self.measuring.metrics_urls.get("embedding")
        if url is None:
            return None
        name = "vplab_queue_wait_seconds_count"
        # The encoder's queue of the class BATCH is one of its own on a CPU.
        queues = [(("priority", "BATCH"), ("queue", queue)) for queue in ("encoder", "encoder-batch")]
        return sum(value for (series, labels), value in read_series(url).items() if series == name and labels in queues)

    def _embedding(self) -> Generators:
        work = self.site.called.embeddings(self.pictures)
        return Generators(work.target, work.requests)

    def _segmenting(self) -> Generators:
        work = self.site.called.segmentations(self.pictures, self.prompt_set, self.adapters)
        return Generators(work.target, work.requests)

    def _step(self, duration_s: float) -> Step:
        return Step(_CALLERS, duration_s, 0.0, timeout_s=self.measuring.timeout_s)

    def _needed_s(self) -> float:
        return self.measuring.warm_up_s + self.measuring.duration_s


def clicks_beside(measuring: Measuring, clicks: Work, bulk: Bulk, rate_per_s: float, num_pairs: int) -> Iterator[Row]:
    """Measure clicks that arrive at a rate on the idle machine, then beside the bulk, as many times as pairs."""
    with measuring.calling(clicks):
        for pair in range(num_pairs):
            yield measuring.arriving(rate_per_s, {"pair": pair, "is_busy": False})
            with bulk.going_on() as done:
                row = measuring.arriving(rate_per_s, {"pair": pair, "is_busy": True, "bulk": done})
            yield row
