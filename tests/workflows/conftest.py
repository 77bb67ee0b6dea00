"""One real ComfyUI server for all workflow tests, with the pack as the registry would deliver it."""

import importlib.util
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def runner(root):
    """workflows/run.py as a module."""
    spec = importlib.util.spec_from_file_location(
        "spatialweave_workflow_runner", root / "workflows" / "run.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def installed(pack, root, tmp_path_factory):
    """A ComfyUI base directory with the registry's archive in custom_nodes;
    random tiny weights where none are shipped yet.
    """
    base = tmp_path_factory.mktemp("base")
    target = base / "custom_nodes" / "spatialweave"
    for name in pack.archive():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, target / name)
    if not (target / "models/modality_forcing/tiny.safetensors").is_file():
        weights = tmp_path_factory.mktemp("weights")
        subprocess.run([sys.executable, str(root / "tests/nodes/make_weights.py"), str(weights)], check=True)
        shutil.copyfile(weights / "tiny.safetensors", target / "models/modality_forcing/tiny.safetensors")
        for name in ("codec", "text"):
            shutil.copyfile(weights / f"{name}.safetensors", target / f"models/tiny/{name}.safetensors")
    write_small_editor(target / "models" / "spatial_diff")
    for name in ("klein", "bases", "joy", "kontext", "omnigen2"):
        name = f"inside_small_{name}.py"
        shutil.copyfile(HERE / name, base / "custom_nodes" / name)
    write_small_network(base / "models" / "diffusion_models" / "flux_rgbd_9b_v2.safetensors")
    return base


def write_small_editor(folder):
    """The tiny editor's four files with random weights, those of them that do not ship yet."""
    import torch

    from spatialweave.models.spatial_diff.config import find_preset
    from spatialweave.models.spatial_diff.editor_files import new_text_encoder, save_editor, save_text
    from spatialweave.models.spatial_diff.flux import PRESETS, Flux
    from spatialweave.models.spatial_diff.lora import LowRankLayers, save_lora
    from spatialweave.models.spatial_diff.network import GeometryConnector
    from spatialweave.models.spatial_diff.weights import save_connector

    torch.manual_seed(0)
    config, network = PRESETS["tiny"], Flux(PRESETS["tiny"])
    lora = LowRankLayers(network, 4, 8.0, torch.Generator().manual_seed(1))
    for layer in lora.layers.values():
        torch.nn.init.normal_(layer.up, std=0.2)
    text = new_text_encoder(config.context_in_dim).state_dict()
    half = {"dtype": torch.float16}
    writers = {
        "tiny_editor": lambda path: save_editor(path, network.state_dict(), config, **half),
        "tiny_text": lambda path: save_text(path, text, **half),
        "tiny_lora": lambda path: save_lora(path, lora.state_dict(), rank=4, alpha=8.0, **half),
        "tiny_connector": lambda path: save_connector(path, GeometryConnector(find_preset("tiny")), **half),
    }
    for name, write in writers.items():
        path = folder / f"{name}.safetensors"
        if not path.is_file():
            write(path)


def write_small_network(path):
    """A network in the released form (bfloat16, `dit.` names, no metadata), for FLUX.2's latent
    and inside_small_klein.py's prompts.
    """
    import torch
    from safetensors.torch import save_file

    from spatialweave.models.modality_forcing.config import PRESETS
    from spatialweave.models.modality_forcing.network import ModalityForcing

    config = replace(PRESETS["tiny"], in_channels=128, context_in_dim=96, infinite_sky=False)
    torch.manual_seed(0)
    network = ModalityForcing(config)
    for value in network.parameters():
        torch.nn.init.normal_(value, std=0.5 * value.shape[-1] ** -0.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"dit.{name}": value for name, value in network.to(torch.bfloat16).state_dict().items()}, path)


@pytest.fixture(scope="session")
def server(comfyui, runner, installed):
    """(a running ComfyUI, its log file)."""
    log = installed / "log.txt"
    with running(comfyui, runner, installed, log) as (server, _):
        yield server, log


@pytest.fixture(scope="session")
def second(comfyui, runner, installed, tmp_path_factory):
    """(another ComfyUI, which has the estimators, small, its process, its base directory)."""
    base = tmp_path_factory.mktemp("second")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "spatialweave").symlink_to(
        installed / "custom_nodes" / "spatialweave", target_is_directory=True
    )
    shutil.copy(HERE / "inside_small_estimators.py", base / "custom_nodes")
    with running(comfyui, runner, base, base / "log.txt") as (server, process):
        yield server, process, base


@contextmanager
def running(comfyui, runner, base, log):
    """(a ComfyUI with the pack of this base directory, its process), stopped at the end."""
    options = ["--cpu", "--base-directory", str(base), "--disable-api-nodes"]
    server, process = runner.start_comfyui(comfyui, *options, log=log.open("wb"))
    try:
        server.wait_until_up(process, 900)
        yield server, process
    finally:
        process.kill()
        process.wait()
