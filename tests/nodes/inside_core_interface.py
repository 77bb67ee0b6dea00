"""Called by worker.py inside ComfyUI: what of core the pack wraps, calls or reads."""

import inspect
import sys

import comfy.ldm.pixart.blocks
import comfy.model_base
import comfy.model_patcher
import comfy.samplers
import comfy.sd

ours = ours  # noqa: F821, PLW0127 - set by worker.py


def parameters():
    """Names of the parameters, in order."""
    import server

    read = {
        "CFGGuider.outer_sample": comfy.samplers.CFGGuider.outer_sample,
        "CFGGuider.inner_sample": comfy.samplers.CFGGuider.inner_sample,
        "calc_cond_batch": comfy.samplers._calc_cond_batch,
        "BaseModel._apply_model": comfy.model_base.BaseModel._apply_model,
        "BaseModel.scale_latent_inpaint": comfy.model_base.BaseModel.scale_latent_inpaint,
        "VAE.decode_tiled_": comfy.sd.VAE.decode_tiled_,
        "PixArt attention": comfy.ldm.pixart.blocks.AttentionKVCompress.forward,
        "ModelPatcher.add_patches": comfy.model_patcher.ModelPatcher.add_patches,
        "ModelPatcher.add_hook_patches": comfy.model_patcher.ModelPatcher.add_hook_patches,
        "PromptServer.send_progress_text": server.PromptServer.send_progress_text,
    }
    return {name: list(inspect.signature(function).parameters) for name, function in read.items()}


def post_cfg_keys():
    """What core hands to a function after CFG."""
    sampling = sys.modules["spatialweave_tests_inside_sampling"]
    seen, model = [], sampling.rig().model.clone()
    model.set_model_sampler_post_cfg_function(lambda args: seen.append(sorted(args)) or args["denoised"])
    sampling.ksample(model, sampling.rig().latent(), steps=1, cfg=2.0)
    return seen[0]


def attention_of_the_checkpoint():
    """The keywords with which our stand-ins call core's attention, for modules of this core and of one that
    holds the attention which a checkpoint asks for.
    """
    import torch

    patches, calls = ours("nodes.host.intrinsic_ldm.patches"), []
    before = patches.optimized_attention

    class Alone:
        """A coupling of one stream."""

        def attend(self, layer, q, k, v, *, heads, plain, inner):
            return plain(q, k, v)

    class Module:
        proj = q_norm = k_norm = staticmethod(lambda x: x)
        qkv, num_heads = staticmethod(lambda x: x.repeat(1, 1, 3)), 2

    def recording(q, *args, **named):
        calls.append(sorted(named))
        return q if q.ndim == 3 else q.transpose(1, 2).flatten(2)

    chosen = Module()
    chosen.comfy_attention = "sage"
    x = torch.rand(1, 3, 8)
    patches.optimized_attention = recording
    try:
        for module in (Module(), chosen):
            patches.unet_attention(module, 0, Alone(), None)(x, x, x, {"n_heads": 2})
            patches.pixart_attention(module, 0, Alone(), dict, None)(x)
    finally:
        patches.optimized_attention = before
    return calls
