"""Our Flux network against ComfyUI's class and diffusers' class, on random weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatialweave.models.spatial_diff import flux
from spatialweave.models.spatial_diff.flux import ExtraTokens, Flux, FluxConfig
from spatialweave.models.spatial_diff.lora import LowRankLayers, merge_lora, save_lora

RELEASED = FluxConfig(
    context_in_dim=24, vec_in_dim=12, hidden_size=64, num_heads=2, depth=2, depth_single_blocks=2,
    axes_dim=(8, 12, 12),
)  # fmt: skip
TINY = FluxConfig(
    in_channels=8, patch_size=1, context_in_dim=24, vec_in_dim=0, hidden_size=48, num_heads=2, depth=1,
    depth_single_blocks=3, axes_dim=(8, 8, 8), theta=100, guidance_embed=False,
)  # fmt: skip
# of the stock loader: one head of 128, the released text widths
STOCK = FluxConfig(hidden_size=128, num_heads=1, depth=1, depth_single_blocks=2)
SIZES = [(), ((6, 8),), ((4, 8), (6, 5)), ((5, 7), (8, 4))]


def make_network(config):
    torch.manual_seed(1)
    network = Flux(config).train(False).requires_grad_(False)
    for name, value in network.named_parameters():
        if name.endswith("norm.scale"):
            value.normal_(1, 0.2)
        else:
            value.normal_(0, value.shape[-1] ** -0.5 if value.ndim > 1 else 0.1)
    return network


def make_inputs(config, size=(6, 8), references=(), batch=2):
    generator = torch.Generator().manual_seed(2)

    def draw(*shape):
        return torch.randn(batch, *shape, generator=generator)

    given = {"x": draw(config.in_channels, *size), "t": torch.tensor([0.9, 0.25])[:batch]}
    given["context"] = draw(5, config.context_in_dim)
    if config.vec_in_dim:
        given["pooled"] = draw(config.vec_in_dim)
    if config.guidance_embed:
        given["guidance"] = torch.tensor([2.5, 4.0])[:batch]
    given |= {f"reference{i}": draw(config.in_channels, *each) for i, each in enumerate(references)}
    return given


def run_ours(network, given, **options):
    references = [given[name] for name in sorted(given) if name.startswith("reference")]
    rest = {name: given[name] for name in ("pooled", "guidance") if name in given}
    return network(given["x"], given["t"], given["context"], references, **rest, **options)


CONFIGS = {"released": RELEASED, "tiny": TINY}


def name_case(config, references):
    return f"{config}-{len(references)}-{'-'.join(f'{h}x{w}' for h, w in references)}"


@pytest.fixture(scope="module")
def core_outputs(inside, tmp_path_factory):
    """The folder with a case, and core's output, for each configuration and set of references."""
    folder = tmp_path_factory.mktemp("core")
    for name, config in CONFIGS.items():
        for references in SIZES:
            case = folder / name_case(name, references)
            case.mkdir()
            save_file(make_network(config).state_dict(), case / "weights.safetensors")
            save_file(make_inputs(config, (7, 8), references), case / "inputs.safetensors")
            (case / "params.json").write_text(json.dumps(config.for_core()))
    case = folder / "lora"
    case.mkdir()
    network = make_network(STOCK)
    save_file(network.state_dict(), case / "weights.safetensors")
    lora = LowRankLayers(network, 4, 6.0, torch.Generator().manual_seed(5))
    for layer in lora.layers.values():
        torch.nn.init.normal_(layer.up, std=0.3)
    save_lora(case / "lora.safetensors", lora.state_dict(), rank=4, alpha=6.0, dtype=torch.float32)
    inside(Path(__file__).with_name("inside_flux.py"), "run", folder=str(folder))
    return folder


@pytest.mark.comfyui
@pytest.mark.parametrize("references", SIZES, ids=lambda sizes: f"{len(sizes)} references {sizes}")
@pytest.mark.parametrize("config", CONFIGS)
def test_flux_equals_comfyui(core_outputs, config, references):
    case = core_outputs / name_case(config, references)
    expected = load_file(case / "output.safetensors")["velocity"]
    ours = run_ours(make_network(CONFIGS[config]), load_file(case / "inputs.safetensors")).velocity
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1


@pytest.mark.comfyui
def test_a_lora_changes_the_same_weights_in_comfyui(core_outputs):
    """Every layer that the LoRA trains, by the amount that we merge, and no other."""
    merged, plain = make_network(STOCK), make_network(STOCK).state_dict()
    merge_lora(merged, core_outputs / "lora" / "lora.safetensors")
    theirs, changed = load_file(core_outputs / "lora" / "output.safetensors"), 0
    for name, value in merged.state_dict().items():
        own = theirs[name.replace("_norm.scale", "_norm.weight")]
        torch.testing.assert_close(own, value, rtol=0, atol=1e-5)
        changed += not torch.equal(value, plain[name])
    assert changed == 4 + 2 * 2


THIRDS = (("to_q", "add_q_proj"), ("to_k", "add_k_proj"), ("to_v", "add_v_proj"))


class Renamed(dict):
    """Tensors under diffusers' names, taken from a state dict of BFL's."""

    def __init__(self, state, config):
        self.state, self.width = state, config.hidden_size
        for new, old in {
            "timestep_embedder": "time_in", "guidance_embedder": "guidance_in", "text_embedder": "vector_in",
        }.items():  # fmt: skip
            self.put(f"time_text_embed.{new}.linear_1", f"{old}.in_layer")
            self.put(f"time_text_embed.{new}.linear_2", f"{old}.out_layer")
        for new, old in {"x_embedder": "img_in", "context_embedder": "txt_in"}.items():
            self.put(new, old)
        self.put("proj_out", "final_layer.linear")
        for part in ("weight", "bias"):
            shift, scale = state[f"final_layer.adaLN_modulation.1.{part}"].chunk(2)
            self[f"norm_out.linear.{part}"] = torch.cat((scale, shift))
        for i in range(config.depth):
            self.put_double(f"transformer_blocks.{i}", f"double_blocks.{i}")
        for i in range(config.depth_single_blocks):
            self.put_single(f"single_transformer_blocks.{i}", f"single_blocks.{i}")

    def put(self, new, old, rows=slice(None)):
        for part in ("weight", "bias"):
            self[f"{new}.{part}"] = self.state[f"{old}.{part}"][rows]

    def put_norms(self, new, old, names):
        for theirs, ours in zip(names, ("query_norm", "key_norm"), strict=True):
            self[f"{new}.{theirs}.weight"] = self.state[f"{old}.norm.{ours}.scale"]

    def put_double(self, new, old):
        self.put(f"{new}.norm1.linear", f"{old}.img_mod.lin")
        self.put(f"{new}.norm1_context.linear", f"{old}.txt_mod.lin")
        for i, (img, txt) in enumerate(THIRDS):
            rows = slice(i * self.width, (i + 1) * self.width)
            self.put(f"{new}.attn.{img}", f"{old}.img_attn.qkv", rows)
            self.put(f"{new}.attn.{txt}", f"{old}.txt_attn.qkv", rows)
        self.put_norms(f"{new}.attn", f"{old}.img_attn", ("norm_q", "norm_k"))
        self.put_norms(f"{new}.attn", f"{old}.txt_attn", ("norm_added_q", "norm_added_k"))
        self.put(f"{new}.attn.to_out.0", f"{old}.img_attn.proj")
        self.put(f"{new}.attn.to_add_out", f"{old}.txt_attn.proj")
        for theirs, ours in (("ff", "img_mlp"), ("ff_context", "txt_mlp")):
            self.put(f"{new}.{theirs}.net.0.proj", f"{old}.{ours}.0")
            self.put(f"{new}.{theirs}.net.2", f"{old}.{ours}.2")

    def put_single(self, new, old):
        self.put(f"{new}.norm.linear", f"{old}.modulation.lin")
        for i, (name, _) in enumerate(THIRDS):
            self.put(f"{new}.attn.{name}", f"{old}.linear1", slice(i * self.width, (i + 1) * self.width))
        self.put(f"{new}.proj_mlp", f"{old}.linear1", slice(3 * self.width, None))
        self.put(f"{new}.proj_out", f"{old}.linear2")
        self.put_norms(f"{new}.attn", old, ("norm_q", "norm_k"))


def as_diffusers(network):
    """The same weights in diffusers' class."""
    diffusers = pytest.importorskip("diffusers")
    config = network.config
    theirs = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=config.token_channels, num_layers=config.depth,
        num_single_layers=config.depth_single_blocks, attention_head_dim=config.head_dim,
        num_attention_heads=config.num_heads, joint_attention_dim=config.context_in_dim,
        pooled_projection_dim=config.vec_in_dim, guidance_embeds=config.guidance_embed,
        axes_dims_rope=config.axes_dim,
    ).train(False)  # fmt: skip
    theirs.load_state_dict(Renamed(network.state_dict(), config))
    return theirs


@pytest.mark.parametrize("references", [(), ((6, 8),), ((4, 8), (6, 6))], ids=lambda sizes: str(len(sizes)))
def test_flux_equals_diffusers(references):
    network = make_network(RELEASED)
    given = make_inputs(RELEASED, (6, 8), references)
    theirs = as_diffusers(network)
    latents = [given["x"], *(given[name] for name in sorted(given) if name.startswith("reference"))]
    packed = torch.cat(
        [
            each.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
            for each in latents
        ],
        dim=1,
    )
    count, corner, ids = 12, (0, 0), []
    for number, each in enumerate(latents):
        rows, columns = each.shape[2] // 2, each.shape[3] // 2
        for row in range(rows):
            ids += [[min(number, 1), row + corner[0], column + corner[1]] for column in range(columns)]
        corner = (0, 0) if number == 0 else (2, 0)  # the second reference lies below the first, which is wide
    ids = torch.tensor(ids, dtype=torch.float32)
    with torch.no_grad():
        out = theirs(
            packed, given["context"], given["pooled"], given["t"], ids, torch.zeros(5, 3), given["guidance"],
            return_dict=False,
        )[0][:, :count]  # fmt: skip
    expected = (
        out.unflatten(1, (3, 4)).unflatten(3, (16, 2, 2)).permute(0, 3, 1, 4, 2, 5).reshape(2, 16, 6, 8)
    )
    torch.testing.assert_close(run_ours(network, given).velocity, expected, rtol=0, atol=1e-5)


def test_flux_extra_tokens_join_the_image_stream():
    network = make_network(TINY)
    given = make_inputs(TINY, (4, 4), ((4, 4),))
    tokens = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(3))
    ids = torch.cat((torch.full((9, 1), 2.0), torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))), 1)
    plain, fused = run_ours(network, given), run_ours(network, given, extra=ExtraTokens(tokens, ids))
    empty = run_ours(network, given, extra=ExtraTokens(tokens[:, :0], ids[:0]))
    assert plain.rows is None and fused.rows.shape == (2, 9, 48)
    assert torch.equal(plain.velocity, empty.velocity)
    assert (plain.velocity - fused.velocity).abs().max() > 0.01
    # their order does not matter, their ids do
    order = torch.randperm(9, generator=torch.Generator().manual_seed(4))
    turned = run_ours(network, given, extra=ExtraTokens(tokens[:, order], ids[order]))
    torch.testing.assert_close(turned.velocity, fused.velocity, rtol=0, atol=1e-5)
    moved = run_ours(network, given, extra=ExtraTokens(tokens, ids.roll(1, 0)))
    assert (moved.velocity - fused.velocity).abs().max() > 0.001


def test_flux_ids_of_references_lie_beside_each_other():
    ids = flux.sequence_ids([(4, 4), (4, 8), (6, 6)], 2)
    assert ids[:4].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert ids[4].tolist() == [1, 0, 0] and ids[11].tolist() == [1, 1, 3]
    assert ids[12].tolist() == [1, 2, 0]  # 8 wide and 4 high: the next one goes below


def test_flux_config_refuses_axes_that_do_not_fill_a_head():
    with pytest.raises(ValueError, match="axes_dim that add up to hidden_size / num_heads"):
        FluxConfig(hidden_size=64, num_heads=2, axes_dim=(8, 8, 8))
    with pytest.raises(ValueError, match="three even numbers"):
        FluxConfig(hidden_size=64, num_heads=2, axes_dim=(16, 16))
