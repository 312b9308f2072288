"""Which code runs: the distribution's version and, where it can be told, the commit.

The version is the same for every commit between two releases, so what is made by a checkout says its commit too.
"""

import json
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from vplab.runtime.server_info import software


@cache  # asking git takes some 20 ms
def code_version() -> str:
    """Return the version, and behind a comma the commit of this checkout or of what the wheel was installed from."""
    commit = commit_of(Path(__file__)) or _installed_commit()
    return f"{software()}, commit {commit}" if commit else software()


def commit_of(file: Path) -> str:
    """Return the commit of the checkout that a file belongs to, with "-dirty" where it was changed since.

    Empty for a file that git does not know: an environment may lie in somebody else's repository.
    """
    if _git(file.parent, "ls-files", "--error-unmatch", file.name):
        return _git(file.parent, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
    return ""


def _installed_commit() -> str:
    try:
        origin = distribution("vplab").read_text("direct_url.json")
    except PackageNotFoundError:
        return ""
    return str(json.loads(origin or "{}").get("vcs_info", {}).get("commit_id", ""))


def _git(folder: Path, *arguments: str) -> str:
    try:
        command = ["git", "-C", str(folder), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
