"""What a run takes, in time and in the memory of its tensors, on the CPU and on a CUDA device."""

import contextlib
import gc
import time
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Processor:
    """One thread of the CPU, and the memory of this process."""

    name, dtype = "cpu", "float32"

    def seconds(self, run):
        began = time.process_time()
        run()
        return time.process_time() - began

    def peak(self, run):
        """MiB of the tensors that a run made and that were alive at once;
        what an operator keeps to itself is not seen.
        """
        gc.collect()
        with living_tensors() as seen:
            run()
        return seen["most"] / 2**20


@contextlib.contextmanager
def living_tensors():
    """The bytes of the tensors made while open, as {"now", "most"}: exact, where resident memory is the
    allocator's.
    """
    seen, known = {"now": 0, "most": 0}, {}

    def freed(reference):
        seen["now"] -= known.pop(reference)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    reference = weakref.ref(storage, freed)
                    if reference not in known and reference not in before:
                        known[reference] = storage.nbytes()
                        seen["now"] += storage.nbytes()
                        seen["most"] = max(seen["most"], seen["now"])
            return out

    there = (each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter))
    # sparse ones have none
    before = {weakref.ref(each.untyped_storage()) for each in there if each.layout == torch.strided}
    with Watch():
        yield seen


class Card:
    """A CUDA device, and the memory that tensors take on it."""

    dtype = "float16"

    def __init__(self):
        # else sums may be in another order each time, and equal runs differ in bits
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # which only costs time
        self.cuda, self.name = torch.cuda, torch.cuda.get_device_name()

    def seconds(self, run):
        self.cuda.synchronize()
        began = time.perf_counter()
        run()
        self.cuda.synchronize()
        return time.perf_counter() - began

    def peak(self, run):
        gc.collect()
        self.cuda.reset_peak_memory_stats()
        before = self.cuda.memory_allocated()
        run()
        return (self.cuda.max_memory_allocated() - before) / 2**20
