"""A Triton driver without a card: kernels are compiled for one in earnest, and launches are only counted."""

from types import SimpleNamespace

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from spatialweave.kernels.segment_attention import launch
from spatialweave.kernels.segment_attention.kernel import forward_kernel

CAPABILITY = (9, 0)


class FakeDriver:
    """What Triton's runtime asks of a driver; `launches` holds the arguments of every launch."""

    def __init__(self, keep=False):
        self.launches, self.count, self.keep, self.error = [], 0, keep, None
        self.utils = SimpleNamespace(
            load_binary=lambda name, binary, shared, device: (name, len(binary), 0, 0, 1024),
            get_device_properties=lambda device: {"max_shared_mem": 232448, "multiprocessor_count": 132},
            unload_module=lambda module: None,
        )
        self.launcher_cls = lambda source, metadata: self.begin

    def begin(self, x, y, z, stream, function, packed, metadata, enter, leave, *arguments):
        if self.error is not None:
            raise self.error
        self.count += 1
        if self.keep:
            self.launches.append(((x, y, z), arguments))

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY[0] * 10 + CAPABILITY[1], 32)

    def get_device_capability(self, device=0):
        return CAPABILITY


def install(setattr_, keep=False):
    """Make the op believe in a Hopper card that its kernels suit; `setattr_` is pytest's, or the builtin."""
    fake = FakeDriver(keep)
    forward_kernel.device_caches.clear()  # which hold the launcher of another driver
    setattr_(driver, "_active", fake)
    setattr_(launch, "machine_reason", lambda device: None)
    setattr_(launch, "capability_of", lambda q: CAPABILITY)
    setattr_(launch, "self_check", lambda q: None)
    return fake
