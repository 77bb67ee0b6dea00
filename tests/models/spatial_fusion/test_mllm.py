"""Keys and values of transformers' Qwen2.5-VL, of a small random config."""

import dataclasses

import pytest
import torch
import transformers

from spatialweave.models.spatial_fusion.mllm import (
    MllmSizes,
    check_mllm,
    find_text_model,
    join_semantic_states,
    read_semantic_state,
    read_sizes,
    repeat_prompt,
)

SIZES = {
    "vocab_size": 100, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 6,
    "num_attention_heads": 6, "num_key_value_heads": 2,
}  # fmt: skip
IDS = torch.tensor([[5, 9, 80, 2, 7], [4, 3, 11, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def text_model(kind=transformers.Qwen2_5_VLTextModel, config=transformers.Qwen2_5_VLTextConfig, **more):
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    torch.manual_seed(0)
    model = kind(config(**SIZES, rope_parameters=rope, **more)).train(False)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" not in name:
                value.normal_(0, 0.3)
    return model


@pytest.fixture(scope="module")
def mllm():
    return text_model()


@pytest.fixture
def config(build):
    return build(head_dim=8, mrope_section=(1, 1, 2)).config


def test_keys_and_values_are_those_of_the_attention(mllm, config):
    """Against the projections' own output, rotated as the model does."""
    rows, expected = len(IDS), {}

    def keep(i, name):
        def hook(module, args, output):
            expected[i, name] = output.view(rows, 5, 2, 8).transpose(1, 2)

        return hook

    handles = [
        getattr(mllm.layers[i].self_attn, f"{name}_proj").register_forward_hook(keep(i, name))
        for i in config.pairs for name in "kv"
    ]  # fmt: skip
    found = read_semantic_state(mllm, IDS, MASK, config)
    [handle.remove() for handle in handles]
    assert found.lengths == (5, 3) and sorted(found.keys) == sorted(found.values) == [0, 1, 3, 4]
    angle = torch.arange(5)[:, None] / 1e6 ** (torch.arange(4) / 4)
    for i in config.pairs:
        first, second = expected[i, "k"].chunk(2, -1)
        c, s = angle.cos(), angle.sin()
        turned = torch.cat((first * c - second * s, second * c + first * s), -1)
        assert (found.keys[i] - turned).abs().max() < 1e-5 * turned.abs().max()
        assert torch.equal(found.values[i], expected[i, "v"])


def test_padding_and_other_prompts_change_nothing(mllm, config):
    both = read_semantic_state(mllm, IDS, MASK, config)
    alone = read_semantic_state(mllm, IDS[1:, :3], None, config)
    assert alone.lengths == (3,)
    for i in config.pairs:
        gap = (both.keys[i][1:, :, :3] - alone.keys[i]).abs().max()
        assert gap < 1e-5 * alone.keys[i].abs().max()


def test_the_mllm_never_sees_the_spatial_transformer(mllm, config, build):
    """Its hidden states are bit-equal with and without; no gradient flows into it."""
    with torch.no_grad():
        before = mllm(input_ids=IDS, attention_mask=MASK).last_hidden_state
    network = build(head_dim=8, mrope_section=(1, 1, 2)).requires_grad_(True)
    seen = []
    handle = mllm.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state))
    semantic = read_semantic_state(mllm, IDS, MASK, config)
    handle.remove()
    network(semantic, (3, 3), (42, 42)).depth.sum().backward()
    with torch.no_grad():
        after = mllm(input_ids=IDS, attention_mask=MASK).last_hidden_state
    assert torch.equal(seen[0], before) and torch.equal(after, before)
    assert all(value.grad is None for value in mllm.parameters())
    assert network.layers[0].self_attn.q_proj.weight.grad.abs().max() > 0


def test_the_language_model_is_found_in_the_whole_one():
    vision = {"hidden_size": 32, "out_hidden_size": 48, "depth": 1, "num_heads": 2, "intermediate_size": 32}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    config = transformers.Qwen2_5_VLConfig(
        text_config=SIZES | {"rope_parameters": rope}, vision_config=vision
    )
    whole = transformers.Qwen2_5_VLForConditionalGeneration(config)
    found = find_text_model(whole)
    assert found is whole.model.language_model and read_sizes(found) == MllmSizes(6, 48, 2, 8)
    with pytest.raises(ValueError, match="a language model of transformers with layers, got Identity"):
        find_text_model(torch.nn.Identity())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mllm_width": 64}, "width 64, 2 key heads of 8., as the spatial transformer, got Qwen2_5_VLText"),
        ({"mllm_layers": 7}, "7 layers"),
        ({"kv_heads": 1}, "got Qwen2_5_VLTextModel with 6 layers of width 48, 2 key heads of 8"),
    ],
)
def test_another_language_model_is_refused_with_both_sizes(mllm, config, change, words):
    with pytest.raises(ValueError, match=words):
        read_semantic_state(mllm, IDS, MASK, dataclasses.replace(config, **change))
    check_mllm(config, MllmSizes(6, 48, 2, 8), "the same")


def test_left_padding_and_empty_prompts_are_refused(mllm, config):
    for mask in (MASK.flip(1), torch.tensor([[1] * 5, [0] * 5])):
        with pytest.raises(ValueError, match="padded on the right"):
            read_semantic_state(mllm, IDS, mask, config)


def test_attention_without_a_whole_cache_is_refused_by_name(config):
    sliding = text_model(
        transformers.Qwen2Model, transformers.Qwen2Config, use_sliding_window=True, sliding_window=2,
        max_window_layers=0,
    )  # fmt: skip
    with pytest.raises(ValueError, match="the cache of Qwen2Model, got a .*Sliding.* in layer 0. Use"):
        read_semantic_state(sliding, IDS, MASK, config)


def test_prompts_of_several_states_join_padded(build, draw):
    config = build().config
    short, long = draw(config, (3,)), draw(config, (5,), seed=2)
    joined = join_semantic_states([short, long])
    assert joined.lengths == (3, 5) and list(joined.keys) == list(short.keys)
    for layer in joined.keys:
        assert torch.equal(joined.keys[layer][0, :, :3], short.keys[layer][0])
        assert torch.equal(joined.values[layer][1], long.values[layer][0])
        assert not joined.keys[layer][0, :, 3:].any()
    three = repeat_prompt(short, 3)
    assert three.lengths == (3, 3, 3) and torch.equal(three.keys[0][2], short.keys[0][0])
    assert repeat_prompt(joined, 2) is joined
    with pytest.raises(ValueError, match="got 2 prompts and 3 images"):
        repeat_prompt(joined, 3)
