"""What co-generation costs: a sampling step of an image with its intrinsic maps, against the base model's own, through core's KSampler.

    python tests/benchmarks/worker_intrinsic_cost.py COMFYUI PACK [--rounds 5] [--json FILE] [--models tiny sd21]

Random weights, one thread of the CPU, cfg 7.5, 25 steps of euler. In every round each kind of run has its turn, in the other order every
second time; a step's time is the processor time of the whole KSampler, set-up included, by its steps, and its ratio is to the base of the
same round. Written are medians, the least and the greatest ratio, and the peak memory of one further run of each kind: how far the
process's resident memory rises above where it stood (Linux; VmHWM, set back through /proc/self/clear_refs, after freed memory is returned).

No time is taken before these hold: with weight off the image is the base's, bit for bit, and stopping the maps does not change it.
"""

import argparse
import ctypes
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
STEPS, CFG, SEED, WORDS = 25, 7.5, 7, 77
GAUSSIAN = {"schedule": "gaussian", "alpha": 1.0, "tau": 800.0, "sigma": 100.0}
DROP = {"schedule": "drop", "layers": "", "layer_reading": "stages", "tau": 900.0}
# kind of run: (schedule, are the maps kept to the end), or None for the base model with so many images
KINDS = {
    "base": None,
    "base, two images": None,
    "all steps, w = 1": ({"schedule": "constant", "weight": 1.0}, True),
    "drop": (DROP, True),
    "gaussian": (GAUSSIAN, True),
    "gaussian, maps stopped": (GAUSSIAN, False),
}
SIDES = {"tiny": 16, "sd21": 32}  # latent pixels: 128 and 256 pixels of a picture
RANKS = {"tiny": 10, "sd21": 32}  # of the LoRA, as the recipes have it
# SD2.1's levels, blocks and heads of 64, at a fifth of its width
SD21 = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "num_head_channels": 64, "use_spatial_transformer": True,
    "use_linear_in_transformer": True, "context_dim": 1024, "legacy": False, "adm_in_channels": None, "use_temporal_attention": False,
}  # fmt: skip


def start(comfyui, pack):
    """tests/nodes/worker.py, whose way into ComfyUI this is."""
    spec = importlib.util.spec_from_file_location("spatialweave_worker", HERE.parent / "nodes" / "worker.py")
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    sys.argv[1:] = [comfyui, pack]  # where the worker's `ours` looks for the pack
    worker.start(comfyui, pack)
    return worker.ours


def random_model(sizes):
    """A core MODEL of SD2.1's kind with random weights, from the arguments of core's UNetModel."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    class Latent(comfy.latent_formats.SD15):
        latent_channels = sizes["in_channels"]

    class Described(comfy.supported_models.SD20):
        unet_extra_config = {"num_heads": -1, "num_head_channels": sizes["num_head_channels"]}
        latent_format = Latent

        def inpaint_model(self):
            return False  # core counts channels, of which SD's latents have 4

        def model_type(self, state_dict, prefix=""):
            return comfy.model_base.ModelType.V_PREDICTION

    made = Described(sizes | {"dtype": torch.float32}).get_model({}, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for name, value in made.diffusion_model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        value.data = noise * value[0].numel() ** -0.5 if value.ndim > 1 else noise * 0.1 + name.endswith("weight")
    made.train(False).requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(made, torch.device("cpu"), torch.device("cpu"))


def write_lora(ours, model, rank, folder, name):
    """A random intrinsic LoRA for every self-attention projection; its name for the node."""
    import folder_paths
    import torch
    from safetensors.torch import save_file

    generator, tensors = torch.Generator().manual_seed(1), {}
    base = ours("nodes.host.intrinsic_layers").Base(model)
    for path, projection in base.projections(model.model.diffusion_model).items():
        tensors[f"unet.{path}.lora_A.weight"] = torch.randn(rank, projection.inputs, generator=generator) * projection.inputs**-0.5
        tensors[f"unet.{path}.lora_B.weight"] = torch.randn(projection.outputs, rank, generator=generator) * 0.1
    save_file(tensors, Path(folder) / name)
    folder_paths.add_model_folder_path("loras", str(folder))
    folder_paths.filename_list_cache.clear()
    return name


class Rig:
    """One random model with prompts, and every kind of run on it."""

    def __init__(self, ours, name, side, steps, folder):
        import torch

        sizes = ours("models.intrinsic_ldm.tiny").unet_for_core() if name == "tiny" else SD21
        self.ours, self.steps, self.model = ours, steps, random_model(sizes)
        self.lora = write_lora(ours, self.model, RANKS[name], folder, f"{name}.safetensors")
        generator = torch.Generator().manual_seed(2)
        self.prompts = [[[torch.randn(1, WORDS, sizes["context_dim"], generator=generator), {}]] for _ in range(2)]
        self.latent = torch.zeros(1, sizes["in_channels"], side, side)

    def run(self, kind):
        """The image's latent after a run of this kind."""
        if KINDS[kind] is None:
            return self.sample(self.model, self.latent.expand(2 if "two" in kind else 1, -1, -1, -1).clone())[:1]
        return self.coupled(*KINDS[kind])

    def coupled(self, schedule, keep_maps):
        host = self.ours("nodes.host.intrinsic_model")
        settings = {"cut_below": 0.001, "keep_maps": keep_maps, "share_image_loras": False}
        model, _ = host.with_intrinsics(self.model, self.lora, schedule, **settings)
        return self.sample(model, host.join_intrinsic(model, {"samples": self.latent}, None)["samples"]).unbind()[0]

    def sample(self, model, samples):
        import nodes as core

        positive, negative = self.prompts
        given = (model, SEED, self.steps, CFG, "euler", "normal", positive, negative, {"samples": samples})
        return core.KSampler().sample(*given)[0]["samples"]

    def check(self):
        """Raises AssertionError where a run is not what its time would be taken for. It warms up every kind."""
        import torch

        images = {kind: self.run(kind) for kind in KINDS}
        if not all(bool(image.isfinite().all()) for image in images.values()):
            raise AssertionError("a run is not finite")
        if not torch.equal(self.coupled({"schedule": "off"}, True), images["base"]):
            raise AssertionError("with weight off the image is not the base's")
        if not torch.equal(images["gaussian"], images["gaussian, maps stopped"]):
            raise AssertionError("stopping the maps changes the image")
        if torch.equal(images["gaussian"], images["base"]):
            raise AssertionError("the maps do not reach the image")

    def seconds(self, kind):
        """Processor seconds of a step."""
        began = time.process_time()
        self.run(kind)
        return (time.process_time() - began) / self.steps

    def peak(self, kind):
        """MiB that resident memory rises in a run; None where the system does not say."""
        try:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            before = resident("VmRSS")
            self.run(kind)
            return (resident("VmHWM") - before) / 1024
        except (OSError, AttributeError):
            return None


def resident(field):
    """A line of /proc/self/status, in KiB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1])


def measure(rig, rounds):
    """Figures by kind of run."""
    rig.check()
    times = {kind: [] for kind in KINDS}
    for number in range(rounds):
        for kind in reversed(KINDS) if number % 2 else KINDS:
            times[kind].append(rig.seconds(kind))
    found = {}
    for kind, seconds in times.items():
        ratios = [own / base for own, base in zip(seconds, times["base"], strict=True)]
        found[kind] = {
            "ms_per_step": statistics.median(seconds) * 1e3, "ratio": statistics.median(ratios),
            "least": min(ratios), "greatest": max(ratios), "peak_mib": rig.peak(kind),
        }  # fmt: skip
    return found


def table(name, side, steps, found):
    """Markdown."""
    lines = [f"{name}, latents of {side} x {side}, {steps} steps", "", "| | ms a step | by the base | least to greatest | peak MiB |"]
    lines.append("|---|---|---|---|---|")
    for kind, row in found.items():
        peak = "not known" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        spread = f"{row['least']:.2f} to {row['greatest']:.2f}"
        lines.append(f"| {kind} | {row['ms_per_step']:.1f} | {row['ratio']:.2f} | {spread} | {peak} |")
    return "\n".join([*lines, "", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=lambda place: str(Path(place).resolve()), help="a ComfyUI folder")
    parser.add_argument("pack", type=lambda place: str(Path(place).resolve()), help="this pack's folder")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each kind")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--models", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--side", type=int, help="latent pixels of a side, for each model another: " + str(SIDES))
    parser.add_argument("--json", type=lambda place: Path(place).resolve(), help="write the figures here, too")
    options = parser.parse_args()
    ours = start(options.comfyui, options.pack)
    import torch

    figures = {}
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            side = options.side or SIDES[name]
            found = measure(Rig(ours, name, side, options.steps, folder), options.rounds)
            figures[name] = {"side": side, "steps": options.steps, "rounds": options.rounds, "kinds": found}
            sys.stdout.write(table(name, side, options.steps, found))
            sys.stdout.flush()
    text = json.dumps(figures)
    sys.stdout.write(text + "\n")
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
