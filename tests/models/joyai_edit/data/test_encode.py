"""Encodings of edits against diffusers' own pipeline, and a LoRA trained on what was written."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from spatialweave.models.cli.console import main
from spatialweave.models.core.training.loop import run_recipe
from spatialweave.models.core.training.recipe import Recipe
from spatialweave.models.joyai_edit.data.edits import open_edit_folder, read_edit
from spatialweave.models.joyai_edit.data.encode import encode_edits
from spatialweave.models.joyai_edit.training import lora as training_lora
from spatialweave.models.world.export.dataset import export_dataset

pytest.importorskip("accelerate", reason="the trainer's extra is not installed")


@pytest.fixture
def world(tmp_path):
    export_dataset(tmp_path / "world", count=6, size=64, kind="edits", seed=5, samples=1)
    return tmp_path / "world"


def test_encodings_are_those_of_diffusers_pipeline(world, tmp_path, write_pipeline):
    """Latents, contexts and the empty prompt, sample by sample; a LoRA then trains on the folder,
    with the network beside it.
    """
    import diffusers

    base = write_pipeline(tmp_path / "joy")
    call = [
        "joyai", "encode", str(world), str(tmp_path / "out"), "--base", str(base), "--size", "256",
        "--precision", "float32", "--shard-size", "4",
    ]
    assert main(call) == 0
    lines = [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    dataset, pipeline = open_edit_folder(world), diffusers.JoyImageEditPipeline.from_pretrained(base)
    wanted = [index for index in range(6) if read_edit(dataset, index).prompt]
    assert [line["index"] for line in lines] == wanted and len(wanted) > 2
    tail = len(pipeline.tokenizer("<|im_end|>\n<|im_start|>assistant\n")["input_ids"])
    for line in lines:
        shard = load_file(tmp_path / "out" / line["shard"])
        row = {name: value[line["row"]] for name, value in shard.items()}
        sample = read_edit(dataset, line["index"], (256, 256))
        picture = Image.fromarray(sample.with_box().numpy())
        with torch.no_grad():
            context, empty = (
                pipeline.encode_prompt_multiple_images(text, images=[picture])[0][0]
                for text in (sample.prompt, "")
            )
            _, references = pipeline.prepare_latents(
                1, 16, 256, 256, 1, torch.float32, torch.device("cpu"), torch.Generator().manual_seed(0),
                image=[picture]
            )  # fmt: skip
        count, prefix = int(row["context_tokens"]), int(row["prefix_tokens"])
        torch.testing.assert_close(row["context"][:count].float(), context, rtol=0.01, atol=0.02)
        assert count == len(context) and not row["context"][count:].any() and prefix == len(empty) - tail
        torch.testing.assert_close(
            torch.cat([row["context"][:prefix], row["empty_tail"]]).float(), empty, rtol=0.01, atol=0.02
        )
        assert row["reference"].shape == row["latent"].shape == (16, 32, 32)
        # theirs is drawn from the posterior, ours is its mean
        noise = (row["reference"].float() - references[0, 0, :, 0]).std()
        other = (row["latent"].float() - references[0, 0, :, 0]).std()
        assert torch.isfinite(row["latent"]).all() and noise <= other * 1.05
    recipe = {
        "system": "joyai_lora", "steps": 2, "batch_size": 2, "accumulate": 2, "log_every": 1,
        "data": {"folder": str(tmp_path / "out")},
        "model": {"base": str(base), "precision": "float32"}, "output": str(tmp_path / "run"),
    }  # fmt: skip
    assert run_recipe(Recipe.from_json(recipe), {"joyai_lora": training_lora.build}).ending == "finished"
    again = encode_edits(world, tmp_path / "out", base=base, size=256, shard_size=4, precision="float32")
    assert again.written == 0 and again.count == len(wanted)


def test_what_cannot_be_encoded_is_refused(world, tmp_path):
    with pytest.raises(ValueError, match="got a folder without vae, text_encoder, tokenizer, processor"):
        encode_edits(world, tmp_path / "out", base=tmp_path)
    with pytest.raises(ValueError, match="Expected a size of 256, 512, 768, 1024, got 300"):
        encode_edits(world, tmp_path / "out", base=tmp_path, size=300)


def test_a_missing_torchvision_is_named(world, tmp_path, write_pipeline, monkeypatch):
    import spatialweave.models.joyai_edit.data.encode as encoding

    base = write_pipeline(tmp_path / "joy")
    monkeypatch.setattr(encoding, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="Expected torchvision, .* pip install torchvision"):
        encode_edits(world, tmp_path / "out", base=base, size=256)


def test_images_of_two_buckets_are_refused_by_line(tmp_path, write_pipeline):
    for number, size in enumerate(((64, 64), (128, 64))):
        for side in "ab":
            Image.new("RGB", size).save(tmp_path / f"{number}_{side}.png")
    lines = [{"image": f"{n}_a.png", "target_image": f"{n}_b.png", "instruction": "darker"} for n in range(2)]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(
        ValueError,
        match=r"line 2 of .*: Expected an image of the bucket 256 x 256, as the first, got one of 352 x 176",
    ):
        encode_edits(tmp_path, tmp_path / "out", base=write_pipeline(tmp_path / "joy"), size=256)
