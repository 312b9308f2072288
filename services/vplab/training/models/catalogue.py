"""Models that can be fetched from their publishers by name. Imports no torch.

Each digest says where it is from. SAM's and MobileSAM's sha256 are those under which many public projects pin the same
files; SAM's publisher states the first six digits of the md5 in the file name. timm's files on the Hugging Face hub are
checked against the sha256 that the hub itself sends with the file (``X-Linked-ETag``), which guards the transfer but
trusts the hub.
"""

import difflib
from dataclasses import dataclass

from vplab.errors import NotFound
from vplab.training.models.names import dino_name, licence_of

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class CatalogueEntry:
    """One publisher's file."""

    name: str
    """What ``vplab models pull`` is given, and the first part of the artifact ids."""
    family: str
    architecture: str
    url: str
    file_name: str
    licence: str
    page: str
    """Where the publisher describes the model and its terms."""
    size_bytes: int | None = None
    """Exact size, where known before asking."""
    sha256: str | None = None
    """Known digest; None where the one the host sends with the file is taken."""
    needs_consent: bool = False
    """Whether the publisher's terms go beyond an open-source licence, so that a user should read them first."""


def catalogue() -> tuple[CatalogueEntry, ...]:
    """Return all entries, SAM first."""
    return (*_SAM, _MOBILE_SAM, *(_timm_entry(name) for name in _TIMM))


def find_entry(name: str) -> CatalogueEntry:
    """Return the entry of that name. Raises NotFound naming the nearest."""
    entries = {entry.name: entry for entry in catalogue()}
    if name in entries:
        return entries[name]
    near = difflib.get_close_matches(name, entries, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise NotFound(f"no published model is called {name}{hint}", metadata={"name": name})


def _sam_entry(size: str, md5_prefix: str, size_bytes: int, sha256: str) -> CatalogueEntry:
    file_name = f"sam_vit_{size}_{md5_prefix}.pth"
    return CatalogueEntry(
        name=f"sam-vit-{size}",
        family="sam",
        architecture=f"vit_{size}",
        url=f"https://dl.fbaipublicfiles.com/segment_anything/{file_name}",
        file_name=file_name,
        licence="Apache-2.0",
        page="https://github.com/facebookresearch/segment-anything",
        size_bytes=size_bytes,
        sha256=sha256,
    )


def _timm_entry(model: str) -> CatalogueEntry:
    licence = licence_of("timm", model)
    return CatalogueEntry(
        name=dino_name(model),
        family="timm",
        architecture=model,
        url=f"{HUB}/timm/{model}/resolve/main/model.safetensors",
        file_name=f"{model}.safetensors",
        licence=licence,
        page=f"{HUB}/timm/{model}",
        needs_consent=licence != "Apache-2.0",
    )


_SAM = (
    _sam_entry("b", "01ec64", 375_042_383, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
    _sam_entry("l", "0b3195", 1_249_524_607, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    _sam_entry("h", "4b8939", 2_564_550_879, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
)

_MOBILE_SAM = CatalogueEntry(
    name="mobile-sam",
    family="mobile_sam",
    architecture="vit_t",
    # The commit, not the branch, so that the file cannot change under its digest.
    url="https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/"
    "34bbbfdface3c18e5221aa7de6032d7220c6c6a1/weights/mobile_sam.pt",
    file_name="mobile_sam.pt",
    licence="Apache-2.0",
    page="https://github.com/ChaoningZhang/MobileSAM",
    size_bytes=40_728_226,
    sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
)

_TIMM = (
    *(
        f"vit_{size}_patch14_{registers}dinov2.lvd142m"
        for registers in ("", "reg4_")
        for size in ("small", "base", "large", "giant")
    ),
    *(f"vit_{size}_patch16_dinov3.lvd1689m" for size in ("small", "small_plus", "base", "large", "huge_plus")),
    "vit_large_patch16_dinov3.sat493m",
)
