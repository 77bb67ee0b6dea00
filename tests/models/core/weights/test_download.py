"""Downloads through huggingface_hub from a hub of our own on this machine: checked, resumed, offline, and
never twice.
"""

import hashlib
import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save

from spatialweave.models.core.weights import download as downloads
from spatialweave.models.core.weights.download import STAGING, download
from spatialweave.models.core.weights.files import WeightsError
from spatialweave.models.core.weights.registry import PublishedFile, read_record

CONTENT = save(
    {"x": torch.arange(3_000_000, dtype=torch.int64)}
)  # more than two of the chunks that the library writes
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = PublishedFile(
    name="renamed.safetensors", what="a part", folder="vae", repository="someone/thing",
    file="split/part.safetensors", about="24 MB",
    size=len(CONTENT), sha256=DIGEST, licence="Apache-2.0",
)  # fmt: skip
PATH = "/someone/thing/resolve/main/split/part.safetensors"


class Hub(ThreadingHTTPServer):
    """Enough of the hub's protocol for one large file: a HEAD with its hash and size, a GET of any range."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked, self.sent, self.breaks, self.status = [], CONTENT, 0, 200


class Answer(BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def do_HEAD(self):
        self.answer(None)

    def do_GET(self):
        found = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        self.answer(int(found.group(1)) if found else 0)

    def answer(self, start):
        hub = self.server
        hub.asked.append((self.command, start))
        if self.path != PATH or hub.status != 200:
            self.send_response(404 if hub.status == 200 else hub.status)
            self.send_header("X-Error-Code", "GatedRepo" if hub.status == 403 else "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{DIGEST}"')
        self.send_header("X-Linked-Etag", f'"{DIGEST}"')
        self.send_header("X-Linked-Size", str(len(hub.sent)))
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(hub.sent) - (start or 0)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(hub.sent) - 1}/{len(hub.sent)}")
        self.end_headers()
        if start is not None:
            body = hub.sent[start:]
            cut = hub.breaks > 0
            hub.breaks -= cut
            self.wfile.write(body[: len(body) // 2] if cut else body)


def use(monkeypatch, endpoint):
    """What the library makes of HF_ENDPOINT when it is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use(monkeypatch, f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def test_a_file_comes_under_its_name_and_is_never_asked_for_again(hub, tmp_path):
    path = download(FILE, tmp_path)
    assert path == tmp_path / "vae" / FILE.name and path.read_bytes() == CONTENT
    assert sorted(entry.name for entry in path.parent.iterdir()) == [FILE.name], (
        "nothing of the download is left"
    )
    asked = len(hub.asked)
    assert asked and download(FILE, tmp_path) == path and len(hub.asked) == asked
    (tmp_path / "vae" / "flux2").mkdir()
    moved = path.rename(tmp_path / "vae" / "flux2" / FILE.name)
    assert download(FILE, tmp_path) == moved and len(hub.asked) == asked


def test_a_file_whose_hash_nobody_published_is_checked_with_the_hubs_and_remembered(hub, tmp_path):
    unknown = replace(FILE, sha256=None, size=None)
    path = download(unknown, tmp_path)
    assert read_record(path) == DIGEST
    hub.sent = CONTENT[:-1] + b"\x01"
    with pytest.raises(
        WeightsError, match=f"Expected the SHA-256 {DIGEST} from .*, got [0-9a-f]*. The file was deleted"
    ):
        download(unknown, tmp_path / "again")
    assert not list((tmp_path / "again").rglob("*.safetensors"))


def test_another_file_than_the_published_is_thrown_away(hub, tmp_path):
    with pytest.raises(
        WeightsError, match=f"Expected the SHA-256 0000.* from .*, got {DIGEST}. The file was deleted"
    ):
        download(replace(FILE, sha256="0" * 64), tmp_path)
    assert not list((tmp_path / "vae").iterdir())


def test_what_came_but_was_not_yet_checked_is_not_taken_for_the_file(hub, tmp_path):
    """It lies in the staging folder under its published name, which for most files is the name in ComfyUI's
    folder too.
    """
    same = replace(FILE, name="part.safetensors")
    waiting = tmp_path / "vae" / STAGING / same.file
    waiting.parent.mkdir(parents=True)
    waiting.write_bytes(b"half")
    assert download(same, tmp_path) == tmp_path / "vae" / same.name
    assert (tmp_path / "vae" / same.name).read_bytes() == CONTENT


def test_a_broken_download_goes_on_where_it_was(hub, tmp_path):
    hub.breaks = 1
    download(FILE, tmp_path)
    assert (tmp_path / "vae" / FILE.name).read_bytes() == CONTENT
    assert [start for method, start in hub.asked if method == "GET"][-1] > 0


@pytest.mark.parametrize("variable", downloads.OFFLINE)
def test_offline_variables_are_obeyed(hub, tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(
        huggingface_hub.constants, "HF_HUB_OFFLINE", True
    )  # what the library makes of either when it is imported
    with pytest.raises(
        OSError,
        match=f"Expected network access to download renamed.safetensors, got {variable} set. Unset it, "
        "or put the file there yourself: renamed",
    ):
        download(FILE, tmp_path)
    assert not hub.asked and not (tmp_path / "vae").exists()
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / FILE.name).write_bytes(b"there")
    assert download(FILE, tmp_path).read_bytes() == b"there"


@pytest.mark.parametrize("status", [403, 404])
def test_what_the_hub_refuses_is_one_sentence_with_the_line(hub, tmp_path, status):
    hub.status = status
    with pytest.raises(
        OSError,
        match=r"^Expected to download renamed.safetensors, got an error \(.*\). Try again, or put it "
        "there yourself: ",
    ) as said:
        download(FILE, tmp_path)
    assert "\n" not in str(said.value) and FILE.line in str(said.value)


def test_without_a_hub_the_sentence_is_the_same(hub, tmp_path, monkeypatch):
    use(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(OSError, match="Expected to download"):
        download(FILE, tmp_path)
    assert (tmp_path / "vae" / STAGING).is_dir()
