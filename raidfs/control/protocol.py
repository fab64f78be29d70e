"""The lines on a control socket: one JSON document each way for every request.

Request: ``{"id": 1, "method": "status", "params": {}}``. Answer: ``{"id": 1, "result": ...}`` or
``{"id": 1, "failure": <RaidfsError.to_json>}``. The daemon speaks first, with ``{"hello": <Hello>}``, so that a
client knows whom it talks to before it asks.

Methods: ``status`` -> NodeStatus; ``statistics`` -> EngineStatus; ``suspend`` {lo_bytes, hi_bytes} -> null, when no
older write is in flight in the range; ``fail`` {image}, ``remove`` {path}, ``add`` {path, spare, force}, ``re_add``
{path} and ``grow`` with the fields of `raidfs.resize_plan.Change` -> null, when all nodes have followed; ``check_grow``
with the same -> {steps, failure}; ``sync_action`` {action} -> null, when it has been asked for; ``explain`` ->
NodeExplanation; ``touch`` -> null; ``umount`` -> null, when nothing is mounted any more (the daemon then leaves its
array and closes the connection when that is done).
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from raidfs.control.schema import SCHEMA_VERSION
from raidfs.errors import BadDocument

# A request has a method's name and two numbers; an answer lists legs, members and waits, a few hundred bytes each.
REQUEST_BYTES_MAX = 4096
ANSWER_BYTES_MAX = 4 * 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Hello:
    """What a daemon says to each client first."""

    mountpoint: str
    name: str
    uuid: str
    pid: int
    version: str
    schema: int = SCHEMA_VERSION


@dataclasses.dataclass(frozen=True)
class Request:
    """One request of a client."""

    id: int
    method: str
    params: dict[str, Any]


def encode(document: dict[str, Any]) -> bytes:
    """Return the line of a document, with its newline."""
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Return the document of a line. Raises BadDocument when it is not a JSON object."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadDocument(where="the line", wanted="JSON") from error
    if not isinstance(document, dict):
        raise BadDocument(where="the line", wanted="an object")
    return document


def decode_request(line: bytes) -> Request:
    """Return the request in a line. Raises BadDocument."""
    document = decode(line)
    number, method, params = document.get("id"), document.get("method"), document.get("params", {})
    if type(number) is not int:
        raise BadDocument(where="id", wanted="an integer")
    if not isinstance(method, str):
        raise BadDocument(where="method", wanted="a text")
    if not isinstance(params, dict):
        raise BadDocument(where="params", wanted="an object")
    return Request(number, method, params)


def decode_hello(line: bytes) -> Hello:
    """Return the greeting in a line; keys that a newer daemon adds are ignored. Raises BadDocument."""
    greeting = decode(line).get("hello")
    if not isinstance(greeting, dict):
        raise BadDocument(where="hello", wanted="an object")
    try:
        hello = Hello(**{field.name: greeting[field.name] for field in dataclasses.fields(Hello)})
    except KeyError as error:
        raise BadDocument(where=f"hello.{error.args[0]}", wanted="a value") from error
    if hello.schema != SCHEMA_VERSION:
        raise BadDocument(where="hello.schema", wanted=str(SCHEMA_VERSION))
    return hello
