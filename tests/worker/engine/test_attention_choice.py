"""Which backend runs, for each device, setting and fault of the kernel."""

from __future__ import annotations

import logging

import pytest
import torch

from bge_worker.engine import attention_choice
from bge_worker.engine.attention import Attention, blocked, sdpa
from bge_worker.engine.attention_choice import choose_attention, flash_obstacle
from bge_worker.errors import StartError
from bge_worker.settings import AttentionName
from fakes.flash_kernel import FlashKernel, registered

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HEADS = [(4, 16)]
FAULTS: dict[str, tuple[float | Exception, str]] = {
    "raises": (RuntimeError("no kernel image\nat x.cpp:9"), "fails with RuntimeError: no kernel i"),
    "is missing": (AttributeError("no such operator"), "fails with AttributeError: no such opera"),
    "returns NaN": (float("nan"), "returns numbers that are not finite"),
    "is slightly wrong": (4e-3, "differs from attention in fp32 by 4.*e-03, more than 2e-03"),
}


def choose(requested: AttentionName, dtype: torch.dtype = torch.float16) -> Attention:
    return choose_attention(requested, CPU, dtype, HEADS)


@pytest.fixture
def flash_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose operator a stand-in replaces."""
    monkeypatch.setattr(attention_choice, "flash_obstacle", lambda *_: None)


@pytest.mark.parametrize("name", ["Intel(R) Xeon(R) Processor", "AMD EPYC"])
def test_the_processor_decides_between_sdpa_and_blocks(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    processor = {"avx512_f": True, "amx_tile": False, "cpu_name": name}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    assert choose("sdpa") == Attention("sdpa", "`attention` (`BGE_ATTENTION`) is sdpa", sdpa)
    attention = choose("auto", torch.float32)
    if name == "AMD EPYC":
        assert attention == Attention("blocked", "MKL has no AVX-512 for this processor", blocked)
    else:
        assert attention == Attention("sdpa", "cpu has no flash attention kernel", sdpa)
    with pytest.raises(StartError, match=r"\(`BGE_ATTENTION`\) is flash, but cpu has no flash"):
        choose("flash")


@pytest.mark.parametrize(
    ("capability", "dtype", "head_size", "obstacle"),
    [
        ((9, 0), torch.float16, 64, None),
        ((8, 0), torch.float16, 256, None),
        ((7, 5), torch.float16, 64, "compute capability 7.5 is below 8.0"),
        ((9, 0), torch.float32, 64, "flash attention takes half precision only, not float32"),
        ((9, 0), torch.float16, 20, "multiples of 8 up to 256, not 20"),
        ((9, 0), torch.float16, 264, "multiples of 8 up to 256, not 264"),
        (None, torch.float16, 64, None),  # ROCm: the check at start decides
    ],
    ids=str,
)
def test_flash_needs_a_kernel_for_the_card_the_dtype_and_the_heads(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    head_size: int,
    obstacle: str | None,
) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.2" if capability is None else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    result = flash_obstacle(CUDA, dtype, [64, head_size])
    assert result is None if obstacle is None else obstacle in str(result)


@pytest.mark.usefixtures("flash_is_available")
def test_a_kernel_that_is_right_is_chosen_and_no_other_is_run() -> None:
    with registered(FlashKernel()):
        assert choose("auto").name == choose("flash").name == "flash"
        kernel = FlashKernel()
    with registered(kernel):
        assert choose("sdpa").name == "sdpa"
    assert kernel.calls == []


@pytest.mark.usefixtures("flash_is_available")
@pytest.mark.parametrize(("fault", "message"), FAULTS.values(), ids=FAULTS)
def test_a_kernel_that_is_faulty_is_replaced_by_sdpa_with_a_warning(
    fault: float | Exception, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with registered(FlashKernel(fault)), caplog.at_level(logging.WARNING):
        attention = choose("auto")
        with pytest.raises(StartError, match=rf"\(`BGE_ATTENTION`\) is flash, but flash {message}"):
            choose("flash")
    assert attention.name == "sdpa"
    (record, _) = caplog.records
    assert "attention runs through sdpa, which is slower: flash" in record.message
    assert attention.reason in record.message
    assert "(4 heads of 16)" in attention.reason
    assert "\n" not in record.message


def test_a_worker_does_not_start_if_no_backend_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_choice, "find_fault", lambda *_: "sdpa returns nonsense")
    with pytest.raises(StartError, match=r"no attention backend .* on this device: sdpa returns"):
        choose_attention("auto", torch.device("meta"), torch.float16, HEADS)
