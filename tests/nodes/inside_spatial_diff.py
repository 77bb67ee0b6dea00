"""Called by worker.py inside ComfyUI: geometry tokens in small random editors of core's own classes."""

import json

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import folder_paths
import torch
from safetensors.torch import save_file

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
ROWS, COLUMNS = 4, 6  # of the target's tokens
SIZE = (64, 96)  # pixels of the edited image, for Flux's latents of 8 x 12


def run(node, **inputs):
    return core.NODE_CLASS_MAPPINGS[f"SpatialWeave_{node}"].EXECUTE_NORMALIZED(**inputs).result


def fill(module, seed=0):
    """Numbers for every parameter: core's layers begin with uninitialised memory."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.named_parameters():
        value.requires_grad_(False)
        if value.ndim > 1:
            value.normal_(0, value[0].numel() ** -0.5, generator=generator)
        else:
            value.normal_(1.0 if name.endswith("weight") else 0.0, 0.1, generator=generator)
    return module


def editor(kind, sizes, seed=0):
    config = kind(sizes)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    fill(model.diffusion_model, seed)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "hidden_size": 64,
    "num_heads": 2, "mlp_ratio": 4.0, "depth": 2, "depth_single_blocks": 2, "axes_dim": [8, 12, 12],
    "theta": 10000, "vec_in_dim": 24, "context_in_dim": 48, "qkv_bias": True, "guidance_embed": True,
    "txt_ids_dims": [],
}  # fmt: skip
FLUX2 = FLUX | {
    "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "mlp_ratio": 3.0,
    "axes_dim": [8, 8, 8, 8], "theta": 2000, "vec_in_dim": None, "qkv_bias": False, "guidance_embed": False,
    "txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
    "default_ref_method": "index", "ref_index_scale": 10.0,
}  # fmt: skip
QWEN = {
    "image_model": "qwen_image", "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 1,
    "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": 48,
    "axes_dims_rope": (8, 12, 12),
}  # fmt: skip


def make(family, **changes):
    if family == "flux":
        return editor(comfy.supported_models.Flux, FLUX | changes)
    return editor(comfy.supported_models.Flux2, FLUX2 | changes)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def latent_of(family, seed, count=1, scale=1):
    shape = (16, 8 * scale, 12 * scale) if family == "flux" else (128, ROWS * scale, COLUMNS * scale)
    return noise(count, *shape, seed=seed)


def conditioning(family, references=1, seed=1, **more):
    values = {"guidance": 3.5, **more}
    if family == "flux":
        values["pooled_output"] = noise(1, 24, seed=3)
    if references:
        values["reference_latents"] = [latent_of(family, 10 + i) for i in range(references)]
    return [[noise(1, 7, 48, seed=seed), values]]


def sample(
    model, family="flux", *, positive=None, negative=None, count=1, cfg=4.0, steps=3, scale=1, denoise=1.0
):
    positive = positive or conditioning(family)
    negative = negative or conditioning(family, seed=2)
    latent = {"samples": torch.zeros_like(latent_of(family, 0, count, scale))}
    run = core.common_ksampler(
        model, 5, steps, cfg, "euler", "simple", positive, negative, latent, denoise=denoise
    )
    return run[0]["samples"]


def connector(family="flux", seed=7, **changes):
    """A connector of every number random, as Load Geometry Connector gives one."""
    sizes = {
        "base": family,
        "geometry_width": 20,
        "width": 64,
        "grid": [ROWS, COLUMNS],
        "layers": 2,
        "heads": 2,
    }
    config = ours("models.spatial_diff.config").ConnectorConfig.from_json(
        {**sizes, "head_width": 8, **changes}
    )
    network = fill(ours("models.spatial_diff.network").GeometryConnector(config), seed)
    return ours("nodes.host.spatial_diff.connector").ConnectorModel(config, network.state_dict(), "random")


def geometry(views=1, size=SIZE, channels=20, seed=9):
    framing, pipeline = ours("models.vggt.framing"), ours("models.vggt.pipeline")
    frames = tuple(framing.Frame(size, (1.0, 1.0), (0.0, 0.0)) for _ in range(views))
    return pipeline.GeometryTokens(noise(views, 29, channels, seed=seed), 5, (4, 6), 14, frames)


def with_tokens(
    model, family="flux", *, tokens=None, using=None, strength=1.0, start=0.0, end=1.0, mask=None
):
    return run(
        "GeometryTokens", model=model, tokens=geometry() if tokens is None else tokens,
        connector=using or connector(family), strength=strength, start_percent=start, end_percent=end,
        mask=mask,
    )[0]  # fmt: skip


def gap(a, b):
    return float((a - b).abs().max())


class Reference:
    """Tokens appended by hand, with ids on whole numbers: what the node's patch has to equal at this size."""

    def __init__(self, tokens, first=2.0, factor=None):
        self.tokens, self.first, self.factor = tokens, first, factor

    def __call__(self, args):
        img, ids = args["img"], args["img_ids"]
        own = torch.zeros(1, ROWS * COLUMNS, ids.shape[-1])
        own[..., 0] = self.first
        own[..., 1] = torch.arange(ROWS).repeat_interleave(COLUMNS)
        own[..., 2] = torch.arange(COLUMNS).repeat(ROWS)
        tokens = self.tokens.repeat(len(img) // len(self.tokens), 1, 1)
        return {
            **args, "img": torch.cat([img, tokens], 1),
            "img_ids": torch.cat([ids, own.expand(len(img), -1, -1)], 1),
        }  # fmt: skip


def by_hand(model, tokens):
    model = model.clone()
    model.set_model_post_input_patch(Reference(tokens))
    return model


def equality(family):
    """Tokens against those appended by hand; strength 0, an empty mask and the model itself: the base."""
    model, using = make(family), connector(family)
    base, tokens = sample(model, family), using.run(geometry().tokens)
    full = sample(with_tokens(model, family, using=using), family)
    empty = with_tokens(model, family, mask=torch.zeros(1, 9, 9))
    return {
        "hand": gap(full, sample(by_hand(model, tokens), family)), "change": gap(full, base),
        "zero": bool(torch.equal(sample(with_tokens(model, family, strength=0.0), family), base)),
        "masked": bool(torch.equal(sample(empty, family), base)),
        "untouched": bool(torch.equal(sample(model, family), base)),
        "again": bool(torch.equal(sample(with_tokens(model, family, using=using), family), full)),
        "negative": gap(
            sample(with_tokens(model, family, using=using), family, negative=conditioning(family, 0, seed=2)),
            sample(model, family, negative=conditioning(family, 0, seed=2)),
        ),
    }  # fmt: skip


def strengths(family):
    """The effect of strength, from none to full."""
    model = make(family)
    base, full = (sample(each, family) for each in (model, with_tokens(model, family)))
    seen = {"full": gap(full, base)}
    for value in (1e-6, 0.1, 0.5, 0.999, 1.001):
        out = sample(with_tokens(model, family, strength=value), family)
        seen[str(value)] = [gap(out, base), gap(out, full)]
    white = sample(with_tokens(model, family, mask=torch.ones(1, 64, 96)), family)
    half = with_tokens(model, family, strength=0.5)
    seen["override"] = gap(sample(with_attention(half, True), family), sample(half, family))
    dropped = with_attention(with_tokens(model, family), False)
    seen["override at 1"] = gap(sample(dropped, family), full)
    seen["white mask"] = bool(torch.equal(white, full))
    return seen


def weighted_attention():
    """The bias in one call of core's network against a softmax written out: weights on the tokens' keys."""
    model = with_tokens(make("flux"), strength=0.3)
    seen = []

    def spy(q, k, v, pe=None, attn_mask=None, extra_options=None):
        weights = torch.ones(k.shape[2])
        weights[-ROWS * COLUMNS :] = 0.3
        scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).exp() * weights
        expected = scores / scores.sum(-1, keepdim=True) @ v
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        seen.append(gap(out, expected))
        return {}

    model.set_model_attn1_patch(spy)
    sample(model, steps=1)
    return {"calls": len(seen), "gap": max(seen)}


def masks():
    """A mask over the left half: the tokens of its columns alone are in the sequence."""
    model, mask = make("flux"), torch.zeros(1, 64, 96)
    mask[..., :48] = 1
    lengths, spy = (
        [],
        lambda args: lengths.append((args["img"].shape[1], args["img_ids"][0, -12:].tolist())) or args,
    )
    patched = with_tokens(model, mask=mask)
    patched.set_model_post_input_patch(spy)
    half = sample(patched)
    pair = torch.cat([mask, 1 - mask])
    each = sample(with_tokens(model, mask=pair), count=2, cfg=1.0)
    left, right = (sample(with_tokens(model, mask=one[None]), count=2, cfg=1.0) for one in pair)
    gray = sample(with_tokens(model, mask=torch.full((1, 64, 96), 0.5)))
    return {
        "rows": lengths[0][0], "ids": lengths[0][1], "change": gap(half, sample(with_tokens(model))),
        "first": gap(each[:1], left[:1]), "second": gap(each[1:], right[1:]),
        "differ": gap(left[1:], right[1:]),
        "gray": gap(gray, sample(with_tokens(model, strength=0.5))),
    }  # fmt: skip


def sizes():
    """Ids over targets of several sizes: the grid covers each of them whole."""
    seen = {}
    for family in ("flux", "flux2"):
        for scale in (1, 2, 3):
            model, found = with_tokens(make(family), family), []
            model.set_model_post_input_patch(
                lambda args, found=found: found.append(args["img_ids"][0]) or args
            )
            sample(model, family, scale=scale, steps=1, cfg=1.0)
            own = found[0][-ROWS * COLUMNS :]
            seen[f"{family} {scale}"] = {
                "rows": sorted(set(own[:, 1].tolist())), "columns": sorted(set(own[:, 2].tolist())),
                "first": sorted(set(own[:, 0].tolist())), "rest": float(own[:, 3:].abs().sum()),
            }  # fmt: skip
    return seen


def areas():
    """Prompts for parts of the image: each call's ids of the tokens, seen from the part it runs on."""
    model, found = make("flux"), []
    patched = with_tokens(model)
    watched = patched.clone()

    def watch(args):
        own = args["img_ids"][:, -ROWS * COLUMNS :]
        for row in own:
            found.append([sorted(set(row[:, axis].tolist())) for axis in (1, 2)])
        return args

    watched.set_model_post_input_patch(watch)
    (whole,), (left,), (right,) = (conditioning("flux", seed=seed) for seed in (1, 5, 6))
    left[1]["area"], right[1]["area"] = (4, 6, 4, 0), (4, 6, 0, 6)  # height, width, top, left
    out = sample(watched, positive=[whole, left, right], steps=1, cfg=1.0)
    (full,) = conditioning("flux")
    full[1]["area"] = (8, 12, 0, 0)
    return {
        "ids": sorted(found), "finite": bool(out.isfinite().all()),
        "full": gap(sample(patched, positive=[full], cfg=1.0), sample(patched, cfg=1.0)),
        "change": gap(out, sample(model, positive=[whole, left, right], steps=1, cfg=1.0)),
    }  # fmt: skip


def batches():
    """Batches: one image's tokens for all, each its own, chunk after chunk, with CFG and without."""
    model, using = make("flux"), connector()
    one = with_tokens(model, using=using)
    rows = sample(one, count=3, cfg=1.0)
    two, pair = geometry(2), geometry(2)
    joint = sample(with_tokens(model, using=using, tokens=two), count=2)
    singles = []
    for index in range(2):
        alone = type(pair)(pair.tokens[index : index + 1], 5, (4, 6), 14, pair.frames[:1])
        singles.append(sample(with_tokens(model, using=using, tokens=alone), count=2)[index])
    return {
        "same noise": gap(rows[:1], sample(one, cfg=1.0)), "shape": list(rows.shape),
        "each": max(gap(joint[index], singles[index]) for index in range(2)),
        "differ": gap(joint, sample(with_tokens(model, using=using), count=2)),
    }  # fmt: skip


def references():
    """Several references, by each of core's methods; where they take the tokens' first id, a sentence."""
    model, seen = make("flux"), {}
    for method in ("offset", "index", "uxo"):
        for count in (1, 2):
            positive, negative = (
                conditioning("flux", count, seed, reference_latents_method=method) for seed in (1, 2)
            )
            try:
                out = sample(with_tokens(model), positive=positive, negative=negative)
                base = sample(model, positive=positive, negative=negative)
                seen[f"{method} {count}"] = [gap(out, base), bool(out.isfinite().all())]
            except ValueError as error:
                seen[f"{method} {count}"] = str(error)
    positive = conditioning("flux2", 3)
    other = make("flux2")
    out = sample(with_tokens(other, "flux2"), "flux2", positive=positive, cfg=1.0)
    seen["flux2 3"] = [gap(out, sample(other, "flux2", positive=positive, cfg=1.0)), True]
    return seen


def ranges():
    """Steps at which the tokens act, by the length of the sequence in the network."""
    seen = {}
    for start, end in ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0), (0.25, 0.75)):
        model, lengths = with_tokens(make("flux"), start=start, end=end), []
        model.set_model_post_input_patch(
            lambda args, lengths=lengths: lengths.append(args["img"].shape[1]) or args
        )
        sample(model, steps=4, cfg=1.0)
        seen[f"{start} {end}"] = [length > 48 for length in lengths]
    never = with_tokens(make("flux"), start=0.99)  # the last step's sigma is higher
    seen["never"] = bool(torch.equal(sample(never), sample(make("flux"))))
    return seen


def cache():
    """Core's Flux KV Cache before and after the node, at two strengths."""
    from comfy_extras.nodes_flux import FluxKVCache

    model, using, seen = make("flux2"), connector("flux2"), {}
    cached = lambda each: FluxKVCache.execute(each).result[0]  # noqa: E731
    plain = {"family": "flux2", "cfg": 1.0}
    for strength in (1.0, 0.4):
        give = lambda each, s=strength: with_tokens(each, "flux2", using=using, strength=s)  # noqa: E731
        lengths, outs = {}, {}
        for order in ("cache first", "tokens first"):
            patched = give(cached(model)) if order == "cache first" else cached(give(model))
            found = lengths[order] = []
            patched.set_model_attn1_patch(
                lambda q, k, v, pe=None, found=found, **kw: (
                    found.append((q.shape[2], k.shape[2], pe.shape[2])) or {}
                )
            )
            outs[order] = sample(patched, **plain)
        seen[str(strength)] = {
            "lengths": [sorted(set(found)) for found in lengths.values()],
            "same": gap(*outs.values()), "cost": gap(outs["cache first"], sample(give(model), **plain)),
            "change": gap(outs["cache first"], sample(cached(model), **plain)),
        }  # fmt: skip
    seen["base cost"] = gap(sample(cached(model), **plain), sample(model, **plain))
    seen["first step"] = gap(
        sample(cached(with_tokens(model, "flux2", using=using)), "flux2", cfg=1.0, steps=1, denoise=1.0),
        sample(timestep_zero(with_tokens(model, "flux2", using=using)), "flux2", cfg=1.0, steps=1),
    )
    return seen


def timestep_zero(model):
    model = model.clone()
    model.add_object_patch("diffusion_model.params.default_ref_method", "index_timestep_zero")
    return model


def redux():
    """Redux's attention bias: zeros change nothing, and with a reference it runs."""
    model, seen = make("flux"), {}
    bias = torch.zeros(1, 31, 31)
    for name, strength in (("full", 1.0), ("half", 0.5)):
        patched = with_tokens(model, strength=strength)
        positive = conditioning("flux", attention_mask=bias, attention_mask_img_shape=(ROWS, COLUMNS))
        seen[name] = gap(sample(patched, positive=positive, cfg=1.0), sample(patched, cfg=1.0))
    closed = bias.clone()
    closed[:, :, :3] = -1e4  # the first words of the prompt
    positive = conditioning("flux", attention_mask=closed, attention_mask_img_shape=(ROWS, COLUMNS))
    patched = with_tokens(model)
    seen["closed"] = gap(sample(patched, positive=positive, cfg=1.0), sample(patched, cfg=1.0))
    return seen


class Control:
    """A ControlNet's residuals, as core's Flux takes them."""

    extra_conds, multigpu_clones, extra_hooks, previous_controlnet = [], {}, None, None

    def get_control(self, x, t, cond, batched, options):
        rows = noise(x.shape[0], ROWS * COLUMNS, 64, seed=6)
        return {"input": [rows] * 2, "output": [rows] * 2}

    def pre_run(self, *args):
        pass

    def cleanup(self):
        pass

    def get_models(self):
        return []

    def get_extra_hooks(self):
        return []

    def inference_memory_requirements(self, dtype):
        return 0


def control():
    """A ControlNet's residuals reach the target's rows alone: rows of the tokens before and after it."""
    model, found = with_tokens(make("flux")), {}
    network = model.model.diffusion_model
    seen = []
    hook = network.double_blocks[1].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["img"].clone()), with_kwargs=True
    )
    try:
        for name, more in (("plain", {}), ("control", {"control": Control()})):
            positive = conditioning("flux", **more)
            found[name] = sample(model, positive=positive, cfg=1.0, steps=1)
    finally:
        hook.remove()
    change = (seen[1] - seen[0]).abs().amax(-1)[0]
    return {
        "target": [float(change[:24].min()), float(change[:24].max())], "rest": float(change[24:].max()),
        "change": gap(found["plain"], found["control"]),
    }  # fmt: skip


def lora():
    """A LoRA on the editor before and after the node: one result, another than without it."""
    model = make("flux")
    delta = noise(64, 64, seed=4) * 0.3
    patch = {"diffusion_model.double_blocks.0.img_attn.proj.weight": ("diff", (delta,))}
    before, after = model.clone(), with_tokens(model).clone()
    before.add_patches(patch, 1.0)
    after.add_patches(patch, 1.0)
    first, second = sample(with_tokens(before)), sample(after)
    return {
        "same": bool(torch.equal(first, second)), "change": gap(first, sample(with_tokens(model))),
        "restored": bool(torch.equal(sample(model), sample(make("flux")))),
    }  # fmt: skip


def compiled():
    """Core's torch.compile around the network, with a range that ends: each step as without it.

    With the attention of a GPU: the CPU's asks for the free memory, which breaks the graph in each block.
    """
    from comfy.ldm.modules.attention import attention_pytorch
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    seen, graphs = {}, []
    skip = lambda entries: ["transformer_options" not in entry.name for entry in entries]  # noqa: E731 - as core's node
    with torch.inference_mode(False):
        for name, more in (("all", {}), ("half", {"end": 0.5}), ("weighed", {"strength": 0.5, "start": 0.5})):
            model = with_tokens(make("flux"), **more)
            model.set_model_optimized_attention(attention_pytorch)
            plain, wrapped = sample(model, steps=4, cfg=1.0), model.clone()
            torch._dynamo.reset()
            GRAPHS.clear()
            # core's node sets the same wrapper with the backend inductor
            set_torch_compile_wrapper(wrapped, backend=eager_backend, options={"guard_filter_fn": skip})
            seen[name] = gap(sample(wrapped, steps=4, cfg=1.0), plain)
            graphs.append(len(GRAPHS))
    return seen | {"graphs": graphs}


GRAPHS = []


def eager_backend(graph, inputs, **kwargs):
    GRAPHS.append(graph)
    return graph.forward


def two_connectors():
    """Two connectors of different first ids: neither order of their weights mixes them up."""
    model = make("flux")
    a, b = connector(seed=7), connector(seed=8, first_axis=3.0)
    plain = sample(with_tokens(model, using=a))
    both = sample(with_tokens(with_tokens(model, using=a), using=b))
    weak = sample(with_tokens(with_tokens(model, using=a), using=b, strength=1e-6))
    closed = sample(with_tokens(with_tokens(model, using=b, strength=1e-6), using=a))
    return {"both": gap(both, plain), "second closed": gap(weak, plain), "first closed": gap(closed, plain)}


def aborted():
    """Cancel in the second step; then the base and the tokens as before."""
    model = make("flux")
    patched = with_tokens(model)
    base, full, calls = sample(model), sample(patched), []

    def stop(args):
        calls.append(1)
        if len(calls) == 2:
            raise comfy.model_management.InterruptProcessingException()
        return args

    broken = patched.clone()
    broken.set_model_post_input_patch(stop)
    try:
        sample(broken)
        stopped = False
    except comfy.model_management.InterruptProcessingException:
        stopped = True
    return {
        "stopped": stopped, "base": bool(torch.equal(sample(model), base)),
        "tokens": bool(torch.equal(sample(patched), full)), "calls": len(calls),
    }  # fmt: skip


def loading(folder):
    """A connector file through the loader against the network in plain torch; half precision."""
    folder_paths.add_model_folder_path("model_patches", folder)
    made = connector()
    network = made.patcher.model
    plain = ours("models.spatial_diff.network").GeometryConnector(made.config)
    plain.load_state_dict(network.state_dict())
    save = ours("models.spatial_diff.weights").save_connector
    head = ours("models.spatial_diff.network").LatentDepthHead(made.config)
    save(f"{folder}/connector.safetensors", plain, head)
    save(f"{folder}/half.safetensors", plain, dtype=torch.bfloat16)
    (read,) = run("LoadGeometryConnector", connector_name="connector.safetensors")
    (half,) = run("LoadGeometryConnector", connector_name="half.safetensors")
    tokens = geometry().tokens
    with torch.no_grad():
        expected = plain(tokens)
    found = read.run(tokens)
    loaded = [each.model.model for each in comfy.model_management.current_loaded_models if each.model]
    return {
        "gap": gap(found, expected), "half": gap(half.run(tokens), expected),
        "config": read.config == made.config,
        "managed": any(each is read.patcher.model for each in loaded),
    }  # fmt: skip


def said(work):
    try:
        work()
    except Exception as error:  # noqa: BLE001 - what a user reads
        return str(error)
    return None


def refusals(folder):
    """What each bad input says."""
    from comfy_extras.nodes_flux import FluxKVCache

    flux, flux2 = make("flux"), make("flux2")
    patched = with_tokens(flux)
    folder_paths.add_model_folder_path("model_patches", folder)
    save_file({"double_blocks.0.img_mod.lin.weight": torch.zeros(2, 2)}, f"{folder}/flux.safetensors")
    sizes = json.dumps(connector().config.to_json())
    metadata = {"spatialweave": "SpatialDiff geometry connector", "config": sizes}
    save_file({"queries": torch.zeros(24, 64)}, f"{folder}/torn.safetensors", metadata=metadata)
    load = lambda name: lambda: run("LoadGeometryConnector", connector_name=name)  # noqa: E731
    other_size = geometry(size=(640, 480))
    cached = FluxKVCache.execute(with_tokens(flux2, "flux2", end=0.5)).result[0]
    second = lambda: with_tokens(with_tokens(flux, using=connector(seed=8)))  # noqa: E731
    third = conditioning("flux", 2, reference_latents_method="index")
    cases = {
        "other base": lambda: with_tokens(flux, using=connector("flux2")),
        "other width": lambda: with_tokens(flux, using=connector(width=96)),
        "other picture": lambda: sample(with_tokens(flux, tokens=other_size)),
        "2 for 3": lambda: sample(with_tokens(flux, tokens=geometry(2)), count=3),
        "2 masks for 3": lambda: sample(with_tokens(flux, mask=torch.ones(2, 8, 8)), count=3),
        "2 masks, 3 token sets": lambda: with_tokens(flux, tokens=geometry(3), mask=torch.ones(2, 8, 8)),
        "no reference": lambda: sample(patched, positive=conditioning("flux", 0)),
        "two connectors": lambda: sample(second()),
        "reference on the axis": lambda: sample(patched, positive=third, negative=third),
        "start after end": lambda: with_tokens(flux, start=0.6, end=0.4),
        "start at end": lambda: with_tokens(flux, start=0.5, end=0.5),
        "Qwen": lambda: with_tokens(editor(comfy.supported_models.QwenImage, QWEN)),
        "SD": lambda: with_tokens(stable_diffusion()),
        "LongCat": lambda: with_tokens(long_cat()),
        "attention without masks": lambda: sample(with_attention(with_tokens(flux, strength=0.5), False)),
        "cache and range": lambda: sample(cached, "flux2", cfg=1.0),
        "VGGT of another width": lambda: with_tokens(flux, tokens=geometry(channels=21)),
        "NaN tokens": lambda: with_tokens(flux, tokens=spoiled()),
        "NaN mask": lambda: with_tokens(flux, mask=torch.full((1, 8, 8), torch.nan)),
        "not a connector": lambda: with_tokens(flux, using="connector"),
        "not tokens": lambda: with_tokens(flux, tokens=torch.zeros(1, 2, 3)),
        "no such file": load("none.safetensors"),
        "Flux's file": load("flux.safetensors"),
        "half a file": load("torn.safetensors"),
    }
    return {name: said(work) for name, work in cases.items()}


def with_attention(model, masks):
    """An attention function of another node, which passes masks on or drops them."""

    def override(function, q, k, v, heads, *args, mask=None, **kwargs):
        return function(q, k, v, heads, *args, mask=mask if masks else None, **kwargs)

    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    return model


def spoiled():
    tokens = geometry()
    tokens.tokens[0, 3, 2] = torch.nan
    return tokens


def stable_diffusion():
    sizes = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
        "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1], "channel_mult": [1, 2],
        "num_heads": 2, "num_head_channels": -1, "use_spatial_transformer": True, "context_dim": 48,
        "legacy": False,
        "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False,
        "transformer_depth_middle": 1,
    }  # fmt: skip
    return editor(comfy.supported_models.SD15, sizes)


def long_cat():
    return editor(comfy.supported_models.LongCatImage, FLUX | {"image_model": "longcat_image"})


def from_pictures(folder):
    """The whole chain: an image, a VGGT network of random numbers, a connector, an editor."""
    import importlib.util
    import os

    path = os.path.join(os.path.dirname(__file__), "inside_vggt.py")
    spec = importlib.util.spec_from_file_location("spatialweave_tests_vggt_again", path)
    module = importlib.util.module_from_spec(spec)
    module.ours = ours
    spec.loader.exec_module(module)
    vggt = module.start(folder)
    image = torch.rand(1, *SIZE, 3, generator=torch.Generator().manual_seed(2))
    tokens, _ = run("VggtGeometryTokens", vggt=vggt, image=image, fit="pad", longer_side=0, global_queries=0)
    model, using = make("flux"), connector(geometry_width=128)
    out = sample(with_tokens(model, tokens=tokens, using=using))
    other, _ = run(
        "VggtGeometryTokens", vggt=vggt, image=1 - image, fit="pad", longer_side=0, global_queries=0
    )
    return {
        "change": gap(out, sample(model)), "finite": bool(out.isfinite().all()),
        "by the image": gap(out, sample(with_tokens(model, tokens=other, using=using))),
    }  # fmt: skip


def instructions():
    """Sentences of Move Object Instruction, and what it refuses."""

    def attempt(name, destination):
        try:
            return run("MoveObjectInstruction", object=name, destination=destination)[0]
        except ValueError as error:
            return str(error)

    mask = torch.zeros(1, 100, 200)
    mask[:, 40:60, 90:110] = 1
    box = {"x": 90, "y": 40, "width": 20, "height": 20}
    size = {"height": 1.0}  # 20 pixels a metre
    by_box = {"destination": "point, by box", "bounding_box": box, **size}
    by_mask = {"destination": "point, by mask", "mask": mask, **size}
    return {
        "direction": attempt(
            "red ball",
            {"destination": "direction", "direction": "to the left", "distance": "one metre"},
        ),
        "relation": attempt(
            "the red ball", {"destination": "relation", "relation": "behind", "reference": "blue box"}
        ),
        "between": attempt(
            "ball", {"destination": "between", "first": "the box", "second": "green cone"}
        ),
        "between itself": attempt(
            "ball", {"destination": "between", "first": "the ball", "second": "green cone"}
        ),
        "right": attempt("the ball", {**by_box, "x": 120, "y": 60}),
        "left": attempt("the ball", {**by_mask, "x": 88, "y": 60}),
        "away": attempt("the ball", {**by_mask, "x": 100, "y": 52}),
        "near": attempt("the ball", {**by_box, "bounding_box": [[box]], "x": 100, "y": 73}),
        "no name": attempt("  ", {**by_box, "x": 120, "y": 60}),
        "long name": attempt("x" * 99, {**by_box, "x": 120, "y": 60}),
        "too near": attempt("the ball", {**by_box, "x": 101, "y": 60}),
        "outside": attempt("the ball", {**by_mask, "x": 300, "y": 60}),
        "empty mask": attempt("the ball", {**by_mask, "mask": mask * 0, "x": 20, "y": 60}),
        "two masks": attempt("the ball", {**by_mask, "mask": mask.repeat(2, 1, 1), "x": 20, "y": 60}),
        "two boxes": attempt("the ball", {**by_box, "bounding_box": [box, box], "x": 20, "y": 60}),
        "flat box": attempt("the ball", {**by_box, "bounding_box": {**box, "height": 0}, "x": 20, "y": 60}),
        "itself": attempt(
            "the ball", {"destination": "relation", "relation": "behind", "reference": "ball."}
        ),
    }
