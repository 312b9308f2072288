"""What to do about an alias that does not exist: versions may, and a name without a number means an alias."""

import re
from contextlib import aclosing

from vplab.client import AsyncClient
from vplab.errors import NotFound, VPLabError

_ALIAS = re.compile(r"artifacts/([a-z0-9-]+)/aliases/([a-z0-9-]+)")


async def told_with_versions(client: AsyncClient, error: NotFound) -> NotFound:
    """Return the error with the newest version of the artifact whose alias is missing; as it is where there is none."""
    found = _ALIAS.search(error.message)
    if found is None or "registry" not in client.addresses:
        return error
    artifact, alias = found.groups()
    try:
        async with aclosing(client.registry.list_versions(f"artifacts/{artifact}")) as newest_first:  # type: ignore[type-var]
            newest = await anext(newest_first, None)
    except VPLabError:
        return error  # the advice is a courtesy: what it needs must not hide what went wrong
    if newest is None:
        return error
    short = f"{artifact}@{newest.name.rpartition('/')[2]}"
    hint = f"its newest version is {short}: name that"
    if newest.kind not in ("prompt_set", "dataset"):  # of those the newest is used, nothing has to serve them
        hint += f", or let it be served with 'vplab {promote_command(short, alias)}'"
    return NotFound(f"{error.message}; {hint}", reason=error.reason, metadata=error.metadata)


def promote_command(version: str, alias: str = "production") -> str:
    """Return the verb that lets an alias name a version; version: ``scratches@3``."""
    return f"models promote {version}" + ("" if alias == "production" else f" --alias {alias}")
