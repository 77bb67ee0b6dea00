"""A ComfyUI over HTTP, as far as building a dataset needs it: upload a picture, queue a graph, fetch what it saved. Standard library only.

`workflows/run.py` is for people, runs one graph and stands alone; this serves a loop over thousands of pictures.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping
from typing import Any

PATIENCE = 60  # seconds for one answer
POLL = 0.2  # seconds between two questions after a run


class RunFailed(ValueError):
    """This picture cannot be read, or a node failed on it; others may go through."""


class Server:
    """One ComfyUI. OSError says that it cannot be reached, ValueError that it does not take the graph, RunFailed that a run failed."""

    def __init__(self, url: str, *, seconds: float = 600):
        self.url, self.seconds = url.rstrip("/"), seconds

    def get(self, path: str) -> bytes:
        return self._ask(urllib.request.Request(self.url + path))

    def upload(self, name: str, data: bytes) -> None:
        """A PNG into the input folder; one of this name is replaced."""
        border = uuid.uuid4().hex
        fields = f'--{border}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'
        head = f'--{border}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
        body = fields.encode() + head.encode() + data + f"\r\n--{border}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={border}"}
        self._ask(urllib.request.Request(self.url + "/upload/image", body, headers))

    def run(self, graph: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by node id, as ComfyUI's history has them."""
        body = json.dumps({"prompt": graph, "client_id": uuid.uuid4().hex}).encode()
        request = urllib.request.Request(self.url + "/prompt", body, {"Content-Type": "application/json"})
        try:
            answer = json.loads(self._ask(request))
        except urllib.error.HTTPError as error:
            answer = json.loads(error.read())
        # ComfyUI runs what is sound of a graph: a map would be missing everywhere, in silence
        if "prompt_id" not in answer or answer.get("node_errors"):
            raise ValueError(f"ComfyUI refuses the workflow: {explain_refusal(graph, answer)}")
        number = answer["prompt_id"]
        deadline = time.monotonic() + self.seconds
        while time.monotonic() < deadline:
            entry = json.loads(self.get(f"/history/{number}")).get(number)
            if entry and entry["status"]["completed"]:
                return entry["outputs"]
            if entry and entry["status"]["status_str"] == "error":
                raise RunFailed(explain_failure(entry["status"]["messages"]))
            time.sleep(POLL)
        raise RunFailed(f"ComfyUI did not end the run within {self.seconds:g} s; give --timeout more")

    def fetch(self, file: Mapping[str, str]) -> bytes:
        """A file that a history names."""
        return self.get("/view?" + urllib.parse.urlencode({key: file[key] for key in ("filename", "subfolder", "type")}))

    def _ask(self, request: urllib.request.Request) -> bytes:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.read()
        except urllib.error.HTTPError:
            raise
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise OSError(f"No ComfyUI answers at {self.url} ({reason}); start one, or give --server its address.") from error


def explain_refusal(graph: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """ComfyUI's complaints about a graph in one line."""
    said = [answer["error"].get("message", "no reason given")] if answer.get("error") else []
    for node, fault in (answer.get("node_errors") or {}).items():
        kind = graph.get(node, {}).get("class_type", "?")
        said += [f"node {node} ({kind}): {error['message']} {error.get('details', '')}".rstrip() for error in fault["errors"]]
    return "; ".join(said) + "; set its inputs with --set, for example to the models that you have."


def explain_failure(messages: list) -> str:
    """What the failing node said."""
    for kind, data in messages:
        if kind == "execution_error":
            return f"node {data['node_id']} ({data['node_type']}): {data['exception_message'].strip()}"
    return "the run was interrupted"
