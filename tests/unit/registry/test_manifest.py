import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vplab.errors import InvalidInput
from vplab.registry.checks import check_manifest, path_problem
from vplab.registry.manifest import canonical_manifest, manifest_digest, manifest_from_canonical
from vplab.registry.values import BlobFile, Lineage, Manifest, VersionKey

MANIFEST = Manifest(
    files=(
        BlobFile("model.json", "11" * 32, 2, "application/json"),
        BlobFile("graph/decoder.onnx", "22" * 32, 9_007_199_254_740_991),
    ),
    lineage=(
        Lineage("image_encoder", VersionKey("nano-encoder", 10), "33" * 32),
        Lineage("dataset", VersionKey("steel", 2), "44" * 32),
        Lineage("image_encoder", VersionKey("nano-encoder", 9), "55" * 32),
    ),
    metrics={"validation_iou": 0.875, "loss": 1e-7, "steps": 100.0},
    licence="Apache-2.0",
    spec={"size": 512, "mean": [127.5, 1e21, True, None], "für": {"b": "a/b", "a": -0.0}},
    description='He said "€"\n',
)

# The whole form, for whoever computes the digest in another language.
GOLDEN = (
    '{"description":"He said \\"€\\"\\n",'
    '"files":[{"media_type":"","path":"graph/decoder.onnx","sha256":"' + "22" * 32 + '","size_bytes":9007199254740991},'
    '{"media_type":"application/json","path":"model.json","sha256":"' + "11" * 32 + '","size_bytes":2}],'
    '"licence":"Apache-2.0",'
    '"lineage":[{"digest":"' + "44" * 32 + '","relation":"dataset","version":"artifacts/steel/versions/2"},'
    '{"digest":"' + "33" * 32 + '","relation":"image_encoder","version":"artifacts/nano-encoder/versions/10"},'
    '{"digest":"' + "55" * 32 + '","relation":"image_encoder","version":"artifacts/nano-encoder/versions/9"}],'
    '"metrics":{"loss":1e-7,"steps":100,"validation_iou":0.875},'
    '"spec":{"für":{"a":0,"b":"a/b"},"mean":[127.5,1e+21,true,null],"size":512}}'
)
GOLDEN_DIGEST = "31e1102e7a40ad85e7a91716276e5d1ef444b498f08ddd478bf038d2656036ca"


def test_canonical_form_is_the_documented_one() -> None:
    assert canonical_manifest(MANIFEST).decode() == GOLDEN
    assert manifest_digest(canonical_manifest(MANIFEST)) == GOLDEN_DIGEST


def test_smallest_manifest_spells_out_every_member() -> None:
    smallest = Manifest((BlobFile("a", "00" * 32, 0),))
    assert canonical_manifest(smallest).decode() == (
        '{"description":"","files":[{"media_type":"","path":"a","sha256":"' + "00" * 32 + '","size_bytes":0}],'
        '"licence":"","lineage":[],"metrics":{},"spec":{}}'
    )


def test_order_of_entries_does_not_matter() -> None:
    shuffled = replace(MANIFEST, files=MANIFEST.files[::-1], lineage=MANIFEST.lineage[::-1])
    assert canonical_manifest(shuffled) == canonical_manifest(MANIFEST)


@pytest.mark.parametrize(
    "changed",
    [
        replace(MANIFEST, licence="MIT"),
        replace(MANIFEST, description=""),
        replace(MANIFEST, metrics={}),
        replace(MANIFEST, spec={}),
        replace(MANIFEST, lineage=MANIFEST.lineage[:2]),
        replace(MANIFEST, files=MANIFEST.files[:1]),
    ],
)
def test_every_member_counts(changed: Manifest) -> None:
    assert canonical_manifest(changed) != canonical_manifest(MANIFEST)


def test_canonical_form_reads_back() -> None:
    read = manifest_from_canonical(canonical_manifest(MANIFEST))
    assert canonical_manifest(read) == canonical_manifest(MANIFEST)
    assert set(read.files) == set(MANIFEST.files)
    assert set(read.lineage) == set(MANIFEST.lineage)
    assert read.metrics == MANIFEST.metrics


@given(st.text())
def test_accepted_path_stays_below_its_folder(path: str) -> None:
    if path_problem(path) is None:
        parts = path.split("/")
        assert not path.startswith("/")
        assert not {"", ".", ".."} & set(parts)
        assert "\\" not in path
        path.encode()


def test_all_that_is_wrong_is_said_at_once() -> None:
    wrong = Manifest((BlobFile("../a", "x", -1 + 2**60, "nothing"),), metrics={"iou": float("inf")}, licence="x" * 300)
    with pytest.raises(InvalidInput) as refusal:
        check_manifest(wrong)
    assert [violation.field for violation in refusal.value.violations] == [
        "manifest.files[0].path",
        "manifest.files[0].sha256",
        "manifest.files[0].size_bytes",
        "manifest.files[0].media_type",
        "manifest.metrics['iou']",
        "manifest.licence",
    ]


def test_golden_digest_is_that_of_the_golden_form() -> None:
    assert hashlib.sha256(GOLDEN.encode()).hexdigest() == GOLDEN_DIGEST
