"""Other people's folders of pictures, put through a server that answers as ComfyUI does: names, captions,
pictures, replaced files.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from spatialweave.models.cli.console import main
from spatialweave.models.intrinsic_ldm.data.build import build_dataset
from spatialweave.models.intrinsic_ldm.data.pictures import list_images

pytest.importorskip("accelerate", reason="the trainer's extra is not installed")
SIZE = (64, 96)
GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "h/line"}},
}
SAVED = {"3": {"images": [{"filename": "line.png", "subfolder": "h", "type": "output"}]}}


class Served:
    """The pictures that the server was sent, and what it is to answer in place of what ComfyUI would.

    `instead`: beginning of an address -> HTTP status, body and, where it is for one picture alone,
    its number from 1.
    """

    def __init__(self):
        self.pictures, self.instead = [], {}

    def answer(self, path, body):
        for start, (status, said, *only) in self.instead.items():
            if path.startswith(start) and (not only or len(self.pictures) in only):
                return status, said
        if path == "/upload/image":
            start = body.index(b"\x89PNG")
            self.pictures.append(np.array(Image.open(io.BytesIO(body[start : body.rindex(b"\r\n--")]))))
            return 200, b"{}"
        if path == "/prompt":
            return 200, json.dumps({"prompt_id": "7", "number": 1, "node_errors": {}}).encode()
        if path.startswith("/history/"):
            return 200, history(SAVED)
        buffer = io.BytesIO()
        Image.fromarray(self.pictures[-1]).convert("L").save(buffer, "PNG")
        return 200, buffer.getvalue()


def history(outputs, **status):
    return json.dumps(
        {"7": {"status": {"completed": True, "status_str": "success", **status}, "outputs": outputs}}
    ).encode()


@pytest.fixture
def served():
    state = Served()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *words):
            pass

        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, said = state.answer(self.path, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_POST = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def build(served, tmp_path):
    """build(**changes) -> the summary of tmp_path/in written to tmp_path/out."""
    (tmp_path / "graph.json").write_text(json.dumps(GRAPH))
    (tmp_path / "in").mkdir()

    def run(**changes):
        settings = {"servers": [served.url], "size": SIZE, "workflow": tmp_path / "graph.json"} | changes
        return build_dataset(tmp_path / "in", tmp_path / "out", **settings)

    return run


def save_plain(path, color=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1], color).save(path)


def read_rows(folder):
    """name -> (manifest line, image h w 3)"""
    rows = {}
    for line in map(json.loads, (folder / "manifest.jsonl").read_text().splitlines()):
        rows[line["source"]] = line, load_file(folder / line["shard"])["image"][line["row"]]
    return rows


def test_pictures_are_upright_and_scaled_by_their_type(build, tmp_path, caplog):
    """A turned JPEG, a ramp of 16 bits, and colors under transparent pixels, which are kept as core's Load
    Image keeps them.
    """
    upright = Image.new("RGB", SIZE[::-1], (30, 30, 200))
    upright.paste((200, 30, 30), (0, 0, 96, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "in" / "turned.jpg", exif=exif, quality=95)
    ramp = np.linspace(0, 65535, 96).astype(np.uint16)[None].repeat(64, 0)
    Image.fromarray(ramp).save(tmp_path / "in" / "ramp.png")
    hidden = np.zeros((*SIZE, 4), np.uint8)
    hidden[:, :48], hidden[:, 48:] = (255, 0, 255, 0), (0, 255, 0, 255)
    Image.fromarray(hidden).save(tmp_path / "in" / "hidden.png")
    caplog.set_level("INFO")
    build()
    rows = read_rows(tmp_path / "out")
    corners = rows["turned.jpg"][1][[2, 2, -3, -3], [2, -3, 2, -3]].int()
    assert (corners - torch.tensor([[200, 30, 30]] * 2 + [[30, 30, 200]] * 2)).abs().max() < 12
    wanted = torch.from_numpy((ramp / 257).round().astype(np.uint8))
    assert (
        torch.equal(rows["ramp.png"][1], wanted[..., None].expand(-1, -1, 3)) and len(wanted.unique()) == 96
    )
    assert (
        rows["hidden.png"][1][0, 0].tolist() == [255, 0, 255]
        and rows["hidden.png"][1][0, -1].tolist() == [0, 255, 0]
    )
    assert "hidden.png: The image has an alpha channel" in caplog.text


@pytest.mark.parametrize("content, words", [
    (
        "un caf\u00e9 \u00e0 c\u00f4t\u00e9".encode("cp1252"),
        "Expected UTF-8 text in .*b.txt, got byte 0xe9 in line 1. Save it as UTF-8",
    ),
    ("a red ball".encode("utf-16"), "Expected UTF-8 text in .*b.txt, got UTF-16"),
    ("a red ball".encode("utf-16-be"), "Expected UTF-8 text in .*b.txt, got NUL bytes, as UTF-16 has them"),
])  # fmt: skip
def test_a_caption_that_is_no_text_leaves_its_picture_out(build, served, tmp_path, content, words, caplog):
    for name in ("a.png", "b.png", "c.png"):
        save_plain(tmp_path / "in" / name)
    (tmp_path / "in" / "b.txt").write_bytes(content)
    for sent in (2, 2):
        summary = build()
        assert len(served.pictures) == sent and list(read_rows(tmp_path / "out")) == ["a.png", "c.png"]
        assert re.search(f"2 samples, .* 1 left out: b.png .*{words}", str(summary))
    assert "b.png is left out" in caplog.text
    (tmp_path / "in" / "b.txt").write_text("a red ball")
    summary = build()
    assert len(served.pictures) == 3, "nothing but the mended one is estimated"
    assert "b.txt is replaced" in summary.changes and summary.left_out == ()
    assert read_rows(tmp_path / "out")["b.png"][0]["caption"] == "a red ball"


def test_captions_in_utf8_are_read_as_any_system_writes_them(build, tmp_path):
    marked = b"\xef\xbb\xbfa red field\r\nabove a blue one\r\n"
    texts = {"a": marked, "b": "one \u2028 two\u0085".encode(), "c": b"", "d": "Stra\u00dfe".encode()}
    for name, text in texts.items():
        save_plain(tmp_path / "in" / f"{name}.png")
        (tmp_path / "in" / f"{name}.{'TXT' if name == 'd' else 'txt'}").write_bytes(text)
    build()
    captions = [line["caption"] for line, _ in read_rows(tmp_path / "out").values()]
    assert captions == ["a red field\nabove a blue one", "one \u2028 two", "", "Stra\u00dfe"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' file names are Unicode")
def test_file_names_that_are_no_unicode_are_pictures_like_others(build, served, tmp_path, capsys):
    """Shift-JIS; its caption, and a broken picture beside it, which is named."""
    folder = os.fsencode(tmp_path / "in")
    name = "\u30c6\u30b9\u30c8".encode("shift-jis")
    save_plain(tmp_path / "in" / "a.png")
    shutil.copy(os.path.join(folder, b"a.png"), os.path.join(folder, name + b".png"))
    for end, content in ((b".txt", b"a test"), (b"2.png", b"none")):
        with open(os.path.join(folder, name + end), "wb") as file:
            file.write(content)
    call = [
        "intrinsics", "build", str(tmp_path / "in"), str(tmp_path / "out"), "--server", served.url, "--size",
        "96x64",
    ]
    for _ in range(2):
        assert main([*call, "--workflow", str(tmp_path / "graph.json")]) == 0
        said = capsys.readouterr().out
        assert "2 samples" in said and "1 left out: \\x83e\\x83X\\x83g2.png (Expected an image in " in said
    rows = read_rows(tmp_path / "out")
    assert rows["\\x83e\\x83X\\x83g.png"][0]["caption"] == "a test" and len(served.pictures) == 2


def test_a_name_that_the_terminal_cannot_write_is_said_nevertheless(build, served, tmp_path):
    save_plain(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "\u30c6.png").write_bytes(b"")
    call = [
        "intrinsics", "build", str(tmp_path / "in"), str(tmp_path / "out"), "--server", served.url, "--size",
        "96x64",
    ]
    code = (
        "import sys; from spatialweave.models.cli import main; "
        f"sys.exit(main({[*call, '--workflow', str(tmp_path / 'graph.json')]!r}))"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (
        "1 left out: \\u30c6.png (Expected an image in " in done.stdout
        and "\\u30c6.png is left out" in done.stderr
    )


def test_what_systems_leave_in_folders_is_left_out(build, tmp_path, caplog):
    caplog.set_level("INFO")
    for name in ("A.PNG", "b.JPEG", "sub/deep/c.WebP"):
        save_plain(tmp_path / "in" / name)
    for name in ("._A.PNG", "__MACOSX/A.PNG", ".cache/d.png"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"\0\5\x16\7")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._A.txt"):
        (tmp_path / "in" / name).write_bytes(b"\xff\xfe")
    (tmp_path / "in" / "folder.png").mkdir()
    (tmp_path / "in" / "A.txt").write_text("a")
    summary = build()
    assert (
        list(read_rows(tmp_path / "out")) == ["A.PNG", "b.JPEG", "sub/deep/c.WebP"] and summary.left_out == ()
    )
    assert read_rows(tmp_path / "out")["A.PNG"][0]["caption"] == "a"
    assert "3 images whose names begin with a dot, or in __MACOSX, are left out." in caplog.text


def test_names_that_differ_in_case_or_suffix_are_pictures_of_their_own(build, tmp_path):
    colors = {
        "a.png": (1, 2, 3), "a.bmp": (4, 5, 6), "sub/a.png": (7, 8, 9), "B.png": (10, 11, 12),
        "b.png": (13, 14, 15),
    }
    for name, color in colors.items():
        save_plain(tmp_path / "in" / name, color)
    (tmp_path / "in" / "a.txt").write_text("of both")
    there = {path.relative_to(tmp_path / "in").as_posix() for path, _ in list_images(tmp_path / "in").images}
    build()
    rows = read_rows(tmp_path / "out")
    assert rows.keys() == there and there >= {"a.png", "a.bmp", "sub/a.png"}
    for name in there & {"a.png", "a.bmp", "sub/a.png"}:
        assert rows[name][1][0, 0].tolist() == list(colors[name])
    assert (
        [rows[name][0]["caption"] for name in ("a.png", "a.bmp", "sub/a.png")]
        == ["of both", "of both", ""]
    )


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_links_are_followed_once_and_broken_ones_named(build, tmp_path):
    save_plain(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    summary = build()
    assert list(read_rows(tmp_path / "out")) == ["linked/a.png"]
    assert [name for name, _ in summary.left_out] == ["gone.png", "pipe.png"]


def test_a_bomb_and_a_broken_file_are_left_out_by_name(build, tmp_path):
    """More bad ones than a shard holds, before the good one."""
    bomb = io.BytesIO()
    Image.new("1", (8, 8)).save(bomb, "PNG")
    data = bytearray(bomb.getvalue())
    data[16:24] = (20000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "in" / "a.png").write_bytes(data)
    (tmp_path / "in" / "b.png").write_bytes(b"")
    (tmp_path / "in" / "c.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    save_plain(tmp_path / "in" / "d.png")
    summary = build(shard_size=2)
    assert list(read_rows(tmp_path / "out")) == ["d.png"]
    assert [name for name, _ in summary.left_out] == ["a.png", "b.png", "c.jpg"]
    assert "20000" in summary.left_out[0][1] or "pixels" in summary.left_out[0][1]


def test_replaced_pictures_are_made_anew_and_captions_rewritten(build, served, tmp_path):
    """Of the same size and date as those before."""
    for name in ("a.png", "b.png", "c.png"):
        save_plain(tmp_path / "in" / name)
        (tmp_path / "in" / name).with_suffix(".txt").write_text(f"old {name[0]}")
    build(shard_size=1)
    before = (tmp_path / "in" / "a.png").stat()
    save_plain(tmp_path / "in" / "a.png", (30, 200, 30))
    os.utime(tmp_path / "in" / "a.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "in" / "c.txt").write_text("new c")
    summary = build(shard_size=1)
    assert len(served.pictures) == 4 and summary.written == 1
    assert summary.changes == "a.png is replaced; c.txt has another text"
    rows = read_rows(tmp_path / "out")
    assert (
        rows["a.png"][1][0, 0].tolist() == [30, 200, 30]
        and rows["b.png"][1][0, 0].tolist() == [200, 30, 30]
    )
    assert [line["caption"] for line, _ in rows.values()] == ["old a", "old b", "new c"]
    (tmp_path / "in" / "b.png").unlink()
    save_plain(tmp_path / "in" / "0.png")
    summary = build(shard_size=1)
    assert summary.changes == "0.png is new; b.png is removed" and len(served.pictures) == 5
    assert sorted(read_rows(tmp_path / "out")) == ["0.png", "a.png", "c.png"]
    assert not (tmp_path / "out" / "shard-00001.safetensors").exists()
    assert build(shard_size=1).changes == "" and len(served.pictures) == 5


def test_another_workflow_is_told_by_its_inputs(build, tmp_path):
    save_plain(tmp_path / "in" / "a.png")
    build()
    same = json.loads(json.dumps(GRAPH))
    same["1"] |= {"inputs": {"image": "y.png"}, "_meta": {"title": "any picture"}}
    (tmp_path / "renamed.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(same, indent=3).encode())
    assert build(workflow=tmp_path / "renamed.json").written == 0, "the same graph, with a byte order mark"
    words = (
        r"out was begun, got workflow\.3\.inputs\.filename_prefix 'h/line', "
        r"not 'i/line'. Give the same to continue"
    )
    with pytest.raises(ValueError, match=words):
        build(changes=["3.filename_prefix=i/line"])
    with pytest.raises(ValueError, match=r"was begun, got size \[64, 96\], not \[32, 32\]"):
        build(size=(32, 32))


FAILED = json.dumps({"7": {"status": {"completed": False, "status_str": "error", "messages": [
    ["execution_error", {"node_id": "3", "node_type": "SaveImage", "exception_message": "no room\n"}],
]}}}).encode()  # fmt: skip


@pytest.mark.parametrize("path, answer, words", [
    ("/history", (200, FAILED), r"node 3 \(SaveImage\): no room"),
    ("/history", (200, history({})), r"node 3 \(SaveImage\) saved no line"),
    ("/history", (200, history({"3": {"images": []}})), r"node 3 \(SaveImage\) saved no line"),
    (
        "/history",
        (200, json.dumps({"7": {"status": {"completed": False, "status_str": "error"}}}).encode()),
        "interrupted",
    ),
    ("/view", (404, b""), "http.* does not have the file 'line.png' that the workflow saved"),
    ("/view", (200, b"<html>"), "Expected an image in the line that the workflow saved, got a file that"),
])  # fmt: skip
def test_a_picture_on_which_the_server_fails_is_left_out(build, served, tmp_path, path, answer, words):
    for name in ("a.png", "b.png", "c.png"):
        save_plain(tmp_path / "in" / name)
    served.instead[path] = (*answer, 2)
    summary = build()
    assert list(read_rows(tmp_path / "out")) == ["a.png", "c.png"]
    ((name, why),) = summary.left_out
    assert name == "b.png" and re.search(words, why)


@pytest.mark.parametrize("path, answer, words", [
    (
        "/prompt", (200, b"<html>hello</html>"),
        r"Expected a JSON object from http://127.0.0.1:\d+/prompt, got '<html>hello</html>'\.",
    ),
    ("/prompt", (200, b"[]"), "Expected a JSON object from"),
    (
        "/prompt", (502, b"Bad\n gateway"),
        r"Expected HTTP status 200 from http://127.0.0.1:\d+/prompt, got 502 \('Bad gateway'\)",
    ),
    ("/history", (200, b"\xff"), "Expected a JSON object from .*/history/7, got"),
    ("/history", (500, b""), r"Expected HTTP status 200 from .*/history/7, got 500 \(nothing\)"),
    ("/upload", (413, b"too large"), r"from http://127.0.0.1:\d+/upload/image, got 413 \('too large'\)"),
    ("/view", (500, b"x"), r"Expected HTTP status 200 from http://127.0.0.1:\d+/view, got 500"),
    (
        "/prompt", (400, b'{"error": "odd", "node_errors": []}'),
        r"^a\.png: Expected a workflow that ComfyUI accepts, got: odd. Set its inputs",
    ),
])  # fmt: skip
def test_a_server_that_answers_otherwise_ends_the_run_with_its_address(
    build, served, tmp_path, path, answer, words
):
    save_plain(tmp_path / "in" / "a.png")
    served.instead[path] = answer
    with pytest.raises((OSError, ValueError), match=words):
        build()
    served.instead.clear()
    assert build().written == 1, "the next run goes on"


def test_a_server_without_end_is_not_waited_for(build, served, tmp_path):
    save_plain(tmp_path / "in" / "a.png")
    served.instead["/history"] = (200, b"{}")
    with pytest.raises(
        ValueError,
        match=(
            r"one of 1 images from a\.png on, got an error .*did "
            r"not end the run within 0\.3 s; increase --timeout"
        ),
    ):
        build(timeout=0.3)
