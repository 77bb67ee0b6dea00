"""What hosting costs: a sampling step through KSampler and our MODEL, against the same network and steps
as plain torch modules.

    python tests/benchmarks/worker_hosting.py COMFYUI PACK [--rounds 7]

Both run in one process, on one thread of the CPU, turn by turn; a step's time is that of a long run less that
of a short one, by the number of steps between, so that loading and set-up count for neither. Processor
seconds, which other work on the machine does not change; written are the medians, their ratio, and the
largest difference of the results.
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHORT, LONG = 2, 12  # steps
# (name, hidden size, heads, double, single and depth decoder blocks, latent pixels a side:
# 16 is 256 px, words)
# tiny is what the pack ships; small has klein's heads of 128 and about its mix of blocks,
# at an eighth of its width
CASES = (("tiny", 192, 6, (1, 5, 1), 8, 32), ("small", 512, 4, (4, 8, 1), 16, 128))


def start(comfyui, pack):
    """tests/nodes/worker.py, whose way into ComfyUI this is."""
    spec = importlib.util.spec_from_file_location("spatialweave_worker", HERE.parent / "nodes" / "worker.py")
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    sys.argv[1:] = [comfyui, pack]  # where the worker's `ours` looks for the pack
    worker.start(comfyui, pack)
    return worker.ours


class Rig:
    """One random network as core's MODEL and as a plain module, with latents and a prompt."""

    def __init__(self, ours, case, folder):
        import torch

        name, width, heads, blocks, side, words = case
        config_of, weights, network = (
            ours(f"models.modality_forcing.{part}") for part in ("config", "weights", "network")
        )
        doubles, singles, decoders = blocks
        config = config_of.ModalityForcingConfig(
            in_channels=32, context_in_dim=128, hidden_size=width, num_heads=heads,
            axes_dim=(width // heads // 4,) * 4,
            num_double_blocks=doubles, num_single_blocks=singles, num_depth_decoder_blocks=decoders,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        made = network.ModalityForcing(config)
        for parameter in made.parameters():
            parameter.data = (
                torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
                + (parameter.ndim == 1)
            )
        path = weights.save_network(Path(folder) / f"{name}.safetensors", made, config)
        self.ours, self.name, self.network = ours, name, made.train(False).requires_grad_(False)
        self.model = ours("nodes.host.modality_forcing.loading").load_joint_model(str(path))
        self.context = torch.randn(1, words, config.context_in_dim, generator=generator)
        self.shapes = (
            (1, config.in_channels, side, side), (1, 1, side * config.depth_patch, side * config.depth_patch),
        )

    def hosted(self, steps):
        import comfy.nested_tensor
        import torch

        import nodes as core

        latent = {"samples": comfy.nested_tensor.NestedTensor([torch.zeros(shape) for shape in self.shapes])}
        prompt = [[self.context, {}]]
        return (
            core.KSampler()
            .sample(self.model, 7, steps, 1.0, "euler", "simple", prompt, prompt, latent)[0]["samples"]
            .unbind()
        )

    def plain(self, steps):
        sampling = self.ours("models.modality_forcing.sampling")
        schedule = sampling.make_schedule("joint", steps)
        return sampling.sample(
            self.network, *sampling.draw_noise(7, *self.shapes), schedule, context=self.context
        )


def seconds_per_step(run):
    """Processor seconds of one step."""
    times = []
    for steps in (SHORT, LONG):
        began = time.process_time()
        run(steps)
        times.append(time.process_time() - began)
    return (times[1] - times[0]) / (LONG - SHORT)


def measure(rig, rounds):
    difference = max(float((a - b).abs().max()) for a, b in zip(rig.hosted(SHORT), rig.plain(SHORT)))
    times = [(seconds_per_step(rig.plain), seconds_per_step(rig.hosted)) for _ in range(rounds)]
    plain, hosted = (statistics.median(column) for column in zip(*times))
    ratio = statistics.median(b / a for a, b in times)
    return (
        f"{rig.name:8s} plain {plain * 1e3:8.2f} ms/step   hosted "
        f"{hosted * 1e3:8.2f}   ratio {ratio:.3f}   difference {difference:.1e}"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("comfyui", type=lambda place: str(Path(place).resolve()), help="a ComfyUI folder")
    parser.add_argument("pack", type=lambda place: str(Path(place).resolve()), help="this pack's folder")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each; the medians are written")
    options = parser.parse_args()
    ours = start(options.comfyui, options.pack)
    import torch

    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            sys.stdout.write(measure(Rig(ours, case, folder), options.rounds) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
