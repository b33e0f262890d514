"""What is refused at build time, by name; and what comes out of what is accepted."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bge_worker.checkpoint import Manifest, check_files, expected_shapes
from bge_worker.engine import Embedding
from bge_worker.errors import StartError
from bge_worker.schema import EmbedRequest, Outputs
from bge_worker.service import load_engine
from builder.__main__ import main
from builder.convert import ConvertError, convert
from conftest import MODELS, ROOT, settings_in

EMBED, RERANK = MODELS
Damage = Callable[[Path], None]


class Malicious:
    """A pickle that would run code when opened."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.witness,))


@pytest.fixture
def copy(checkpoints: Path, tmp_path: Path) -> Path:
    """Both miniatures, to be damaged."""
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


def poison(tensors: dict[str, torch.Tensor]) -> None:
    tensors["encoder.layer.0.output.dense.weight"][0, 0] = float("nan")


QUERY = "encoder.layer.0.attention.self.query.weight"
DAMAGES: dict[str, tuple[Damage, str]] = {
    "auto_map": (
        change_config(EMBED, auto_map={"AutoModel": "evil.Model"}),
        "has `auto_map`: code from a checkpoint is never run",
    ),
    "architecture": (
        change_config(EMBED, architectures=["BertModel"]),
        "architecture BertModel is not one of XLMRobertaModel",
    ),
    "two labels": (
        change_config(RERANK, id2label={"0": "a", "1": "b"}),
        "has 2 labels; a reranker has one",
    ),
    "no epsilon": (change_config(EMBED, layer_norm_eps="1e-5"), "`layer_norm_eps` must be above 0"),
    "no width": (change_config(EMBED, hidden_size="512"), "`hidden_size` must be at least 1. Gi"),
    "heads": (change_config(EMBED, num_attention_heads=7), "512 is not a multiple of 7 heads"),
    "activation": (change_config(EMBED, hidden_act="relu"), "`hidden_act` is 'relu'; only 'gelu'"),
    "missing tensor": (change_weights(lambda t: t.pop(QUERY)), f"lacks 1 tensors, `{QUERY}`"),
    "extra tensor": (
        change_weights(lambda t: t.update({"adapter.weight": torch.zeros(1)})),
        "has 1 unknown tensors, `adapter.weight`",
    ),
    "misshapen tensor": (
        change_weights(lambda t: t.update({QUERY: torch.zeros(512, 511)})),
        f"`{QUERY}` is [512, 511], not [512, 512]",
    ),
    "not finite": (change_weights(poison), "`encoder.layer.0.output.dense.weight` has values"),
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
    "no config": (lambda f: (f / EMBED / "config.json").unlink(), "has no config.json"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_poisoned_checkpoint_is_refused_by_name(name: str, copy: Path, tmp_path: Path) -> None:
    damage, sentence = DAMAGES[name]
    damage(copy)
    model = RERANK if name in ("two labels", "cut weights") else EMBED
    with pytest.raises(ConvertError) as caught:
        convert(copy / model, tmp_path / "out")
    assert sentence in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]  # nothing half-made is left


@pytest.mark.parametrize("name", ["pytorch_model.bin", "sparse_linear.pt"])
@pytest.mark.parametrize("engine", ["packed", "flagembedding"])
def test_a_malicious_pickle_is_refused_and_not_run(
    name: str, engine: str, copy: Path, tmp_path: Path
) -> None:
    torch.save({"weight": Malicious(tmp_path / "witness")}, copy / EMBED / name)
    with pytest.raises(ConvertError, match=f"{name}` is a pickle that holds more than tensors"):
        convert(copy / EMBED, tmp_path / "out", engine=engine)
    assert not (tmp_path / "witness").exists()


def test_nothing_but_a_runtime_folder_is_ever_replaced(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").touch()
    for destination, sentence in (
        (tmp_path / "mine", "is not empty and not a runtime folder"),
        (tmp_path / "file", "is not a folder"),
        (copy, "holds the source"),
        (copy / EMBED, "holds the source"),
    ):
        with pytest.raises(ConvertError, match=sentence):
            convert(copy / EMBED, destination)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    first = convert(copy / EMBED, tmp_path / "out")
    assert convert(copy / EMBED, tmp_path / "out") == first


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_runtime_folder_holds_what_its_manifest_says(
    dtype: str, checkpoints: Path, tmp_path: Path
) -> None:
    for model in MODELS:
        manifest = convert(checkpoints / model, tmp_path / model, dtype=dtype)
        assert Manifest.read(tmp_path / model) == manifest
        assert manifest.model == model
        assert manifest.revision is None
        check_files(tmp_path / model, manifest, every_byte=True)
        with safe_open(tmp_path / model / "model.safetensors", "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
        assert shapes == expected_shapes(manifest.config, manifest.role)
        assert {str(tensor.dtype) for tensor in found.values()} == {f"torch.{dtype}"}
        for path in (tmp_path / model).iterdir():
            assert stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044  # a worker is another user


def test_converting_twice_gives_the_same_bytes(checkpoints: Path, tmp_path: Path) -> None:
    first, second = (convert(checkpoints / EMBED, tmp_path / name) for name in ("a", "b"))
    assert first.files == second.files
    assert first == second


def test_the_fingerprint_follows_the_source_not_the_dtype(copy: Path, tmp_path: Path) -> None:
    half = convert(copy / EMBED, tmp_path / "half", dtype="float16")
    single = convert(copy / EMBED, tmp_path / "single", dtype="float32")
    hub = convert(copy / EMBED, tmp_path / "hub", engine="flagembedding")
    assert half.fingerprint == single.fingerprint == hub.fingerprint
    head = torch.load(copy / EMBED / "sparse_linear.pt", weights_only=True)
    head["bias"] += 1
    torch.save(head, copy / EMBED / "sparse_linear.pt")
    assert convert(copy / EMBED, tmp_path / "other").fingerprint != half.fingerprint


def test_flagembedding_reads_tokenizer_json_whatever_else_is_published(
    copy: Path, tmp_path: Path
) -> None:
    engines = []
    for name in ("with", "without"):
        for model in MODELS:
            convert(copy / model, tmp_path / name / model, engine="flagembedding")
            for file in ("tokenizer_config.json", "special_tokens_map.json"):
                (copy / model / file).unlink(missing_ok=True)
        engines.append(load_engine(settings_in(tmp_path / name, engine="flagembedding")))
    work = EmbedRequest(["ГРАДИЕНТНЫЙ  спуск 🙂"], Outputs.DENSE)
    one, other = (engine.run(work.outputs, engine.encode(work, 0, 1)) for engine in engines)
    assert isinstance(one[0], Embedding)
    assert isinstance(other[0], Embedding)
    np.testing.assert_array_equal(one[0].dense, other[0].dense)


def test_bge_m3_may_come_as_safetensors(copy: Path, tmp_path: Path) -> None:
    expected = convert(copy / EMBED, tmp_path / "a").files["model.safetensors"]
    weights = torch.load(copy / EMBED / "pytorch_model.bin", weights_only=True)
    save_file(weights, copy / EMBED / "model.safetensors")
    (copy / EMBED / "pytorch_model.bin").unlink()
    assert convert(copy / EMBED, tmp_path / "b").files["model.safetensors"] == expected


def test_tokenizers_that_differ_in_truncation_alone_become_equal(
    copy: Path, tmp_path: Path
) -> None:
    truncation = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    change_json(copy / RERANK / "tokenizer.json", truncation=truncation)
    embed, rerank = (convert(copy / model, tmp_path / model) for model in MODELS)
    assert embed.files["tokenizer.json"] == rerank.files["tokenizer.json"]
    assert embed.files["tokenizer.json"].sha256 != embed.fingerprint


def test_weights_too_large_for_half_precision_are_refused(copy: Path, tmp_path: Path) -> None:
    tensors = load_file(copy / RERANK / "model.safetensors")
    tensors["classifier.dense.bias"][0] = 1e6
    save_file(tensors, copy / RERANK / "model.safetensors")
    with pytest.raises(ConvertError, match=r"`head\.dense\.bias` does not fit float16"):
        convert(copy / RERANK, tmp_path / "out")
    convert(copy / RERANK, tmp_path / "out", dtype="float32")


def test_the_command_line(copy: Path, tmp_path: Path) -> None:
    def builder(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "builder", *map(str, arguments)],
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
    assert "files as written" in verified.stdout
    assert "golden values skipped: not the published weights" in verified.stdout
    with (tmp_path / "out" / "model.safetensors").open("r+b") as file:  # one bit, somewhere
        file.seek(-1, 2)
        file.write(b"\xff")
    damaged = builder("verify", tmp_path / "out")
    assert damaged.returncode == 1
    assert "does not have the sha256 that the manifest says" in damaged.stderr
    refused = builder("convert", tmp_path, tmp_path / "out2")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: ")
    assert "Traceback" not in refused.stderr
    assert "fetch" in builder("--help").stdout


def test_what_is_baked_into_an_image_is_the_runtime_folders_alone(tmp_path: Path) -> None:
    assert main(["bake", "none", "--to", str(tmp_path / "none")]) == 0
    assert list((tmp_path / "none").iterdir()) == []
    assert main(["bake", "miniature", "--to", str(tmp_path / "models")]) == 0
    assert {path.name for path in (tmp_path / "models").iterdir()} == {EMBED, RERANK}
    for name in (EMBED, RERANK):
        manifest = Manifest.read(tmp_path / "models" / name)
        assert manifest.model == f"miniature/{name}"
        check_files(tmp_path / "models" / name, manifest)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_check_files_names_a_file_that_is_gone(
    name: str, checkpoints: Path, tmp_path: Path
) -> None:
    manifest = convert(checkpoints / EMBED, tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    with pytest.raises(StartError, match=f"{name}` is missing"):
        check_files(tmp_path / "out", manifest)
