"""The image encoder against transformers' DINOv2 with registers, its own weights under the other's names."""

import pytest
import torch

from spatialweave.models.core.layers.vit import Block, VisionTransformer, interpolate_positions

WIDTH, DEPTH, HEADS, SIDE = 48, 3, 3, 4


def fill(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for value in module.parameters():
        value.requires_grad_(False).normal_(0.2, 0.3, generator=generator)
    return module.train(False)


def to_theirs(state, new):
    """The released names to transformers', which splits q, k and v;
    since transformers 5 (`new`) in shorter words.
    """
    attention, parts, out = ("attention.", ("q_proj", "k_proj", "v_proj"), "o_proj") if new else (
        "attention.attention.", ("query", "key", "value"), "output.dense"
    )
    top = {
        "cls_token": "embeddings.cls_token", "mask_token": "embeddings.mask_token",
        "register_tokens": "embeddings.register_tokens",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }  # fmt: skip
    inner = {
        "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1",
        "attn.proj": f"attention.{out}",
    }
    found = {}
    for name, value in state.items():
        if name in top:
            found[top[name]] = value
            continue
        _, number, rest = name.split(".", 2)
        home = f"encoder.layer.{number}."
        if rest.startswith("attn.qkv"):
            for part, third in zip(parts, value.chunk(3), strict=True):
                found[f"{home}{attention}{part}.{rest.rsplit('.', 1)[1]}"] = third
            continue
        for ours, theirs in inner.items():
            rest = rest.replace(ours, theirs)
        found[home + rest] = value
    return found


@pytest.fixture(scope="module")
def pair():
    transformers = pytest.importorskip("transformers", minversion="4.48")
    ours = fill(
        VisionTransformer(patch=14, table_side=SIDE, dim=WIDTH, depth=DEPTH, heads=HEADS, registers=4)
    )
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=14 * SIDE,
        patch_size=14, num_register_tokens=4,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    theirs = transformers.Dinov2WithRegistersModel(config).train(False)
    new = "encoder.layer.0.attention.q_proj.weight" in theirs.state_dict()
    theirs.load_state_dict(to_theirs(ours.state_dict(), new))
    return ours, theirs


def test_encoder_is_transformers_dinov2_with_registers(pair):
    ours, theirs = pair
    image = torch.randn(2, 3, 14 * SIDE, 14 * SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(image).last_hidden_state
    patches, special = ours(image)
    assert patches.shape == (2, SIDE**2, WIDTH) and special.shape == (2, 5, WIDTH)
    assert (special - expected[:, :5]).abs().max() < 1e-4 and (patches - expected[:, 5:]).abs().max() < 1e-4


def test_another_grid_interpolates_the_table_and_reports_each_block():
    ours, counted = fill(VisionTransformer(table_side=SIDE, dim=WIDTH, depth=DEPTH, heads=HEADS)), []
    patches, _ = ours(torch.zeros(1, 3, 28, 70), on_block=lambda: counted.append(1))
    assert patches.shape == (1, 10, WIDTH) and len(counted) == DEPTH


def test_positions_keep_the_class_entry_and_a_ramp():
    """A table that is linear in the row and the column stays so, away from the border, at any grid."""
    y, x = torch.meshgrid(torch.arange(8.0) + 0.5, torch.arange(8.0) + 0.5, indexing="ij")
    table = torch.cat((torch.full((1, 1, 2), 9.0), torch.stack((y, x), -1).view(1, 64, 2)), dim=1)
    assert torch.equal(interpolate_positions(table, 8, 8), table)
    found = interpolate_positions(table, 12, 20)
    assert found.shape == (1, 241, 2) and torch.equal(found[:, 0], table[:, 0])
    grid = found[0, 1:].view(12, 20, 2)[4:8, 6:14]
    rows, columns = (torch.arange(12) + 0.5) * 8 / 12, (torch.arange(20) + 0.5) * 8 / 20
    assert (
        (grid[..., 0] - rows[4:8, None]).abs().max() < 0.02
        and (grid[..., 1] - columns[None, 6:14]).abs().max() < 0.02
    )
    half = interpolate_positions(table.bfloat16(), 12, 20)
    assert half.dtype == torch.bfloat16 and (half.float() - found).abs().max() < 0.05


def test_block_with_zero_scales_is_the_identity():
    block = fill(Block(WIDTH, HEADS, qk_norm=True))
    block.ls1.gamma.zero_()
    block.ls2.gamma.zero_()
    x = torch.randn(2, 7, WIDTH)
    assert torch.equal(block(x), x)
