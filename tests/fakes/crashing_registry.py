"""A registry process that kills itself with SIGKILL before a chosen step.

A step is whatever changes what a later process finds: a write, sync, move or removal of a file, a put into the object
store, a statement that changes the database, a commit. They are counted where Python leaves for the system, so that the
registry itself knows nothing of it and no step is forgotten.

Run as a program it loads everything once and forks a registry for each order on its standard input: a start from
nothing takes a second, and there are many steps.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHANGES = ("INSERT", "UPDATE", "DELETE")


class Steps:
    """Counts steps once armed, writes their names down, and dies before the chosen one."""

    def __init__(self, log: Path, die_before: int | None) -> None:
        self._log = log
        self._die_before = die_before
        self._count = 0
        self.is_armed = False

    def reach(self, name: str) -> None:
        if not self.is_armed:
            return
        self._count += 1
        if self._count == self._die_before:
            os.kill(os.getpid(), signal.SIGKILL)
        with self._log.open("a") as log:
            log.write(f"{name}\n")

    def wrap(self, owner: Any, name: str) -> None:
        """Make a call of ``owner.name`` a step."""
        original: Callable[..., Any] = getattr(owner, name)

        def stepping(*args: Any, **kwargs: Any) -> Any:
            self.reach(f"{owner.__name__}.{name}")
            return original(*args, **kwargs)

        setattr(owner, name, stepping)


def _watch_steps(steps: Steps) -> None:
    import obstore
    from sqlalchemy import Engine, event

    for name in ("write", "fsync", "replace", "unlink", "mkdir"):
        steps.wrap(os, name)
    for name in ("put", "delete"):
        steps.wrap(obstore, name)

    @event.listens_for(Engine, "before_cursor_execute")
    def on_statement(_: Any, __: Any, statement: str, *rest: Any) -> None:
        if statement.startswith(CHANGES):
            steps.reach(" ".join(statement.split()[:3]))

    @event.listens_for(Engine, "commit")
    def on_commit(_: Any) -> None:
        steps.reach("COMMIT")


async def _serve(address_file: Path, steps: Steps) -> None:
    from vplab.registry.composition import open_registry
    from vplab.registry.config import RegistryConfig
    from vplab.runtime.server import running_server

    config = RegistryConfig()
    async with (
        open_registry(config) as service,
        running_server([service.registration], config, ready=service.ready) as server,
    ):
        steps.is_armed = True
        address_file.with_suffix(".tmp").write_text(server.address)
        address_file.with_suffix(".tmp").rename(address_file)
        await asyncio.Event().wait()


def _main() -> None:
    import logging

    import grpc
    import obstore
    import structlog

    import vplab.registry.backends.obstore_blobs
    import vplab.registry.composition
    import vplab.runtime.server

    # Imported for the children, which find them loaded.
    assert all((grpc, obstore, vplab.registry.backends.obstore_blobs, vplab.registry.composition, vplab.runtime.server))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            os.environ.update(order["environment"])
            steps = Steps(Path(order["log"]), order["die_before"])
            _watch_steps(steps)
            asyncio.run(_serve(Path(order["address_file"]), steps))
            os._exit(0)
        print(json.dumps({"pid": pid}), flush=True)


@dataclass
class RegistryProcess:
    """One forked registry."""

    address: str
    pid: int
    _nursery: "Nursery"

    def kill(self) -> int:
        """Kill it if it still lives, and return how it ended: -9 also when it killed itself."""
        os.kill(self.pid, signal.SIGKILL)
        return int(self._nursery.ask({"wait": self.pid})["status"])


class Nursery:
    """The program that forks registries."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, order: Mapping[str, object]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())  # type: ignore[no-any-return]

    def start(self, environment: Mapping[str, str], folder: Path, die_before: int | None = None) -> RegistryProcess:
        """Start a registry; its steps are written to ``folder/steps``."""
        address_file = folder / "address"
        address_file.unlink(missing_ok=True)
        (folder / "steps").unlink(missing_ok=True)
        order = {
            "environment": dict(environment),
            "log": str(folder / "steps"),
            "address_file": str(address_file),
            "die_before": die_before,
        }
        pid = self.ask(order)["pid"]
        while not address_file.exists():
            if not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                raise RuntimeError(f"the registry did not start: {self.ask({'wait': pid})}")
            time.sleep(0.005)
        return RegistryProcess(address_file.read_text(), pid, self)


@contextmanager
def running_nursery() -> Iterator[Nursery]:
    """Run the program for as long as the context lasts."""
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Nursery(process)
        process.stdin.close()
        process.wait(10)


if __name__ == "__main__":
    _main()
