"""Called by worker.py inside ComfyUI: the tiny language model as a CLIP, beside transformers' on one file."""

import dataclasses
import os
import tempfile

import folder_paths
import torch

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
KEEP = {}
PROMPT = "a small red ball to the left of a blue box on grass"


def language_file():
    """A file of random weights, as training writes it, in a folder of text encoders; its name."""
    if "name" not in KEEP:
        folder, name = tempfile.mkdtemp(), "tiny_language.safetensors"
        language, config = ours("models.spatial_fusion.language"), tiny()
        sizes = language.size_language(config)
        decoder = language.make_language(sizes)
        generator = torch.Generator().manual_seed(0)
        for value in decoder.parameters():
            noise = torch.randn(value.shape, generator=generator) * value.shape[-1] ** -0.5
            value.data.copy_(noise if value.ndim > 1 else 1 + 0.1 * noise)
        language.save_language(os.path.join(folder, name), sizes, decoder.state_dict())
        adapters = ours("models.spatial_fusion.weights")
        adapter = ours("models.spatial_fusion.network").AdapterNetwork(
            ours("models.spatial_fusion.config").find_preset("tiny")
        )
        adapters.save_adapter(os.path.join(folder, "adapter.safetensors"), adapter)
        folder_paths.add_model_folder_path("text_encoders", folder)
        folder_paths.filename_list_cache.clear()
        KEEP["name"] = name
    return KEEP["name"]


def tiny():
    config = ours("models.spatial_fusion.config").find_transformer_preset("tiny")
    return dataclasses.replace(config, patch=4, dpt_features=8, dpt_out_channels=(8, 8, 8, 8))


def loaded(name=None):
    node = core.NODE_CLASS_MAPPINGS["SpatialWeave_LoadTinyLanguageModel"].PREPARE_CLASS_CLONE(None)
    return node.EXECUTE_NORMALIZED(language_name=name or language_file()).result[0]


def two_hosts():
    """Keys and values, and the last hidden state, of core's class and of transformers'."""
    language, semantic = ours("models.spatial_fusion.language"), ours("nodes.host.spatial_fusion.semantic")
    clip, config = loaded(), tiny()
    found, notes = semantic.encode_prompts(clip, [PROMPT, "a cone"], config)
    sizes, state = language.read_language(folder_paths.get_full_path("text_encoders", language_file()))
    decoder = language.fill_language(sizes, state)
    gaps, spread = [], []
    for row, prompt in enumerate((PROMPT, "a cone")):
        ids = torch.tensor(language.tokenize_words([prompt]))
        want = ours("models.spatial_fusion.mllm").read_semantic_state(decoder, ids, None, config)
        for i in want.keys:
            for part in ("keys", "values"):
                own = getattr(found, part)[i][row : row + 1, :, : ids.shape[1]]
                gaps.append(float((own - getattr(want, part)[i]).abs().max()))
                spread.append(float(own.std()))
    ids = torch.tensor(language.tokenize_words([PROMPT]))
    hidden = decoder(input_ids=ids).last_hidden_state
    encoded = clip.encode_from_tokens(clip.tokenize(PROMPT))
    return {
        "gap": max(gaps), "spread": min(spread), "layers": sorted(found.keys), "lengths": found.lengths,
        "hidden": float((encoded - hidden).abs().max()), "shape": list(encoded.shape), "notes": notes,
    }  # fmt: skip


def depth():
    """Spatial Depth over the node's CLIP: a prompt, the same with weights, and another prompt."""
    made = ours("models.spatial_fusion.network").SpatialTransformer(tiny()).requires_grad_(False)
    training = ours("models.spatial_fusion.training")
    training.init_spatial_weights(made, torch.Generator().manual_seed(1))
    kind = ours("nodes.host.spatial_fusion.transformer")
    transformer = kind.SpatialTransformerModel(made.config, made.state_dict(), "small")

    def infer(prompt):
        return kind.infer_from_prompts(loaded(), transformer, [prompt], (48, 64), None)

    (plain, _), (weighted, notes), (other, _) = map(
        infer, (PROMPT, PROMPT.replace("red", "(red:1.4)"), "a large green cone in a room")
    )
    return {
        "shape": list(plain.depth.shape), "weighted": float((plain.depth - weighted.depth).abs().max()),
        "other": float((plain.depth - other.depth).abs().max()), "notes": notes,
    }  # fmt: skip


def texts():
    """Token ids of texts, and encodings of an empty and a weighted one by CLIP Text Encode."""
    clip, encode = loaded(), core.CLIPTextEncode()
    rows = {
        text: [token for token, _ in clip.tokenize(text)["spatialweave_language"][0]]
        for text in ("", "red (ball:1.5)", "a zebra", "a " * 40)
    }
    cond = {text: encode.encode(clip, text)[0][0][0] for text in ("", "a (red:1.5) ball", "a red ball")}
    return {
        "ids": {text: ids for text, ids in rows.items()},
        "weights": [weight for _, weight in clip.tokenize("red (ball:1.5)")["spatialweave_language"][0]],
        "finite": all(bool(value.isfinite().all()) for value in cond.values()),
        "shapes": [list(value.shape) for value in cond.values()],
        "weighted": float((cond["a (red:1.5) ball"] - cond["a red ball"]).abs().max()),
    }


def refused(name):
    language_file()
    node = core.NODE_CLASS_MAPPINGS["SpatialWeave_LoadTinyLanguageModel"]
    try:
        loaded(name)
    except (ValueError, OSError) as error:
        return {"error": str(error), "checked": node.validate_inputs(language_name=name)}
    return None
