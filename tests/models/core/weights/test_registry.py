"""Published files: one line that says all, verification by hash, and the commands around it, without a
network.
"""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from spatialweave.models.cli import console as cli
from spatialweave.models.cli import published_files
from spatialweave.models.core.weights.files import WeightsError
from spatialweave.models.core.weights.registry import (
    PublishedFile,
    find_on_disk,
    find_published,
    hash_file,
    read_record,
    read_registry,
    verify,
    write_record,
)
from spatialweave.models.modality_forcing.config import PRESETS
from spatialweave.models.modality_forcing.released import NETWORK, TEXT_ENCODERS, VAE, released_files

FILE = PublishedFile(
    name="part.safetensors", what="a part", folder="vae", repository="someone/thing",
    file="split/part.safetensors", about="1 kB",
    size=None, sha256=None, licence="Apache-2.0",
)  # fmt: skip


@pytest.fixture
def models(tmp_path):
    """A models folder with the file in it."""
    (tmp_path / "vae").mkdir()
    save_file({"x": torch.arange(10.0)}, tmp_path / "vae" / FILE.name)
    return tmp_path


def known(path):
    return replace(FILE, size=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_the_registry_is_complete_and_plausible():
    files = released_files()
    assert len({file.name for file in files}) == len(files)
    assert {NETWORK, VAE, *TEXT_ENCODERS.values()} <= {file.name for file in files}
    assert {PRESETS[name].context_in_dim for name in ("klein_9b", "klein_4b")} == set(TEXT_ENCODERS)
    for file in files:
        assert (file.size is None) == (file.sha256 is None), "both learnt, or neither"
        for digest in [file.sha256, *file.also_published]:
            assert digest is None or (len(digest) == 64 and set(digest) <= set("0123456789abcdef"))
        assert (
            file.folder in ("diffusion_models", "text_encoders", "vae")
            and file.licence
            and file.name.endswith(".safetensors")
        )
        number, unit = file.about.split()
        assert (
            file.size is None or abs(file.size / {"GB": 1e9, "MB": 1e6}[unit] / float(number) - 1) < 0.02
        ), file.name


def test_a_line_says_everything_that_is_known_and_nothing_else():
    line = FILE.line
    for part in (
        "part.safetensors",
        "a part",
        "about 1 kB",
        "licence Apache-2.0",
        "folder models/vae",
    ):
        assert part in line
    assert not any(part in line for part in ("SHA-256", "unknown", "exact", "rename"))
    assert f"SHA-256 {'ab' * 32}; folder" in replace(FILE, sha256="ab" * 32).line
    renamed = replace(FILE, file="split/model.safetensors").line
    assert "; rename the downloaded model.safetensors to part.safetensors; https" in renamed
    assert (
        line.endswith("https://huggingface.co/someone/thing/resolve/main/split/part.safetensors")
        and "\n" not in line
    )
    assert "1,234 bytes" in replace(FILE, size=1234).line


def test_template_metadata_has_a_hash_where_there_is_one():
    assert FILE.as_template_model == {"name": FILE.name, "url": FILE.url, "directory": "vae"}
    assert replace(FILE, sha256="ab").as_template_model["hash_type"] == "SHA256"


def test_every_workflow_offers_the_files_of_the_registry(root):
    """A node whose widget names a published file carries the registry's entry for it, and no other edition of
    it.
    """
    entries = {file.name: file.as_template_model for file in released_files()}
    for path in (root / "workflows").glob("*.json"):
        nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
        for node in nodes:
            named = [value for value in node.get("widgets_values") or () if value in entries]
            offered = {model["name"]: model for model in node.get("properties", {}).get("models", ())}
            for name in {*named, *(offered.keys() & entries.keys())}:
                assert offered.get(name) == entries[name], f"{path.name}, node {node['id']}"


def test_a_file_is_found_at_its_place_or_below(models, tmp_path):
    place = models / "vae" / FILE.name
    assert find_on_disk(FILE, [tmp_path / "none", models]) == place
    (models / "vae" / "flux2").mkdir()
    below = place.rename(models / "vae" / "flux2" / FILE.name)
    assert find_on_disk(FILE, [models]) == below and find_on_disk(FILE, []) is None
    (models / "vae" / ".unfinished").mkdir()
    below.rename(models / "vae" / ".unfinished" / FILE.name)
    assert find_on_disk(FILE, [models]) is None
    with pytest.raises(WeightsError, match="Expected one of the published files part.safetensors, got 'x'"):
        find_published([FILE], "x")


def test_verification(models):
    place = models / "vae" / FILE.name
    digest, seen = hash_file(place), []
    assert (
        verify(known(place), place, seen.append) == f"{place} is the published file."
        and seen[-1] == place.stat().st_size
    )
    assert verify(FILE, place).endswith(f"no hash is published to compare its SHA-256 with: {digest}.")
    other = replace(FILE, size=5, sha256="0" * 64, also_published={digest: "someone/else"})
    assert verify(other, place) == f"{place} is the edition published in someone/else."
    write_record(place, digest)
    assert verify(FILE, place) == f"{place} is as it was downloaded."
    with pytest.raises(
        WeightsError,
        match=f"Expected the SHA-256 000.* of .*, got {digest}. Download it again: part.safetensors",
    ):
        verify(replace(known(place), sha256="0" * 64), place)
    with pytest.raises(
        WeightsError,
        match="Expected 5 bytes in .*, the size of the published file, got .*. Download it again",
    ):
        verify(replace(known(place), size=5), place)
    place.write_bytes(place.read_bytes()[:-4])
    with pytest.raises(WeightsError, match="is cut off"):
        verify(FILE, place)


@pytest.fixture
def registered(models, monkeypatch):
    """The command with a registry of that one file."""
    place = models / "vae" / FILE.name
    files = [known(place), replace(FILE, name="absent.safetensors")]
    monkeypatch.setattr(published_files.modality_forcing, "released_files", lambda: files)
    monkeypatch.setattr(published_files.vggt, "released_files", list)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return models


def test_list_says_what_is_there(registered, capsys):
    assert cli.main(["weights", "--models", str(registered)]) == 0
    out = capsys.readouterr().out
    assert (
        f"there: {registered / 'vae' / FILE.name}" in out
        and "not there" in out
        and "absent.safetensors (a part)" in out
    )
    assert cli.main(["weights", "list"]) == 0
    assert capsys.readouterr().out.count("not looked for: --models was not given") == 2


def test_verify_fails_when_a_file_is_bad(registered, capsys):
    call = ["weights", "verify", "--models", str(registered)]
    assert cli.main(call) == 0
    out = capsys.readouterr().out
    assert "is the published file." in out and "absent.safetensors is not there." in out
    place = registered / "vae" / FILE.name
    place.write_bytes(place.read_bytes()[:-1] + b"\x01")
    assert cli.main([*call[:2], FILE.name, *call[2:]]) == 1
    assert "Expected the SHA-256" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["vae/flux2", "other/vae"])
def test_nothing_is_fetched_that_lies_in_a_subfolder_or_another_models_folder(
    registered, tmp_path, monkeypatch, capsys, place
):
    monkeypatch.setattr(
        published_files, "download", lambda file, models: pytest.fail(f"{file.name} was fetched again")
    )
    (tmp_path / place).mkdir(parents=True)
    there = (registered / "vae" / FILE.name).rename(tmp_path / place / FILE.name)
    assert (
        cli.main(
            [
                "weights",
                "download",
                FILE.name,
                "--models",
                str(registered),
                "--models",
                str(tmp_path / "other"),
            ]
        )
        == 0
    )
    assert f"there already: {there}" in capsys.readouterr().out


def test_a_command_without_what_it_needs_says_so(registered, capsys, monkeypatch):
    assert cli.main(["weights", "verify"]) == 1
    assert "Name it with --models, or set COMFYUI_PATH" in capsys.readouterr().err
    assert cli.main(["weights", "download", "--models", str(registered)]) == 1
    assert "Run `spatialweave weights download NAME` with one of part.safetensors" in capsys.readouterr().err
    assert cli.main(["weights", "verify", "x", "--models", str(registered)]) == 1
    assert ", got 'x'. Choose one of them" in capsys.readouterr().err
    (registered.parent / "comfy").mkdir()
    registered.rename(registered.parent / "comfy" / "models")
    monkeypatch.setenv("COMFYUI_PATH", str(registered.parent / "comfy"))
    assert cli.main(["weights"]) == 0
    assert "there: " in capsys.readouterr().out


@pytest.mark.parametrize("change", [
    {"folder": None}, {"size": "12"}, {"size": -1}, {"sha256": "short"}, {"also_published": {"x": "y"}},
    {"name": 3}, {"more": 1},
])  # fmt: skip
def test_an_entry_of_a_registry_that_says_something_else_is_named(change, tmp_path):
    entry = {
        "name": "a.safetensors", "what": "a", "folder": "vae", "repository": "a/b", "file": "a",
        "about": "1 GB", "size": None,
        "sha256": None, "licence": "MIT",
    }  # fmt: skip
    path = tmp_path / "released.json"
    path.write_text(json.dumps([entry, entry | change]))
    with pytest.raises(WeightsError, match="entry 2 of .*released.json"):
        read_registry(path)
    path.write_text(json.dumps([entry]))
    assert read_registry(path)[0].name == "a.safetensors"


def test_a_record_without_a_hash_is_named(tmp_path):
    place = tmp_path / "a.safetensors"
    place.with_name("a.safetensors.sha256").write_text("")
    with pytest.raises(WeightsError, match="a.safetensors.sha256"):
        read_record(place)
