"""Called by worker.py inside ComfyUI: Spatial Depth over small random text encoders of core's classes,
beside transformers' Qwen2.5-VL on the same weights.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import sys
import tempfile

import comfy.model_management as management
import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.llama as llama
import comfy.text_encoders.omnigen2 as omnigen2
import comfy.text_encoders.qwen35 as qwen35
import comfy.text_encoders.z_image as z_image
import execution
import folder_paths
import torch

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
asking = sys.modules["__main__"].load_file("inside_joyai_ask.py")  # worker.py's
KEEP = {}
SIZES = {
    "hidden_size": 256, "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
PROMPT = "a red ball to the left of a blue box"
PAIRINGS = ("uniform", "shallow", "deep")


def omnigen2_clip():
    """OmniGen2's text encoder of core, small."""
    if "omnigen2" not in KEEP:
        KEEP["omnigen2"] = filled(empty_clip(), "qwen25_3b")
    return KEEP["omnigen2"]


def empty_clip(**sizes):
    """The same without weights."""
    target = comfy.supported_models_base.ClipTarget(
        omnigen2.Omnigen2Tokenizer, omnigen2.te(dtype_llama=torch.float32)
    )
    options = {"qwen25_3b_model_config": SIZES | sizes, "dtype": torch.float32}
    return comfy.sd.CLIP(target, model_options=options)


def z_image_clip():
    """Another language model of core with the same attention: Qwen3, with norms on its keys."""
    if "z_image" not in KEEP:
        target = comfy.supported_models_base.ClipTarget(
            z_image.ZImageTokenizer, z_image.te(dtype_llama=torch.float32)
        )
        options = {"qwen3_4b_model_config": SIZES, "dtype": torch.float32}
        KEEP["z_image"] = filled(comfy.sd.CLIP(target, model_options=options), "qwen3_4b")
    return KEEP["z_image"]


def filled(clip, name):
    network = getattr(clip.cond_stage_model, name).transformer
    network.load_state_dict(asking.random_state(network.state_dict()))
    return clip


def decoder(clip):
    return ours("nodes.host.spatial_fusion.semantic").find_decoder(clip)


def network(pairing="uniform", seed=0, **changes):
    """A small spatial transformer for these encoders."""
    config = dataclasses.replace(
        ours("models.spatial_fusion.config").find_transformer_preset("tiny"), mllm="small Qwen2.5-VL",
        mllm_width=SIZES["hidden_size"], width=64, ffn_width=96, queries_side=4, pairing=pairing,
        encoder_width=32, encoder_table_side=4, dpt_features=16, dpt_out_channels=(16, 16, 16, 16), **changes,
    )  # fmt: skip
    made = ours("models.spatial_fusion.network").SpatialTransformer(config).train(False)
    generator = torch.Generator().manual_seed(seed)
    for name, value in made.named_parameters():
        fan = value[0].numel() if value.ndim > 1 else 100
        noise = torch.randn(value.shape, generator=generator) * fan**-0.5
        ones = value.ndim == 1 and name.endswith(("weight", "gamma"))
        value.data.copy_(torch.randn(value.shape, generator=generator) if name == "queries" else noise + ones)
    return made.requires_grad_(False)


def held(made):
    """What Load Spatial Transformer gives."""
    kind = ours("nodes.host.spatial_fusion.transformer").SpatialTransformerModel
    return kind(made.config, made.state_dict(), "small")


def infer(clip=None, made=None, prompts=(PROMPT,), image=None, width=64, height=48):
    node = core.NODE_CLASS_MAPPINGS["SpatialWeave_SpatialDepth"].PREPARE_CLASS_CLONE(None)
    return node.EXECUTE_NORMALIZED(
        clip=[clip or omnigen2_clip()], transformer=[held(made or network())], prompt=list(prompts),
        width=[width], height=[height], image=image,
    ).result[0]  # fmt: skip


def gap(a, b):
    return float((a.float() - b.float()).abs().max())


def theirs(clip):
    """transformers' Qwen2.5-VL on the weights of core's encoder."""
    if "theirs" not in KEEP:
        import transformers

        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
        config = transformers.Qwen2_5_VLTextConfig(
            **SIZES, vocab_size=151936, rms_norm_eps=1e-6, rope_parameters=rope, use_sliding_window=False
        )
        with torch.inference_mode(False):
            model = transformers.Qwen2_5_VLTextModel(config).train(False)
        model.load_state_dict(decoder(clip).state_dict(), strict=True)
        KEEP["theirs"] = model
    return KEEP["theirs"]


def token_ids(clip, prompt):
    return [token for token, *_ in next(iter(clip.tokenize(prompt).values()))[0]]


def two_hosts(pairing):
    """The node's depth beside that over transformers: prompts of two lengths, and an edit."""
    clip, made = omnigen2_clip(), network(pairing)
    prompts = [PROMPT, "a green cone"]
    rows = [token_ids(clip, prompt) for prompt in prompts]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [151643] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    semantic = ours("models.spatial_fusion.mllm").read_semantic_state(theirs(clip), ids, mask, made.config)
    by_theirs = ours("models.spatial_fusion.pipeline").infer_view
    source = torch.rand(1, 40, 64, 3, generator=torch.Generator().manual_seed(2))
    want = by_theirs(made, made.config, semantic, (48, 64))
    want_edit = by_theirs(made, made.config, semantic, (40, 64), source)
    got, got_edit = infer(clip, made, prompts), infer(clip, made, prompts, [source])
    return {
        "gap": gap(got.depth, want.depth), "edit gap": gap(got_edit.depth, want_edit.depth),
        "confidence": gap(got.confidence, want.confidence), "size": float(want.depth.abs().max()),
        "shapes": [list(got.depth.shape), list(got_edit.depth.shape)], "lengths": semantic.lengths,
        "prompts": gap(got.depth[0], got.depth[1]), "source": gap(got_edit.depth[0], got_edit.depth[1]),
        "spread": float(got.depth.log().std()),
    }  # fmt: skip


def positions():
    """Rotary embeddings of a grid behind 35 tokens: core's M-RoPE, transformers' and ours."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

    made, grid, start = ours("models.spatial_fusion.network"), (3, 4), 35
    x = torch.randn(1, 2, 12, 128, generator=torch.Generator().manual_seed(0))
    got = made.rotate_halves(x, made.mrope_table((start,), grid, network().config, x))
    row, column = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
    ids = torch.stack([torch.full((12,), start), start + row.flatten(), start + column.flatten()])
    by_core = llama.precompute_freqs_cis(128, ids, 1e6, rope_dims=[16, 24, 24])
    cos, sin = Qwen2_5_VLRotaryEmbedding(theirs(omnigen2_clip()).config)(x, ids[:, None])
    if cos.ndim == 4:  # an axis each, as versions have it that apply the sections later
        cos, sin = (
            torch.cat([part[i % 3] for i, part in enumerate(table.split([16, 24, 24] * 2, -1))], -1)
            for table in (cos, sin)
        )
    turned = torch.cat((-x[..., 64:], x[..., :64]), -1)
    return {
        "core": gap(got, llama.apply_rope(x, x, by_core)[0]),
        "transformers": gap(got, x * cos[:, None] + turned * sin[:, None]), "moved": gap(got, x),
    }  # fmt: skip


def templates():
    """What a prompt is put into by the trainer, and by core."""
    return [
        ours("models.trainers.spatial_transformer").TEMPLATES["omnigen2"],
        omnigen2_clip().tokenizer.llama_template,
    ]


def pairings_differ():
    found = [infer(made=network(pairing)).depth for pairing in PAIRINGS]
    return [gap(found[a], found[b]) for a, b in ((0, 1), (0, 2), (1, 2))]


def hooks(module):
    return sum(
        len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()
    )


def recording(kind):
    """Encodings while recorded, afterwards, and the keys beside those of a cache-free attention."""
    semantic = ours("nodes.host.spatial_fusion.semantic")
    clip = {"omnigen2": omnigen2_clip, "z_image": z_image_clip}[kind]()
    tokens, layers = clip.tokenize(PROMPT), range(6)
    plain = clip.encode_from_tokens(tokens, return_dict=True)
    with semantic.recorded(decoder(clip), layers) as found:
        inside = hooks(decoder(clip))
        during = clip.encode_from_tokens(tokens, return_dict=True)
    after = clip.encode_from_tokens(tokens, return_dict=True)
    original = llama.Attention.forward

    def without(self, *args, **kwargs):
        return original(self, *args, **kwargs)[0], None

    llama.Attention.forward = without
    try:
        with semantic.recorded(decoder(clip), layers) as projected:
            clip.encode_from_tokens(tokens)
    finally:
        llama.Attention.forward = original
    return {
        "during": bool(torch.equal(plain["cond"], during["cond"])),
        "after": bool(torch.equal(plain["cond"], after["cond"])),
        "hooks": [inside, hooks(decoder(clip))],
        "shape": list(found[5][0].shape), "tokens": len(token_ids(clip, PROMPT)),
        "projected": max(gap(found[i][part], projected[i][part]) for i in layers for part in (0, 1)),
        "size": max(float(found[i][part].abs().max()) for i in layers for part in (0, 1)),
    }  # fmt: skip


def attention_again():
    """Each layer's own queries over the recorded keys and values give its output."""
    semantic, clip, layer, seen = ours("nodes.host.spatial_fusion.semantic"), omnigen2_clip(), 4, {}
    attention = decoder(clip).layers[layer].self_attn

    def keep(module, args, kwargs, out):
        seen.update(x=kwargs["hidden_states"].clone(), pe=kwargs["freqs_cis"], mask=kwargs["attention_mask"])
        seen["out"] = out[0].clone()

    handle = attention.register_forward_hook(keep, with_kwargs=True)
    with semantic.recorded(decoder(clip), [layer]) as found:
        clip.encode_from_tokens(clip.tokenize(PROMPT))
    handle.remove()
    q = attention.q_proj(seen["x"]).view(1, -1, 2, 128).transpose(1, 2)
    q = llama.apply_rope(q, q, seen["pe"])[0]
    out = torch.nn.functional.scaled_dot_product_attention(
        q, *found[layer], attn_mask=seen["mask"], enable_gqa=True
    )
    return {
        "gap": gap(attention.o_proj(out.transpose(1, 2).flatten(2)), seen["out"]),
        "size": float(seen["out"].abs().max()),
    }


def ended(how):
    """An exception or Cancel in the middle of an encoding or of the spatial transformer."""
    clip, made = omnigen2_clip(), held(network())
    before = clip.encode_from_tokens(clip.tokenize(PROMPT))
    want = infer(clip).depth
    place = decoder(clip).layers[3] if "encoding" in how else made.patcher.model.layers[2]

    def stop(*_):
        if "Cancel" in how:
            management.interrupt_current_processing()
            management.throw_exception_if_processing_interrupted()
        raise RuntimeError("broken")

    handle, kind = place.register_forward_pre_hook(stop), None
    run = ours("nodes.host.spatial_fusion.transformer").infer_from_prompts
    try:
        run(clip, made, [PROMPT], (48, 64), None)
    except BaseException as error:  # noqa: BLE001 - an interruption is one
        kind = type(error).__name__
    handle.remove()
    management.interrupt_current_processing(False)
    return {
        "kind": kind, "hooks": [hooks(decoder(clip)), hooks(made.patcher.model)],
        "encoding": bool(torch.equal(before, clip.encode_from_tokens(clip.tokenize(PROMPT)))),
        "depth": bool(torch.equal(want, infer(clip).depth)),
    }  # fmt: skip


def cancel_is_seen():
    """Cancel alone, without anything that raises: at each recorded layer and each layer of ours."""
    clip, made, found = omnigen2_clip(), held(network()), []
    run = ours("nodes.host.spatial_fusion.transformer").infer_from_prompts
    for place in (decoder(clip).layers[2], made.patcher.model.layers[1]):
        passed = []
        handles = [place.register_forward_pre_hook(lambda *_: management.interrupt_current_processing())]
        last = made.patcher.model.depth_head
        handles.append(last.register_forward_pre_hook(lambda *_, into=passed: into.append(1)))
        with contextlib.suppress(management.InterruptProcessingException):
            run(clip, made, [PROMPT], (48, 64), None)
            passed.append("not stopped")
        [handle.remove() for handle in handles]
        management.interrupt_current_processing(False)
        found.append(passed)
    return found


def weighted():
    """A weighted prompt: the depth of the same tokens with weights of 1, and a note."""
    run = ours("nodes.host.spatial_fusion.transformer").infer_from_prompts
    clip, made = omnigen2_clip(), held(network())
    view, notes = run(clip, made, ["a (red:1.4) ball"], (48, 64), None)
    plain, silent = run(clip, made, ["a (red:1.0) ball"], (48, 64), None)
    tokens = [token_ids(clip, prompt) for prompt in ("a (red:1.4) ball", "a (red:1.0) ball")]
    return {
        "same tokens": tokens[0] == tokens[1], "gap": gap(view.depth, plain.depth),
        "notes": notes, "silent": silent, "size": float(plain.depth.max()),
    }  # fmt: skip


def another_encoder():
    """Qwen3 of Z-Image has the same attention: its keys, after norm and rotary, are read."""
    view = infer(z_image_clip(), network())
    return {"shape": list(view.depth.shape), "gap": gap(view.depth, infer().depth)}


def many():
    """Prompts and source images in lists and batches: the counts, and each row beside its own run."""
    images = torch.rand(2, 40, 64, 3, generator=torch.Generator().manual_seed(4))
    prompts = [PROMPT, "a cone"]
    both = infer(prompts=prompts, image=[images]).depth
    apart = infer(prompts=prompts, image=[images[:1], images[1:]]).depth
    one = infer(prompts=prompts[1:], image=[images[1:]]).depth
    return {
        "rows": [
            len(infer(prompts=prompts).depth), len(infer(image=[images]).depth),
            len(infer(prompts=[*prompts, "x"], image=[images[:1]]).depth),
        ],
        "lists": gap(both, apart), "row": gap(both[1], one[0]), "size": float(both.max()),
    }  # fmt: skip


def clips():
    """Encoders that cannot serve, by name."""
    tiny = ours("nodes.host.shared.tiny_clip")
    state = ours("models.tiny.text").TinyTextEncoder().state_dict()
    layered = empty_clip(num_hidden_layers=5)

    class Holder:
        """A CLIP as far as the search for its language model goes."""

        def __init__(self, model):
            self.cond_stage_model, self.patcher = model, None

    with torch.device("meta"):
        other = qwen35.Qwen35Transformer(
            qwen35.Qwen35Config(
                hidden_size=64, intermediate_size=64, num_hidden_layers=4, vocab_size=10,
                layer_types=qwen35._qwen35_layer_types(4),
            ), ops=torch.nn,
        )  # fmt: skip
    pair = torch.nn.ModuleList([decoder(omnigen2_clip()), decoder(layered)])
    return {
        "the tiny": tiny.tiny_clip(state), "qwen35": Holder(torch.nn.Sequential(other)),
        "two": Holder(pair), "five layers": layered, "narrow": empty_clip(hidden_size=128), "a number": 3,
    }  # fmt: skip


def refusals():
    """What the node says of bad input."""
    images = torch.rand(2, 40, 64, 3)
    calls = {
        "empty": {"prompts": ["  \n"]}, "second empty": {"prompts": [PROMPT, ""]},
        "three for two": {"prompts": [PROMPT] * 3, "image": [images]},
        "two sizes": {"image": [images, images[:, :30]]}, "flat": {"image": [images[0]]},
        **{name: {"clip": clip} for name, clip in clips().items()},
    }  # fmt: skip
    found = {name: refusal(lambda given=given: infer(**given)) for name, given in calls.items()}
    node = core.NODE_CLASS_MAPPINGS["SpatialWeave_SpatialDepth"].PREPARE_CLASS_CLONE(None)
    sound = {"clip": [omnigen2_clip()], "prompt": [PROMPT], "width": [64], "height": [64]}
    found["no transformer"] = refusal(lambda: node.EXECUTE_NORMALIZED(**sound, transformer=[3]))
    two = sound | {"width": [64, 80], "transformer": [held(network())]}
    found["two widths"] = refusal(lambda: node.EXECUTE_NORMALIZED(**two))
    return found


def refusal(work):
    try:
        work()
    except (ValueError, OSError) as error:
        return str(error)
    return None


class Give:
    """A node of the test that hands on the small encoder."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        return (omnigen2_clip(),)


class Take:
    """A node of the test that keeps a VIEW."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE, seen = (), "run", "test", True, []

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"view": ("SPATIALWEAVE_VIEW",)}}

    def run(self, view):
        self.seen.append(view)
        return {"ui": {}}


class Server:
    """Core's executor without a page."""

    client_id = last_node_id = last_prompt_id = None

    def send_sync(self, *_):
        pass

    def send_progress_text(self, *_args, **_kwargs):
        pass


def write_file(kind):
    """A file in a folder of model_patches; its name."""
    folder = KEEP.setdefault("folder", tempfile.mkdtemp())
    folder_paths.add_model_folder_path("model_patches", folder)
    path = os.path.join(folder, f"{kind}.safetensors")
    if kind == "spatial_transformer":
        ours("models.spatial_fusion.weights").save_spatial_transformer(path, network())
    elif kind == "adapter":
        adapters = sys.modules["__main__"].load_file("inside_depth_adapter.py")
        ours("models.spatial_fusion.weights").save_adapter(path, adapters.make_adapter("sd15"))
    folder_paths.filename_list_cache.clear()
    return f"{kind}.safetensors"


def graph(kind="spatial_transformer", prompt=PROMPT):
    """Load Spatial Transformer and Spatial Depth, checked and executed by core."""
    made = {
        "1": {"class_type": "TestGiveClip", "inputs": {}},
        "2": {
            "class_type": "SpatialWeave_LoadSpatialTransformer",
            "inputs": {"transformer_name": write_file(kind)},
        },
        "3": {
            "class_type": "SpatialWeave_SpatialDepth",
            "inputs": {
                "clip": ["1", 0], "transformer": ["2", 0], "prompt": prompt, "width": 64, "height": 48,
            },
        },
        "4": {"class_type": "TestTakeView", "inputs": {"view": ["3", 0]}},
    }  # fmt: skip
    ours_too = {"TestGiveClip": Give, "TestTakeView": Take}
    core.NODE_CLASS_MAPPINGS.update(ours_too)
    Take.seen.clear()
    try:
        good, error, outputs, node_errors = asyncio.run(execution.validate_prompt("run", made, None))
        if not good:
            return {"invalid": json.dumps([error, node_errors], default=str)}
        executor = execution.PromptExecutor(Server(), cache_args={"lru": 0, "ram": 0.0, "ram_inactive": 0.0})
        executor.execute(made, "run", {}, outputs)
    finally:
        for name in ours_too:
            del core.NODE_CLASS_MAPPINGS[name]
    failed = [data for event, data in executor.status_messages if event == "execution_error"]
    errors = [data["exception_message"].strip() for data in failed]
    if not Take.seen:
        return {"errors": errors}
    view = Take.seen[-1]
    return {
        "errors": errors, "shape": list(view.depth.shape), "gap": gap(view.depth, infer().depth),
        "units": view.units, "valid": bool(view.mask.all()),
    }  # fmt: skip


def follows():
    """Spatial Depth's VIEW goes into Depth Adapter, whose latent has the same aspect."""
    adapters = sys.modules["__main__"].load_file("inside_depth_adapter.py")
    view = infer(width=96, height=64)
    model, shape, adapter, _, positive, negative = adapters.rig("omnigen2")
    base = adapters.sample(model, positive, negative, shape)
    on = adapters.sample(adapters.patch(model, adapter, view), positive, negative, shape)
    return {"change": gap(on, base), "shape": list(on.shape)}

