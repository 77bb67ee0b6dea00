"""Parity with the published network, on every Modality Forcing file of the folder SPATIALWEAVE_GOLDEN.

Nothing here knows a width, a grid, a case or a file by name: what a file is and what it holds is read from
its own metadata, so another set of files of the same format runs unchanged. Tolerances are those of the
format's README.
"""

import importlib.util
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spatialweave.models.core.geometry.points import depth_edges, view_to_point_cloud
from spatialweave.models.core.geometry.view import View, is_valid
from spatialweave.models.core.layers.modulation import timestep_embedding
from spatialweave.models.modality_forcing.config import ModalityForcingConfig
from spatialweave.models.modality_forcing.depth_code import (
    contract,
    depth_to_net,
    net_to_depth,
    uncontract,
    unit_mean,
)
from spatialweave.models.modality_forcing.inputs import resize_depth
from spatialweave.models.modality_forcing.network import (
    ModalityForcing,
    depth_to_tokens,
    latent_to_tokens,
    tokens_to_depth,
    tokens_to_latent,
)
from spatialweave.models.modality_forcing.sampling import make_schedule, sample
from spatialweave.models.modality_forcing.weights import load_network

PREFIX = "dit."
MODES = {"joint": "joint", "i2d": "image_to_depth", "d2i": "depth_to_image", "refine": "joint"}


def load(name):
    """The module in a file of this folder, which no import finds."""
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), Path(__file__).with_name(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden_files = load("golden_files.py")
assert_relative, assert_within = golden_files.assert_relative, golden_files.assert_within


def is_of_the_family(description):
    """By the repository it was made from, or by a size that only this network has."""
    repository = description.get("source", {}).get("repo", "")
    return repository.endswith("modality-forcing") or "num_depth_decoder_blocks" in description.get(
        "config", {}
    )


def find_kind(description):
    """What a file holds, from the fields of its cases and the names of its tensors."""
    names, cases = (
        description["tensors"],
        description.get("cases") or ([description["case"]] if "case" in description else []),
    )
    fields = set().union(*cases)
    if any(name.startswith(PREFIX) for name in names):
        return "weights"
    if "precision" in fields:
        return "forward"
    if "guidance" in fields:
        return "sampling"
    if "fov_deg" in fields:
        return "point cloud"
    if "mu" in fields:
        return "schedules"
    if any(name.endswith("/raw") for name in names):
        return "depth codec"
    return f"unknown ({description.get('purpose', 'no purpose given')})"


GOLDEN = golden_files.GoldenFiles("Modality Forcing", is_of_the_family, find_kind)


def read_group(path, name):
    return {
        key.removeprefix(f"{name}/"): value
        for key, value in load_file(path).items()
        if key.startswith(f"{name}/")
    }


def read_weights(path, description):
    """The state dict that belongs to a file."""
    state = load_file(GOLDEN.find_weights(path, description))
    return {key.removeprefix(PREFIX): value for key, value in state.items()}


def build_network(path, description, dtype=torch.float32):
    network = ModalityForcing(ModalityForcingConfig.from_metadata(description["config"]), dtype=dtype)
    network.load_state_dict({key: value.to(dtype) for key, value in read_weights(path, description).items()})
    return network.train(False).requires_grad_(False)


@GOLDEN.needed
def test_golden_files_are_all_of_a_known_kind():
    GOLDEN.check_kinds()


# --- the network --------------------------------------------------------------------------------------------


@GOLDEN.by_file("weights")
def test_golden_weights_load_strictly(path, description):
    config = ModalityForcingConfig.from_metadata(description["config"])
    network, found = load_network(path, config=config)
    state = load_file(path)
    assert found == config
    assert {PREFIX + name: tuple(value.shape) for name, value in network.state_dict().items()} == {
        name: tuple(value.shape) for name, value in state.items()
    }
    assert all(torch.equal(value, state[PREFIX + name]) for name, value in network.state_dict().items())


@GOLDEN.by_case("forward")
def test_golden_forward(path, description, case):
    dtype = torch.bfloat16 if case["precision"].startswith("bfloat16") else torch.float32
    time_dtype = torch.bfloat16 if "bfloat16 time" in case["precision"] else None
    assert dtype == torch.bfloat16 or time_dtype or case["precision"] == "float32", case["precision"]
    network, patch = build_network(path, description, dtype), description["config"]["depth_patch"]
    given, wanted, grid = (
        read_group(path, case["inputs_from"]),
        read_group(path, case["name"]),
        tuple(case["grid"]),
    )

    img, depth = (
        tokens_to_latent(given["image_tokens"], grid),
        tokens_to_depth(given["depth_tokens"], grid, patch),
    )
    assert torch.equal(img, given["image_latent"]) and torch.equal(depth, given["depth_map"])
    velocity, x0 = network(
        img.to(dtype), depth, given["context"], given["t_rgb"], given["t_depth"], time_dtype=time_dtype
    )

    assert velocity.dtype == dtype and x0.dtype == torch.float32
    max_abs, mean_abs = (
        (0.2, 0.03)
        if dtype == torch.bfloat16
        else (description["tolerance"].get("float32_max_abs", 5e-4), None)
    )
    for name, actual in (
        ("rgb_velocity", velocity), ("rgb_velocity_tokens", latent_to_tokens(velocity)),
        ("depth_x0", x0), ("depth_x0_tokens", depth_to_tokens(x0, patch)),
    ):  # fmt: skip
        assert_within(actual, wanted[name], max_abs, mean_abs, name)


@GOLDEN.by_file("forward")
def test_golden_time_embedding(path, description):
    config, group = description["config"], read_group(path, "time_embedding")
    for name, tolerance in (
        ("float32", 1e-4),
        ("bfloat16", 2**-7),
    ):  # bfloat16: one unit in the last place may flip
        actual = timestep_embedding(
            group["t"], config["time_embed_dim"], dtype=getattr(torch, name),
            max_period=config["time_max_period"], time_factor=config["time_factor"],
        )  # fmt: skip
        assert_within(actual, group[name], tolerance, 1e-5, name)


# --- schedules and sampling ---------------------------------------------------------------------------------


@GOLDEN.by_case("schedules")
def test_golden_schedules(path, description, case):
    group, tolerance = read_group(path, case["name"]), description["tolerance"].get("float32_max_abs", 2e-6)
    schedule = make_schedule(
        MODES[case["mode"]], case["steps"], log2_alpha=case["log2_alpha"], mu=case["mu"], sigma=case["sigma"]
    )
    assert_within(schedule.t_rgb, group["t_rgb"], tolerance, what="t_rgb")
    assert_within(schedule.t_depth, group["t_depth"], tolerance, what="t_depth")


@GOLDEN.by_case("sampling")
def test_golden_sampling(path, description, case):
    group, config, grid = read_group(path, case["name"]), description["config"], tuple(case["grid"])
    network, patch = build_network(path, description), config["depth_patch"]
    schedule = make_schedule(
        MODES[case["mode"]],
        case["steps"],
        log2_alpha=case["log2_alpha"],
        mu=config["shift_mu"],
        sigma=config["shift_sigma"],
    )
    assert_within(schedule.t_rgb, group["t_rgb"], 2e-6, what="t_rgb")
    assert_within(schedule.t_depth, group["t_depth"], 2e-6, what="t_depth")
    settings = {
        "context": group["context"],
        "null_context": group.get("context_empty"),
        "x0_t_min": config["x0_t_min"],
    }

    rgb = tokens_to_latent(group["clean_rgb_tokens" if case["mode"] == "i2d" else "noise_rgb_tokens"], grid)
    depth = tokens_to_depth(
        group["clean_depth_tokens" if case["mode"] == "d2i" else "noise_depth_tokens"], grid, patch
    )
    final_rgb, final_depth = sample(network, rgb, depth, schedule, guidance=case["guidance"], **settings)
    if case["mode"] == "refine":
        assert_within(
            depth_to_tokens(final_depth, patch), group["stage1_depth_tokens"], 3e-3, 3e-4, "first run"
        )
        second = tokens_to_depth(group["noise_depth_stage2_tokens"], grid, patch)
        again = make_schedule(
            "image_to_depth", case["steps"], mu=config["shift_mu"], sigma=config["shift_sigma"]
        )
        kept, final_depth = sample(network, final_rgb, second, again, **settings)
        assert torch.equal(kept, final_rgb)
    if case["mode"] == "i2d":
        assert torch.equal(final_rgb, rgb)
    if case["mode"] == "d2i":
        assert torch.equal(final_depth, depth)
        assert_within(
            depth_to_net(group["clean_depth_raw"]), group["clean_depth_map"], 2e-6, what="condition"
        )

    for name, actual in (
        ("final_rgb_latent", final_rgb), ("final_rgb_tokens", latent_to_tokens(final_rgb)),
        ("final_depth_net", final_depth), ("final_depth_tokens", depth_to_tokens(final_depth, patch)),
    ):  # fmt: skip
        assert_within(actual, group[name], 3e-3, 3e-4, name)
    calm = (group["final_depth_net"].abs() - 2).abs() > 0.2
    # a depth near 0 is the map itself, whose tolerance of 3e-3 is absolute: 2e-2 of 0.15
    assert_relative(
        net_to_depth(final_depth, z_max=None)[calm],
        group["final_depth"][calm],
        2e-2,
        "final_depth",
        floor=0.15,
    )


# --- the depth codec ----------------------------------------------------------------------------------------


def groups_of(kind):
    """(path, description, group, names in it) of every group of tensors in the files of a kind."""
    for path, description in GOLDEN.files.get(kind, []):
        names = defaultdict(set)
        for key in description["tensors"]:
            group, _, name = key.rpartition("/")
            names[group].add(name)
        yield from (
            (path, description, group, members)
            for group, members in names.items()
            if not group.startswith("debug")
        )


def check_contraction(group, patch, path):
    assert_within(contract(group["r"]), group["z"], 2e-6)


def check_inverse(group, patch, path):
    z, r = group["z"], group["r"]
    actual, near_two = uncontract(z, z_max=None), (z.abs() - 2).abs() < 0.01
    assert_relative(actual[~near_two], r[~near_two], 1e-5)
    assert_relative(actual[near_two], r[near_two], 1e-3)
    assert torch.equal(is_valid(actual), group["valid_mask"].bool())


def check_clamped_inverse(group, patch, path):
    (z,) = (
        value
        for key, value in load_file(path).items()
        if key.endswith("/z") and value.shape == group["r"].shape
    )
    assert_relative(uncontract(z), group["r"], 1e-5)


def check_encode(group, patch, path):
    net = depth_to_net(group["raw"])
    _, mean = unit_mean(group["raw"], is_valid(group["raw"]))
    assert_within(net, group["net"], 2e-6)
    assert_within(depth_to_tokens(net, patch), group["tokens"], 2e-6)
    assert_relative(mean, group["mean"], 1e-6)
    assert_relative(net_to_depth(net, z_max=None), group["decoded"], 1e-3)


def check_batch(group, patch, path):
    assert_within(depth_to_net(group["raw"]), group["net_per_image"], 2e-6)


def check_decode(group, patch, path):
    net = tokens_to_depth(group["tokens"], tuple(size // patch for size in group["depth"].shape[-2:]), patch)
    near_two = (net.abs() - 2).abs() < 0.01
    actual = net_to_depth(net, z_max=None)
    assert_relative(actual[~near_two], group["depth"][~near_two], 1e-5)
    assert_relative(actual[near_two], group["depth"][near_two], 1e-3)


def check_invalid(group, patch, path):
    mask = group["valid_mask"].bool()
    assert torch.equal(is_valid(group["raw"]), mask)
    _, mean = unit_mean(group["raw"], mask)
    assert_relative(mean, group["valid_mean"], 1e-6)
    assert_within(depth_to_net(group["raw"])[mask], group["net_valid"][mask], 2e-6)
    net = depth_to_net(group["raw"], fill=group["fill_noise"])
    assert_within(net, group["net_filled"], 2e-6)
    assert_within(depth_to_tokens(net, patch), group["net_filled_tokens"], 2e-6)


def check_resize(group, patch, path):
    resized = resize_depth(group["raw"], tuple(group["nearest"].shape[-2:]))
    assert torch.equal(resized, group["nearest"])
    assert_within(depth_to_net(resized), group["net"], 2e-6)


def check_warning(group, patch, path):
    """Zeros that count: the file shows the harm.

    Ours leaves them out, so the valid pixels agree with the file's own target.
    """
    targets = read_group(path, "invalid")
    mask = is_valid(group["raw"])
    assert_within(depth_to_net(group["raw"])[mask], targets["net_valid"][mask], 2e-6)
    assert (depth_to_net(group["raw"])[mask] - group["net"][mask]).abs().max() > 1e-3


CODEC_CHECKS = {
    ("r", "z"): check_contraction,
    ("r", "valid_mask", "z"): check_inverse,
    ("r",): check_clamped_inverse,
    ("decoded", "mean", "net", "raw", "tokens"): check_encode,
    ("net_joint_mean", "net_per_image", "raw"): check_batch,
    ("depth", "tokens"): check_decode,
    (
        "fill_noise",
        "net_filled",
        "net_filled_tokens",
        "net_valid",
        "raw",
        "valid_mask",
        "valid_mean",
    ): check_invalid,
    ("nearest", "net", "raw"): check_resize,
    ("net", "raw"): check_warning,
}


@pytest.mark.parametrize(
    ("path", "description", "group", "names"),
    [pytest.param(*g, id=f"{g[0].stem}-{g[2]}") for g in groups_of("depth codec")],
)
def test_golden_depth_codec(path, description, group, names):
    check = CODEC_CHECKS[tuple(sorted(names))]  # a KeyError here is a group of a new form
    check(read_group(path, group), description["config"]["depth_patch"], path)


# --- point clouds -------------------------------------------------------------------------------------------


@GOLDEN.by_case("point cloud")
def test_golden_point_cloud(path, description, case):
    group, tolerance = read_group(path, case["name"]), description["tolerance"].get("float32_max_abs", 1e-5)
    colours, depth = load_file(path)["rgb"], group["depth"]
    view = View.from_depth(depth, units="relative", image=colours[None] / 255)
    assert torch.equal(view.mask[0], group["valid_mask"].bool())
    if "edge_mask" in group:
        assert torch.equal(depth_edges(depth[None], case["edge_rtol"])[0], group["edge_mask"].bool())
        assert torch.equal(
            depth_edges(view.depth, case["edge_rtol"])[view.mask], group["edge_mask"].bool()[view.mask[0]]
        )

    settings = {"fov_degrees": case["fov_deg"], "edge_rtol": case["edge_rtol"]}
    (cloud,) = view_to_point_cloud(view, **settings, remove_outliers=bool(case.get("sor")))
    to_gltf = torch.tensor([1.0, -1.0, -1.0])
    assert len(cloud.points) == case["points"]
    assert_within(cloud.points * to_gltf, group["points"], tolerance, what="points")
    assert_within(cloud.centered().points * to_gltf, group["points_centred"], tolerance, what="centred")
    assert torch.equal((cloud.colors * 255).round().long(), group["colors"])
    if "kept_rc" in group:
        assert torch.equal(cloud.pixels, group["kept_rc"])
    if "kept_before_outliers_rc" in group:
        (everything,) = view_to_point_cloud(view, **settings)
        assert torch.equal(everything.pixels, group["kept_before_outliers_rc"])
