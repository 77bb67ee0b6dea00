"""Encoded folders: latents and prompts against diffusers' own calls, the three families, two processes,
and training on the result.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spatialweave.models.core.training.loop import run_recipe
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.intrinsic_ldm.backbones import load_image_vae, load_text_pipeline
from spatialweave.models.intrinsic_ldm.config import VaeConfig
from spatialweave.models.intrinsic_ldm.data.dataset import IntrinsicSamples
from spatialweave.models.intrinsic_ldm.data.encode import encode_dataset
from spatialweave.models.intrinsic_ldm.network import projections
from spatialweave.models.intrinsic_ldm.training import lora as training_lora
from spatialweave.models.intrinsic_ldm.training import vae as training_vae
from spatialweave.models.intrinsic_ldm.weights import save_intrinsic_vae
from spatialweave.models.world.export.dataset import export_dataset

pytest.importorskip("accelerate", reason="the trainer's extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the trainer's extra is not installed")
transformers = pytest.importorskip("transformers", reason="ComfyUI's text encoders are not installed")
TINY = VaeConfig(width=32, multiples=(1, 1, 1, 2), blocks=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of the world, and an intrinsic VAE of random weights."""
    folder = tmp_path_factory.mktemp("made")
    export_dataset(folder / "world", count=5, size=64, seed=1, normals=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        model = training_vae.make_autoencoder(TINY)
    save_intrinsic_vae(folder / "vae.safetensors", model.state_dict(), TINY, latent_scale=3.0)
    return folder, model


def test_the_documentations_script_runs_on_a_pipeline(made, write_pipeline, tmp_path, root):
    """docs/intrinsic_training.md, on a small random base, 32 x 32 pixels and 3 steps."""
    folder, _ = made
    base = write_pipeline("sd21")
    unet = diffusers.UNet2DConditionModel.from_pretrained(base / "unet")
    lora = {
        f"unet.{path}.lora_{end}.weight": torch.randn(*shape)
        for path, projection in projections(unet).items()
        for end, shape in (("A", (2, projection.inputs)), ("B", (projection.outputs, 2)))
    }  # fmt: skip
    for name in ("weights", "runs/intrinsic_vae", "runs/intrinsic_lora_sd21"):
        (tmp_path / name).mkdir(parents=True)
    base.rename(tmp_path / "weights" / "stable-diffusion-2-1")
    save_file(lora, tmp_path / "runs" / "intrinsic_lora_sd21" / "intrinsic_lora.safetensors")
    shutil.copy(folder / "vae.safetensors", tmp_path / "runs" / "intrinsic_vae" / "intrinsic_vae.safetensors")
    (code,) = re.findall(
        r"^```python\n(.*?)^```",
        (root / "docs" / "intrinsic_training.md").read_text(encoding="utf-8"),
        flags=re.M | re.S,
    )
    assert "height=768, width=768, steps=25" in code
    code = code.replace("height=768, width=768, steps=25", "height=32, width=32, steps=3")
    check = (
        "assert image.shape == (1, 32, 32, 3) and image.isfinite().all() "
        "and maps.view.depth.shape == maps.ids.shape == (1, 32, 32)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{check}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("family", ["sd21", "sdxl", "pixart"])
def test_encoded_samples_are_diffusers_own_and_train(made, write_pipeline, tmp_path, family):
    folder, model = made
    base = write_pipeline(family)
    summary = encode_dataset(
        folder / "world", tmp_path / "out", base=base, vae=folder / "vae.safetensors", shard_size=3, batch=2
    )
    assert (summary.count, summary.written) == (5, 5)
    tensors = [load_file(tmp_path / "out" / f"shard-0000{number}.safetensors") for number in (0, 1)]
    found = {name: torch.cat([part[name] for part in tensors]).float() for name in tensors[0]}
    sample = IntrinsicSamples(folder / "world", image=True)[4]
    with torch.no_grad():
        maps = model.encode(sample["maps"][None]).latent_dist.mean * 3.0
        text, vae = load_text_pipeline(base, torch.float32), load_image_vae(base)
        latent = vae.encode(sample["image"][None]).latent_dist.mean * 0.5
        expected = text.encode_prompt(
            [sample["caption"]], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    torch.testing.assert_close(found["intrinsic_latent"][4:], maps, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(found["latent"][4:], latent, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(found["context"][4:], expected[0], atol=2e-3, rtol=2e-3)
    if family == "sdxl":
        torch.testing.assert_close(found["pooled"][4:], expected[2], atol=2e-3, rtol=2e-3)
    if family == "pixart":
        assert (
            torch.equal(found["context_mask"][4:], expected[1].float())
            and 0 < found["context_mask"].mean() < 1
        )
    empty = load_file(tmp_path / "out" / training_lora.EMPTY_PROMPT)
    assert (
        empty.keys() == set(found) - {"latent", "intrinsic_latent"}
        and empty["context"].shape == found["context"].shape[1:]
    )

    recipe = Recipe(
        system="intrinsic_lora", preset=family, steps=1, batch_size=2, model={"base": str(base), "rank": 2},
        data={"folder": str(tmp_path / "out")}, output=str(tmp_path / "run"),
    )  # fmt: skip
    assert run_recipe(recipe, {"intrinsic_lora": training_lora.build}).ending == "finished"


@pytest.mark.slow
def test_two_processes_share_the_work_and_write_the_same(made, write_pipeline, tmp_path):
    """As torchrun starts them."""
    folder, _ = made
    base = write_pipeline("sd21")
    settings = {"base": base, "vae": folder / "vae.safetensors", "batch": 1, "shard_size": 2}
    encode_dataset(folder / "world", tmp_path / "one", **settings)
    script = tmp_path / "encode.py"
    script.write_text(
        "from spatialweave.models.intrinsic_ldm.data.encode import encode_dataset\n"
        f"print(encode_dataset({str(folder / 'world')!r}, {str(tmp_path / 'two')!r}, base={str(base)!r}, "
        f"vae={str(folder / 'vae.safetensors')!r}, batch=1, shard_size=2))\n"
    )
    call = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        call, capture_output=True, text=True, timeout=600, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(
        re.findall(r"5 samples, (\d) of them written in this process, 2 processes at work", done.stdout)
    ) == ["1", "4"]
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_what_cannot_be_encoded_is_refused(made, write_pipeline, tmp_path):
    folder, _ = made
    base = write_pipeline("sd21")
    given = {"base": base, "vae": folder / "vae.safetensors"}
    for changes, words in (
        ({"vae": tmp_path / "gone.safetensors"}, "Expected a file as --vae, got .*gone.safetensors"),
        ({"base": tmp_path}, "neither unet/config.json nor transformer/config.json"),
    ):
        with pytest.raises(ValueError, match=words):
            encode_dataset(folder / "world", tmp_path / "out", **given | changes)
    with pytest.raises(ValueError, match="Expected a dataset folder with manifest.jsonl"):
        encode_dataset(tmp_path, tmp_path / "out", **given)
    encode_dataset(folder / "world", tmp_path / "out", **given)
    with pytest.raises(ValueError, match=r"was begun, got size None, not \[32, 32\]"):
        encode_dataset(folder / "world", tmp_path / "out", **given, size=(32, 32))
    (base / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="Expected text encoders and a VAE that diffusers loads in "):
        encode_dataset(folder / "world", tmp_path / "other", **given)


def change_tensors(path):
    """Other weights of the same names, shapes and date."""
    before = path.stat()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({name: value + 0.25 for name, value in load_file(path).items()}, path, metadata=metadata)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_weights_under_the_same_name_are_told_apart(made, write_pipeline, tmp_path):
    """Nothing is written; a base, a VAE and a dataset under other names are the same."""
    folder, _ = made
    base, vae, world = write_pipeline("sd21"), tmp_path / "vae.safetensors", tmp_path / "world"
    shutil.copy(folder / "vae.safetensors", vae)
    shutil.copytree(folder / "world", world)
    encode_dataset(world, tmp_path / "out", base=base, vae=vae)
    before = (tmp_path / "out" / "shard-00000.safetensors").read_bytes()
    for path in (base, vae, world):
        path.rename(path.with_name(f"other_{path.name}"))
    base, vae, world = (path.with_name(f"other_{path.name}") for path in (base, vae, world))
    (base / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not read here")
    (base / "text_encoder" / "model.fp16.safetensors").write_bytes(b"nor is this")
    assert encode_dataset(world, tmp_path / "out", base=base, vae=vae).written == 0
    for path, name in (
        (vae, "intrinsic VAE"),
        (
            base / "vae" / "diffusion_pytorch_model.safetensors",
            "vae/diffusion_pytorch_model.safetensors of the base",
        ),
        (base / "text_encoder" / "model.safetensors", "text_encoder/model.safetensors of the base"),
    ):
        good = path.read_bytes()
        change_tensors(path)
        with pytest.raises(
            ValueError,
            match=f"out was begun, got another {name}. Give the same to continue, or choose another folder.$",
        ):
            encode_dataset(world, tmp_path / "out", base=base, vae=vae)
        path.write_bytes(good)
    assert encode_dataset(world, tmp_path / "out", base=base, vae=vae).written == 0
    assert (tmp_path / "out" / "shard-00000.safetensors").read_bytes() == before


def test_a_dataset_that_changed_is_encoded_anew_where_it_did(made, write_pipeline, tmp_path):
    """Another world under the same name; then one caption."""
    folder, _ = made
    settings = {"base": write_pipeline("sd21"), "vae": folder / "vae.safetensors", "shard_size": 2}
    shutil.copytree(folder / "world", tmp_path / "world")
    encode_dataset(tmp_path / "world", tmp_path / "out", **settings)
    shutil.rmtree(tmp_path / "world")
    export_dataset(tmp_path / "world", count=5, size=64, seed=2, normals=True)
    summary = encode_dataset(tmp_path / "world", tmp_path / "out", **settings)
    assert (
        summary.written == 5
        and summary.changes.startswith("shard-00000.safetensors, line 1 of manifest.jsonl, ")
    )
    encode_dataset(tmp_path / "world", tmp_path / "fresh", **settings)
    for name in (path.name for path in (tmp_path / "fresh").glob("*.safetensors")):
        assert (tmp_path / "fresh" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    manifest = tmp_path / "world" / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines[2]["caption"] = "something else"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = encode_dataset(tmp_path / "world", tmp_path / "out", **settings)
    assert (summary.written, summary.changes) == (2, "line 3 of manifest.jsonl is replaced")
    assert [
        json.loads(line)["caption"] for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    ][2] == "something else"


def test_a_sample_that_cannot_be_read_is_left_out_by_name(made, write_pipeline, tmp_path):
    """Of loose files, one broken; mended, it is encoded, with the place in the source that it has."""
    folder, _ = made
    settings = {"base": write_pipeline("sd21"), "vae": folder / "vae.safetensors"}
    export_dataset(tmp_path / "world", count=4, size=64, seed=1, normals=True, layout="files")
    lines = [json.loads(line) for line in (tmp_path / "world" / "manifest.jsonl").read_text().splitlines()]
    picture = tmp_path / "world" / lines[1]["image"]
    good = picture.read_bytes()
    picture.write_bytes(good[:100])
    for _ in range(2):
        summary = encode_dataset(tmp_path / "world", tmp_path / "out", **settings)
        assert summary.count == 3 and [name for name, _ in summary.left_out] == [lines[1]["image"]]
        assert "Sample 1 (line 2 of " in str(summary)
    picture.write_bytes(good)
    summary = encode_dataset(tmp_path / "world", tmp_path / "out", **settings)
    assert (summary.count, summary.written, summary.left_out) == (4, 1, ())
    assert summary.changes == f"{lines[1]['image']} is replaced"
    found = [
        json.loads(line)["index"] for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    ]
    assert found == [0, 2, 3, 1]
