"""Client for a ComfyUI server over HTTP: upload an image, queue a graph, fetch the saved files.

Standard library only. `workflows/run.py` is the stand-alone script for one graph; this module serves a loop
over thousands of images.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping
from typing import Any

PATIENCE = 60  # timeout of one request, in seconds
POLL = 0.2  # seconds between two polls of the history
QUOTED = 200  # characters of an unexpected response in an error message


class RunFailed(ValueError):
    """A node failed on this image, or its output cannot be used; other images may succeed."""


class Server:
    """One ComfyUI server.

    OSError: unreachable or not a ComfyUI; ValueError: the graph was refused; RunFailed: a run failed.
    """

    def __init__(self, url: str, *, seconds: float = 600):
        self.url, self.seconds = (url if "://" in url else f"http://{url}").rstrip("/"), seconds

    def get(self, path: str) -> bytes:
        status, body = self._ask(urllib.request.Request(self.url + path))
        if status != 200:
            raise self._refusal(path, status, body)
        return body

    def upload(self, name: str, data: bytes) -> None:
        """Upload a PNG into the input folder, replacing a file of the same name."""
        border = uuid.uuid4().hex
        fields = f'--{border}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'
        head = (
            f'--{border}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            'Content-Type: image/png\r\n\r\n'
        )
        body = fields.encode() + head.encode() + data + f"\r\n--{border}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={border}"}
        status, response = self._ask(urllib.request.Request(self.url + "/upload/image", body, headers))
        if status != 200:
            raise self._refusal("/upload/image", status, response)

    def run(self, graph: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by node id, as ComfyUI's history has them."""
        number = self._queue(graph)
        deadline = time.monotonic() + self.seconds
        while time.monotonic() < deadline:
            path = f"/history/{number}"
            entry = self._read(path, self.get(path)).get(number)
            status = entry.get("status") if isinstance(entry, dict) else None
            if isinstance(status, dict) and status.get("completed"):
                outputs = entry.get("outputs")
                return outputs if isinstance(outputs, dict) else {}
            if isinstance(status, dict) and status.get("status_str") == "error":
                raise RunFailed(explain_failure(status.get("messages")))
            time.sleep(POLL)
        raise RunFailed(
            f"ComfyUI at {self.url} did not end the run within {self.seconds:g} s; increase --timeout"
        )

    def _queue(self, graph: Mapping[str, Any]) -> str:
        body = json.dumps({"prompt": graph, "client_id": uuid.uuid4().hex}).encode()
        request = urllib.request.Request(self.url + "/prompt", body, {"Content-Type": "application/json"})
        status, response = self._ask(request)
        if status not in (200, 400):  # 400: ComfyUI refuses the graph, with the reasons
            raise self._refusal("/prompt", status, response)
        answer = self._read("/prompt", response)
        # ComfyUI runs the valid part of a graph: one map would silently be missing from the whole dataset
        if not isinstance(answer.get("prompt_id"), str) or answer.get("node_errors"):
            raise ValueError(
                f"Expected a workflow that ComfyUI accepts, got: {explain_refusal(graph, answer)}"
            )
        return answer["prompt_id"]

    def fetch(self, file: Mapping[str, str]) -> bytes:
        """A file listed in a history; RunFailed if the server does not have it."""
        named = {"subfolder": "", "type": "output", **file}
        path = "/view?" + urllib.parse.urlencode(
            {key: named[key] for key in ("filename", "subfolder", "type")}
        )
        status, body = self._ask(urllib.request.Request(self.url + path))
        if status == 404:
            raise RunFailed(
                f"{self.url} does not have the file {named['filename']!r} that the workflow saved"
            )
        if status != 200:
            raise self._refusal(path, status, body)
        return body

    def _ask(self, request: urllib.request.Request) -> tuple[int, bytes]:
        """HTTP status and body of the response."""
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise OSError(
                f"Expected a ComfyUI at {self.url}, got no answer ({reason}). Start one, or give --server "
                "its address."
            ) from error

    def _read(self, path: str, body: bytes) -> dict[str, Any]:
        """A JSON object; OSError if the response is not ComfyUI's."""
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise OSError(
                f"Expected a JSON object from {self.url}{path}, got {quote(body)}. Give --server the address "
                "of a ComfyUI."
            )
        return answer

    def _refusal(self, path: str, status: int, body: bytes) -> OSError:
        where = path.partition("?")[0]
        return OSError(
            f"Expected HTTP status 200 from {self.url}{where}, got {status} ({quote(body)}). Look into the "
            "server's log, or give --server the address of a ComfyUI."
        )


def quote(body: bytes) -> str:
    """The beginning of a response, for error messages."""
    text = " ".join(body[:2000].decode(errors="replace").split())
    return repr(text[:QUOTED]) if text else "nothing"


def explain_refusal(graph: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """ComfyUI's validation errors of a graph in one line."""
    error, nodes = answer.get("error"), answer.get("node_errors")
    reasons = (
        [str(error.get("message", "no reason given")) if isinstance(error, dict) else str(error)]
        if error
        else []
    )
    for node, fault in nodes.items() if isinstance(nodes, dict) else ():
        kind = graph.get(node, {}).get("class_type", "?")
        for each in fault.get("errors", ()) if isinstance(fault, dict) else ():
            message = f"{each.get('message', '')} {each.get('details', '')}".rstrip()
            reasons.append(f"node {node} ({kind}): {message}")
    return (
        "; ".join(reasons or ["no reason given"])
        + ". Set its inputs with --set, for example to the models that you have."
    )


def explain_failure(messages: Any) -> str:
    """The error message of the failing node."""
    for message in messages if isinstance(messages, list) else ():
        kind, data = message if isinstance(message, list) and len(message) == 2 else ("", None)
        if kind == "execution_error" and isinstance(data, dict):
            reason = str(data.get("exception_message", "no reason given")).strip()
            return f"node {data.get('node_id', '?')} ({data.get('node_type', '?')}): {reason}"
    return "the run was interrupted"
