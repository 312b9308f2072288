"""The rules of protos/README.md that buf does not check, read from the descriptors."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor, FileDescriptor

from vplab.errors import VPLabError
from vplab.wire.status import REASONS

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "protos" / "vplab").rglob("*.proto"))
AREAS = ("embedding", "errors", "registry", "runtime", "segmentation", "training", "vision")


def file_of(proto: Path) -> FileDescriptor:
    name = ".".join(proto.relative_to(ROOT / "protos").with_suffix("").parts)
    return importlib.import_module(f"{name}_pb2").DESCRIPTOR


FILES = [file_of(proto) for proto in PROTOS]
SERVICES = [service for file in FILES for service in file.services_by_name.values()]
METHODS = [method for service in SERVICES for method in service.methods]
TOP_MESSAGES = [message for file in FILES for message in file.message_types_by_name.values()]


def nested(messages):
    for message in messages:
        yield message
        yield from nested(message.nested_types)


MESSAGES = list(nested(TOP_MESSAGES))
ENUMS = [enum for file in FILES for enum in file.enum_types_by_name.values()] + [
    enum for message in MESSAGES for enum in message.enum_types
]


def full_name(descriptor) -> str:
    return descriptor.full_name


def test_every_area_of_the_design_is_there():
    assert {file.package for file in FILES} == {f"vplab.api.{area}.v1" for area in AREAS}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_package_is_folder_and_import_path(file):
    assert file.package == str(Path(file.name).parent).replace("/", ".")


@pytest.mark.parametrize("enum", ENUMS, ids=full_name)
def test_an_enums_zero_is_unspecified_and_its_values_carry_its_name(enum: EnumDescriptor):
    prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_"
    assert enum.values_by_number[0].name == f"{prefix}UNSPECIFIED"
    assert all(value.name.startswith(prefix) for value in enum.values)


@pytest.mark.parametrize("service", SERVICES, ids=full_name)
def test_a_service_is_named_after_its_area_and_alone_in_its_file(service):
    area = service.file.package.split(".")[2]
    assert service.name.lower() == f"{area}service"
    assert service.file.name.endswith(f"/{area}_service.proto")
    assert list(service.file.services_by_name) == [service.name]


@pytest.mark.parametrize("method", METHODS, ids=full_name)
def test_every_rpc_has_its_own_request_and_response(method):
    assert method.input_type.name == f"{method.name}Request"
    assert method.output_type.name == f"{method.name}Response"
    assert method.input_type.file is method.containing_service.file or (
        method.input_type.file.name == method.containing_service.file.name
    )


def test_no_request_or_response_is_shared():
    used = [full_name(t) for method in METHODS for t in (method.input_type, method.output_type)]
    assert len(used) == len(set(used))


@pytest.mark.parametrize("method", [m for m in METHODS if m.name.startswith("List")], ids=full_name)
def test_a_list_pages_or_is_bounded_by_the_process(method):
    fields = method.input_type.fields_by_name
    if not {"page_size", "page_token"} <= set(fields):
        assert "page_size" not in fields
        assert method.name == "ListEncoders", f"{method.full_name} returns a list without pages"
        return
    assert "next_page_token" in method.output_type.fields_by_name


@pytest.mark.parametrize("method", [m for m in METHODS if m.name.startswith("Watch")], ids=full_name)
def test_a_watch_streams_and_can_be_resumed(method):
    """The server frame ends methods of this name when it drains, so their callers must be able to go on elsewhere."""
    assert method.server_streaming
    assert not method.client_streaming
    assert any(name.startswith(("from_", "after_")) for name in method.input_type.fields_by_name)


@pytest.mark.parametrize("message", MESSAGES, ids=full_name)
def test_a_field_of_time_is_a_timestamp_and_a_number_says_its_unit(message):
    for field in message.fields:
        if field.name.endswith(("_time", "_at")):
            assert field.type == FieldDescriptor.TYPE_MESSAGE, field.full_name
        assert not field.name.endswith(("_ms", "_millis", "timeout")), field.full_name


def test_reasons_in_rpc_comments_are_in_the_contract():
    """Each RPC's comment lists the reasons it can return; a name that is not in ErrorReason is a typing mistake."""
    for proto in PROTOS:
        for comment in re.findall(r"((?:^ *//.*\n)+) *rpc ", proto.read_text(), re.MULTILINE):
            _, _, listed = comment.partition("Reasons:")
            named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", listed))
            assert named <= REASONS, f"{proto.name}: {sorted(named - REASONS)}"


def test_every_kind_of_error_has_a_reason_of_the_contract():
    assert {kind.default_reason for kind in VPLabError.__subclasses__()} <= REASONS


def test_lint_and_format_are_clean():
    buf = Path(sys.executable).parent / "buf"
    if not buf.exists():
        pytest.skip("buf is not installed")
    for arguments in (["lint"], ["format", "--diff", "--exit-code"]):
        result = subprocess.run([str(buf), *arguments, str(ROOT / "protos")], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
