"""What co-generation costs: a sampling step of an image with its intrinsic maps, against the base model's
own, through core's KSampler.

    python tests/benchmarks/worker_intrinsic_cost.py COMFYUI PACK [--rounds 5] [--json FILE]
        [--models tiny sd21 sdxl] [--device cuda]

Random weights, cfg 7.5, 25 steps of euler. In every round each kind of run has its turn, in the other order
every second time; a step's time is that of the whole KSampler, set-up included, by its steps, and its ratio
is to the base of the same round. Written are medians, the least and the greatest ratio, and the peak memory
of one further run of each kind.

On the CPU: float32, one thread, processor time, and the bytes of the tensors that are alive at once, counted
one by one. On a card: float16, the clock's time until the card is done, and how far the memory that tensors
take on it rises; the weights are made there and stay there.

No time is taken before these hold: with weight off the network is asked for the image what it is asked for by
the base, operator by operator; and on the CPU, or where the base comes out twice alike, the image is the
base's bit for bit, and stopping the maps does not change it.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
STEPS, CFG, SEED, WORDS = 25, 7.5, 7, 77
GAUSSIAN = {"schedule": "gaussian", "alpha": 1.0, "tau": 800.0, "sigma": 100.0}
DROP = {"schedule": "drop", "layers": "", "layer_reading": "stages", "tau": 900.0}
# kind of run: (schedule, are the maps kept to the end), or how many images the base model makes
KINDS = {
    "base": 1,
    "base, two images": 2,
    "all steps, w = 1": ({"schedule": "constant", "weight": 1.0}, True),
    "drop": (DROP, True),
    "gaussian": (GAUSSIAN, True),
    "gaussian, maps stopped": (GAUSSIAN, False),
}
SIDES = {"tiny": 16, "sd21": 32, "sdxl": 128}  # latent pixels: 128, 256 and 1024 pixels of a picture
RANKS = {"tiny": 10, "sd21": 32, "sdxl": 32}  # of the LoRA, as the recipes have it
POOLED = 1280  # width of the second prompt that SDXL reads, beside six sizes
# SD2.1's levels, blocks and heads of 64, at a fifth of its width
SD21 = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "num_head_channels": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True, "context_dim": 1024, "legacy": False, "adm_in_channels": None,
    "use_temporal_attention": False,
}  # fmt: skip
# SDXL as it is published
SDXL = SD21 | {
    "model_channels": 320, "channel_mult": [1, 2, 4], "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "context_dim": 2048,
    "num_classes": "sequential", "adm_in_channels": 2816,
}  # fmt: skip


def load(path):
    """A file as a module."""
    spec = importlib.util.spec_from_file_location(f"spatialweave_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


METERS = load(HERE / "meters.py")
DEVICES = {"cpu": METERS.Processor, "cuda": METERS.Card}  # by torch's name of the device
OPERATORS = load(HERE.parent / "nodes" / "operators.py")


def start(comfyui, pack, device):
    """tests/nodes/worker.py, whose way into ComfyUI this is."""
    if device == "cuda":  # core chooses when this is imported, before the worker asks it to stay on the CPU
        # as torch's deterministic algorithms want it
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        sys.path.insert(0, comfyui)
        import comfy.model_management  # noqa: F401
    worker = load(HERE.parent / "nodes" / "worker.py")
    sys.argv[1:] = [comfyui, pack]  # where the worker's `ours` looks for the pack
    worker.start(comfyui, pack)
    return worker.ours


def random_model(sizes, dtype):
    """A core MODEL of SD2.1's or SDXL's kind with random weights, from the arguments of core's UNetModel."""
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    parent, predicted = comfy.supported_models.SD20, comfy.model_base.ModelType.V_PREDICTION
    if sizes["adm_in_channels"]:
        parent, predicted = comfy.supported_models.SDXL, comfy.model_base.ModelType.EPS

    class Latent(parent.latent_format):
        latent_channels = sizes["in_channels"]

    class Described(parent):
        unet_extra_config = {"num_heads": -1, "num_head_channels": sizes["num_head_channels"]}
        latent_format = Latent

        def inpaint_model(self):
            return False  # core counts channels, of which SD's latents have 4

        def model_type(self, state_dict, prefix=""):
            return predicted

    device = comfy.model_management.get_torch_device()
    made = Described(sizes | {"dtype": dtype}).get_model({}, device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, value in made.diffusion_model.named_parameters():
        noise = torch.randn(value.shape, generator=generator, device=device)
        value.data = (
            noise * value[0].numel() ** -0.5 if value.ndim > 1 else noise * 0.1 + name.endswith("weight")
        ).to(dtype)
    made.train(False).requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(made, device, device)


def write_lora(ours, model, rank, folder, name):
    """A random intrinsic LoRA for every self-attention projection; its name for the node."""
    import folder_paths
    import torch
    from safetensors.torch import save_file

    generator, tensors = torch.Generator().manual_seed(1), {}
    base = ours("nodes.host.intrinsic_ldm.layers").Base(model)
    for path, projection in base.projections(model.model.diffusion_model).items():
        tensors[f"unet.{path}.lora_A.weight"] = (
            torch.randn(rank, projection.inputs, generator=generator) * projection.inputs**-0.5
        )
        tensors[f"unet.{path}.lora_B.weight"] = (
            torch.randn(projection.outputs, rank, generator=generator) * 0.1
        )
    save_file(tensors, Path(folder) / name)
    folder_paths.add_model_folder_path("loras", str(folder))
    folder_paths.filename_list_cache.clear()
    return name


class Rig:
    """One random model with prompts, and runs on it of every kind; a kind is a value of KINDS."""

    def __init__(self, ours, meter, name, options, folder):
        import torch

        known = {"tiny": ours("models.intrinsic_ldm.tiny").unet_for_core(), "sd21": SD21, "sdxl": SDXL}
        sizes, side = known[name] | options.sizes, options.side or SIDES[name]
        self.ours, self.meter, self.model = ours, meter, random_model(sizes, getattr(torch, meter.dtype))
        self.steps, self.short = options.steps, options.check_steps or options.steps
        self.lora = write_lora(ours, self.model, RANKS[name], folder, f"{name}.safetensors")
        generator = torch.Generator().manual_seed(2)
        self.prompts = [
            [[torch.randn(1, WORDS, sizes["context_dim"], generator=generator), {}]] for _ in range(2)
        ]
        if sizes["adm_in_channels"]:
            for ((_, said),) in self.prompts:
                said |= {
                    "pooled_output": torch.randn(1, POOLED, generator=generator), "width": side * 8,
                    "height": side * 8,
                }
        self.latent = torch.zeros(1, sizes["in_channels"], side, side)

    def prepare(self, kind):
        """(MODEL, latents) for KSampler."""
        if isinstance(kind, int):
            return self.model, self.latent.expand(kind, -1, -1, -1).clone()
        host, (schedule, keep_maps) = self.ours("nodes.host.intrinsic_ldm.model"), kind
        settings = {"cut_below": 0.001, "keep_maps": keep_maps, "share_image_loras": False}
        model, _ = host.with_intrinsics(self.model, self.lora, schedule, **settings)
        return model, host.join_intrinsic(model, {"samples": self.latent}, None)["samples"]

    def sample(self, steps, model, samples):
        import nodes as core

        positive, negative = self.prompts
        given = (model, SEED, steps, CFG, "euler", "normal", positive, negative, {"samples": samples})
        return core.KSampler().sample(*given)[0]["samples"]

    def image(self, kind):
        """The image's latent after a short run of this kind; of two images, the first's."""
        out = self.sample(self.short, *self.prepare(kind))
        return (out.unbind()[0] if out.is_nested else out)[:1]

    def asked(self, kind):
        """What the network is asked for in a step of this kind: its calls, see tests/nodes/operators.py."""
        given = self.prepare(kind)
        with OPERATORS.asked_of(self.model.model.diffusion_model) as calls:
            self.sample(1, *given)
        return calls

    def check(self):
        """Raises AssertionError where a run is not what its time would be taken for.
        It warms up every kind.
        """
        images = {name: self.image(kind) for name, kind in KINDS.items()}
        if not all(bool(image.isfinite().all()) for image in images.values()):
            raise AssertionError("a run is not finite")
        off = ({"schedule": "off"}, True)
        base, beside = self.asked(KINDS["base"])[0], self.asked(off)[0]
        if not OPERATORS.same_arguments(base, beside):
            raise AssertionError(
                "with weight off other tensors come to the network than in the base's first step"
            )
        if difference := OPERATORS.first_difference(base, beside):
            raise AssertionError(
                f"with weight off the image's call of the network is not the base's: operator {difference}"
            )
        self.is_repeatable = bool((self.image(KINDS["base"]) == images["base"]).all())
        if self.meter.name == METERS.Processor.name and not self.is_repeatable:
            raise AssertionError("the base alone does not come out twice alike")
        pairs = {
            "with weight off": (self.image(off), images["base"]),
            "maps stopped": (images["gaussian, maps stopped"], images["gaussian"]),
        }
        gaps = {name: float((got - want).abs().max()) for name, (got, want) in pairs.items()}
        if self.is_repeatable and any(gaps.values()):
            raise AssertionError(
                f"the image is not the same bit for bit, the base's own repeated is: gaps of {gaps}"
            )
        if bool((images["gaussian"] == images["base"]).all()):
            raise AssertionError("the maps do not reach the image")

    def seconds(self, kind):
        """Of a step."""
        given = self.prepare(kind)
        return self.meter.seconds(lambda: self.sample(self.steps, *given)) / self.steps

    def peak(self, kind):
        return self.meter.peak(lambda: self.image(kind))


def measure(rig, rounds):
    """Figures by kind of run."""
    rig.check()
    times = {name: [] for name in KINDS}
    for number in range(rounds):
        for name in reversed(KINDS) if number % 2 else KINDS:
            times[name].append(rig.seconds(KINDS[name]))
    found = {}
    for name, seconds in times.items():
        ratios = [own / base for own, base in zip(seconds, times["base"], strict=True)]
        found[name] = {
            "ms_per_step": statistics.median(seconds) * 1e3, "ratio": statistics.median(ratios),
            "least": min(ratios), "greatest": max(ratios), "peak_mib": rig.peak(KINDS[name]),
        }  # fmt: skip
    return found


def table(name, figure):
    """Markdown."""
    title = "{name}, latents of {side} x {side}, {steps} steps, {device}, {dtype}".format(name=name, **figure)
    lines = [
        title, "", "| | ms a step | by the base | least to greatest | peak MiB |", "|---|---|---|---|---|",
    ]
    for kind, row in figure["kinds"].items():
        figures = "{ms_per_step:.1f} | {ratio:.2f} | {least:.2f} to {greatest:.2f} | {peak_mib:.3g}".format(
            **row
        )
        lines.append(f"| {kind} | {figures} |")
    return "\n".join([*lines, "", ""])


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("comfyui", type=lambda place: str(Path(place).resolve()), help="a ComfyUI folder")
    parser.add_argument("pack", type=lambda place: str(Path(place).resolve()), help="this pack's folder")
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each kind")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument(
        "--check-steps",
        type=int,
        help="steps of the runs that are only checked or weighed; as many without it",
    )
    parser.add_argument("--models", nargs="+", choices=SIDES, default=["tiny", "sd21"])
    parser.add_argument(
        "--side", type=int, help="latent pixels of a side, for each model another: " + str(SIDES)
    )
    parser.add_argument(
        "--sizes",
        type=json.loads,
        default={},
        help="other arguments of the UNet, as JSON; the tests shrink SDXL so",
    )
    parser.add_argument(
        "--json", type=lambda place: Path(place).resolve(), help="write the figures here, too"
    )
    return parser.parse_args(arguments)


def run(options, ours):
    """The figures of every model asked for, on standard output and in the file."""
    import torch

    meter, figures = DEVICES[options.device](), {}
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            rig = Rig(ours, meter, name, options, folder)
            found = measure(rig, options.rounds)
            figures[name] = {
                "side": options.side or SIDES[name], "steps": options.steps, "rounds": options.rounds,
                "device": meter.name,
                "dtype": meter.dtype, "torch": torch.__version__,
                "base_repeats_bit_for_bit": rig.is_repeatable, "kinds": found,
            }  # fmt: skip
            sys.stdout.write(table(name, figures[name]))
    text = json.dumps(figures)
    sys.stdout.write(text + "\n")
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


def run_inside(arguments):
    """The same in a ComfyUI that runs already, whose worker gives this file `ours`; what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run(parse(arguments), ours)  # noqa: F821
    return printed.getvalue()


def main():
    options = parse(sys.argv[1:])
    run(options, start(options.comfyui, options.pack, options.device))


if __name__ == "__main__":
    main()
