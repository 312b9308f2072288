"""Models by short names: ``sam-vit-b`` is the segmenter, or the encoder, that ``vplab models pull`` made of it."""

from vplab.cli.typed_values import artifact_name
from vplab.client import AsyncClient
from vplab.client.registry.values import ArtifactKind
from vplab.errors import InvalidInput, Unimplemented


async def model_name(client: AsyncClient, text: str, kind: ArtifactKind, flag: str) -> str:
    """Return the resource name of a model that a person typed, empty for empty.

    A name that the registry has stands for itself. Else it is the first part of one: ``{text}-{kind}``, or the only
    model of the kind that begins so. Raises InvalidInput naming the models that it may mean, or those that there are.
    """
    full = artifact_name(text)
    if not full:
        return ""
    artifact, *rest = full.removeprefix("artifacts/").split("/")
    try:
        known = [a.name.removeprefix("artifacts/") async for a in client.registry.list_artifacts(kind=kind)]
    except Unimplemented:  # a gateway may offer no registry: the server that takes the name decides
        return full
    whole = f"{artifact}-{kind}"
    meant = [name for name in known if name.startswith(f"{artifact}-")]
    if artifact in known:
        return full
    if whole in meant:
        meant = [whole]
    if len(meant) != 1:
        listed = ", ".join(sorted(meant or known)) or "none"
        said = "may be each of" if meant else "is none of"
        raise InvalidInput(f"{artifact!r} {said} the registry's {kind}s: {listed}", field=flag)
    return "/".join(["artifacts", meant[0], *rest])
