"""Which GPU a process takes, with stubs where the driver would be asked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from clipocr.shared.device import choose_device, choose_precision
from clipocr.shared.errors import UsageError
from clipocr.shared.processes import Process


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
    """The devices that became the current one, of a machine that shows `gpus` GPUs."""
    devices: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    was_enabled = torch.backends.cuda.cudnn_sdp_enabled()
    yield devices
    torch.backends.cuda.enable_cudnn_sdp(was_enabled)


@pytest.mark.parametrize(
    ("num_gpus", "name", "process", "expected"),
    [
        (8, "auto", Process(), "cuda:0"),
        (8, "cuda", Process(rank=11, world_size=16, local_rank=3), "cuda:3"),
        (8, "cuda:5", Process(rank=11, world_size=16, local_rank=3), "cuda:5"),
        # srun --gpus-per-task=1: each task sees its own GPU as the first.
        (1, "auto", Process(rank=3, world_size=4, local_rank=3), "cuda:0"),
        (1, "cuda", Process(rank=1, world_size=2, local_rank=1), "cuda:0"),
    ],
)
def test_each_process_takes_its_gpu(
    num_gpus: int,
    name: str,
    process: Process,
    expected: str,
    current: list[torch.device],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert choose_device(name, process) == torch.device(expected)
    assert current == [torch.device(expected)]
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_gpu_that_is_not_there_is_refused(
    current: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="has 2 CUDA devices"):
        choose_device("cuda", Process(rank=2, world_size=3, local_rank=2))
    assert current == []


@pytest.mark.parametrize(
    ("capability", "auto", "reason_for_bf16"),
    [((7, 5), "fp16", "only emulates it"), ((9, 0), "bf16", "as asked")],
)
def test_precisions_are_those_that_the_gpu_has(
    capability: tuple[int, int], auto: str, reason_for_bf16: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    gpu = torch.device("cuda")
    assert choose_precision("auto", gpu)[0] == auto
    name, reason = choose_precision("bf16", gpu)
    assert name == "bf16"
    assert reason_for_bf16 in reason
