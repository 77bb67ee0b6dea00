"""Called by worker.py inside ComfyUI: Cancel, pressed at every step and in every phase,
and what the next run is then.
"""

import contextlib
import gc
import os
import sys

import comfy.model_management as management
import comfy.patcher_extension
import comfy.sd
import comfy.utils
import torch

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
sampling, modes, compose = (
    sys.modules[f"spatialweave_tests_inside_{name}"] for name in ("sampling", "modes", "compose")
)
STEPS, SIZE, PLACES = 3, (32, 32), 12


@contextlib.contextmanager
def pressed_at(check):
    """Cancel is pressed just before the given one of core's checks for it (counted from 0; None: never);
    yields their count.
    """
    seen, before = [0], management.throw_exception_if_processing_interrupted

    def checked():
        if seen[0] == check:
            management.interrupt_current_processing(True)
        seen[0] += 1
        before()

    management.throw_exception_if_processing_interrupted = checked
    try:
        yield seen
    finally:
        management.throw_exception_if_processing_interrupted = before


def is_cancelled(work, check=None):
    """Whether `work` ended by Cancel."""
    try:
        with pressed_at(check):
            work()
    except management.InterruptProcessingException:
        return not management.processing_interrupted()
    return False


def live_bytes():
    """Of every tensor with memory there is, each storage once; the compiler's own fake ones have none."""
    gc.collect()
    found = [value for value in gc.get_objects() if type(value) in (torch.Tensor, torch.nn.Parameter)]
    return sum(
        {store.data_ptr(): store.nbytes() for store in (value.untyped_storage() for value in found)}.values()
    )


def state(model):
    """What a run may not leave changed, of a model and of what is loaded."""
    preview = model.model.latent_format.latent_rgb_factors_reshape
    return {
        "weights": [float(value.double().sum()) for value in model.model.state_dict().values()],
        "options": sorted(str(key) for key in model.model_options["transformer_options"]),
        "hooks": [
            len(model.model_options.get(key, ()))
            for key in ("sampler_post_cfg_function", "sampler_pre_cfg_function")
        ],
        "loaded": len(management.current_loaded_models),
        "preview": (preview.depth is None, preview.previewer is None),
    }


def models():
    """The model as it is loaded, and with a LoRA, an order and a guidance of its own."""
    r, delta = sampling.rig(), compose.Delta()
    changed = comfy.sd.load_lora_for_models(r.model, None, delta.kohya(), 1.0, 0)[0]
    patched = modes.run("GuidancePerStream", modes.run("ModalityOrder", changed, 3.0)[0], 2.0)[0]
    return {"plain": r.model, "LoRA, order and guidance": patched}


def step_by_step(kind):
    """Cancel in the k-th call of the network, for every k, and at checks spread over the whole run;
    after each, the run is repeated.
    """
    r, model = sampling.rig(), models()[kind]
    press = {"at": None, "seen": 0}

    def pressing(executor, *args, **kwargs):
        if press["seen"] == press["at"]:
            management.interrupt_current_processing(True)
        press["seen"] += 1
        return executor(*args, **kwargs)

    watched = model.clone()
    watched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "cancel", pressing)

    def work():
        press["seen"] = 0
        return sampling.ksample(watched, r.latent(1, *SIZE), steps=STEPS, cfg=2.0, seed=3)["samples"].unbind()

    want, calls = work(), press["seen"]
    with pressed_at(None) as seen:
        work()
    untouched = run_plain()  # of the model before it, for which core takes a LoRA out of the weights again
    before, memory = state(watched), live_bytes()
    checks = [round(share * (seen[0] - 1) / (PLACES - 1)) for share in range(PLACES)]
    out = {"calls": calls, "checks": seen[0], "cancelled": [], "same": []}
    for at, check in [(call, None) for call in range(calls)] + [(None, check) for check in checks]:
        press["at"] = at
        out["cancelled"].append(is_cancelled(work, check))
        press["at"] = None
        out["same"].append(all(torch.equal(a, b) for a, b in zip(work(), want)))
    out["plain"] = all(torch.equal(a, b) for a, b in zip(run_plain(), untouched))
    after = state(watched)
    out["grown"] = live_bytes() - memory
    out["state"] = [key for key in before if before[key] != after[key]]
    return out


def run_plain():
    return sampling.ksample(sampling.rig().model, sampling.rig().latent(1, *SIZE), steps=1)[
        "samples"
    ].unbind()


def phases():
    """Cancel in the work around the sampling: prompt, encoding, decoding, second run.
    Each node stops, and then does what it did.
    """
    r = sampling.rig()
    result = {"samples": sampling.ksample(r.model, r.latent(), steps=1)["samples"]}
    parts = {"image": modes.picture(), "image_mask": torch.ones(1, 64, 48), "view": modes.view(holes=True)}

    def streams(latent):
        return latent["samples"].unbind()

    works = {
        "CLIPTextEncode": lambda: [core.CLIPTextEncode().encode(r.clip, "a red ball")[0][0][0]],
        "ImageToDepthLatent": lambda: streams(
            modes.run("ImageToDepthLatent", r.model, r.vae, modes.picture())[0]
        ),
        "MaskedJointLatent": lambda: [
            part.nan_to_num() for part in streams(modes.run("MaskedJointLatent", r.model, r.vae, **parts)[0])
        ],
        "refine": lambda: streams(
            sampling.ksample(r.model, modes.run("RefineDepthLatent", result)[0], steps=1)
        ),
        "DecodeJointLatent": lambda: [modes.run("DecodeJointLatent", result, r.vae)[0]],
        "VAEDecodeTiled": lambda: [
            core.VAEDecodeTiled().decode(r.vae, modes.run("SplitJointLatent", result)[0], 64, 16)[0]
        ],
    }
    out, memory = {}, live_bytes()
    for name, work in works.items():
        want = work()
        with pressed_at(None) as seen:
            work()
        stopped = [is_cancelled(work, round(share * (seen[0] - 1) / 4)) for share in range(5)]
        out[name] = {
            "checks": seen[0], "stopped": all(stopped),
            "same": all(torch.equal(a, b) for a, b in zip(work(), want)),
        }
    del want
    return out | {"grown": live_bytes() - memory}


@contextlib.contextmanager
def shown_bar():
    """What the progress bar is told meanwhile: (done, of how many)."""
    seen, before = [], comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(
        lambda value, total, preview, node_id=None: seen.append((int(value), total))
    )
    try:
        yield seen
    finally:
        comfy.utils.set_progress_bar_global_hook(before)


def plain(value):
    """What a node gave, in a form that can be compared."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if hasattr(value, "get_bytes"):
        return value.get_bytes()
    found = getattr(value, "depth", getattr(value, "vertices", None))  # of a View, of a MESH
    return repr(value) if found is None else (found.tolist(), plain(getattr(value, "normals", None)))


def pictures(folder):
    """Cancel before each of three pictures, in every node that works on one picture after the other;
    and what its bar showed.
    """
    import folder_paths

    geometry = sys.modules["spatialweave_tests_inside_geometry"]
    folder_paths.set_output_directory(folder)
    folder_paths.set_temp_directory(folder)
    view, cloud = (
        geometry.scene(batch=3), {"index": 1, "fov_degrees": 65.0, "edge_threshold": 0.04, "frame": "camera"},
    )
    other = geometry.scene()
    save = {"view": view, "filename_prefix": "saved", "png_scale": 0.0, "exr_picture": True}
    percent = {"near_percentile": 0.0, "far_percentile": 100.0}
    cases = {
        "PreviewDepth": {"view": view, "style": "colour", **percent},
        "NormalsFromDepth": {"view": view, "style": "opengl", "fov_degrees": 65.0, "edge_threshold": 0.04},
        "UpscaleDepth": {"view": view, "image": view.image.repeat_interleave(2, 1).repeat_interleave(2, 2)},
        "StereoPair": {"view": view, "parallax": 4.0, "screen": 0.5, "edge_threshold": 0.04},
        "AlignDepth": {
            "view": view, "reference": other, "method": "scale and shift, robust", "quantity": "depth",
        },
        "CompareViews": {
            "view": view, "reference": other, "alignment": "scale", "quantity": "depth", "fov_degrees": 65.0,
        },
        "SaveDepth png": {**save, "format": "png"},
        "SaveDepth exr": {**save, "format": "exr"},
        "SaveDepth npz": {**save, "format": "npz"},
        "PointCloud": {"view": view, "max_points": 1200000, **cloud},
        "DepthMesh": {"view": view, "stride": 1, **cloud},
    }
    return {name: between_pictures(name.split()[0], inputs, folder) for name, inputs in cases.items()}


def between_pictures(node, inputs, folder):
    made = core.NODE_CLASS_MAPPINGS[f"SpatialWeave_{node}"].PREPARE_CLASS_CLONE(None)

    def work():
        return [plain(value) for value in made.EXECUTE_NORMALIZED(**inputs).result or ()]

    def files():
        return len([name for name in os.listdir(folder) if name.startswith("saved")])

    with pressed_at(None) as seen, shown_bar() as bar:
        want = work()
    stopped, left = [], []
    for check in range(seen[0]):
        before = files()
        stopped.append(is_cancelled(work, check))
        left.append(files() - before)
    return {"checks": seen[0], "bar": bar, "stopped": stopped, "files": left, "same": work() == want}


def within_one_attention(pairs):
    """A step whose attention is cut into parts: what it gives beside the whole one, and Cancel at each of its
    own checks.
    """
    attention = ours("nodes.host.modality_forcing.attention")
    random, before = torch.Generator().manual_seed(4), attention.PAIRS
    q, k, v = (torch.randn(2, 3, 50, 8, generator=random) for _ in range(3))
    whole = attention.attend_in_parts(q, k, v, {})
    run = lambda: attention.attend_in_parts(q, k, v, {})  # noqa: E731
    attention.PAIRS = pairs
    try:
        with pressed_at(None) as seen:
            parts = run()
        stopped = [is_cancelled(run, check) for check in range(seen[0])]
        r = sampling.rig()
        latent = sampling.ksample(r.model, r.latent(height=SIZE[0], width=SIZE[1]), steps=2)
    finally:
        attention.PAIRS = before
    again = sampling.ksample(r.model, r.latent(height=SIZE[0], width=SIZE[1]), steps=2)
    pair = zip(latent["samples"].unbind(), again["samples"].unbind(), strict=True)
    return {
        "checks": seen[0], "stopped": stopped, "difference": float((parts - whole).abs().max()),
        "run": max(float((a - b).abs().max()) for a, b in pair),
    }
