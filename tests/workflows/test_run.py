"""The headless runner: what it is asked, what it is answered, and the exit status of each."""

import json
import re
import shlex
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


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
        (["--set", "6.sead=3"], "There is no input '6.sead' to set; this graph has"),
        (["--set", "6.seed"], "'6.seed' was to be set; wanted NODE.INPUT=VALUE"),
        (["--server", "ftp://127.0.0.1:21"], "wanted one such as http://127.0.0.1:8188"),
        (["--server", "127.0.0.1:no"], "'127.0.0.1:no' is no address of a server"),
        (["--server", ""], "is no address of a server"),
        (["--comfyui", "nowhere"], "nowhere is no ComfyUI: it has no main.py"),
    ],
)
def test_a_question_without_sense_ends_with_2(runner, twin, capsys, arguments, said):
    assert runner.main([twin, *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "graph.json cannot be read"),
        ("{", "graph.json is not JSON"),
        ("[]", "graph.json is no workflow in API form"),
        ('{"6": {"class_type": "KSampler"}}', "graph.json is no workflow in API form"),
        ('{"nodes": [], "links": []}', "is a workflow as the browser shows it; this runner takes the API form"),
    ],
)
def test_a_file_that_is_no_graph_ends_with_2(runner, tmp_path, capsys, content, said):
    if content is not None:
        (tmp_path / "graph.json").write_text(content)
    assert runner.main([str(tmp_path / "graph.json")]) == 2
    assert said in capsys.readouterr().err


def test_an_option_that_would_do_nothing_is_refused(runner, twin, capsys):
    with pytest.raises(SystemExit) as ended:
        runner.main([twin, "--cpu"])
    assert ended.value.code == 2 and "add --comfyui FOLDER" in capsys.readouterr().err


def test_no_server_is_said_with_its_address(runner, twin, capsys):
    assert runner.main([twin, "--server", "127.0.0.1:9", "--start-timeout", "0.5"]) == 1
    assert "No ComfyUI answered at http://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "page", "said"),
    [
        (413, "<html>Request\n too large</html>", ": <html>Request too large</html>\n"),
        (502, "", "The graph was refused with HTTP status 502 Bad Gateway."),
        (400, '"no"', 'The graph was refused with HTTP status 400 Bad Request: "no"'),
        (200, "<html>", "/prompt sent something else than a run's number; is that a ComfyUI?"),
        (200, "{}", "/prompt sent something else than a run's number; is that a ComfyUI?"),
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
    assert capsys.readouterr().err == "Prompt outputs failed validation\nnode 6 (KSampler): Value not in list seed: 'x'\n"


def test_a_graph_that_comfyui_takes_in_part_is_no_success(runner, twin, other_server, capsys):
    """Of a graph with several outputs ComfyUI runs the sound ones, with status 200."""
    fault = {"errors": [{"message": "Value not in list", "details": "ckpt_name"}]}
    page = json.dumps({"prompt_id": "1", "number": 1, "node_errors": {"6": fault}})
    assert runner.main([twin, "--server", other_server(200, page)]) == 1
    complaint = "node 6 (KSampler): Value not in list ckpt_name"
    assert capsys.readouterr().err == f"ComfyUI runs only what is sound of this graph, so nothing was collected.\n{complaint}\n"
