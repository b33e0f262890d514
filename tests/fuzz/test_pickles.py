"""Pickles of a checkpoint: damaged ones, and generated programs that try to call functions."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

from hypothesis import strategies as st

from fuzz import canary
from fuzz.checkpoint_files import converts_or_fails_cleanly, damaged, fuzz, write_tiny

HEAD = "sparse_linear.pt"
GLOBALS = st.sampled_from(
    [
        *(
            "fuzz.canary\ncall",
            "fuzz.canary\nCanary",
            "builtins\ngetattr",
            "collections\nOrderedDict",
        ),
        *("torch._utils\n_rebuild_tensor_v2", "torch._utils\n_rebuild_sparse_tensor"),
        *("torch._utils\n_rebuild_parameter", "torch\nFloatStorage", "torch\nfloat8_e4m3fn"),
        *("torch._tensor\n_rebuild_from_type_v2", "torch\nSize", "torch\ndevice", "torch\nTensor"),
    ]
).map(str.encode)
TEXTS = st.sampled_from([b"w", b"weight", b"bias", b"storage", b"fuzz.canary", b"call", b"cpu"])
OPERATIONS = (
    GLOBALS.map(lambda name: b"c" + name + b"\n")
    | GLOBALS.map(lambda name: b"(i" + name + b"\n")
    | TEXTS.map(lambda text: b"X" + len(text).to_bytes(4, "little") + text)
    | st.sampled_from(
        [
            *(b"R", b"R", b"R", b"b", b"\x81", b"\x92", b"\x93", b"o", b"t", b"(", b")", b"\x85"),
            *(b"\x86", b"\x87", b"}", b"]", b"l", b"d", b"s", b"u", b"a", b"e", b"0", b"1", b"2"),
            *(b"K\x01", b"M\xff\xff", b"N", b"\x88", b"q\x00", b"h\x00", b"Q", b"Px\n", b"."),
            *(b"\x82\x01", b"\x8a\x09" + b"\xff" * 9, b"I1\n", b"G" + bytes(8), b"\x80\x05"),
            *(
                b"X\xff\xff\xff\x7f",
                b"\x8b\xff\xff\xff\x7f",
                b"\x95" + b"\xff" * 8,
                b"\x8f",
                b"\x90",
            ),
        ]
    )
)
# Calls the canary. Whether the unpickler reaches it depends on the operations around it.
CALL = b"cfuzz.canary\ncall\n)R"
PROGRAMS = st.tuples(
    st.sampled_from([b"\x80\x02}X\x01\x00\x00\x00w", b"\x80\x02", b""]),
    st.lists(OPERATIONS | st.just(CALL), max_size=12),
    st.sampled_from([b"s.", b"."]),
).map(lambda parts: parts[0] + b"".join(parts[1]) + parts[2])


def test_a_pickle_converts_or_is_refused_and_runs_nothing(
    checkpoints: Path, tmp_path: Path
) -> None:
    source = write_tiny(checkpoints / "bge-m3", tmp_path / "tiny")
    valid = (source / HEAD).read_bytes()
    programs = damaged(program(valid)) | PROGRAMS
    inputs = programs.map(lambda changed: with_program(valid, changed)) | damaged(valid)
    inputs |= programs.map(legacy)

    def check(content: bytes) -> None:
        (source / HEAD).write_bytes(content)
        canary.calls.clear()
        converts_or_fails_cleanly(source)
        assert canary.calls == []

    fuzz(check, inputs, examples=150)


def test_the_canary_records_calls() -> None:
    canary.calls.clear()
    assert pickle.loads(b"\x80\x02" + CALL + b".") == "called"
    assert canary.calls == ["call"]


def program(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def with_program(content: bytes, changed: bytes) -> bytes:
    """Return the archive with another `data.pkl`."""
    output = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(output, "w") as new:
        for name in old.namelist():
            new.writestr(name, changed if name.endswith("data.pkl") else old.read(name))
    return output.getvalue()


def legacy(changed: bytes) -> bytes:
    """Return torch's legacy format: magic number, protocol, machine, the program, keys."""
    numbers = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(number, 2) for number in numbers) + changed + pickle.dumps([], 2)
