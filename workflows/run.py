#!/usr/bin/env python3
"""Runs a workflow in API form without a browser: joins a running ComfyUI or starts one, queues, waits, collects the files.

    python workflows/run.py workflows/api/joint_image_depth.json --comfyui ~/comfy/ComfyUI --cpu --output pictures
    python workflows/run.py workflows/api/joint_image_depth.json --server http://127.0.0.1:8188 --set 6.seed=7 --set 3.text="a green cone"

Standard library only. Exit status: 0 when every node ran, 1 when the run failed, 2 when the question made no sense.
"""

from __future__ import annotations

import argparse
import codecs
import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path


class RunError(RuntimeError):
    """A failed run; the message names the node and the reason."""

    status = 1


class QuestionError(RunError):
    """Invalid arguments or an invalid workflow; nothing was run."""

    status = 2


class Server:
    """HTTP client of a ComfyUI server."""

    def __init__(self, url: str):
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        try:
            parts = urllib.parse.urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # a port that is not a number
            usable = False
        if not usable:
            raise QuestionError(
                f"Expected the address of a server, such as http://127.0.0.1:8188, got {url!r}. Correct "
                "--server."
            )

    def get(self, path: str) -> bytes:
        return self.ask(urllib.request.Request(self.url + path))

    def ask(self, request: urllib.request.Request) -> bytes:
        """The body of the response; HTTPError for an error status, RunError if there is no valid response."""
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError:
            raise
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise RunError(
                f"Expected ComfyUI at {self.url}, got no answer ({reason}). Start one, or give --server its "
                "address."
            ) from error

    def get_json(self, path: str) -> dict:
        try:
            answer = json.loads(self.get(path))
        except urllib.error.HTTPError as error:
            status = f"{error.code} {error.reason}"
            raise RunError(
                f"Expected HTTP status 200 from {self.url}{path}, got {status}. Check that a ComfyUI runs "
                "there."
            ) from error
        except (ValueError, RecursionError) as error:
            raise RunError(
                f"Expected JSON from {self.url}{path}, got something else. Check that a ComfyUI runs there."
            ) from error
        if not isinstance(answer, dict):
            raise RunError(
                f"Expected a JSON object from {self.url}{path}, got another value. Check that a ComfyUI "
                "runs there."
            )
        return answer

    def wait_until_up(self, process: subprocess.Popen | None, seconds: float) -> None:
        """Return once the server responds; RunError if its process ends first or after `seconds`."""
        deadline, waiting = time.monotonic() + seconds, False
        while time.monotonic() < deadline:
            if process is not None and process.poll() is not None:
                raise RunError(
                    f"Expected ComfyUI to start, got an end with status {process.returncode}. Read its log."
                )
            try:
                self.get("/system_stats")
                return
            except (OSError, RunError):
                if process is None and not waiting:
                    waiting = True
                    say(
                        f"No answer from ComfyUI at {self.url} yet; waiting up to {seconds:.0f} s for it to "
                        "start (--start-timeout).",
                        sys.stderr,
                    )
                time.sleep(0.3)
        raise RunError(
            f"Expected an answer of ComfyUI at {self.url} within {seconds:.0f} s, got none. Raise "
            "--start-timeout."
        )

    def queue(self, graph: dict) -> str:
        """Queue a graph; returns its prompt id. RunError lists the errors of ComfyUI's validation."""
        body = json.dumps({"prompt": graph, "client_id": uuid.uuid4().hex}).encode()
        request = urllib.request.Request(self.url + "/prompt", body, {"Content-Type": "application/json"})
        try:
            answer = json.loads(self.ask(request))
            run, faults = str(answer["prompt_id"]), list_faults(graph, answer)
        except urllib.error.HTTPError as error:
            raise RunError(explain_refusal(graph, error.read(), f"{error.code} {error.reason}")) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(
                f"Expected a run's number from {self.url}/prompt, got something else. Check that a ComfyUI "
                "runs there."
            ) from error
        if faults:
            raise RunError(
                "\n".join(
                    [
                        "ComfyUI would run only the valid part of this graph, so nothing was collected.",
                        *faults,
                    ]
                )
            )
        return run

    def wait(self, run: str, seconds: float) -> dict:
        """The outputs by node id of a finished run; RunError with the failing node's message."""
        deadline, pause = time.monotonic() + seconds, 0.01
        while time.monotonic() < deadline:
            entry = self.get_json(f"/history/{run}").get(run)
            status = entry.get("status") if isinstance(entry, dict) else None
            if isinstance(status, dict) and status.get("completed"):
                return entry.get("outputs") or {}
            if isinstance(status, dict) and status.get("status_str") == "error":
                raise RunError(explain_failure(status.get("messages") or []))
            time.sleep(pause)
            pause = min(2 * pause, 0.2)
        raise RunError(f"Expected the run to end within {seconds:.0f} s, got no end. Raise --timeout.")

    def collect(self, outputs: dict, folder: Path) -> list[Path]:
        """Download all files of the outputs; returns the written paths, in the order of node ids."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for node, output in sorted(outputs.items()):
            for entry in (
                item
                for items in output.values()
                for item in items
                if isinstance(item, dict) and "filename" in item
            ):
                path = folder / f"{node}_{Path(entry['filename']).name}"
                named = {"subfolder": "", "type": "output", **entry}
                query = urllib.parse.urlencode({key: named[key] for key in ("filename", "subfolder", "type")})
                try:
                    data = self.get(f"/view?{query}")
                except urllib.error.HTTPError as error:
                    what = f"the file {entry['filename']!r} of node {node} from {self.url}"
                    raise RunError(
                        f"Expected {what}, got HTTP status {error.code} {error.reason}."
                    ) from error
                path.write_bytes(data)
                paths.append(path)
        return paths


def explain_refusal(graph: dict, body: bytes, status: str) -> str:
    """One line per error of ComfyUI's validation.

    A body that is not ComfyUI's, such as a proxy's page, is quoted in part.
    """
    try:
        answer = json.loads(body)
        lines = [answer["error"]["message"]]
    except (ValueError, KeyError, TypeError):
        message = " ".join(body.decode(errors="replace").split())
        return f"The graph was refused with HTTP status {status}" + (f": {message[:300]}" if message else ".")
    return "\n".join([*lines, *list_faults(graph, answer)])


def list_faults(graph: dict, answer: dict) -> list[str]:
    """One line per error of a node in ComfyUI's response."""
    lines, nodes = [], answer.get("node_errors")
    for node, fault in nodes.items() if isinstance(nodes, dict) else ():
        kind = graph.get(node, {}).get("class_type", "?")
        lines += [
            f"node {node} ({kind}): {error['message']} {error.get('details', '')}".rstrip()
            for error in fault["errors"]
        ]
    return lines


def explain_failure(messages: list) -> str:
    """The error message of the failing node."""
    for kind, data in messages:
        if kind == "execution_error":
            message = str(data.get("exception_message", "no reason given")).strip()
            return f"node {data.get('node_id', '?')} ({data.get('node_type', '?')}): {message}"
    return "The run was interrupted."


def start_comfyui(folder: Path, *options: str, log) -> tuple[Server, subprocess.Popen]:
    """Start ComfyUI on a free local port with this Python; the caller ends the process."""
    if not (folder / "main.py").is_file():
        raise QuestionError(
            f"Expected a ComfyUI folder, got {folder}, which has no main.py. Correct --comfyui."
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    call = [
        sys.executable,
        "main.py",
        "--listen",
        "127.0.0.1",
        "--port",
        str(port),
        "--disable-auto-launch",
        *options,
    ]
    process = subprocess.Popen(
        call, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
    )
    return Server(f"http://127.0.0.1:{port}"), process


def show_path(path: Path) -> str:
    """A path as printable text, with bytes that are not UTF-8 as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def say(line: str, stream) -> None:
    """Print a line, with characters that the stream's encoding lacks as \\uNNNN."""
    encoding = stream.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def read_text(path: Path) -> str:
    """A UTF-8 file with or without a byte order mark; QuestionError for any other encoding."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise QuestionError(
            f"Expected to read {show_path(path)}, got an error ({error.strerror}). Give a workflow in API "
            "form."
        ) from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise QuestionError(f"Expected UTF-8 text in {show_path(path)}, got UTF-16. Save it as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        fault = f"byte 0x{data[error.start]:02x} in line {line}"
        raise QuestionError(
            f"Expected UTF-8 text in {show_path(path)}, got {fault}. Save it as UTF-8."
        ) from error


def read_graph(path: Path) -> dict:
    """A workflow in API form; QuestionError for the UI form that the browser saves."""
    text, name = read_text(path), show_path(path)
    try:
        graph = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise QuestionError(
            f"Expected JSON in {name}, got an error ({error}). Give a workflow in API form."
        ) from error
    if isinstance(graph, dict) and "nodes" in graph:
        raise QuestionError(
            f"Expected a workflow in API form, got {name} in the form that the browser saves. Use the one "
            f"in {path.parent / 'api'}."
        )
    nodes = [
        node if isinstance(node, dict) else {}
        for node in (graph.values() if isinstance(graph, dict) else [None])
    ]
    if not nodes or not all(
        isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict) for node in nodes
    ):
        raise QuestionError(
            f"Expected a workflow in API form in {name}, nodes by number, each with class_type and inputs, "
            "got another JSON. Export it with Export (API)."
        )
    return graph


def change_inputs(graph: dict, changes: list[str]) -> dict:
    """Apply NODE.INPUT=VALUE; a value is parsed as JSON if it is valid JSON, and is text otherwise."""
    for change in changes:
        target, equals, value = change.partition("=")
        node, _, name = target.partition(".")
        if not equals:
            raise QuestionError(f"Expected NODE.INPUT=VALUE for --set, got {change!r}. Correct it.")
        if node not in graph or name not in graph[node]["inputs"]:
            known = ", ".join(f"{key}.{name}" for key, entry in graph.items() for name in entry["inputs"])
            raise QuestionError(
                f"Expected one of the inputs {known} for --set, got {target!r}. Choose one of them."
            )
        try:
            graph[node]["inputs"][name] = json.loads(value)
        except (ValueError, RecursionError):
            graph[node]["inputs"][name] = value
    return graph


def run(
    graph: dict, server: Server, process: subprocess.Popen | None, options: argparse.Namespace
) -> list[Path]:
    server.wait_until_up(process, options.start_timeout)
    began = time.monotonic()
    outputs = server.wait(server.queue(graph), options.timeout)
    print(f"ran in {time.monotonic() - began:.1f} s")
    return server.collect(outputs, options.output)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workflow", type=Path, help="a workflow in API form")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--server", default="http://127.0.0.1:8188", help="a running ComfyUI (default: %(default)s)"
    )
    where.add_argument(
        "--comfyui",
        type=Path,
        help="start the ComfyUI in this folder, with this Python, and end it afterwards",
    )
    parser.add_argument("--cpu", action="store_true", help="with --comfyui: start it without a graphics card")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs"),
        help="folder for the files made (default: %(default)s)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="change an input; may be repeated",
    )
    parser.add_argument(
        "--timeout", type=float, default=3600, help="seconds for the run (default: %(default)s)"
    )
    parser.add_argument(
        "--start-timeout", type=float, default=180, help="seconds for ComfyUI to start (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.cpu and not options.comfyui:
        parser.error(
            "Expected --comfyui FOLDER beside --cpu, which is for a ComfyUI that is started here, got none. "
            "Add it; a running one keeps its device."
        )
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    process = None
    try:
        graph = change_inputs(read_graph(options.workflow), options.set)
        server = Server(options.server)
        if options.comfyui:
            flags = ["--cpu"] if options.cpu else []
            server, process = start_comfyui(options.comfyui, *flags, log=sys.stderr)
        for path in run(graph, server, process, options):
            say(show_path(path), sys.stdout)
    except (RunError, OSError) as error:
        say(str(error), sys.stderr)
        return getattr(error, "status", 1)
    finally:
        if process is not None:
            process.terminate()
            process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
