"""Read texts from files, write vectors to files, and resume interrupted runs.

Each output line records the line number and hash of its text, the model's fingerprint and the
options. A later run checks that they match its own texts and options before it continues.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from . import strict_json
from .codec import checked_text
from .errors import ConfigurationError, FingerprintError, ValidationError
from .results import Embedding

if sys.platform != "win32":
    import fcntl

log = logging.getLogger("bge_client")

# Errors of file systems without locks: NFS without its lock service, Lustre.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
OUTPUTS = frozenset(("dense", "sparse", "colbert"))


class OutputOptions(NamedTuple):
    """The requested vectors, and the format they are written in."""

    outputs: frozenset[str]  # of OUTPUTS
    max_length: int | None
    exact: bool  # base64 instead of rounded floats

    def recorded(self) -> dict[str, Any]:
        """Return the options that each output line records."""
        return {"max_length": self.max_length, "format": "base64" if self.exact else "float"}


class Text(NamedTuple):
    """A text, its line number in the input (from 0), and the `_id` or `id` of its JSON object."""

    line: int
    text: str
    id: Any = None

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def read_texts(lines: IO[str], *, jsonl: bool, field: str) -> Iterator[Text]:
    """Yield the text of each line that is not blank. A JSONL line is a string or has `field`.

    Raises:
        ValidationError: a line has no valid text. The message names the line, counted from 1.
    """
    for number, line in enumerate(lines):
        if line.isspace() or not line:
            continue
        value, text_id = line.rstrip("\r\n"), None
        if jsonl:
            value, text_id = _parse_line(line, number, field)
        checked_text(value, f"line {number + 1}")
        yield Text(number, value, text_id)


def _parse_line(line: str, number: int, field: str) -> tuple[Any, Any]:
    try:
        value = strict_json.loads(line)
    except ValueError as error:
        raise ValidationError(f"line {number + 1} is not JSON: {error}") from None
    if not isinstance(value, dict):
        return value, None
    if field not in value:
        raise ValidationError(f"line {number + 1} has no field `{field}`")
    text_id = value.get("_id")
    if text_id is None:
        text_id = value.get("id")
    try:
        json.dumps(text_id, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:  # a lone surrogate, or a number as large as 1e999
        raise ValidationError(f"line {number + 1}: `id` cannot be written as JSON") from None
    return value[field], text_id


def encode(text: Text, vectors: Embedding, options: OutputOptions) -> str:
    """Return one output line. Floats are rounded to 7 decimals, as in the contract."""
    line: dict[str, Any] = {"line": text.line}
    if text.id is not None:
        line["id"] = text.id
    line |= {"text_sha256": text.hash, "fingerprint": vectors.fingerprint}
    line |= options.recorded()
    if vectors.truncated:
        line["truncated"] = True
    numbers = _base64 if options.exact else _rounded
    if vectors.dense is not None:
        line["dense"] = numbers(vectors.dense)
    if vectors.sparse is not None:
        indices, values = vectors.sparse
        line["sparse"] = {"indices": indices.tolist(), "values": _rounded(values)}
    if vectors.colbert is not None:
        line["colbert"] = numbers(vectors.colbert)
    return json.dumps(line, ensure_ascii=False) + "\n"


def _rounded(array: np.ndarray[Any, Any]) -> Any:
    return np.round(array.astype(np.float64), 7).tolist()


def _base64(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    data = base64.b64encode(array.tobytes()).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": data}


class ResumePoint(NamedTuple):
    """The number of complete lines in an output file, and the model's fingerprint."""

    lines: int = 0
    fingerprint: str | None = None


@contextmanager
def locked(path: Path) -> Iterator[IO[bytes]]:
    """Open an output file for reading and appending, exclusively.

    The lock is on the file itself and ends with the process. An empty new file is removed.

    Raises:
        ConfigurationError: another process holds the lock.
    """
    is_new = not path.exists()
    with path.open("a+b") as file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(
                    f"{path} is being written by {_holder(path)}. Wait for it, or name another file"
                ) from None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                log.warning("%s cannot be locked: let no other process write to it", path)
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                raise ConfigurationError(
                    f"{path} was removed or replaced by another process. Run the command again"
                )
        try:
            yield file
        finally:
            if is_new and os.fstat(file.fileno()).st_size == 0:
                path.unlink(missing_ok=True)


def _holder(path: Path) -> str:
    """Return the process that holds the lock, if /proc/locks names it."""
    try:
        locks, inode_number = Path("/proc/locks").read_text().splitlines(), path.stat().st_ino
    except OSError:
        return "another process"
    for line in locks:  # 1: FLOCK  ADVISORY  WRITE 4711 fd:01:523 0 EOF
        _, kind, _, _, pid, inode, *_ = line.split()
        if kind == "FLOCK" and inode.endswith(f":{inode_number}"):
            return f"process {pid}"
    return "another process"


def resume(
    file: IO[bytes], path: Path, texts: Iterator[Text], options: OutputOptions
) -> ResumePoint:
    """Advance `texts` past the lines that an earlier run wrote. Truncate an incomplete last line.

    Raises:
        ConfigurationError: a line has another text or other options. The message names it.
        FingerprintError: the lines have vectors of two models.
    """
    point, size = ResumePoint(), 0
    file.seek(0)
    for raw in file:
        if not raw.endswith(b"\n"):
            break
        line = _parse_output(raw, path, point.lines + 1)
        _check_line(line, f"{path}, line {point.lines + 1},", next(texts, None), options)
        if point.fingerprint not in (None, line["fingerprint"]):
            raise FingerprintError(
                f"{path}, line {point.lines + 1}, has vectors of model {line['fingerprint']}, and "
                f"those before it of {point.fingerprint}. Pass --overwrite to start over"
            )
        point = ResumePoint(point.lines + 1, line["fingerprint"])
        size += len(raw)
    file.truncate(size)
    return point


def _check_line(
    line: dict[str, Any], where: str, text: Text | None, options: OutputOptions
) -> None:
    if text is None or (line.get("line"), line.get("text_sha256")) != (text.line, text.hash):
        raise ConfigurationError(
            f"{where} was made of another text: the input differs from that of the earlier run. "
            "Pass --overwrite to start over"
        )
    recorded = {name: line.get(name) for name in options.recorded()}
    if options.outputs != OUTPUTS & line.keys() or recorded != options.recorded():
        raise ConfigurationError(
            f"{where} was written with other options than these. Pass --overwrite to start over"
        )


def _parse_output(raw: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        line = strict_json.loads(raw)
    except ValueError:
        line = None
    if not isinstance(line, dict) or not isinstance(line.get("fingerprint"), str):
        raise ConfigurationError(f"{path}, line {number}, was not written by `bge embed`")
    return line


def write_npz(lines: Path, target: Path) -> None:
    """Convert a complete file of base64 lines to an .npz file of exact vectors.

    Its arrays: `line`, `id` (JSON, `null` if there was none) and `truncated` [N]; `fingerprint`;
    `dense` [N, D]; sparse vectors as CSR: `sparse_indptr` [N + 1], `sparse_indices`,
    `sparse_values`; ColBERT: `colbert` [all tokens, D] and `colbert_indptr` [N + 1].
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("line", "id", "truncated")}
    fingerprint = ""
    with lines.open("rb") as file:
        for number, raw in enumerate(file, 1):
            line = _parse_output(raw, lines, number)
            fingerprint = line["fingerprint"]
            try:
                _append(columns, line)
            except (KeyError, TypeError, ValueError, OverflowError):
                raise ConfigurationError(
                    f"{lines}, line {number}, has missing or invalid vectors. "
                    "Pass --overwrite to start over"
                ) from None
    arrays: dict[str, Any] = {name: np.array(columns[name]) for name in ("line", "id", "truncated")}
    arrays["fingerprint"] = np.array(fingerprint)
    if "dense" in columns:
        arrays["dense"] = np.stack(columns["dense"])
    if "indices" in columns:
        arrays["sparse_indptr"] = _indptr(columns["indices"])
        arrays["sparse_indices"] = np.concatenate(columns["indices"])
        arrays["sparse_values"] = np.concatenate(columns["values"])
    if "colbert" in columns:
        arrays["colbert_indptr"] = _indptr(columns["colbert"])
        arrays["colbert"] = np.concatenate(columns["colbert"])
    unfinished = target.with_name(target.name + ".tmp")
    with unfinished.open("wb") as out:
        np.savez(out, **arrays)
    unfinished.replace(target)


def _append(columns: dict[str, list[Any]], line: dict[str, Any]) -> None:
    """Raises KeyError, TypeError, ValueError or OverflowError if its vectors are invalid."""
    columns["line"].append(int(line["line"]))
    columns["id"].append(json.dumps(line.get("id"), ensure_ascii=False))
    columns["truncated"].append(bool(line.get("truncated", False)))
    for name, dimensions in (("dense", 1), ("colbert", 2)):
        if name in line:
            arrays = columns.setdefault(name, [])
            arrays.append(_array(line[name]))
            if arrays[-1].ndim != dimensions or arrays[-1].shape[-1] != arrays[0].shape[-1]:
                raise ValueError("another shape")
    if "sparse" in line:
        indices = np.array(line["sparse"]["indices"], np.uint32)
        with np.errstate(over="ignore"):  # 1e300 becomes infinite
            values = np.array(line["sparse"]["values"], np.float32)
        if indices.ndim != 1 or indices.shape != values.shape or not np.isfinite(values).all():
            raise ValueError("another shape")
        columns.setdefault("indices", []).append(indices)
        columns.setdefault("values", []).append(values)


def _array(value: dict[str, Any]) -> np.ndarray[Any, Any]:
    if value["dtype"] not in ("float16", "float32"):
        raise ValueError("another type")
    flat: np.ndarray[Any, Any] = np.frombuffer(base64.b64decode(value["data"]), value["dtype"])
    if not np.isfinite(flat).all():
        raise ValueError("not finite")
    return flat.reshape(value["shape"])


def _indptr(parts: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return np.cumsum([0, *map(len, parts)], dtype=np.int64)
