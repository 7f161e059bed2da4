"""What Envoy must know of the protos to take JSON and to say errors in it."""

from __future__ import annotations

import base64

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from google.rpc import error_details_pb2, status_pb2

from inference_node.pb.lorapool.v1 import catalog_pb2, inference_pb2

_ROOTS = (inference_pb2, catalog_pb2, status_pb2, error_details_pb2)


def descriptors() -> str:
    """The services with all they import, and the details of errors: a FileDescriptorSet, base64."""
    files: dict[str, FileDescriptor] = {}
    for module in _ROOTS:
        _collect(module.DESCRIPTOR, files)
    found = descriptor_pb2.FileDescriptorSet()
    for file in files.values():
        file.CopyToProto(found.file.add())
    return base64.b64encode(found.SerializeToString(deterministic=True)).decode()


def _collect(file: FileDescriptor, into: dict[str, FileDescriptor]) -> None:
    """What a file imports comes before it."""
    for imported in file.dependencies:
        _collect(imported, into)
    into.setdefault(file.name, file)
