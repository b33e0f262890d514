"""The files of each published checkpoint, with their sizes and hashes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PinnedFile:
    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Pin:
    """One repository at one commit. `files` are in ascending size, so that errors show early."""

    repo: str
    revision: str
    licence: str
    files: tuple[PinnedFile, ...]

    @property
    def name(self) -> str:
        """The repository's name without its owner: an argument and a folder's name."""
        return self.repo.rpartition("/")[2]

    @property
    def hashes(self) -> dict[str, str]:
        """The sha256 of every file by its name."""
        return {file.name: file.sha256 for file in self.files}


# Both models have the vocabulary of XLM-RoBERTa, byte for byte.
SENTENCEPIECE = PinnedFile(
    name="sentencepiece.bpe.model",
    size=5_069_051,
    sha256="cfc8146abe2a0488e9e2a0c56de7952f7c11ab059eca145a0a727afce0db2865",
)

BGE_M3 = Pin(
    repo="BAAI/bge-m3",
    revision="5617a9f61b028005a4858fdac845db406aefb181",
    licence="MIT",
    files=(
        PinnedFile(
            name="config.json",
            size=687,
            sha256="26159e7ad065073448460117eb24b7a4572f6f4e78eadff65dc0a11c052449fa",
        ),
        PinnedFile(
            name="sparse_linear.pt",
            size=3_516,
            sha256="45c93804d2142b8f6d7ec6914ae23a1eee9c6a1d27d83d908a20d2afb3595ad9",
        ),
        PinnedFile(
            name="colbert_linear.pt",
            size=2_100_674,
            sha256="19bfbae397c2b7524158c919d0e9b19393c5639d098f0a66932c91ed8f5f9abb",
        ),
        SENTENCEPIECE,
        PinnedFile(
            name="tokenizer.json",
            size=17_098_108,
            sha256="21106b6d7dab2952c1d496fb21d5dc9db75c28ed361a05f5020bbba27810dd08",
        ),
        PinnedFile(
            name="pytorch_model.bin",
            size=2_271_145_830,
            sha256="b5e0ce3470abf5ef3831aa1bd5553b486803e83251590ab7ff35a117cf6aad38",
        ),
    ),
)

BGE_RERANKER_V2_M3 = Pin(
    repo="BAAI/bge-reranker-v2-m3",
    revision="953dc6f6f85a1b2dbfca4c34a2796e7dde08d41e",
    licence="Apache-2.0",
    files=(
        PinnedFile(
            name="config.json",
            size=795,
            sha256="13dcd6c31d9fec9d1d8e158702072f62d7fa7d312a64b9fe057bec9a08cfe41a",
        ),
        SENTENCEPIECE,
        PinnedFile(
            name="tokenizer.json",
            size=17_098_273,
            sha256="69564b696052886ed0ac63fa393e928384e0f8caada38c1f4864a9bfbf379c15",
        ),
        PinnedFile(
            name="model.safetensors",
            size=2_271_071_852,
            sha256="d9e3e081faff1eefb84019509b2f5558fd74c1a05a2c7db22f74174fcedb5286",
        ),
    ),
)

PINS: tuple[Pin, ...] = (BGE_M3, BGE_RERANKER_V2_M3)
