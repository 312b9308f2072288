"""The messages of the Open Inference Protocol that a call needs: one BYTES tensor there, one back.

The fields and their numbers are those of the protocol's ``grpc_predict_v2.proto``; what is not used is left out, which
protobuf allows on both sides.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_BYTES, _STRING, _INT64, _MESSAGE = 12, 9, 3, 11
_ONE, _MANY = 1, 3
_PACKAGE = "vplab_peers_inference"
_FIELDS: dict[str, tuple[tuple[str, int, int, int, str], ...]] = {
    "Contents": (("bytes_contents", 8, _BYTES, _MANY, ""),),
    "Tensor": (
        ("name", 1, _STRING, _ONE, ""),
        ("datatype", 2, _STRING, _ONE, ""),
        ("shape", 3, _INT64, _MANY, ""),
        ("contents", 5, _MESSAGE, _ONE, "Contents"),
    ),
    "Request": (("model_name", 1, _STRING, _ONE, ""), ("inputs", 5, _MESSAGE, _MANY, "Tensor")),
    "Response": (("outputs", 5, _MESSAGE, _MANY, "Tensor"), ("raw_output_contents", 6, _BYTES, _MANY, "")),
}


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3")
    for message, fields in _FIELDS.items():
        described = file.message_type.add(name=message)
        for name, number, kind, label, of in fields:
            field = described.field.add(name=name, number=number, type=kind, label=label)
            if of:
                field.type_name = f".{_PACKAGE}.{of}"
    return file


_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(_file())
_REQUEST, _RESPONSE = (
    message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
    for name in ("Request", "Response")
)


def infer_request(model: str, item: bytes) -> bytes:
    """Return a ModelInfer request with one item."""
    tensor = {"name": "item", "datatype": "BYTES", "shape": [1, 1], "contents": {"bytes_contents": [item]}}
    return bytes(_REQUEST(model_name=model, inputs=[tensor]).SerializeToString())


def infer_answer(data: bytes) -> bytes:
    """Return the item of a ModelInfer response."""
    response = _RESPONSE.FromString(data)
    if response.raw_output_contents:  # each element after its length, as the protocol has it
        return bytes(response.raw_output_contents[0][4:])
    return bytes(response.outputs[0].contents.bytes_contents[0])
