"""Conversion: what is refused and with which message, and what is written."""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bge_builder.__main__ import main
from bge_builder.convert import convert
from bge_builder.errors import ConvertError
from bge_builder.folders import LockedError
from bge_worker.engine.checkpoint import expected_shapes, load
from bge_worker.engine.engine import load_engine
from bge_worker.engine.manifest import File, Manifest, check_files
from bge_worker.engine.outputs import Embedding, Outputs
from bge_worker.errors import StartError
from bge_worker.settings import EngineName
from conftest import MODELS, ROOT, settings_in

EMBED, RERANK = MODELS
Damage = Callable[[Path], None]


class Malicious:
    """A pickle that runs code when it is loaded."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.witness,))


@pytest.fixture
def copy(checkpoints: Path, tmp_path: Path) -> Path:
    """A copy of both miniatures, to be damaged."""
    return Path(shutil.copytree(checkpoints, tmp_path / "source"))


def change_json(path: Path, **fields: object) -> None:
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(content | fields), encoding="utf-8")


def change_config(model: str, **fields: object) -> Damage:
    return lambda folder: change_json(folder / model / "config.json", **fields)


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / EMBED / "pytorch_model.bin"
        tensors = torch.load(path, weights_only=True)
        change(tensors)
        torch.save(tensors, path)

    return damage


def set_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["encoder.layer.0.output.dense.weight"][0, 0] = float("nan")


def write(name: str, content: bytes, model: str = EMBED) -> Damage:
    return lambda folder: (folder / model / name).write_bytes(content)  # type: ignore[func-returns-value]


def with_header(header: bytes, length: int | None = None) -> Damage:
    """Replace the reranker's safetensors: header length in 8 bytes, JSON header, data."""
    size = struct.pack("<Q", len(header) if length is None else length)
    return write("model.safetensors", size + header + bytes(64), RERANK)


def header_of(**tensors: object) -> bytes:
    first = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    return json.dumps(first | tensors).encode()


def change_tokenizer(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / EMBED / "tokenizer.json"
        content = json.loads(path.read_text("utf-8"))
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")

    return damage


def with_pattern(pattern: str) -> Damage:
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return change_tokenizer(lambda content: content.update(pre_tokenizer=split))


def with_unk(**fields: object) -> Damage:
    return change_tokenizer(lambda content: content["added_tokens"][3].update(fields))


def change_query(make: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    return change_weights(lambda tensors: tensors.update({QUERY: make(tensors[QUERY])}))


def to_nested(tensor: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):  # a prototype
        return torch.nested.nested_tensor([tensor, tensor[:5]])


def to_quantized(tensor: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):  # deprecated
        return torch.quantize_per_tensor(tensor, 1.0, 0, torch.qint8)


QUERY = "encoder.layer.0.attention.self.query.weight"
DAMAGES: dict[str, tuple[Damage, str]] = {
    "auto_map": (
        change_config(EMBED, auto_map={"AutoModel": "evil.Model"}),
        "has `auto_map`: code from a checkpoint is never run",
    ),
    "architecture": (
        change_config(EMBED, architectures=["BertModel"]),
        "`architectures` must hold one of XLMRobertaModel, XLMRobertaForSequenceClassification. "
        "Given: ['BertModel']",
    ),
    "two labels": (
        change_config(RERANK, id2label={"0": "a", "1": "b"}),
        "`id2label` must have one label. Given: {'0': 'a', '1': 'b'}",
    ),
    "no epsilon": (change_config(EMBED, layer_norm_eps="1e-5"), "`layer_norm_eps` must be above 0"),
    "no width": (
        change_config(EMBED, hidden_size="512"),
        "`hidden_size` must be an integer from 1",
    ),
    "heads": (
        change_config(EMBED, num_attention_heads=7),
        "multiple of `num_attention_heads` 7. Given: 512",
    ),
    "activation": (
        change_config(EMBED, hidden_act="relu"),
        "`hidden_act` must be 'gelu'. Given: 'relu'",
    ),
    "missing tensor": (change_weights(lambda t: t.pop(QUERY)), f"lacks 1 tensors, `{QUERY}`"),
    "extra tensor": (
        change_weights(lambda t: t.update({"adapter.weight": torch.zeros(1)})),
        "has 1 unknown tensors, `adapter.weight`",
    ),
    "misshapen tensor": (
        change_weights(lambda t: t.update({QUERY: torch.zeros(512, 511)})),
        f"`{QUERY}` is [512, 511], not [512, 512]",
    ),
    "not finite": (change_weights(set_nan), "`encoder.layer.0.output.dense.weight` has values"),
    "missing head": (lambda f: (f / EMBED / "sparse_linear.pt").unlink(), "sparse_linear.pt` is m"),
    "missing tokenizer": (lambda f: (f / EMBED / "tokenizer.json").unlink(), "tokenizer.json` is"),
    "missing weights": (
        lambda f: (f / EMBED / "pytorch_model.bin").unlink(),
        "has neither model.safetensors nor pytorch_model.bin",
    ),
    "cut weights": (
        lambda f: (f / RERANK / "model.safetensors").write_bytes(b"\x10" + bytes(20)),
        "model.safetensors` is not a safetensors file",
    ),
    "architectures a number": (change_config(EMBED, architectures=5), "ion. Given: 5"),
    "architectures an object": (change_config(EMBED, architectures=[{}]), "ion. Given: [{}]"),
    "architectures a text": (change_config(EMBED, architectures="x"), "ion. Given: 'x'"),
    "labels a number": (
        change_config(RERANK, id2label=5),
        "`id2label` must have one label. Given: 5",
    ),
    "a billion layers": (
        change_config(EMBED, num_hidden_layers=10**9),
        "pytorch_model.bin` has 27 tensors, too few for `num_hidden_layers` 1000000000",
    ),
    "a billion dimensions": (
        change_config(EMBED, hidden_size=10**9),
        "is [2733, 512], not [2733, 1000000000]",
    ),
    "a trillion tokens": (
        change_config(EMBED, vocab_size=10**12),
        "`vocab_size` must be an integer from 1 to 2147483647. Given: 1000000000000",
    ),
    "a number of 4,000 digits": (
        change_config(EMBED, max_position_embeddings=int("9" * 4000)),
        "`max_position_embeddings` must be an integer from 5 to 2147483647. Given: 9999",
    ),
    "a tensor's name": (
        change_weights(lambda tensors: tensors.update({"x\n" * 10**5: torch.zeros(1)})),
        "has 1 unknown tensors, `x\\nx\\n",
    ),
    "a special token's id": (
        change_config(EMBED, eos_token_id=2733),
        "ids of special tokens must be below `vocab_size` 2733. Given: 2733",
    ),
    "deep config": (write("config.json", b"[" * 100_000), "config.json` is nested too deeply"),
    "long number": (
        write("config.json", b'{"hidden_size": ' + b"9" * 5000 + b"}"),
        "config.json` is not JSON: Exceeds the limit",
    ),
    "long text": (
        change_config(EMBED, hidden_act="x" * 10**6),
        "`hidden_act` must be 'gelu'. Given: 'xxx",
    ),
    "config an array": (write("config.json", b"[]"), "config.json` is not an object"),
    "config in Latin-1": (write("config.json", b'{"\xe9": 1}'), "config.json` is not JSON: "),
    "deep tokenizer": (
        write("tokenizer.json", b'{"a":' * 100_000),
        "tokenizer.json` is nested too deeply",
    ),
    "tokenizer without added tokens": (
        write("tokenizer.json", b"{}"),
        "has no special token <unk>",
    ),
    "tokenizer with a text for an id": (
        with_unk(id="3"),
        "`id` must be an integer from 0 to 2147483647. Given: '3'",
    ),
    "tokenizer without a model": (
        change_tokenizer(lambda content: content.pop("model")),
        "tokenizer.json` is not a tokenizer: ",
    ),
    "tokenizer of more tokens than the model": (
        change_tokenizer(lambda content: content["model"]["vocab"].append(["more", -9.0])),
        "tokenizer.json` has 2734 tokens; `vocab_size` is 2733",
    ),
    "expression that gives up": (
        with_pattern("(a+)+$"),
        "is not a tokenizer: Onig: Regex search e",
    ),
    "expression that takes for ever": (
        with_pattern("(?:a|a|a){14}(?=[b-z]|c)"),
        "takes more than 1 s for a short text",
    ),
    "sparse": (change_query(torch.Tensor.to_sparse), f"`{QUERY}` is not a plain tensor of floats"),
    "meta": (change_query(lambda t: t.to("meta")), f"`{QUERY}` is not a plain tensor of floats"),
    "nested": (change_query(to_nested), f"`{QUERY}` is not a plain tensor of floats"),
    "quantized": (change_query(to_quantized), f"`{QUERY}` is not a plain tensor of floats"),
    "fp8": (change_query(lambda t: t.to(torch.float8_e4m3fn)), f"`{QUERY}` is not a plain tensor"),
    "complex": (change_query(lambda t: t.to(torch.complex64)), f"`{QUERY}` is not a plain tensor"),
    "one number, repeated": (
        change_query(lambda t: torch.zeros(1).expand(t.shape)),
        f"`{QUERY}` is not a plain tensor of floats",
    ),
    "names that are numbers": (
        change_weights(lambda tensors: tensors.update({7: torch.zeros(1)})),  # type: ignore[dict-item]
        "is not a dictionary of tensors",
    ),
    "cut pickle": (
        lambda f: os.truncate(f / EMBED / "pytorch_model.bin", 10_000),
        "pytorch_model.bin` is damaged: ",
    ),
    "old pickle, cut": (
        write("pytorch_model.bin", b"\x80\x02}"),
        "pytorch_model.bin` is damaged: ",
    ),
    "empty pickle": (write("pytorch_model.bin", b""), "pytorch_model.bin` is damaged: EOFError"),
    "empty safetensors": (
        write("model.safetensors", b"", RERANK),
        "model.safetensors` is not a safetensors file",
    ),
    "endless header": (with_header(b"{}", 2**63), "is not a safetensors file: "),
    "header that is no JSON": (with_header(b"{{{{"), "is not a safetensors file: "),
    "deep header": (with_header(b'{"a":' * 1000), "is not a safetensors file: "),
    "overlapping tensors": (
        with_header(header_of(b={"dtype": "F32", "shape": [4], "data_offsets": [8, 24]})),
        "is not a safetensors file: Error while deserializing header: invalid offset",
    ),
    "unknown dtype": (
        with_header(header_of(a={"dtype": "X\n9", "shape": [4], "data_offsets": [0, 16]})),
        "invalid JSON in header: unknown variant `X 9`",
    ),
    "no config": (lambda f: (f / EMBED / "config.json").unlink(), "has no config.json"),
}


RERANKER_DAMAGES = {
    *("two labels", "labels a number", "cut weights", "empty safetensors", "endless header"),
    *("header that is no JSON", "deep header", "overlapping tensors", "unknown dtype"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_an_invalid_checkpoint_is_refused_with_the_reason(
    name: str, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bge_builder.convert.PROBE_SECONDS", 1.0)
    damage, message = DAMAGES[name]
    damage(copy)
    model = RERANK if name in RERANKER_DAMAGES else EMBED
    with pytest.raises(ConvertError) as caught:
        convert(copy / model, tmp_path / "out")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 700
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]  # no partial output


@pytest.mark.parametrize("name", ["pytorch_model.bin", "sparse_linear.pt"])
@pytest.mark.parametrize("engine", ["packed", "flagembedding"])
def test_a_malicious_pickle_is_refused_and_not_run(
    name: str, engine: str, copy: Path, tmp_path: Path
) -> None:
    torch.save({"weight": Malicious(tmp_path / "witness")}, copy / EMBED / name)
    with pytest.raises(ConvertError, match=f"{name}` is a pickle that is damaged or contains more"):
        convert(copy / EMBED, tmp_path / "out", engine=engine)
    assert not (tmp_path / "witness").exists()


def test_only_a_runtime_folder_is_replaced(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "there" / "here")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").touch()
    for destination, message in (
        (tmp_path / "mine", "is not empty and not a runtime folder"),
        (tmp_path / "file", "is not a folder"),
        (copy, "contains the source"),
        (copy / EMBED, "contains the source"),
        (Path("/"), "contains the source"),
        (Path(), "is or contains the current folder"),
        (Path(".."), "is or contains the current folder"),
    ):
        with pytest.raises(ConvertError, match=message):
            convert(copy / EMBED, destination)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    first = convert(copy / EMBED, tmp_path / "out")
    assert convert(copy / EMBED, tmp_path / "out") == first


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_runtime_folder_matches_its_manifest(
    dtype: str, checkpoints: Path, tmp_path: Path
) -> None:
    for model in MODELS:
        manifest = convert(checkpoints / model, tmp_path / model, dtype=dtype)
        assert Manifest.read(tmp_path / model) == manifest
        assert manifest.model == model
        assert manifest.revision is None
        check_files(tmp_path / model, manifest, every_byte=True)
        with safe_open(tmp_path / model / "model.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        assert shapes == expected_shapes(manifest.config, manifest.role)
        assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{dtype}"}
        for path in (tmp_path / model).iterdir():
            assert (
                stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044
            )  # a worker runs as another user


def test_converting_twice_gives_the_same_bytes(checkpoints: Path, tmp_path: Path) -> None:
    first, second = (convert(checkpoints / EMBED, tmp_path / name) for name in ("a", "b"))
    assert first.files == second.files
    assert first == second


def test_the_fingerprint_depends_on_the_source_not_the_dtype(copy: Path, tmp_path: Path) -> None:
    half = convert(copy / EMBED, tmp_path / "half", dtype="float16")
    single = convert(copy / EMBED, tmp_path / "single", dtype="float32")
    hub = convert(copy / EMBED, tmp_path / "hub", engine="flagembedding")
    assert half.fingerprint == single.fingerprint == hub.fingerprint
    head = torch.load(copy / EMBED / "sparse_linear.pt", weights_only=True)
    head["bias"] += 1
    torch.save(head, copy / EMBED / "sparse_linear.pt")
    assert convert(copy / EMBED, tmp_path / "other").fingerprint != half.fingerprint


def test_flagembedding_uses_tokenizer_json_whatever_else_is_published(
    copy: Path, tmp_path: Path
) -> None:
    engines = []
    for name in ("with", "without"):
        for model in MODELS:
            convert(copy / model, tmp_path / name / model, engine="flagembedding")
            for file in ("tokenizer_config.json", "special_tokens_map.json"):
                (copy / model / file).unlink(missing_ok=True)
        engines.append(load_engine(settings_in(tmp_path / name, engine="flagembedding")))
    first, second = (
        engine.run(Outputs.DENSE, engine.encode_texts(["ГРАДИЕНТНЫЙ  спуск 🙂"], max_length=8192))[
            0
        ]
        for engine in engines
    )
    assert isinstance(first, Embedding)
    assert isinstance(second, Embedding)
    np.testing.assert_array_equal(first.dense, second.dense)


def test_bge_m3_can_be_converted_from_safetensors(copy: Path, tmp_path: Path) -> None:
    expected = convert(copy / EMBED, tmp_path / "a").files["model.safetensors"]
    weights = torch.load(copy / EMBED / "pytorch_model.bin", weights_only=True)
    save_file(weights, copy / EMBED / "model.safetensors")
    (copy / EMBED / "pytorch_model.bin").unlink()
    assert convert(copy / EMBED, tmp_path / "b").files["model.safetensors"] == expected


def test_tokenizers_that_differ_only_in_truncation_become_equal(copy: Path, tmp_path: Path) -> None:
    truncation = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    change_json(copy / RERANK / "tokenizer.json", truncation=truncation)
    embed, rerank = (convert(copy / model, tmp_path / model) for model in MODELS)
    assert embed.files["tokenizer.json"] == rerank.files["tokenizer.json"]
    assert embed.files["tokenizer.json"].sha256 != embed.fingerprint


def test_weights_beyond_the_range_of_fp16_are_refused(copy: Path, tmp_path: Path) -> None:
    tensors = load_file(copy / RERANK / "model.safetensors")
    tensors["classifier.dense.bias"][0] = 1e6
    save_file(tensors, copy / RERANK / "model.safetensors")
    with pytest.raises(ConvertError, match=r"`head\.dense\.bias` exceeds the range of float16"):
        convert(copy / RERANK, tmp_path / "out")
    convert(copy / RERANK, tmp_path / "out", dtype="float32")


def test_the_command_line(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def builder(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "bge_builder", *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )

    converted = builder("convert", copy / EMBED, tmp_path / "out", "--dtype", "float32")
    assert converted.returncode == 0, converted.stderr
    assert "bge-m3 to embed, layout fused, float32, fingerprint" in converted.stdout
    verified = builder("verify", tmp_path / "out")
    assert verified.returncode == 0, verified.stderr
    assert "files unchanged" in verified.stdout
    assert "golden values skipped: not the published weights" in verified.stdout
    with (tmp_path / "out" / "model.safetensors").open("r+b") as file:  # damages one byte
        file.seek(-1, 2)
        file.write(b"\xff")
    assert main(["verify", str(tmp_path / "out")]) == 1
    assert "does not have the sha256 of its manifest" in capsys.readouterr().err
    refused = builder("convert", tmp_path, tmp_path / "out2")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in refused.stderr


def test_bake_writes_only_the_runtime_folders(tmp_path: Path) -> None:
    assert main(["bake", "none", "--to", str(tmp_path / "none")]) == 0
    assert list((tmp_path / "none").iterdir()) == []
    assert main(["bake", "miniature", "--to", str(tmp_path / "models")]) == 0
    assert {path.name for path in (tmp_path / "models").iterdir()} == {EMBED, RERANK}
    for name in (EMBED, RERANK):
        manifest = Manifest.read(tmp_path / "models" / name)
        assert manifest.model == f"miniature/{name}"
        check_files(tmp_path / "models" / name, manifest)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_check_files_names_a_missing_file(name: str, checkpoints: Path, tmp_path: Path) -> None:
    manifest = convert(checkpoints / EMBED, tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    with pytest.raises(StartError, match=f"{name}` is missing"):
        check_files(tmp_path / "out", manifest)


# ------------------------------------------------------------------------------ other runs


def test_the_current_folder_may_be_the_source(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy / EMBED)
    assert convert(Path(), Path("../../out")).model == EMBED


def test_a_full_disk_is_a_one_line_error_and_leaves_nothing(
    checkpoints: Path, tmp_path: Path
) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
    script = f"{limit}; from bge_builder.__main__ import main; raise SystemExit(main())"
    arguments = ("convert", checkpoints / EMBED, tmp_path / "out")
    for engine in ("packed", "flagembedding"):
        result = subprocess.run(
            [sys.executable, "-c", script, *arguments, "--engine", engine],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 1
        step, error = result.stderr.splitlines()
        assert step.endswith("failed")
        assert "File too large" in error
        assert list(tmp_path.iterdir()) == []


PAUSED_CONVERT = """
import sys
from pathlib import Path
import bge_builder.convert as module
from bge_builder.errors import BuilderError
make_manifest = module.make_manifest
def paused(*arguments):
    print("writing", flush=True)
    sys.stdin.read()
    return make_manifest(*arguments)
module.make_manifest = paused
try:
    module.convert(Path(sys.argv[1]), Path(sys.argv[2]))
except BuilderError as error:
    sys.exit(str(error))
"""


def start_convert(source: Path, destination: Path) -> subprocess.Popen[str]:
    """Start a conversion that pauses before its manifest until stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", PAUSED_CONVERT, source, destination],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "writing\n"
    return process


def test_a_second_run_into_the_same_folder_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    with start_convert(checkpoints / EMBED, tmp_path / "out") as first:
        with pytest.raises(LockedError) as caught:
            convert(checkpoints / EMBED, tmp_path / "out")
        assert str(caught.value) == (
            f"another run (pid {first.pid}) is writing `{tmp_path / 'out'}`"
        )
        convert(checkpoints / RERANK, tmp_path / "out-2")  # beside it
        assert first.communicate("")[1] == ""
    check_files(tmp_path / "out", Manifest.read(tmp_path / "out"), every_byte=True)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out-2"}


def test_the_run_after_a_killed_one_cleans_up(checkpoints: Path, tmp_path: Path) -> None:
    with start_convert(checkpoints / EMBED, tmp_path / "out") as killed:
        killed.kill()
    assert len(list(tmp_path.iterdir())) == 2  # its lock and its folder
    convert(checkpoints / EMBED, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_concurrent_runs_leave_one_complete_folder(checkpoints: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "bge_builder",
        "convert",
        checkpoints / EMBED,
        tmp_path / "out",
    ]
    runs = [
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    errors = [run.communicate()[1] for run in runs]
    assert {run.returncode for run in runs} <= {0, 1}
    failed = [error for error in errors if "error: " in error]
    assert all("is writing" in error for error in failed)
    assert 0 in {run.returncode for run in runs}
    check_files(tmp_path / "out", Manifest.read(tmp_path / "out"), every_byte=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --------------------------------------------------------------------------- the manifest


@pytest.mark.parametrize(
    "fields",
    [
        *({"config": {"num_attention_heads": 0}}, {"config": {"hidden_size": "512"}}),
        *({"config": {"num_hidden_layers": 0}}, {"config": {"bos_token_id": 10**9}}),
        *({"config": {"layer_norm_eps": 5}}, {"config": 7}),
        *({"files": 7}, {"files": {"tokenizer.json": 7}}, {"role": [7]}, {"format": []}),
    ],
)
def test_a_manifest_with_invalid_fields_is_refused(
    fields: dict[str, Any], runtimes: Callable[[EngineName], Path], tmp_path: Path
) -> None:
    content = json.loads((runtimes("packed") / EMBED / "manifest.json").read_text())
    if isinstance(fields.get("config"), dict):
        fields = {"config": content["config"] | fields["config"]}
    (tmp_path / "manifest.json").write_text(json.dumps(content | fields))
    with pytest.raises(StartError, match=r"manifest\.json` (is|has) "):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b"{}", b"9" * 5000, b"\xff"])
def test_a_file_that_is_not_a_manifest_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(StartError, match=r"manifest\.json` is not a manifest"):
        Manifest.read(tmp_path)


def test_a_billion_layers_in_a_manifest_are_refused_quickly(
    runtimes: Callable[[EngineName], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(runtimes("packed") / EMBED, tmp_path / "runtime")
    content = json.loads((folder / "manifest.json").read_text())
    content["config"]["num_hidden_layers"] = 10**9
    (folder / "manifest.json").write_text(json.dumps(content))
    begin = time.monotonic()
    with pytest.raises(StartError, match="tensors, too few for its manifest"):
        load(folder, Manifest.read(folder), torch.device("cpu"), torch.float32)
    assert time.monotonic() - begin < 5


def test_a_worker_quotes_an_invalid_header_in_one_line(
    runtimes: Callable[[EngineName], Path], tmp_path: Path
) -> None:
    manifest = Manifest.read(runtimes("packed") / EMBED)
    (tmp_path / EMBED).mkdir()
    write("tokenizer.json", (runtimes("packed") / EMBED / "tokenizer.json").read_bytes())(tmp_path)
    header = header_of(a={"dtype": "X\n9", "shape": [4], "data_offsets": [0, 16]})
    write("model.safetensors", struct.pack("<Q", len(header)) + header + bytes(16))(tmp_path)
    files = {name: File.of(tmp_path / EMBED / name) for name in manifest.files}
    with pytest.raises(StartError, match="is not a safetensors file") as caught:
        load(tmp_path / EMBED, replace(manifest, files=files), torch.device("cpu"), torch.float32)
    assert "\n" not in str(caught.value)
