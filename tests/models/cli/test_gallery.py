"""The gallery: the demo's files and a page that shows them, read by Pillow and by Chromium."""

import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from spatialweave.models.cli import console as cli
from spatialweave.models.cli import demo_sampling
from spatialweave.models.cli.gallery import SHOWN
from spatialweave.models.cli.gallery_page import Entry, build_page

HERE = Path(__file__).resolve().parent
PROMPTS = [["a red ball", 3], ['a "blue" box <b>&', 5]]


class Page(HTMLParser):
    """What stands in a page: tags with their attributes, and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a gallery of two prompts, of few steps and few frames."""
    folder, patch = tmp_path_factory.mktemp("gallery"), pytest.MonkeyPatch()
    orbit = demo_sampling.render_orbit
    patch.setattr(demo_sampling, "render_orbit", lambda view: orbit(view, frames=3))
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    words = ["gallery", "--output", str(folder / "site"), "--prompts", str(folder / "prompts.json")]
    assert cli.main([*words, "--steps", "2"]) == 0
    patch.undo()
    return folder / "site"


def test_the_page_names_every_file_and_each_is_there(site):
    page = Page((site / "index.html").read_text(encoding="utf-8"))
    named = {facts.get("src") or facts.get("href") for tag, facts in page.tags if tag in ("img", "a")}
    local = {name for name in named if "://" not in name}
    there = {path.relative_to(site).as_posix() for path in site.rglob("*.*")} - {"index.html"}
    assert local == there and len(there) == 3 * len(PROMPTS)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    for name in there:
        with Image.open(site / name) as image:
            assert min(image.size) >= 128 and ("orbit" not in name or image.n_frames == 3)


def test_prompts_and_seeds_are_shown_as_they_are_typed(site):
    """With what HTML and the shell would read otherwise."""
    text = " ".join(Page((site / "index.html").read_text(encoding="utf-8")).text.split())
    for prompt, seed in PROMPTS:
        assert prompt in text and f"Seed {seed}, the best of 8 candidates" in text
    assert "spatialweave demo 'a red ball' --seed 3 --refine --steps 2" in text


def test_a_command_of_the_page_makes_its_image(site, tmp_path, monkeypatch):
    """With an orbit of one frame, which it does not ask about."""
    orbit = demo_sampling.render_orbit
    monkeypatch.setattr(demo_sampling, "render_orbit", lambda view: orbit(view, frames=1))
    words = ["demo", "a red ball", "--seed", "3", "--refine", "--steps", "2"]
    assert cli.main([*words, "--output", str(tmp_path)]) == 0
    assert (tmp_path / "image.png").read_bytes() == (site / "gallery" / "1_image.png").read_bytes()


@pytest.mark.parametrize("text", ["{", "3", "[]", '[["a ball"]]', '[["a ball", -1]]', '[[3, "a ball"]]'])
def test_other_prompts_are_refused_with_the_file(tmp_path, capsys, text):
    (tmp_path / "prompts.json").write_text(text)
    words = ["gallery", "--output", str(tmp_path / "site"), "--prompts", str(tmp_path / "prompts.json")]
    assert cli.main(words) != 0
    assert re.search(r"Expected .*prompts\.json, got .*\.", capsys.readouterr().err)


def test_the_repositorys_page_shows_the_gallerys_prompts(root):
    """`spatialweave gallery --output docs` wrote docs/index.html; the workflow builds the published one."""
    page = Page((root / "docs" / "index.html").read_text(encoding="utf-8"))
    for prompt, seed in SHOWN:
        assert prompt in page.text and f"--seed {seed} --refine" in page.text
    for tag, facts in page.tags:
        if tag == "img":
            assert (root / "docs" / facts["src"]).is_file()
    workflow = (root / ".github" / "workflows" / "pages.yml").read_text()
    assert "spatialweave gallery --output site" in workflow and "path: site" in workflow


def test_a_page_can_be_built_without_an_entry():
    entry = Entry("a", 1, 1, "b", "c", "d", "e")
    assert build_page([], "x").count("<article>") == 0 and build_page([entry], "x").count("<article>") == 1


@pytest.mark.slow
@pytest.mark.parametrize("size", ["390x844", "1366x768", "1920x1080"])
def test_chromium_shows_the_whole_page(site, browser, size):
    """No image is broken, none is blown up over its column, nothing is wider than the window."""
    call = ["node", str(HERE / "browser_page.cjs"), str(site / "index.html"), size]
    ended = subprocess.run(call, env=browser, capture_output=True, encoding="utf-8", timeout=120)
    assert ended.returncode == 0, ended.stderr
    seen = json.loads(ended.stdout)
    assert not seen["broken"] and not seen["errors"] and not seen["failed"] and seen["wider"] <= 0
    assert len(seen["images"]) == 3 * len(PROMPTS) and seen["headings"] == [prompt for prompt, _ in PROMPTS]
    width = int(size.split("x")[0])
    assert all(0.2 * min(width, 720) < shown <= width for _, _, shown in seen["images"])
