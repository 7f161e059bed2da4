"""Every RPC of the wire contract, and of health and reflection, as their descriptors name them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from inference_node.pb.lorapool import v1


def every_rpc() -> dict[str, MethodDescriptor]:
    """By the path that gRPC calls them by."""
    return {
        f"/{service.full_name}/{method.name}": method
        for file in _files()
        for service in file.services_by_name.values()
        for method in service.methods
    }


def _files() -> Iterator[FileDescriptor]:
    for module in pkgutil.iter_modules(v1.__path__, f"{v1.__name__}."):
        if module.name.endswith("_pb2"):
            yield importlib.import_module(module.name).DESCRIPTOR
    yield health_pb2.DESCRIPTOR
    yield reflection_pb2.DESCRIPTOR
