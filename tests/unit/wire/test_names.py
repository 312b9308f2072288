import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vplab.errors import InvalidInput
from vplab.wire import names
from vplab.wire.names import AliasName, ArtifactName, VersionName

IDS = st.from_regex(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


@given(IDS, st.integers(1, 10**18 - 1), IDS)
def test_every_name_reads_back_as_itself(artifact: str, number: int, alias: str) -> None:
    version, moving, owner = VersionName(artifact, number), AliasName(artifact, alias), ArtifactName(artifact)
    assert names.parse_version_name(str(version), field="n") == version
    assert names.parse_alias_name(str(moving), field="n") == moving
    assert names.parse_artifact_name(str(owner), field="n") == owner
    assert names.parse_version_or_alias(str(version), field="n") == version
    assert names.parse_version_or_alias(str(moving), field="n") == moving
    assert names.parse_version_or_alias(str(owner), field="n") == AliasName(artifact, "production")


@given(st.text(max_size=90))
def test_any_other_text_is_invalid_input_at_its_field(text: str) -> None:
    parsers = (
        names.parse_artifact_name,
        names.parse_version_name,
        names.parse_alias_name,
        names.parse_version_or_alias,
    )
    for parse in parsers:
        with pytest.raises(InvalidInput) as caught:
            parse(f"artefacts/{text}", field="a.b")
        assert caught.value.violations[0].field == "a.b"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "artifacts/",
        "artifacts/A",
        "artifacts/a-",
        "artifacts/a\n",
        "artifacts/" + "a" * 64,
        "artifacts/a/versions/0",
        "artifacts/a/versions/01",
        "artifacts/a/versions/-1",
        "artifacts/a/versions/" + "9" * 40,
        "artifacts/a/versions/\u0661",
        "artifacts/a/aliases/",
        "artifacts/a/aliases/b/c",
        "artifacts/../a",
    ],
)
def test_a_name_that_nearly_fits_is_invalid_input(text: str) -> None:
    with pytest.raises(InvalidInput):
        names.parse_version_or_alias(text, field="n")


def test_a_long_name_is_cut_in_the_message() -> None:
    with pytest.raises(InvalidInput) as caught:
        names.parse_artifact_name("x" * 10_000, field="n")
    assert len(caught.value.message) < 200


def test_a_request_id_is_a_uuid_or_empty() -> None:
    value = uuid.uuid4()
    assert names.parse_request_id(str(value)) == value
    assert names.parse_request_id("") is None
    for text in ("1", "{" + str(value) + "}", value.hex, "urn:uuid:" + str(value)):
        with pytest.raises(InvalidInput):
            names.parse_request_id(text)
    with pytest.raises(InvalidInput, match="required"):
        names.parse_request_id("", required=True)


def test_embeddings_jobs_leases_and_digests_are_read_back() -> None:
    assert names.parse_embedding_name("embeddings/" + "a" * 64, field="n") == "a" * 64
    assert names.parse_job_name("tuningJobs/x_1", collection="tuningJobs", field="n") == "x_1"
    assert names.parse_lease_name("leases/7", field="n") == "7"
    assert names.parse_sha256("0" * 64, field="n") == "0" * 64
    for parse, text in (
        (names.parse_embedding_name, "embeddings/" + "A" * 64),
        (names.parse_lease_name, "lease/7"),
        (names.parse_sha256, "0" * 63),
    ):
        with pytest.raises(InvalidInput):
            parse(text, field="n")
