"""Files that are not what they say: what is wrong, and what the refusal says."""

from __future__ import annotations

import json
import os
import pickle
import socket
import struct
from pathlib import Path

from adapter_store.errors import Incompatible, InvalidAdapter
from adapter_store.tensor_file import WEIGHTS_FILE
from tests.chaos.bad_inputs.case import BadInput, bad_folder
from tests.chaos.bad_inputs.material import (
    FIRST,
    entry,
    first,
    good_weights,
    header,
    raw_header,
    weights,
)

GOOD = good_weights()
LENGTH = int.from_bytes(GOOD[:8], "little")
MIB = 1024 * 1024
ONE = '{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}'

FILES: tuple[tuple[str, bytes, str], ...] = (
    ("empty file", b"", "cut short"),
    ("seven bytes", GOOD[:7], "cut short"),
    ("header length 0", b"\0" * 8 + GOOD[8:], "not strict JSON"),
    ("header length past the end", struct.pack("<Q", len(GOOD)) + GOOD[8:], "cut short"),
    ("header length 2^63", struct.pack("<Q", 2**63) + GOOD[8:], "cut short"),
    ("header length 2^64-1", b"\xff" * 8 + GOOD[8:], "cut short"),
    ("header of 1 MiB and 8 bytes", raw_header(b" " * (MIB + 6) + b"{}"), "is over 1048576"),
    ("header not padded", b"\x61" + b"\0" * 7 + b"{" + b" " * 95 + b"}", "not padded"),
    ("header cut in its middle", struct.pack("<Q", LENGTH - 8) + GOOD[8:], "not strict JSON"),
    ("data cut by a byte", GOOD[:-1], "cut short, or bytes trail"),
    ("a byte trails", GOOD + b"\0", "cut short, or bytes trail"),
    ("header not UTF-8", raw_header(b'{"\xff\xfe":1}'), "not strict JSON"),
    ("header in UTF-16", raw_header("{}".encode("utf-16")), "not strict JSON"),
    ("header with a byte order mark", raw_header(b"\xef\xbb\xbf{}"), "not strict JSON"),
    ("header not JSON", raw_header(b"{nope}"), "not strict JSON"),
    ("header a list", raw_header(b"[]"), "not a JSON object"),
    ("header null", raw_header(b"null"), "not a JSON object"),
    ("NaN in the header", entry('{"dtype":"F32","shape":[NaN,1],"data_offsets":[0,4]}'), "NaN is"),
    ("an offset of -0", entry(ONE.replace("[0,4]", "[-0,4]")), "-0 is no integer"),
    ("a number of 5,000 digits", entry("9" * 5000), "not strict JSON"),
    ("a tensor twice", raw_header(f'{{"a":{ONE},"a":{ONE}}}'.encode(), data=b"\0" * 4), "twice"),
    ("a field twice", entry(ONE.replace("{", '{"dtype":"F32",')), "twice"),
    ("metadata twice", raw_header(b'{"__metadata__":{},"__metadata__":{}}'), "twice"),
    ("lists 900,000 deep", raw_header(b'{"a":' + b"[" * 900_000), "not strict JSON"),
    ("lists 400 deep", raw_header(b'{"a":' + b"[" * 400 + b"]" * 400 + b"}"), "unknown fields"),
    ("300,000 empty objects", raw_header(b'{"a":[' + b"{}," * 300_000 + b"{}]}"), "far more than"),
    ("100,000 tensors", raw_header(
        b"{" + b",".join(b'"%x":1' % n for n in range(100_000)) + b"}"), "far more than"),
    ("4,097 tensors", raw_header(json.dumps(dict.fromkeys(map(str, range(4097)), 0)).encode()),
     "4097 tensors"),
    ("no tensors", raw_header(b"{}"), "0 tensors"),
    ("an unknown field", first(extra=1), "unknown fields"),
    ("a missing field", header(lambda entries: entries[FIRST].pop("shape")), "missing"),
    ("an entry that is a number", header(lambda entries: entries.update({FIRST: 1})), "missing"),
    ("tensors overlap", first(data_offsets=[512, 1536]), "overlaps"),
    ("a hole between tensors", header(
        lambda entries: entries.pop(FIRST)), "overlaps another or leaves a hole"),
    ("data starts late", entry(ONE.replace("0,4", "4,8")), "leaves a hole"),
    ("an offset off by one", first(data_offsets=[1, 1025]), "overlaps another or leaves a hole"),
    ("a negative offset", first(data_offsets=[-1024, 0]), "no proper 2-D shape or offsets"),
    ("an offset that is a float", first(data_offsets=[0.0, 1024.0]), "no proper 2-D shape"),
    ("an offset that is a bool", entry(ONE.replace("0,4", "false,4")), "no proper 2-D shape"),
    ("an offset that is text", first(data_offsets=["0", "1024"]), "no proper 2-D shape"),
    ("offsets backwards", first(data_offsets=[1024, 0]), "disagree"),
    ("an offset of 2^63", first(data_offsets=[2**63, 2**63 + 1024]), "no proper 2-D shape"),
    ("three offsets", first(data_offsets=[0, 512, 1024]), "no proper 2-D shape or offsets"),
    ("a size that overflows", first(shape=[2**32, 2**32]), "disagree"),
    ("a type of 8 bits", first(dtype="F8_E4M3"), "not of type F16, BF16, F32"),
    ("a type that is a list", first(dtype=["F32"]), "not of type F16, BF16, F32"),
    ("metadata of 20,000 characters", header(
        lambda entries: entries.update(__metadata__={"x": "y" * 20_000})), "is over 16384"),
    ("metadata that is a list", header(
        lambda entries: entries.update(__metadata__=[])), "not a map of strings"),
    ("metadata with a number", header(
        lambda entries: entries.update(__metadata__={"x": 1})), "not a map of strings"),
    ("a pickle", pickle.dumps({"x": 1}, protocol=2) + b"\0" * 64, "a Python pickle"),
    ("a zip, as torch writes it", b"PK\x03\x04" + b"\0" * 300, "a zip archive"),
    ("a tar", b"x" * 257 + b"ustar" + b"\0" * 300, "a tar archive"),
    ("gzip", b"\x1f\x8b\x08" + b"\0" * 300, "gzip"),
    ("GGUF", b"GGUF\x03\0\0\0" + b"\0" * 300, "a GGUF file"),
    ("a web page", b"<html>not here</html>" + b" " * 300, "cut short"),
)  # fmt: skip


def _link(folder: Path) -> None:
    (folder / WEIGHTS_FILE).rename(folder / "elsewhere")
    (folder / WEIGHTS_FILE).symlink_to("elsewhere")


def _dangling_link(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    (folder / WEIGHTS_FILE).symlink_to("/nowhere")


def _pipe(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    os.mkfifo(folder / WEIGHTS_FILE)


def _folder(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    (folder / WEIGHTS_FILE).mkdir()


def _socket(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    here = os.open(".", os.O_RDONLY)
    try:
        # A socket's path has room for about 100 characters.
        os.chdir(folder)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(WEIGHTS_FILE)
    finally:
        os.fchdir(here)
        os.close(here)


def _only_a_pickle(folder: Path) -> None:
    (folder / WEIGHTS_FILE).rename(folder / "adapter_model.bin")


def _sparse(folder: Path) -> None:
    os.truncate(folder / WEIGHTS_FILE, 512 * MIB)


def _sparse_and_consistent(folder: Path) -> None:
    rows = 512 * MIB // 4 // 64 - 1024
    size = rows * 64 * 4
    head = json.dumps({"a": {"dtype": "F32", "shape": [rows, 64], "data_offsets": [0, size]}})
    body = raw_header(head.encode())
    (folder / WEIGHTS_FILE).write_bytes(body)
    os.truncate(folder / WEIGHTS_FILE, len(body) + size)


def _terabyte(folder: Path) -> None:
    os.truncate(folder / WEIGHTS_FILE, 2**40)


PLACES = (
    ("a link", _link, InvalidAdapter, "is a link"),
    ("a link to nothing", _dangling_link, InvalidAdapter, "is a link"),
    ("a named pipe", _pipe, InvalidAdapter, "not a regular file"),
    ("a folder in its place", _folder, InvalidAdapter, "not a regular file"),
    ("a socket", _socket, InvalidAdapter, "not a regular file"),
    ("only adapter_model.bin", _only_a_pickle, InvalidAdapter, f"holds no {WEIGHTS_FILE}"),
    ("512 MiB, nearly all of it holes", _sparse, InvalidAdapter, "bytes trail"),
    ("512 MiB of holes, consistent", _sparse_and_consistent, Incompatible, "tensors are missing"),
    ("a terabyte of holes", _terabyte, InvalidAdapter, "is over"),
)

CONTAINERS: tuple[BadInput, ...] = (
    *(
        bad_folder("container", what, InvalidAdapter, says, weights(body))
        for what, body, says in FILES
    ),
    *(bad_folder("container", what, error, says, spoil) for what, spoil, error, says in PLACES),
)
