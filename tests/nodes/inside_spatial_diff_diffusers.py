"""Called by worker.py inside ComfyUI: the same tokens in core's Flux and in diffusers'."""

import importlib.util
import os

import comfy.utils
import diffusers
import torch
from einops import rearrange

ours = ours  # noqa: F821, PLW0127 - set by worker.py
ROWS, COLUMNS = 4, 6


def small_editors():
    """The functions of inside_spatial_diff.py."""
    path = os.path.join(os.path.dirname(__file__), "inside_spatial_diff.py")
    spec = importlib.util.spec_from_file_location("spatialweave_tests_small_editors", path)
    module = importlib.util.module_from_spec(spec)
    module.ours = ours
    spec.loader.exec_module(module)
    return module


def convert(state, depth, single, width):
    """Core's weights under diffusers' names: core's own map, the norms that it lacks, the end's halves."""
    sizes = {"depth": depth, "depth_single_blocks": single, "hidden_size": width}
    out = {}
    for theirs, name in comfy.utils.flux_to_diffusers(sizes).items():
        if (name if isinstance(name, str) else name[0]) not in state:
            continue  # of other networks of the family
        if isinstance(name, str):
            out[theirs] = state[name]
            continue
        value = state[name[0]]
        for step in name[1:]:
            value = value.narrow(*step) if isinstance(step, tuple) else step(value) if step else value
        out[theirs] = value
    for kind, core_kind in (("q", "query"), ("k", "key")):
        for i in range(depth):
            for side, stream in (("", "img"), ("added_", "txt")):
                name = f"double_blocks.{i}.{stream}_attn.norm.{core_kind}_norm.weight"
                out[f"transformer_blocks.{i}.attn.norm_{side}{kind}.weight"] = state[name]
        for i in range(single):
            out[f"single_transformer_blocks.{i}.attn.norm_{kind}.weight"] = state[
                f"single_blocks.{i}.norm.{core_kind}_norm.weight"
            ]
    for end in ("weight", "bias"):
        shift, scale = state[f"final_layer.adaLN_modulation.1.{end}"].chunk(2)
        out[f"norm_out.linear.{end}"] = torch.cat([scale, shift])
    return out


def both_hosts():
    """One call of both with a reference, batch 2: without tokens, with them, and at strength 0.4."""
    small = small_editors()
    model = small.make("flux")
    network = model.model.diffusion_model
    theirs = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=32,
        num_attention_heads=2, joint_attention_dim=48, pooled_projection_dim=24, guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    converted = convert(network.state_dict(), 2, 2, 64)
    theirs.load_state_dict({name: converted[name] for name in theirs.state_dict()})
    draw = small.noise
    x, reference = (draw(2, 16, 2 * ROWS, 2 * COLUMNS, seed=seed) for seed in (1, 2))
    context, pooled, guidance = draw(2, 7, 48, seed=3), draw(2, 24, seed=4), torch.full((2,), 3.5)
    t = torch.full((2,), 0.7)
    using = small.connector()
    tokens = using.run(small.geometry(2).tokens)
    rows = []
    hook = network.final_layer.register_forward_pre_hook(lambda module, args: rows.append(args[0].clone()))

    def by_core(strength):
        patched = model if strength is None else small.with_tokens(
            model, tokens=small.geometry(2), using=using, strength=strength
        )  # fmt: skip
        options = {**patched.model_options["transformer_options"], "cond_or_uncond": [0]}
        options["wrappers"] = patched.wrappers
        return patched.model.apply_model(
            x, t, c_crossattn=context, y=pooled, guidance=guidance, ref_latents=[reference],
            transformer_options=options,
        )  # fmt: skip

    def by_diffusers(strength):
        image, ids = network.process_img(x)
        more, more_ids = network.process_img(reference, index=1)
        inputs = {
            "hidden_states": torch.cat([image, more], 1), "img_ids": torch.cat([ids, more_ids], 1)[0],
            "encoder_hidden_states": context, "pooled_projections": pooled, "timestep": t,
            "txt_ids": torch.zeros(7, 3), "guidance": guidance,
        }  # fmt: skip
        if strength is None:
            out, read = theirs(**inputs, return_dict=False)[0], None
        else:
            weights = None if strength == 1 else torch.full((1, ROWS * COLUMNS), strength)
            fuse = ours("models.spatial_diff.tokens").fuse_tokens
            grid = {"grid": (ROWS, COLUMNS), "first_axis": 2.0, "target_tokens": ROWS * COLUMNS}
            with fuse(theirs, tokens, weights=weights, **grid) as fused:
                out = theirs(**inputs, return_dict=False)[0]
            (read,) = fused.rows
        velocity = rearrange(
            out[:, : ROWS * COLUMNS], "b (h w) (c p q) -> b c (h p) (w q)", h=ROWS, w=COLUMNS, p=2, q=2
        )
        return x - 0.7 * velocity, read

    seen = {}
    try:
        for strength in (None, 1.0, 0.4):
            rows.clear()
            core = by_core(strength)
            out, read = by_diffusers(strength)
            seen[str(strength)] = {"gap": small.gap(core, out), "size": float(core.std())}
            if read is not None:
                seen[str(strength)]["rows"] = small.gap(rows[0][:, -ROWS * COLUMNS :], read)
                seen[str(strength)]["change"] = small.gap(core, by_core(None))
    finally:
        hook.remove()
    return seen
