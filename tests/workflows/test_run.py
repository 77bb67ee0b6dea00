"""The headless runner: what it is asked, what it is answered, and the exit status of each."""

import json
import os
import re
import shlex
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.once  # run.py is a program of the standard library alone


@pytest.fixture
def twin(root):
    return str(root / "workflows/api/joint_image_depth.json")


@pytest.fixture
def other_server():
    """Start a server that is no ComfyUI: give it a status and a page, get its address without the scheme."""
    started = []

    def start(status, page):
        class Answer(BaseHTTPRequestHandler):
            def log_message(self, *words):
                pass

            def do_GET(self):
                code, body = (200, b"{}") if self.path == "/system_stats" else (status, page.encode())
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

        started.append(ThreadingHTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        return f"127.0.0.1:{started[-1].server_address[1]}"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def test_the_examples_in_its_help_set_inputs_that_are_there(runner, root):
    calls = re.findall(r"^    python workflows/run\.py (.*)$", runner.__doc__, flags=re.MULTILINE)
    assert len(calls) == 2 and "--set" in calls[1]
    for call in calls:
        options = runner.parse(shlex.split(call))
        graph = runner.change_inputs(runner.read_graph(root / options.workflow), options.set)
    assert graph["6"]["inputs"]["seed"] == 7 and graph["3"]["inputs"]["text"] == "a green cone"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "6.sead=3"], "Expected one of the inputs"),
        (["--set", "6.seed"], "Expected NODE.INPUT=VALUE for --set, got '6.seed'"),
        (
            ["--server", "ftp://127.0.0.1:21"],
            "Expected the address of a server, such as http://127.0.0.1:8188",
        ),
        (
            ["--server", "127.0.0.1:no"],
            "Expected the address of a server, such as http://127.0.0.1:8188, got '127.0.0.1:no'",
        ),
        (["--server", ""], "Expected the address of a server"),
        (["--comfyui", "nowhere"], "nowhere, which has no main.py"),
    ],
)
def test_a_question_without_sense_ends_with_2(runner, twin, capsys, arguments, said):
    assert runner.main([twin, *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "graph.json, got an error ("),
        ("{", "Expected JSON in {folder}/graph.json"),
        ("[]", "graph.json, nodes by number"),
        ('{"6": {"class_type": "KSampler"}}', "graph.json, nodes by number"),
        ("{}", "graph.json, nodes by number"),
        ('{"6": {"class_type": "KSampler", "inputs": ["seed"]}}', "graph.json, nodes by number"),
        ("[" * 100000, "Expected JSON in {folder}/graph.json"),
        (
            '{"6": {"class_type": "\u00e9"'.encode("cp1252"),
            "Expected UTF-8 text in {folder}/graph.json, got byte 0xe9 in line 1. Save it",
        ),
        ("{}".encode("utf-16"), "Expected UTF-8 text in {folder}/graph.json, got UTF-16. Save it as UTF-8."),
        ('{"nodes": [], "links": []}', "in the form that the browser saves"),
    ],
)
def test_a_file_that_is_no_graph_ends_with_2(runner, tmp_path, capsys, content, said):
    if content is not None:
        (tmp_path / "graph.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert runner.main([str(tmp_path / "graph.json")]) == 2
    assert said.replace("{folder}/", f"{tmp_path}{os.sep}") in capsys.readouterr().err


def test_a_byte_order_mark_is_no_part_of_a_workflow(runner, twin, tmp_path):
    marked = tmp_path / "graph.json"
    marked.write_bytes(b"\xef\xbb\xbf" + Path(twin).read_bytes())
    assert runner.read_graph(marked) == runner.read_graph(Path(twin))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' file names are Unicode")
def test_a_file_name_that_is_no_unicode_can_be_said(runner, tmp_path, capsys):
    name = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\x83e.json"))
    assert runner.main([str(name)]) == 2
    assert "\\x83e.json, got an error" in capsys.readouterr().err


def test_an_option_that_would_do_nothing_is_refused(runner, twin, capsys):
    with pytest.raises(SystemExit) as ended:
        runner.main([twin, "--cpu"])
    assert ended.value.code == 2 and "Expected --comfyui FOLDER beside --cpu" in capsys.readouterr().err


def test_no_server_is_said_with_its_address(runner, twin, capsys):
    assert runner.main([twin, "--server", "127.0.0.1:9", "--start-timeout", "0.5"]) == 1
    said = capsys.readouterr().err
    assert "Expected an answer of ComfyUI at http://127.0.0.1:9" in said
    waiting = "No answer from ComfyUI at http://127.0.0.1:9 yet; waiting up to 0 s for it to start"
    assert said.startswith(waiting) and said.count("No answer") == 1


@pytest.mark.parametrize(
    ("status", "page", "said"),
    [
        (413, "<html>Request\n too large</html>", ": <html>Request too large</html>\n"),
        (502, "", "The graph was refused with HTTP status 502 Bad Gateway."),
        (400, '"no"', 'The graph was refused with HTTP status 400 Bad Request: "no"'),
        (200, "<html>", "/prompt, got something else. Check that a ComfyUI runs there."),
        (200, "{}", "/prompt, got something else. Check that a ComfyUI runs there."),
        (200, "[1]", "/prompt, got something else. Check that a ComfyUI runs there."),
    ],
)
def test_what_another_server_answers_is_quoted(runner, twin, other_server, capsys, status, page, said):
    assert runner.main([twin, "--server", other_server(status, page)]) == 1
    error = capsys.readouterr().err
    assert said in error and "Expecting value" not in error


def test_what_comfyui_has_against_a_graph_is_said_node_by_node(runner, twin, other_server, capsys):
    fault = {"errors": [{"message": "Value not in list", "details": "seed: 'x'"}]}
    page = json.dumps({"error": {"message": "Prompt outputs failed validation"}, "node_errors": {"6": fault}})
    assert runner.main([twin, "--server", other_server(400, page)]) == 1
    assert (
        capsys.readouterr().err
        == "Prompt outputs failed validation\nnode 6 (KSampler): Value not in list seed: 'x'\n"
    )


def test_a_graph_that_comfyui_takes_in_part_is_no_success(runner, twin, other_server, capsys):
    """Of a graph with several outputs ComfyUI runs the sound ones, with status 200."""
    fault = {"errors": [{"message": "Value not in list", "details": "ckpt_name"}]}
    page = json.dumps({"prompt_id": "1", "number": 1, "node_errors": {"6": fault}})
    assert runner.main([twin, "--server", other_server(200, page)]) == 1
    complaint = "node 6 (KSampler): Value not in list ckpt_name"
    assert (
        capsys.readouterr().err == "ComfyUI would run only the valid part of this graph, so nothing was "
        f"collected.\n{complaint}\n"
    )


@pytest.fixture
def some_server():
    """Start a server that answers by the beginning of the address: give it {beginning: (status, body)}."""
    started = []

    def start(answers):
        class Answer(BaseHTTPRequestHandler):
            def log_message(self, *words):
                pass

            def do_GET(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                code, body = next(
                    found for beginning, found in answers.items() if self.path.startswith(beginning)
                )
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

        started.append(ThreadingHTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=started[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"127.0.0.1:{started[-1].server_address[1]}"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def answer_all(file, **changes):
    """What a ComfyUI answers to a run that saves one file."""
    status = {"completed": True, "status_str": "success", "messages": []} | changes
    entry = {"status": status, "outputs": {"9": {"images": [{"filename": file}], "animated": [False]}}}
    return {
        "/system_stats": (200, b"{}"), "/prompt": (200, b'{"prompt_id": "1"}'),
        "/history": (200, json.dumps({"1": entry}).encode()), "/view": (200, b"bytes"),
    }  # fmt: skip


def test_files_are_written_into_the_folder_alone(runner, twin, some_server, tmp_path, capsys):
    server = some_server(answer_all("../../outside.png"))
    assert runner.main([twin, "--server", server, "--output", str(tmp_path / "in" / "here")]) == 0
    assert [path.name for path in tmp_path.rglob("*.png")] == ["9_outside.png"]
    assert (
        tmp_path / "in" / "here" / "9_outside.png"
    ).read_bytes() == b"bytes" and "9_outside.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"/view": (404, b"")},
            "Expected the file 'a.png' of node 9 from http://{server}, got HTTP status 404 Not Found.",
        ),
        (
            {"/history": (500, b"")},
            "Expected HTTP status 200 from http://{server}/history/1, got 500 Internal Server Error",
        ),
        (
            {"/history": (200, b"<html>")},
            "http://{server}/history/1, got something else. Check that a ComfyUI runs there.",
        ),
        ({"/history": (200, b"[]")}, "http://{server}/history/1, got another value"),
        ({"/history": (200, b'{"1": {"status": {"status_str": "error"}}}')}, "The run was interrupted."),
        ({"/history": (200, b'{"1": {}}')}, "Expected the run to end within 1 s, got no end."),
    ],
)
def test_what_is_missing_of_an_answer_is_said_with_the_address(
    runner, twin, some_server, tmp_path, capsys, changes, said
):
    server = some_server({**answer_all("a.png"), **changes})
    assert runner.main([twin, "--server", server, "--output", str(tmp_path), "--timeout", "1"]) == 1
    assert said.replace("{server}", server) in capsys.readouterr().err


def test_a_server_that_hangs_up_is_said_with_its_address(runner, twin, capsys):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"

        def hang_up():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                asked = connection.recv(65536)
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}" if b"system_stats" in asked else b""
                )
                connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        assert runner.main([twin, "--server", address]) == 1
        assert f"Expected ComfyUI at http://{address}, got no answer (" in capsys.readouterr().err
        listening.shutdown(socket.SHUT_RDWR)
