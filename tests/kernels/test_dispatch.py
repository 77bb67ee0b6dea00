"""Backends: forced by a context and by the environment, refused with reasons, tried once,
and never trusted unchecked.
"""

import logging
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from spatialweave.kernels import Inner, Segments, dispatch, segment_attention, use_backend
from spatialweave.kernels.dispatch import VARIABLE, BackendUnavailableError, Trust, choose, forced_backend
from spatialweave.kernels.segment_attention import launch, op, preference, segments
from spatialweave.kernels.segment_attention.preference import Row
from spatialweave.kernels.segment_attention.reference import segment_attention_reference

ABLE = {"triton": None, "composition": None, "reference": None}


def test_the_first_able_backend_is_taken():
    assert choose(ABLE) == "triton"
    assert choose(ABLE | {"triton": "no"}) == "composition"


def test_a_context_and_the_environment_force(monkeypatch):
    with use_backend("reference"):
        assert choose(ABLE) == "reference"
        with use_backend("composition"):
            assert forced_backend() == "composition"
        assert forced_backend() == "reference"
    monkeypatch.setenv(VARIABLE, "reference")
    assert forced_backend() == "reference"
    with use_backend("composition"):
        assert forced_backend() == "composition", "the context is nearer"
    monkeypatch.setenv(VARIABLE, "auto")
    assert forced_backend() is None


def test_unknown_names_are_refused(monkeypatch):
    with (
        pytest.raises(
            ValueError, match="use_backend: expected one of triton, composition, reference, got 'cuda'"
        ),
        use_backend("cuda"),
    ):
        pass
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(ValueError, match="SPATIALWEAVE_KERNELS: expected one of .*, got 'fast'"):
        forced_backend()


def tensors(width=16, dtype=torch.float16, rows=2):
    return [torch.randn(rows, 2, 8, width).to(dtype) for _ in range(3)]


def test_a_forced_backend_that_cannot_says_why():
    with (
        use_backend("triton"),
        pytest.raises(
            BackendUnavailableError, match="'triton' is forced, but the kernel needs a CUDA device"
        ),
    ):
        segment_attention(*tensors(), Segments.coupled(8, (1, 0)))


REASONS = {
    "takes float16 and bfloat16, got float32": lambda: tensors(dtype=torch.float32),
    "head widths of 16 to 160 in steps of 8, got 12": lambda: tensors(12),
    "head widths of 16 to 160 in steps of 8, got 168": lambda: tensors(168),
    "stride 1 in the head width of q, its stride is 8": lambda: [
        tensor.mT.contiguous().mT for tensor in tensors()
    ],
    r"needs k aligned to 16 bytes, its strides are \(256, 128, 16, 1\)": lambda: [
        tensors()[0], *(torch.zeros(513).half()[1:].view(2, 2, 8, 16) for _ in range(2))
    ],
    "needs a CUDA device, the tensors are on cpu": tensors,
}  # fmt: skip


@pytest.mark.parametrize("sentence", REASONS)
def test_the_kernel_says_what_it_does_not_take(sentence):
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(launch.call_reason(*REASONS[sentence]()))


class Cuda:
    """What a machine says of itself."""

    type, capability = "cuda", (8, 6)


@pytest.mark.parametrize(
    "capability, reason",
    [((7, 5), "compute capability 7.5 has no tensor cores"), ((8, 6), None), ((12, 0), None)],
)
def test_old_machines_are_refused(monkeypatch, capability, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(launch, "triton_reason", lambda: None)
    found = launch.machine_reason(Cuda())
    assert found is None if reason is None else reason in found


def test_rocm_and_a_missing_triton_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(sys.modules, "triton", None)
    launch.triton_reason.cache_clear()
    try:
        assert "triton cannot be imported (ModuleNotFoundError" in launch.machine_reason(Cuda())
    finally:
        launch.triton_reason.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert launch.machine_reason(Cuda()) == "the kernel was never run on ROCm"


def test_the_gradient_that_spills_on_gfx12_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.1")
    q = torch.zeros(1, 1, 16, 160, dtype=torch.float16)
    refusal = "head widths of 16 to 128 on AMD's gfx11 and gfx12"
    for arch, direction, sentence in (
        ("gfx1201", "backward", refusal), ("gfx1201", "forward", None), ("gfx942", "backward", None),
    ):
        card = SimpleNamespace(gcnArchName=f"{arch}:sramecc+")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, card=card: card)
        monkeypatch.setattr(launch, "machine_reason", lambda device: None)
        found = launch.call_reason(*[OnCuda(q)] * 3, direction)
        assert found is None if sentence is None else sentence in found


class OnCuda:
    """A tensor that says it lies on a card."""

    device = SimpleNamespace(type="cuda")

    def __init__(self, tensor):
        self._tensor = tensor

    def __getattr__(self, name):
        return getattr(self._tensor, name)


def able(monkeypatch, capability=(8, 6)):
    monkeypatch.setattr(launch, "machine_reason", lambda device: None)
    monkeypatch.setattr(launch, "capability_of", lambda q: capability)
    monkeypatch.setattr(launch, "TRUST", Trust())
    monkeypatch.setattr(op, "prepare_launch", lambda *given, **named: None)  # it asks a driver


@pytest.mark.parametrize("weight, width, capability, reason", [
    (-0.5, 64, (9, 0), None), (-0.5, 128, (8, 0), None),
    (-0.5, 128, (9, 0), "torch's attention is preferred on sm_9x at head widths 96"),
    (0.0, 64, (9, 0), "one ordinary attention call"),
    (float("-inf"), 64, (8, 6), "one ordinary attention call"),
])  # fmt: skip
def test_calls_that_torch_serves_better_are_left_to_it(monkeypatch, weight, width, capability, reason):
    able(monkeypatch, capability)
    q, k, v = (tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in tensors(width))
    given = (q, k, v, Segments.coupled(8, (1, 0)), torch.tensor([[[[0.0, weight]]]]))
    found = op.backend_reasons(*given)["triton"]
    assert found is None if reason is None else reason in found
    with use_backend("triton"):
        assert op.backend_reasons(*given)["triton"] is None


def test_the_table_of_preferences_holds_for_what_its_rows_say(monkeypatch):
    rows = (
        Row(9, range(64, 65), "timed", queries=range(2048, 1 << 31), weights="cpu"),
        Row(12, range(96, 161), "timed"),
    )
    monkeypatch.setattr(preference, "LEFT_TO_TORCH", rows)
    assert preference.preferred((9, 0), 64, 4096, "cpu") == (
        "torch's attention is preferred on sm_9x at head widths 64 to 64, "
        "2048 to 2147483647 queries, weights on the CPU (timed)"
    )
    others = [
        ((8, 0), 64, 4096, "cpu"), ((9, 0), 72, 4096, "cpu"), ((9, 0), 64, 1024, "cpu"),
        ((9, 0), 64, 4096, "cuda"),
    ]
    assert not any(preference.preferred(*given) for given in others)
    assert (
        preference.preferred((12, 0), 128, 1, "cuda")
        == "torch's attention is preferred on sm_12x at head widths 96 to 160 (timed)"
    )


def test_a_kernel_that_fails_is_dropped_for_good_with_one_line(monkeypatch, caplog):
    able(monkeypatch)
    tries = []

    def broken(*given, **named):
        tries.append(1)
        raise OSError("ptxas is not there")

    monkeypatch.setattr(launch, "forward", broken)
    given = (*tensors(), Segments.coupled(8, (1, 0)), [[0.0, -0.5]])
    with caplog.at_level(logging.WARNING, logger="spatialweave.kernels"):
        first, second = segment_attention(*given), segment_attention(*given)
    assert torch.equal(first, second) and len(tries) == 1 and len(caplog.records) == 1
    assert "OSError: ptxas is not there; torch's attention runs instead" in caplog.text
    with use_backend("triton"), pytest.raises(BackendUnavailableError, match="ptxas is not there"):
        segment_attention(*given)
    monkeypatch.setattr(launch, "TRUST", Trust())
    with use_backend("triton"), pytest.raises(BackendUnavailableError, match="but it failed: OSError: ptxas"):
        segment_attention(*given)


def test_a_kernel_with_wrong_numbers_is_never_used(monkeypatch, caplog):
    able(monkeypatch)
    monkeypatch.setattr(
        launch,
        "forward",
        lambda q, *given, need_lse, **named: (torch.zeros_like(q), q.new_zeros(q.shape[:3])),
    )
    given = (*tensors(), Segments.coupled(8, (1, 0)), [[0.0, -0.5]])
    ours = segment_attention(*given)
    assert "its self-check is off by" in caplog.text
    with use_backend("composition"):
        assert torch.equal(ours, segment_attention(*given))


def failing(monkeypatch, error):
    def broken(*given, **named):
        raise error

    able(monkeypatch)
    monkeypatch.setattr(launch, "forward", broken)
    return (*tensors(), Segments.coupled(8, (1, 0)), [[0.0, -0.5]])


def test_memory_that_runs_out_is_not_the_kernels_fault(monkeypatch):
    """The host frees some and calls again."""
    given = failing(monkeypatch, torch.cuda.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        segment_attention(*given)
    assert not launch.TRUST.failed


def test_while_a_graph_is_captured_nothing_is_checked_and_nothing_given_up(monkeypatch):
    given = failing(monkeypatch, RuntimeError("operation not permitted when stream is capturing"))
    monkeypatch.setattr(dispatch, "is_capturing", lambda: True)
    with use_backend("composition"):
        want = segment_attention(*given)
    assert torch.equal(segment_attention(*given), want) and not launch.TRUST.failed
    with (
        use_backend("triton"),
        pytest.raises(
            BackendUnavailableError, match="cannot run while a CUDA graph is captured: call it once before"
        ),
    ):
        segment_attention(*given)
    launch.TRUST.proven.add(launch.variant(given[0]))
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        segment_attention(*given)
    assert not launch.TRUST.failed


def test_a_graph_takes_no_weights_of_the_host(monkeypatch):
    """It would read their memory again at every replay, when it may be another's."""
    weight, card = torch.zeros(1, 1, 1, 2), torch.device("meta")
    assert segments.on_device(weight, card).device == card
    monkeypatch.setattr(segments, "is_capturing", lambda: True)
    assert segments.on_device(weight, weight.device) is weight
    with pytest.raises(
        RuntimeError,
        match="Expected log weights on meta while a CUDA graph is captured, got cpu. Move them there",
    ):
        segments.on_device(weight, card)


def test_the_gradients_run_on_what_the_forward_was_forced_to(monkeypatch):
    """Autograd may call from another thread, after the context."""
    able(monkeypatch)
    monkeypatch.setattr(launch, "backward_self_check", lambda q: None)
    seen = []
    monkeypatch.setattr(
        launch, "backward",
        lambda grads, inputs, *given, **named: (seen.append(1), tuple(map(torch.zeros_like, inputs)))[1]
    )
    for name, kernels in (("reference", 0), (None, 1)):
        q, k, v = (tensor.requires_grad_() for tensor in tensors())
        with use_backend(name) if name else nullcontext():
            with monkeypatch.context() as patch:
                patch.setattr(launch, "forward", as_reference)
                patch.setattr(launch, "self_check", lambda q: None)
                out = segment_attention(q, k, v, Segments.coupled(8, (1, 0)), [[0.0, -0.5]])
        out.sum().backward()
        assert len(seen) == kernels


def as_reference(q, k, v, segments, weight, *, scale, need_lse):
    return segment_attention_reference(q, k, v, segments, weight, scale=scale)


def test_forced_gradients_that_cannot_run_say_why(monkeypatch):
    able(monkeypatch)
    monkeypatch.setattr(launch, "forward", as_reference)
    monkeypatch.setattr(launch, "self_check", lambda q: None)
    monkeypatch.setattr(launch, "backward_self_check", lambda q: "its self-check is off by 1")
    q, k, v = (tensor.requires_grad_() for tensor in tensors())
    with use_backend("triton"):
        out = segment_attention(q, k, v, Segments.coupled(8, (1, 0)), [[0.0, -0.5]])
    with pytest.raises(
        BackendUnavailableError,
        match="'triton' is forced, but for the gradients it failed: ArithmeticError: its self-check"
    ):
        out.sum().backward()


@pytest.mark.parametrize("name", ["triton", "reference"])
def test_an_inner_attention_is_called_by_the_composition_alone(name):
    given = (*tensors(), Segments.coupled(8, (1, 0)))
    with (
        use_backend(name),
        pytest.raises(BackendUnavailableError, match=f"'{name}' is forced, but an inner attention is given"),
    ):
        segment_attention(*given, inner=Inner(torch.nn.functional.scaled_dot_product_attention))


def test_triton_is_not_imported_before_it_is_needed():
    code = (
        "import sys, torch, spatialweave.kernels as K; t = torch.randn(2, 2, 8, 16);"
        "K.cross_domain_attention(t, t, t, 0.5); sys.exit(len({'triton', 'torch._dynamo'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-I", "-c", code], check=False).returncode == 0
