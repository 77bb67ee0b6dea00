"""Sampling an image beside its maps: the base's own image bit for bit, equation 4 written out,
guidance and schedulers apart.
"""

import contextlib
import copy
import importlib.util
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from spatialweave.models.core.weights.files import WeightsError
from spatialweave.models.intrinsic_ldm import tiny
from spatialweave.models.intrinsic_ldm.schedules import OFF, Constant, Curve, Drop, Gaussian
from spatialweave.models.tiny.text import TinyTextEncoder

diffusers = pytest.importorskip("diffusers", reason="the trainer's extra is not installed")
from spatialweave.models.intrinsic_ldm.pipeline import IntrinsicPipeline  # noqa: E402
from spatialweave.models.intrinsic_ldm.sampling import draw_noise  # noqa: E402

SIZE = 32
PROMPTS = ["a red ball", "a blue box behind a green cone"]


def make_scheduler():
    """The tiny base's: SD2.1's noise, from the noisiest timestep down to a clean image."""
    return diffusers.DDIMScheduler(
        **tiny.NOISE, prediction_type=tiny.PREDICTION, clip_sample=False, set_alpha_to_one=True,
        timestep_spacing="trailing"
    )


def latent_noise(seed, size=SIZE):
    return draw_noise(seed, (len(PROMPTS), tiny.VAE.latent_channels, size // 8, size // 8))


def square(size):
    return {"height": size, "width": size}


SCHEDULERS = {
    "ddim": make_scheduler,
    "euler": lambda: diffusers.EulerDiscreteScheduler(
        **tiny.NOISE, prediction_type=tiny.PREDICTION, timestep_spacing="trailing"
    ),
}


@pytest.fixture(scope="module")
def folder(write_tiny, tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"), 4)


@pytest.fixture(scope="module")
def system(folder):
    return IntrinsicPipeline.from_preset(
        "tiny", weights={part: folder / f"{part}.safetensors" for part in ("base", "vae", "lora")}
    )


@pytest.fixture(scope="module")
def base(folder):
    """(UNet, autoencoder, text encoder, scale): the base as diffusers has it, nothing of ours in it."""
    parts = tiny.load_base(folder / "base.safetensors")
    unet = diffusers.UNet2DConditionModel(**tiny.unet_for_diffusers())
    vae = diffusers.AutoencoderKL(**tiny.VAE.for_diffusers(3))
    text = TinyTextEncoder(tiny.TEXT_WIDTH, tiny.TEXT_LAYERS)
    for module, state in ((unet, parts.unet), (vae, parts.vae), (text, parts.text)):
        module.load_state_dict(state)
        module.train(False)
    return unet, vae, text, parts.vae_scale


@torch.no_grad()
def sample_plainly(base, scheduler, steps, guidance, seed):
    """The base's image as diffusers' own pipelines make one."""
    unet, vae, text, scale = base
    context = torch.cat([text.encode(PROMPTS), text.encode([""] * len(PROMPTS))])
    scheduler.set_timesteps(steps)
    x = latent_noise(seed) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = unet(
            scheduler.scale_model_input(torch.cat([x, x]), t), t, encoder_hidden_states=context
        ).sample
        prompted, empty = output.chunk(2)
        x = scheduler.step(empty + guidance * (prompted - empty), t, x).prev_sample
    return ((vae.decode(x / scale).sample.movedim(1, -1) + 1) / 2).clamp(0, 1)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_with_weight_zero_the_image_is_the_bases_bit_for_bit(system, base, name):
    want = sample_plainly(base, SCHEDULERS[name](), 3, 4.0, seed=5)
    given = {"steps": 3, "guidance": 4.0, "seed": 5, **square(SIZE)}
    alone = system(PROMPTS, maps=False, scheduler=SCHEDULERS[name](), **given)
    beside = system(PROMPTS, schedule=OFF, scheduler=SCHEDULERS[name](), **given)
    assert torch.equal(alone.image, want) and torch.equal(beside.image, want)
    assert alone.maps is None and beside.maps.shape == (2, 8, SIZE, SIZE) and beside.maps.std() > 0


def test_a_weight_moves_the_image_and_only_where_the_schedule_says(system):
    given = {"steps": 3, "seed": 1, **square(SIZE)}
    off = system(PROMPTS, schedule=OFF, **given).image
    times = make_scheduler()
    times.set_timesteps(3)
    late, early = (float(times.timesteps[i]) for i in (-1, 0))
    moved = {
        "everywhere": Constant(1.0), "Gaussian": Gaussian(), "some layers": Drop(frozenset({2, 3, 4})),
        "the last step": Curve(((late, 1.0), (late + 1, 0.0))),
    }  # fmt: skip
    images = {name: system(PROMPTS, schedule=schedule, **given).image for name, schedule in moved.items()}
    assert all(not torch.equal(image, off) for image in images.values())
    assert torch.equal(system(PROMPTS, schedule=Drop(frozenset({3}), tau=late - 1), **given).image, off), (
        "no step is below tau"
    )
    assert not torch.equal(
        system(PROMPTS, schedule=Curve(((early - 1, 0.0), (early, 1.0))), **given).image, off
    )


@pytest.fixture(scope="module")
def operators(root):
    """tests/nodes/operators.py: what a network is asked to compute, operator by operator."""
    spec = importlib.util.spec_from_file_location("operators", root / "tests" / "nodes" / "operators.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def weights_that_want_gradients(wanted, *modules):
    """diffusers' `from_pretrained` leaves weights that want gradients; scripts often switch them off."""
    before = [[parameter.requires_grad for parameter in module.parameters()] for module in modules]
    for module in modules:
        module.requires_grad_(wanted)
    yield
    for module, flags in zip(modules, before):
        for parameter, flag in zip(module.parameters(), flags):
            parameter.requires_grad_(flag)


def test_the_weights_want_gradients_as_those_of_a_diffusers_pipeline(system):
    assert all(
        parameter.requires_grad
        for part in (system.backbone.network, system.image_vae.module)
        for parameter in part.parameters()
    )


@pytest.mark.parametrize("wanted", [None, True, False], ids=["as loaded", "with gradients", "frozen"])
@pytest.mark.parametrize("size", [16, SIZE, 64])
def test_with_weight_zero_the_network_is_asked_for_the_bases_operators(system, base, operators, wanted, size):
    """Equal operators on arguments that lie alike: the same image on any machine, whichever product its
    processor would choose.
    """
    unet, vae, text, scale = base
    context = torch.cat([text.encode(PROMPTS), text.encode([""] * len(PROMPTS))])
    x = latent_noise(5, size)
    around = (
        contextlib.nullcontext()
        if wanted is None
        else weights_that_want_gradients(wanted, unet, system.backbone.network)
    )
    with around, torch.no_grad():
        with operators.asked_of(unet) as plain:
            unet(torch.cat([x, x]), torch.tensor(999), encoder_hidden_states=context)
        with operators.asked_of(system.backbone.network) as ours:
            system(PROMPTS, schedule=OFF, steps=1, guidance=4.0, seed=5, **square(size))
            system(PROMPTS, maps=False, steps=1, guidance=4.0, seed=5, **square(size))
    image, maps, alone = ours
    for call in (image, alone):
        assert operators.same_arguments(plain[0], call)
        assert operators.first_difference(plain[0], call) is None
    assert len(image["operators"]) > 300
    assert operators.first_difference(plain[0], maps) is not None, (
        "the maps' call has a LoRA and the image's keys: it must differ"
    )


def test_with_weight_zero_a_pipeline_of_ones_own_is_asked_for_its_own_operators(base, operators):
    """`couple` on somebody's network: its image's calls are those it had before."""
    from spatialweave.models.intrinsic_ldm.attention import KVCache
    from spatialweave.models.intrinsic_ldm.network import couple
    from spatialweave.models.intrinsic_ldm.rows import Rows

    unet, _, text, _ = base
    coupled = copy.deepcopy(unet)
    coupling, _ = couple(coupled)
    given = latent_noise(1), torch.tensor(500), text.encode(PROMPTS)
    with torch.no_grad(), operators.asked_of(unet) as plain, operators.asked_of(coupled) as ours:
        unet(*given)
        with coupling.call(Rows(("prompt",), 2, ("image",)), cache=KVCache()):
            coupled(*given)
    assert (
        operators.same_arguments(plain[0], ours[0]) and operators.first_difference(plain[0], ours[0]) is None
    )


class Equation4:
    """A self-attention of a plain UNet, written out, for rows (prompt, stream, image);
    `delta` is the LoRA of each projection.
    """

    def __init__(self, delta, weight, batch):
        self.delta, self.weight, self.batch = delta, weight, batch

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        rows = hidden_states.unflatten(0, (-1, 2, self.batch))

        def project(linear, part, x):
            out = linear(x)
            out[:, 1] += F.linear(x[:, 1], self.delta[part])
            return out

        q, k, v = (project(getattr(attn, part), part, rows) for part in ("to_q", "to_k", "to_v"))
        width, out = q.shape[-1] // attn.heads, torch.empty_like(q)
        for head in range(attn.heads):
            part = slice(head * width, head * width + width)
            keys, values = (torch.cat([x[:, 0, :, :, part], x[:, 1, :, :, part]], dim=2) for x in (k, v))
            for stream, w in enumerate((self.weight, 1.0)):
                scores = q[:, stream, :, :, part] @ keys.transpose(2, 3) / math.sqrt(width)
                scores[..., scores.shape[-1] // 2 :] += math.log(w)
                out[:, stream, :, :, part] = scores.softmax(dim=-1) @ values
        return project(attn.to_out[0], "to_out.0", out).flatten(0, 2)


@torch.no_grad()
def test_one_step_is_equation_4_in_float64(system, base, folder):
    """Both streams from one noise, each guided by itself, one DDIM step written out."""
    w, guidance, seed = 0.37, 3.0, 2
    unet, vae, text, scale = base
    exact = diffusers.UNet2DConditionModel(**tiny.unet_for_diffusers()).double()
    exact.load_state_dict(unet.state_dict())
    lora = load_file(folder / "lora.safetensors")
    processors = {}
    for name, processor in exact.attn_processors.items():
        path = name.removesuffix(".processor")
        if path.endswith("attn1"):
            parts = ("to_q", "to_k", "to_v", "to_out.0")
            delta = {
                p: (
                    lora[f"unet.{path}.{p}.lora_B.weight"].double()
                    @ lora[f"unet.{path}.{p}.lora_A.weight"].double()
                )
                for p in parts
            }
            processor = Equation4(delta, w, len(PROMPTS))
        processors[name] = processor
    exact.set_attn_processor(processors)
    noise = latent_noise(seed).double()
    context = torch.cat([text.encode(PROMPTS)] * 2 + [text.encode([""] * 2)] * 2).double()
    (prompted, empty) = exact(
        torch.cat([noise] * 4), torch.tensor(999), encoder_hidden_states=context
    ).sample.chunk(2)
    v = empty + guidance * (prompted - empty)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    a = (1 - betas).cumprod(0)[999]
    # one step from the noisiest time ends at the clean picture
    x0 = a.sqrt() * torch.cat([noise] * 2) - (1 - a).sqrt() * v
    image, maps = x0.chunk(2)
    made = system(PROMPTS, schedule=Constant(w), steps=1, guidance=guidance, seed=seed, **square(SIZE))
    want = (vae.decode((image / scale).float()).sample.movedim(1, -1) + 1) / 2
    assert (made.image - want.clamp(0, 1)).abs().max() < 1e-4
    want = system.maps_vae.module.decode((maps / 0.6).float()).sample.clamp(-1, 1)
    assert (made.maps - want).abs().max() < 1e-4


def test_pictures_repeat_by_seed_and_are_their_own(system):
    given = {"schedule": Gaussian(), "steps": 2, **square(SIZE)}
    pair = system(PROMPTS, seed=7, **given)
    again = system(PROMPTS, seed=7, **given)
    assert torch.equal(pair.image, again.image) and torch.equal(pair.maps, again.maps)
    second = system(PROMPTS[1:], seed=8, **given)
    assert (
        torch.allclose(second.image, pair.image[1:], atol=1e-4)
        and torch.allclose(second.maps, pair.maps[1:], atol=1e-3)
    )


def test_guidance_of_one_reads_no_empty_prompt(system):
    plain = system(PROMPTS, schedule=Constant(), steps=1, guidance=1.0, **square(SIZE))
    near = system(PROMPTS, schedule=Constant(), steps=1, guidance=1.0 + 1e-6, **square(SIZE))
    assert (plain.image - near.image).abs().max() < 1e-4 and (plain.maps - near.maps).abs().max() < 1e-4


def test_steps_are_reported_and_the_scheduler_is_left_alone(system):
    calls, scheduler = [], make_scheduler()
    system(
        PROMPTS[:1], steps=3, **square(SIZE), scheduler=scheduler, on_step=lambda *step: calls.append(step)
    )
    assert (
        [(step, steps) for step, steps, _ in calls] == [(1, 3), (2, 3), (3, 3)]
        and scheduler.num_inference_steps is None
    )
    assert all(latents.keys() == {"image", "intrinsic"} for *_, latents in calls)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, "at least 1 step of sampling, got 0"),
        (square(40), "multiples of 16 for this base, got 40 x 40"),
        ({"height": 0}, "got 0 x 32"),
        ({"prompt": []}, "at least one prompt"),
        ({"schedule": Drop(frozenset({9}))}, "got layer 9"),
    ],
)
def test_what_cannot_be_sampled_is_refused(system, change, message):
    with pytest.raises(ValueError, match=message):
        system(**{"prompt": PROMPTS, **square(SIZE), "steps": 1, **change})


def open_tiny(base, vae, lora):
    return IntrinsicPipeline.from_preset("tiny", weights={"base": base, "vae": vae, "lora": lora})


def test_wrong_files_are_named(folder):
    base, vae, lora = (folder / f"{part}.safetensors" for part in ("base", "vae", "lora"))
    with pytest.raises(
        WeightsError, match="Expected a tiny latent diffusion model in .*, got .* intrinsic VAE"
    ):
        open_tiny(vae, vae, lora)
    with pytest.raises(WeightsError, match="Expected an intrinsic VAE"):
        open_tiny(base, lora, lora)
    with pytest.raises(ValueError, match="Expected tensor names of PEFT's or kohya's LoRAs"):
        open_tiny(base, vae, vae)
