"""The bare loop: the same work in one process without a service, as fast as this machine does it.

``python tests/bench/peers/bare.py [--work click|embed] [--threads N] [--intra-op N] [--batch N] [--seconds S]`` prints
one line of JSON; with ``--on-demand`` one for each line of the standard input, and waits in between. A service is
compared with the best of the forms that ``run.py`` tries.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import structlog
from work import Click, Work

from vplab.bench.pictures import Picture, make_pictures
from vplab.bench.requests import Requests, unique_jpeg
from vplab.bench.samples import OK, Samples, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", choices=("click", "embed"), default="click")
    parser.add_argument("--threads", type=int, default=1, help="threads that do the work")
    parser.add_argument("--intra-op", type=int, default=0, help="threads of each run of a graph; 0 is one per core")
    parser.add_argument("--batch", type=int, default=1, help="clicks or images in one run of a graph")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-up", type=float, default=1.0)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--on-demand", action="store_true", help="measure once for each line of the standard input")
    arguments = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    form = {"threads": arguments.threads, "intra_op": arguments.intra_op, "batch": arguments.batch}
    work = Work(intra_op_threads=arguments.intra_op)
    pictures = make_pictures(arguments.images, arguments.side, num_points=16)
    make = clicks if arguments.work == "click" else embeddings
    once = make(work, pictures, arguments.batch)
    for _ in sys.stdin if arguments.on_demand else range(1):
        measured = loop(once, arguments.batch, arguments.threads, arguments.warm_up, arguments.seconds)
        print(json.dumps({"work": arguments.work, "form": form, **measured}), flush=True)


def clicks(work: Work, pictures: list[Picture], batch: int) -> Callable[[int], object]:
    """Return a function that answers the clicks of a number and the following."""
    digests = [work.embed([picture.data])[0] for picture in pictures]
    all_clicks = [
        Click(digest, *point)
        for points in zip(*(picture.points_xy for picture in pictures), strict=True)
        for digest, point in zip(digests, points, strict=True)
    ]

    def once(number: int) -> object:
        chosen = [all_clicks[(number * batch + i) % len(all_clicks)] for i in range(batch)]
        return [mask.to_bytes() for mask in work.click(chosen)]

    return once


def embeddings(work: Work, pictures: list[Picture], batch: int) -> Callable[[int], object]:
    """Return a function that embeds images nobody has seen."""
    requests = Requests([unique_jpeg(picture.data) for picture in pictures])
    return lambda number: work.embed([requests.body(number * batch + i) for i in range(batch)])


def loop(
    once: Callable[[int], object], batch: int, num_threads: int, warm_up_s: float, duration_s: float
) -> dict[str, Any]:
    """Do the work over and over; the latency of an item is that of its batch."""
    start = time.monotonic() + warm_up_s
    end = start + duration_s
    times: list[tuple[float, float]] = []
    cpu: list[float] = []

    def work(rank: int) -> None:
        number = rank
        while (began := time.monotonic()) < end:
            if rank == 0 and not cpu and began >= start:
                cpu.append(time.process_time())
            once(number)
            number += num_threads
            if (ended := time.monotonic()) > start:
                times.append((began, ended))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cpu_s = time.process_time() - cpu[0]
    began, ended = (np.repeat(np.array(column), batch) for column in zip(*times, strict=True))
    samples = Samples(ended - began, ended - start, (OK,) * len(began), duration_s, cpu_s)
    found = figures([samples])
    return {**found, "cpu_s_per_item": cpu_s / int(samples.is_counted.sum())}


if __name__ == "__main__":
    main()
