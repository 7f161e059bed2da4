"""What Envoy is given to refuse JSON with fields that a request does not have."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import resources
from string import Template

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from inference_node.pb.lorapool.v1 import catalog_pb2, inference_pb2

ANYTHING = ""
"""What is no message, and what a map holds."""


def known_fields() -> str:
    """A script for Envoy's Lua filter. Equal protos give equal text."""
    requests: dict[str, str] = {}
    messages: dict[str, dict[str, str]] = {}
    for module in (inference_pb2, catalog_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                requests[f"/{service.full_name}/{method.name}"] = method.input_type.full_name
                _collect(method.input_type, messages)
    script = resources.files("inference_node.gateway").joinpath("known_fields.lua").read_text()
    return Template(script).substitute(
        requests=_table((name, json.dumps(message)) for name, message in requests.items()),
        messages=_table(
            (name, _table((field, json.dumps(kind)) for field, kind in fields.items()))
            for name, fields in messages.items()
        ),
    )


def _collect(message: Descriptor, into: dict[str, dict[str, str]]) -> None:
    """The fields of a message in both spellings, and those of the messages in it."""
    if message.full_name in into:
        return
    fields = into[message.full_name] = {}
    for field in message.fields:
        inner = _held(field)
        fields[field.name] = fields[field.json_name] = inner.full_name if inner else ANYTHING
        if inner is not None:
            _collect(inner, into)


def _held(field: FieldDescriptor) -> Descriptor | None:
    inner = field.message_type
    return None if inner is None or inner.GetOptions().map_entry else inner


def _table(pairs: Iterable[tuple[str, str]]) -> str:
    """A table of Lua, of names that JSON and Lua write alike."""
    return "{" + ", ".join(f"[{json.dumps(name)}] = {value}" for name, value in pairs) + "}"
