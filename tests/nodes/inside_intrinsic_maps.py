"""Called by worker.py inside ComfyUI: small random intrinsic VAEs of core's own class, loaded, encoding,
decoding and refusing.
"""

import logging
import sys
import tempfile
from pathlib import Path

import comfy.ldm.models.autoencoder
import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.nested_tensor import NestedTensor
from safetensors.torch import save_file

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
KEEP = {}
SMALL = {"width": 32, "multiples": [1, 2, 2], "blocks": 1, "latent_channels": 4}
OF_SD = {"width": 32, "multiples": [1, 1, 2, 2], "blocks": 1, "latent_channels": 4}  # 8 pixels to a latent's


def config(**settings):
    return ours("models.intrinsic_ldm.config").VaeConfig(**(SMALL | settings))


def random_state(chosen, channels=8):
    """Weights of core's AutoencoderKL, the same every time."""
    arguments = chosen.for_core()
    arguments["ddconfig"] |= {"in_channels": channels, "out_ch": channels}
    network = comfy.ldm.models.autoencoder.AutoencoderKL(**arguments)
    generator, state = torch.Generator().manual_seed(7), {}
    for name, value in network.state_dict().items():
        fan = max(1, value.numel() // max(1, len(value)))
        noise = torch.randn(value.shape, generator=generator)
        state[name] = (
            noise / fan**0.5
            if value.dim() > 1
            else noise * 0.1 + ("norm" in name and name.endswith("weight"))
        )
    return state


def folder():
    """A folder of VAEs of our own."""
    if "folder" not in KEEP:
        KEEP["folder"] = tempfile.mkdtemp()
        folder_paths.add_model_folder_path("vae", KEEP["folder"])
    return Path(KEEP["folder"])


def write(state, name, metadata=None):
    save_file({key: value.contiguous() for key, value in state.items()}, folder() / name, metadata=metadata)
    folder_paths.filename_list_cache.clear()
    return name


def saved(settings=SMALL, *, naming="core", latent_scale=0.5, dtype=torch.float32, name=None):
    """A file of a random intrinsic VAE as training writes it, loaded through the node."""
    weights = ours("models.intrinsic_ldm.weights")
    name = name or f"{naming}_{settings['width']}_{len(settings['multiples'])}_{latent_scale}.safetensors"
    chosen = config(**settings)
    state = {key: value.to(dtype) for key, value in random_state(chosen).items()}
    state = weights.to_diffusers_names(state) if naming == "diffusers" else state
    weights.save_intrinsic_vae(folder() / name, state, chosen, latent_scale=latent_scale)
    folder_paths.filename_list_cache.clear()
    return run("LoadIntrinsicVae", vae_name=name)[0]


def run(node, **values):
    return core.NODE_CLASS_MAPPINGS[f"SpatialWeave_{node}"].execute(**values).result


def encode(vae, normal_style="opengl", tile_size=0, **maps):
    return run("EncodeIntrinsics", vae=vae, normal_style=normal_style, tile_size=tile_size, **maps)


def decode(vae, samples, *, near=1.0, far=10.0, index=0, normal_style="opengl", tile_size=0, **more):
    numbers = {"near": near, "far": far, "index": index, "normal_style": normal_style, "tile_size": tile_size}
    return run("DecodeIntrinsics", samples=samples, vae=vae, **numbers, **more)


def pictures(batch=2, height=32, width=48):
    """Every map of a few pictures, as the sockets carry them."""
    generator = torch.Generator().manual_seed(5)
    view = ours("models.core.geometry.view").View.from_depth(
        1 + torch.rand(batch, height, width, generator=generator), units="metric"
    )
    towards = torch.rand(batch, height, width, 3, generator=generator) - torch.tensor([0.5, 0.5, 1.6])
    normals = torch.nn.functional.normalize(towards, dim=-1)
    masks = torch.zeros(2, height, width)
    masks[0, 4:20, 4:20], masks[1, 8:30, 24:44] = 1, 1
    line = (torch.rand(batch, height, width, generator=generator) > 0.9).float()
    normals = ours("models.core.geometry.normals").normals_to_image(normals)
    return {"depth": view, "normals": normals, "segmentation": masks, "line": line}


def gap(a, b):
    return float((a - b).abs().max())


def hosted():
    """What kind of object the loader gives, and what core's constructor sets that it lacks."""
    import comfy.model_patcher

    vae = saved()
    state = vae.get_sd()
    want = random_state(config())
    changed = sorted(name for name in want if not torch.equal(want[name], state[name]))
    return {
        "vae": isinstance(vae, comfy.sd.VAE),
        "patcher": isinstance(vae.patcher, comfy.model_patcher.ModelPatcher),
        "lacks": sorted(set(vars(comfy.sd.VAE(sd={}))) - set(vars(vae))),
        "names": sorted(state) == sorted(want), "changed": changed,
        "stride": [vae.spacial_compression_encode(), vae.spacial_compression_decode()],
        "channels": vae.latent_channels,
        "dtype": str(vae.vae_dtype), "size": vae.model_size() > 0,
        "again": isinstance(
            vae.patcher.cached_patcher_init[0](*vae.patcher.cached_patcher_init[1]),
            comfy.model_patcher.ModelPatcher,
        ),
    }  # fmt: skip


def against_the_network(latent_scale=0.5, base_scale=0.13025):
    """The nodes against the network itself: what goes in, what comes out, and the latents' units."""
    vae = saved(SMALL | {"base_scale": base_scale}, latent_scale=latent_scale, name="units.safetensors")
    network = comfy.ldm.models.autoencoder.AutoencoderKL(**config().for_core()).train(False)
    network.load_state_dict(random_state(config()))
    maps, pipeline = pictures(), ours("models.intrinsic_ldm.maps.codec")
    latent, text, _ = encode(vae, **maps)
    raw = network.encode(pipeline.maps_to_channels(**maps)[0])
    found = decode(vae, latent, near=2.0, far=9.0)
    want = pipeline.channels_to_maps(network.decode(raw).clamp(-1, 1), near=2.0, far=9.0)
    wanted = (want.view.depth, want.normals, want.segmentation, want.masks(0), want.line)
    return {
        "latent": gap(latent["samples"] * base_scale, raw * latent_scale) / float((raw * latent_scale).std()),
        "maps": max(gap(a, b) for a, b in zip((found[0].depth, *found[1:5]), wanted, strict=True)),
        "shapes": [list(value.shape) for value in (latent["samples"], found[0].depth, *found[1:5])],
        "texts": [text, found[5]], "units": found[0].units, "normals": list(found[0].normals.shape),
    }  # fmt: skip


def agreement_with_diffusers(settings=SMALL):
    """Core's network from a file in diffusers' names, against diffusers' own with the same weights."""
    try:
        import diffusers
    except ImportError:
        return None
    vae = saved(settings, naming="diffusers", latent_scale=0.18215)
    chosen, weights = config(**settings), ours("models.intrinsic_ldm.weights")
    other = diffusers.AutoencoderKL(**chosen.for_diffusers()).train(False)
    other.load_state_dict(weights.to_diffusers_names(random_state(chosen)), strict=True)
    maps = torch.rand(2, 8, 64, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = vae.encode_maps(maps)
    want = other.encode(maps).latent_dist.mode()
    decoded = other.decode(want).sample
    return {
        "encoded": gap(latents, want), "decoded": gap(vae.decode_maps(latents), decoded.clamp(-1, 1)),
        "size": float(want.std()),
        "inside": float((decoded.abs() < 1).float().mean()),
    }  # fmt: skip


def widened(naming):
    """First weights made of a base's, through a file and the loader, against the base itself."""
    chosen, weights = config(), ours("models.intrinsic_ldm.weights")
    arguments = chosen.for_core()
    arguments["ddconfig"] |= {"in_channels": 3, "out_ch": 3}
    base = comfy.ldm.models.autoencoder.AutoencoderKL(**arguments).train(False)
    state = random_state(chosen, channels=3)
    base.load_state_dict(state)
    state = weights.to_diffusers_names(state) if naming == "diffusers" else state
    state = ours("models.intrinsic_ldm.vae").widen_state(state)
    (vae,) = run("LoadIntrinsicVae", vae_name=write(state, f"widened_{naming}.safetensors"))
    generator = torch.Generator().manual_seed(9)
    latents, grey = (
        torch.randn(1, 4, 6, 8, generator=generator), torch.rand(1, 1, 32, 24, generator=generator) * 2 - 1,
    )
    maps, picture = (
        ours("models.intrinsic_ldm.vae").split_maps(vae.decode_maps(latents)), base.decode(latents),
    )
    # grey in every channel meets the base's filters twice and their mean twice, by four:
    # 2/3 of what grey meets in the base
    code, want = vae.encode_maps(grey.expand(-1, 8, -1, -1)), base.encode(grey.expand(-1, 3, -1, -1) * 2 / 3)
    shown = picture.clamp(-1, 1)
    return {
        "colors": max(gap(maps[name], shown) for name in ("normals", "segmentation")),
        "grey": max(
            gap(maps[name], picture.mean(1, keepdim=True).clamp(-1, 1)) for name in ("depth", "line")
        ),
        "encoded": gap(code, want), "spread": [float(shown.std()), float(want.std())],
    }  # fmt: skip


def tiles():
    """Tiles as large as the picture change nothing; smaller ones, and those that core takes when memory runs
    out, keep the shapes.
    """
    vae, maps = saved(), pictures(1, 128, 192)
    stacked = ours("models.intrinsic_ldm.maps.codec").maps_to_channels(**maps)[0]
    whole = vae.encode_maps(stacked)
    shown = vae.decode_maps(whole)
    small = decode(vae, encode(vae, tile_size=64, **maps)[0], tile_size=64)
    plain, calls = vae.first_stage_model.decode, []

    def short_of_memory(latents, **options):
        calls.append(tuple(latents.shape))
        if len(calls) == 1:
            raise torch.cuda.OutOfMemoryError("no memory left")
        return plain(latents, **options)

    vae.first_stage_model.decode = short_of_memory
    try:
        fallen_back = vae.decode_maps(whole)
    finally:
        del vae.first_stage_model.decode
    return {
        "encoded": gap(vae.encode_maps(stacked, 512), whole),
        "decoded": gap(vae.decode_maps(whole, 512), shown),
        "small": [list(small[0].depth.shape), list(small[1].shape)],
        "finite": bool(small[1].isfinite().all()),
        "fallen back": gap(fallen_back, shown), "calls": len(calls),
    }  # fmt: skip


def full_memory(fault):
    """A VAE that finds no memory, not even for core's tiles: what encoding and decoding say,
    and whether core knows the fault.
    """
    vae, latent = saved(OF_SD), {"samples": torch.zeros(2, 4, 4, 6)}
    maps, network, management = pictures(2, 30, 48), vae.first_stage_model, comfy.model_management
    words = (
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9000000000 bytes."
    )
    faults = {
        "card": management.OOM_EXCEPTION("CUDA out of memory."), "processor": RuntimeError(words),
        "other": RuntimeError("else"),
    }

    def full(*args, **kwargs):
        raise faults[fault]

    said = []
    network.encode = network.decode = full
    try:
        for work in (
            lambda: encode(vae, **maps), lambda: decode(vae, latent),
            lambda: encode(vae, tile_size=64, **maps),
        ):
            try:
                work()
            except Exception as raised:  # noqa: BLE001 - it is looked at
                said.append([str(raised), management.is_oom(raised)])
    finally:
        del network.encode, network.decode
    return said


def any_file(naming="core", dtype="float32", settings=OF_SD, metadata=True):
    """A file of other naming, precision or without metadata loads to the same VAE."""
    chosen, weights = config(**settings), ours("models.intrinsic_ldm.weights")
    want = saved(settings, latent_scale=0.18215)
    state = {name: value.to(getattr(torch, dtype)) for name, value in random_state(chosen).items()}
    state = weights.to_diffusers_names(state) if naming == "diffusers" else state
    name = f"any_{naming}_{dtype}_{metadata}.safetensors"
    if metadata:
        weights.save_intrinsic_vae(folder() / name, state, chosen, latent_scale=0.18215)
        folder_paths.filename_list_cache.clear()
    else:
        write(state, name)
    (vae,) = run("LoadIntrinsicVae", vae_name=name)
    maps = torch.rand(1, 8, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    one, other = vae.encode_maps(maps), want.encode_maps(maps)
    return {"gap": gap(one, other) / float(other.std()), "stride": vae.downscale_ratio}


def saved_by_core():
    """Core's Save VAE writes no metadata of ours; the latents' units are kept all the same."""
    from comfy_extras.nodes_model_merging import VAESave

    vae, place = saved(latent_scale=0.7), Path(tempfile.mkdtemp())
    saver = VAESave()
    saver.output_dir = str(place)
    saver.save(vae, "copy")
    (file,) = place.glob("*.safetensors")
    again = ours("nodes.host.intrinsic_ldm.vae").open_vae(str(file))
    maps = torch.rand(1, 8, 16, 16) * 2 - 1
    latents = vae.encode_maps(maps)
    return max(
        gap(again.encode_maps(maps), latents), gap(again.decode_maps(latents), vae.decode_maps(latents))
    )


def odd_size(height, width):
    """Padded to whole latents by repeating edges, given back in its own size: directly, as a joint latent,
    and beside a picture.
    """
    vae, maps = saved(OF_SD), pictures(1, height, width)
    stacked = ours("models.intrinsic_ldm.maps.codec").maps_to_channels(**maps)[0]
    rows, columns = (torch.arange(-(-side // 8) * 8).clamp(max=side - 1) for side in (height, width))
    latent, text, _ = encode(vae, **maps)
    again = core.NODE_CLASS_MAPPINGS["LatentUpscaleBy"]().upscale(latent, "nearest-exact", 2.0)[0]
    whole = [len(rows), len(columns)]
    found = decode(vae, latent, picture=torch.rand(1, *whole, 3))
    joint = decode(vae, {**latent, "samples": NestedTensor([latent["samples"]] * 2)})
    own = decode(vae, latent, picture=torch.rand(1, height, width, 3))
    return {
        "latent": list(latent["samples"].shape[2:]),
        "edges": gap(latent["samples"], vae.encode_maps(stacked[:, :, rows][..., columns])),
        "sizes": [
            list(made.shape[1:3])
            for made in (found[0].depth, found[0].image, *found[1:5], joint[0].depth, own[0].image)
        ],
        "first": gap(
            found[0].depth, decode(vae, {"samples": latent["samples"]})[0].depth[:, :height, :width]
        ),
        "said": [text.splitlines()[1:], found[5].splitlines()[3:]],
        "scaled": list(decode(vae, again)[0].depth.shape[1:]),
    }  # fmt: skip


def broken(name):
    """Pixels that are no numbers in one map: the latent against that of maps which lack those pixels,
    and what is said.
    """
    vae, (view, pipeline) = (
        saved(OF_SD), (ours("models.core.geometry.view").View, ours("models.intrinsic_ldm.maps.codec")),
    )
    maps = pictures(1, 64, 64)
    where = torch.zeros(64, 64, dtype=torch.bool)
    where[30, 30], where[40, 7:9] = True, True
    values = torch.where(torch.arange(64) == 30, torch.nan, torch.inf)
    if name == "depth":
        value = view.from_depth(torch.where(where, torch.nan, maps["depth"].depth), units="metric")
    elif name == "normals":
        value = torch.where(where[..., None], values[None, :, None], maps["normals"])
    else:
        value = torch.where(where, values, maps[name])
    stacked = pipeline.maps_to_channels(**{name: maps[name]})[0]
    channels = ours("models.intrinsic_ldm.vae").map_slices()[name]
    if name != "depth":  # whose percentiles move as well
        stacked[:, channels] = torch.where(where, 0.0, stacked[:, channels])
        want = vae.encode_maps(stacked)
    else:
        want = vae.encode_maps(pipeline.maps_to_channels(depth=value)[0])
    latent, text, _ = encode(vae, **{name: value})
    return {
        "finite": bool(latent["samples"].isfinite().all()), "gap": gap(latent["samples"], want), "text": text,
    }


def channels():
    """Normals and line art of one to four channels: latents against those of plain colors, the alpha,
    and what is said.
    """
    vae, maps = saved(OF_SD), pictures(1, 32, 48)
    generator = torch.Generator().manual_seed(2)
    alphas = torch.rand(2, 1, 32, 48, 1, generator=generator)
    drawing = torch.rand(1, 32, 48, 3, generator=generator)
    given = {
        "rgb": {"normals": maps["normals"], "line": drawing},
        "rgba normals": {"normals": torch.cat([maps["normals"], alphas[0]], -1)},
        "rgba both": {
            "normals": torch.cat([maps["normals"], alphas[0]], -1),
            "line": torch.cat([drawing, alphas[1]], -1),
        },
        "mask": {"line": maps["line"]}, "one channel": {"line": maps["line"][..., None]},
        "grey": {"line": maps["line"][..., None].expand(1, 32, 48, 3)},
        "normals": {"normals": maps["normals"]},
    }  # fmt: skip
    made = {name: encode(vae, **values) for name, values in given.items()}
    pairs = [("rgba normals", "normals"), ("rgba both", "rgb"), ("one channel", "mask"), ("grey", "mask")]
    wanted = {
        "rgba normals": 1 - alphas[0, ..., 0], "rgba both": 1 - alphas.amin(0)[..., 0],
        "rgb": torch.zeros(1, 32, 48),
    }
    return {
        "latents": max(gap(made[one][0]["samples"], made[other][0]["samples"]) for one, other in pairs),
        "alphas": max(gap(made[name][2], alpha) for name, alpha in wanted.items()),
        "notes": {name: text.splitlines()[1:] for name, (_, text, _) in made.items() if text.count("\n")},
    }


def picture_beside(channels):
    """A picture of any channels beside decoded maps: the VIEW's, the alpha as MASK, and what is said."""
    vae, latent = saved(OF_SD), {"samples": torch.zeros(1, 4, 4, 6)}
    picture = torch.rand(1, 32, 48, channels, generator=torch.Generator().manual_seed(6))
    found = decode(vae, latent, picture=picture)
    alpha = picture[..., 3] if channels == 4 else torch.ones(1, 32, 48)
    shown = picture[..., :3] if channels > 2 else picture.expand(1, 32, 48, 3)
    return {
        "picture": gap(found[0].image, shown), "alpha": gap(1 - found[6], alpha),
        "said": found[5].splitlines()[3:],
        "none": [list(decode(vae, latent)[6].shape), bool(decode(vae, latent)[6].any())],
    }  # fmt: skip


def graph(kind="sd21"):
    """Encode, join, sample, split, decode, and the nodes that users wire next."""
    sampling = sys.modules["spatialweave_tests_inside_intrinsic"]
    vae, plain = saved(OF_SD), sampling.model(kind)
    coupled = sampling.coupled(plain, "half")
    maps_latent, *_ = encode(vae, **pictures(1, 64, 64))
    image = {"samples": torch.zeros(1, 4, 8, 8)}
    latent = run("JoinIntrinsicLatent", model=coupled, image_latent=image, maps_latent=maps_latent)[0]
    joint = {"samples": sampling.sample(coupled, latent, steps=2)}
    parts = run("SplitIntrinsicLatent", samples=joint)
    picture = torch.rand(1, 64, 64, 3)
    found = decode(vae, parts[1], picture=picture)
    straight = decode(vae, joint, picture=picture)
    view, normals, _, masks, line, *_ = found
    held = core.SetLatentNoiseMask().set_mask(maps_latent, torch.zeros(1, 64, 64))[0]
    latent = run("JoinIntrinsicLatent", model=coupled, image_latent=image, maps_latent=held)[0]
    kept = run("SplitIntrinsicLatent", samples={"samples": sampling.sample(coupled, latent, steps=2)})
    return {
        "held": gap(kept[1]["samples"], maps_latent["samples"]),
        "guided": gap(kept[0]["samples"], parts[0]["samples"]),
        "straight": max(
            gap(view.depth, straight[0].depth), gap(normals, straight[1]), gap(masks, straight[3])
        ),
        "shapes": [
            list(value.shape)
            for value in (view.depth, view.image, normals, line, core.ImageInvert().invert(line)[0])
        ],
        "masks": [masks.dim(), list(masks.shape[1:])],
        "unit": sorted(set(masks.unique().tolist()) | {0.0, 1.0}),
        "control": list(view.to_control_image().shape),
    }  # fmt: skip


def plotted(kind="sd21", steps=8):
    """The node's picture for a run's sigmas and for flow times of the same noise;
    the run, and where it really left the maps out.
    """
    from comfy_extras.nodes_custom_sampler import BasicScheduler
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    sampling, host = (
        sys.modules["spatialweave_tests_inside_intrinsic"], ours("nodes.host.intrinsic_ldm.model"),
    )
    plain, said, run_file = sampling.model(kind), [], ours("nodes.host.intrinsic_ldm.run")
    switches = {"cut_below": 0.001, "keep_maps": False, "share_image_loras": False}
    coupled, settings = host.with_intrinsics(
        plain, sampling.lora(kind), sampling.SCHEDULES["gaussian"], **switches
    )
    (sigmas,) = BasicScheduler.execute(plain, "normal", steps, 1.0).result
    flow = ModelSamplingSD3().patch(plain, 3.0)[0]
    pictures = [
        host.plot(settings, plain, sigmas), host.plot(settings, flow, sigmas / (1 + sigmas)),
        host.plot(settings, plain),
    ]
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())
    level = run_file.log.level
    run_file.log.addHandler(listener)
    run_file.log.setLevel(logging.INFO)
    try:
        sampling.sample(coupled, sampling.joined(coupled), steps=steps, scheduler="normal")
    finally:
        run_file.log.removeHandler(listener)
        run_file.log.setLevel(level)
    return {
        "sigmas": sigmas.tolist(), "layers": len(settings.base.layers), "said": said[-1],
        "pictures": [(picture[0] * 255).round().int().tolist() for picture in pictures],
    }  # fmt: skip


def filled_in(first=5000, count=12):
    """The shipped VAE on rendered scenes, through the nodes, each map left out in turn:
    how its decoded code correlates with the exact one.

    For each map the mean over scenes, that of the average scene (what can be known without looking), that
    with the map given, and in how many scenes it is nearer to its own map than to the next scene's.
    """
    frames = ours("models.world.render").render(
        ours("models.benchmarks.held_out").hold_out(first, count)[0], 128, 128
    )
    (vae,), names = (
        run("LoadIntrinsicVae", vae_name=ours("nodes.host.shared.shipped").TINY),
        ours("models.intrinsic_ldm.config").MAPS,
    )
    encode_given, view = (
        ours("models.intrinsic_ldm.maps.codec").maps_to_channels, ours("models.core.geometry.view").View,
    )
    slices, show = (
        ours("models.intrinsic_ldm.vae").map_slices(), ours("models.core.geometry.normals").normals_to_image,
    )
    exact, whole, without = [], [], {name: [] for name in names}
    for depth, normals, ids, line in zip(frames.depth, frames.normals, frames.segmentation, frames.line):
        masks = torch.stack([ids == number for number in ids.unique() if number > 0]).float()
        given = {
            "depth": view.from_depth(depth, units="metric"), "normals": show(normals[None]),
            "segmentation": masks, "line": line[None],
        }
        exact.append(encode_given(**given)[0])
        whole.append(vae.decode_maps(encode(vae, **given)[0]["samples"]))
        for name in names:
            latent = encode(vae, **{key: value for key, value in given.items() if key != name})[0]
            without[name].append(vae.decode_maps(latent["samples"]))

    def correlation(found, wanted):
        a, b = (maps.flatten(1) - maps.flatten(1).mean(dim=1, keepdim=True) for maps in (found, wanted))
        return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))

    exact, whole, out = torch.cat(exact), torch.cat(whole), {}
    for name, channels in slices.items():
        found, wanted = torch.cat(without[name])[:, channels], exact[:, channels]
        own, next_scene = correlation(found, wanted), correlation(found, wanted.roll(1, dims=0))
        average = correlation(wanted.mean(dim=0, keepdim=True).expand_as(wanted), wanted)
        out[name] = {
            "own": float(own.mean()), "average scene": float(average.mean()),
            "given": float(correlation(whole[:, channels], wanted).mean()),
            "nearer": int((own > next_scene).sum()),
        }  # fmt: skip
    return out


def choices():
    """The inputs that belong to a choice of a dynamic combo, {node:
    {key of the frontend's translations: tooltips}}.
    """
    found = {}
    for name, node in core.NODE_CLASS_MAPPINGS.items():
        for put in node.GET_SCHEMA().inputs if name.startswith("SpatialWeave_") else ():
            for option in getattr(put, "options", None) or ():
                for sub in getattr(option, "inputs", ()):
                    found.setdefault(name, {}).setdefault(f"{put.id}_{sub.id}", []).append(
                        [sub.id, sub.tooltip]
                    )
    return found


def noted(count):
    """What Encode Intrinsics says of many masks and missing maps."""
    masks = torch.eye(count).repeat_interleave(count * 2, 1).reshape(count, -1, count)
    return encode(saved(), segmentation=masks)[1]


def refused(case):
    """The sentence with which a wrong input is refused."""
    vae, maps = saved(), pictures()
    picture_vae = comfy.sd.VAE.__new__(comfy.sd.VAE)
    picture_vae.output_channels = 3
    good = {"samples": torch.zeros(1, 4, 8, 8)}
    view = ours("models.core.geometry.view").View
    short = {
        name: value for name, value in random_state(config()).items() if not name.startswith("decoder.mid")
    }
    cases = {
        "no map": lambda: encode(vae),
        "sizes": lambda: encode(vae, **(maps | {"line": torch.zeros(2, 32, 40)})),
        "batches": lambda: encode(vae, **(maps | {"line": torch.zeros(3, 32, 48)})),
        "grey normals": lambda: encode(vae, normals=torch.rand(1, 8, 8, 1)),
        "line without a number": lambda: encode(
            vae, line=torch.cat([torch.zeros(1, 8, 8), torch.full((1, 8, 8), torch.nan)])
        ),
        "normals of black": lambda: encode(vae, normals=torch.zeros(1, 8, 8, 3)),
        "line of 0 to 255": lambda: encode(vae, line=torch.full((1, 8, 8), 255.0)),
        "no depth": lambda: encode(vae, depth=view.from_depth(torch.zeros(1, 8, 8), units="metric")),
        "picture's VAE to encode": lambda: encode(picture_vae, **maps),
        "picture's VAE to decode": lambda: decode(picture_vae, good),
        "tile": lambda: encode(vae, tile_size=32, **maps),
        "latent of another base": lambda: decode(vae, {"samples": torch.zeros(1, 16, 8, 8)}),
        "three streams": lambda: decode(vae, {"samples": NestedTensor([torch.zeros(1, 4, 8, 8)] * 3)}),
        "index": lambda: decode(vae, good, index=1),
        "ends": lambda: decode(vae, good, near=5.0, far=2.0),
        "picture of another size": lambda: decode(vae, good, picture=torch.zeros(1, 8, 8, 3)),
        "core's VAE Encode": lambda: core.VAEEncode().encode(vae, torch.zeros(1, 32, 32, 3)),
        "core's VAE Decode": lambda: core.VAEDecode().decode(vae, good),
        "core's tiled VAE Encode": lambda: core.VAEEncodeTiled().encode(
            vae, torch.zeros(1, 32, 32, 3), 512, 64
        ),
        "core's tiled VAE Decode": lambda: core.VAEDecodeTiled().decode(vae, good, 512),
        "file of a picture's VAE": lambda: run(
            "LoadIntrinsicVae", vae_name=write(random_state(config(), channels=3), "rgb.safetensors")
        ),
        "file of a LoRA": lambda: run(
            "LoadIntrinsicVae", vae_name=write({"lora_down.weight": torch.zeros(2)}, "lora.safetensors")
        ),
        "file that lacks a part": lambda: run("LoadIntrinsicVae", vae_name=write(short, "short.safetensors")),
    }
    try:
        cases[case]()
    except ValueError as error:
        return str(error)
    return None
