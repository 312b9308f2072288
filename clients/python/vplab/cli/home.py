"""The folder where a machine's own deployment keeps its data, and who is using it now."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vplab.client.options import AREAS, Area
from vplab.errors import InvalidInput


@dataclass(frozen=True)
class Deployment:
    """A running set of services on this machine."""

    pid: int
    """The process that started them and will stop them."""
    nonce: str
    """Tells this deployment from a later one with the same process id."""
    addresses: dict[Area, str]
    sockets: dict[Area, str] = field(default_factory=dict)
    """``unix:/path`` of those that also listen there, for callers on this machine."""

    @property
    def nearest(self) -> dict[Area, str]:
        """Where this machine's commands reach each service best."""
        return {**self.addresses, **self.sockets}


@dataclass(frozen=True)
class Home:
    """Paths below ``VPLAB_HOME``."""

    root: Path

    @property
    def logs(self) -> Path:
        """One log for each service."""
        return self.root / "logs"

    @property
    def deployment_lock(self) -> Path:
        """Held exclusively by the process whose services use this home."""
        return self.root / "deployment.lock"

    @property
    def users_lock(self) -> Path:
        """Held shared by every command that uses those services."""
        return self.root / "users.lock"

    def data_variables(self) -> dict[str, str]:
        """Return the variables that put each service's data below this home."""
        return {
            "VPLAB_HOME": str(self.root),
            "VPLAB_EMBEDDING_CACHE_DIR": str(self.root / "embedding"),
            "VPLAB_SEGMENTATION_CACHE_DIR": str(self.root / "segmentation"),
        }

    def create(self) -> None:
        """Make the folder. Raises InvalidInput when it cannot be used."""
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"cannot use {self.root}: {error.strerror or error}"
            raise InvalidInput(message, field="VPLAB_HOME") from error

    def announce(self, deployment: Deployment) -> None:
        """Let other commands find the deployment."""
        part = self._record.with_suffix(f".{deployment.nonce}")
        part.write_text(json.dumps(asdict(deployment)), encoding="utf-8")
        os.replace(part, self._record)

    def withdraw(self) -> None:
        """Stop other commands from finding the deployment."""
        self._record.unlink(missing_ok=True)

    def running(self) -> Deployment | None:
        """Return the announced deployment; None without one, or if its process is gone."""
        try:
            content = json.loads(self._record.read_text(encoding="utf-8"))
            addresses, sockets = map(_by_area, (content["addresses"], content.get("sockets", {})))
            deployment = Deployment(int(content["pid"]), str(content["nonce"]), addresses, sockets)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return deployment if _is_alive(deployment.pid) else None

    @property
    def _record(self) -> Path:
        return self.root / "deployment.json"


def _by_area(said: dict[str, str]) -> dict[Area, str]:
    return {area: str(said[area]) for area in AREAS if area in said}


def default_home() -> Home:
    """Return ``VPLAB_HOME``, else the user's data folder."""
    chosen = os.environ.get("VPLAB_HOME")
    return Home((Path(chosen) if chosen else Path("~/.local/share/vplab")).expanduser().absolute())


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
