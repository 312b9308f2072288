"""What the protos' comments promise: the error reasons of each RPC, read from the text of the contract."""

import re
from pathlib import Path

PROTOS = Path(__file__).resolve().parents[2] / "protos" / "vplab" / "api"
_REASON = re.compile(r"\b[A-Z][A-Z_]{5,}[A-Z]\b")
_RPC = re.compile(r"((?:^ *//.*\n)+) *rpc (\w+)\(", re.MULTILINE)
_SERVICE = re.compile(r"((?:^//.*\n)+)service (\w+) \{", re.MULTILINE)
_PACKAGE = re.compile(r"^package ([\w.]+);", re.MULTILINE)
_AS = re.compile(r"as (\w+)[,.]")


def documented_reasons() -> dict[str, frozenset[str]]:
    """Return the reasons of every RPC by its full method, such as "/vplab.api.registry.v1.RegistryService/GetVersion".

    A comment may say "as OtherRpc, and ..."; the reasons of the service's own comment belong to each of its RPCs.
    """
    reasons: dict[str, frozenset[str]] = {}
    for path in sorted(PROTOS.rglob("*_service.proto")):
        text = path.read_text()
        package, service = _PACKAGE.search(text), _SERVICE.search(text)
        assert package is not None, f"{path} has no package"
        assert service is not None, f"{path} has no service"
        of_all = set(_REASON.findall(service[1]))
        own = {name: _reasons_part(comment) for comment, name in _RPC.findall(text)}
        for name, part in own.items():
            other = _AS.search(part)
            inherited = set(_REASON.findall(own[other[1]])) if other and other[1] in own else set()
            if other and other[1] in own and (further := _AS.search(own[other[1]])) and further[1] in own:
                inherited |= set(_REASON.findall(own[further[1]]))
            full = f"/{package[1]}.{service[2]}/{name}"
            reasons[full] = frozenset(set(_REASON.findall(part)) | inherited | of_all)
    return reasons


def _reasons_part(comment: str) -> str:
    """Return what follows "Reasons:" in an RPC's comment, as one line."""
    joined = " ".join(line.strip().removeprefix("//").strip() for line in comment.splitlines())
    return joined.partition("Reasons:")[2]
