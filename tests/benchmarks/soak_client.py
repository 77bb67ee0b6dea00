"""A ComfyUI of one's own, started small, and what a program asks of it."""

import hashlib
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

TMPFS = "24m"


class Client:
    """A running ComfyUI with its folders; `pid` is its process."""

    def __init__(self, runner, comfyui, base, flags=()):
        self.runner, self.base, self.output = runner, base, base / "disk"
        self.output.mkdir()
        self.mounted = self._mount()
        reader, writer = os.pipe()  # a limit on the size of files must not reach the log
        self.log = base / "log.txt"
        self.copier = threading.Thread(target=self._copy_log, args=(reader,), daemon=True)
        self.copier.start()
        (self.output / "output").mkdir()
        options = ["--cpu", "--base-directory", str(base), "--output-directory", str(self.output / "output")]
        options += [
            "--temp-directory", str(self.output), "--database-url", "sqlite:///:memory:",
            "--disable-api-nodes", *flags,
        ]
        self.server, self.process = runner.start_comfyui(comfyui, *options, log=writer)
        os.close(writer)
        self.pid = self.process.pid
        self.folders = {
            "output": self.output / "output",
            "temp": self.output / "temp",
            "input": base / "input",
        }

    def _mount(self):
        """A small file system in memory for what runs save; False where that is not permitted."""
        call = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS}", "soak", str(self.output)]
        return (
            bool(shutil.which("mount"))
            and subprocess.run(call, capture_output=True, check=False).returncode == 0
        )

    def _copy_log(self, reader):
        with open(reader, "rb") as source, self.log.open("wb") as target:
            while piece := source.read1(65536):
                target.write(piece)
                target.flush()

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.copier.join(timeout=10)
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.output)], check=True)

    def post(self, path, value):
        body = json.dumps(value).encode()
        request = urllib.request.Request(self.server.url + path, body, {"Content-Type": "application/json"})
        return urllib.request.urlopen(request, timeout=60).read()

    def queue(self, graph, client="soak"):
        """The id of the run. The runner's RunError if it is refused."""
        body = json.dumps({"prompt": graph, "client_id": client}).encode()
        request = urllib.request.Request(
            self.server.url + "/prompt", body, {"Content-Type": "application/json"}
        )
        try:
            answer = json.loads(urllib.request.urlopen(request, timeout=60).read())
        except urllib.error.HTTPError as error:
            raise self.runner.RunError(
                self.runner.explain_refusal(graph, error.read(), str(error.code))
            ) from error
        if answer["node_errors"]:
            raise self.runner.RunError("\n".join(self.runner.list_faults(graph, answer)))
        return answer["prompt_id"]

    def is_waiting(self, run):
        return run in [entry[1] for entry in self.server.get_json("/queue")["queue_pending"]]

    def wait_until_running(self, run, seconds=120):
        """Return when it runs; or has ended, which a short one may have."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if run in [entry[1] for entry in self.server.get_json("/queue")["queue_running"]] or self.find(
                run
            ):
                return
            time.sleep(0.01)
        raise AssertionError(f"the run was not taken up within {seconds} s")

    def find(self, run):
        """The history's entry of a run that is over."""
        return self.server.get_json(f"/history/{run}").get(run)

    def end(self, run, seconds=300, again=None):
        """(success, interrupted or error, the entry), when it is over;
        `again` is called every five seconds until then.
        """
        began = called = time.monotonic()
        while not (entry := self.find(run)):
            now = time.monotonic()
            if now - began > seconds or self.process.poll() is not None:
                raise AssertionError(
                    f"the run did not end within {seconds} s; ComfyUI's status is {self.process.poll()}"
                )
            if again and now - called > 5:
                called = now
                again()
            time.sleep(0.03)
        kinds = [kind for kind, _ in entry["status"]["messages"]]
        faulty = (
            "error"
            if "execution_error" in kinds
            else "interrupted"
            if "execution_interrupted" in kinds
            else None
        )
        return faulty or ("success" if entry["status"]["completed"] else "error"), entry

    def interrupt(self, run):
        self.post("/interrupt", {"prompt_id": run})

    def files(self):
        """What lies in the folders that runs write to."""
        return sorted(
            path for kind in ("output", "temp") for path in self.folders[kind].rglob("*") if path.is_file()
        )

    def forget(self):
        """Before its next run ComfyUI unloads all models and drops its cache of results."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    def clear(self):
        """Take away what runs wrote, and their history."""
        for path in self.files():
            path.unlink()
        self.post("/history", {"clear": True})

    def cached_nodes(self, entry):
        """Nodes that core did not run again, as the last graph had them alike;
        what they showed is not among the results.
        """
        return set(dict(entry["status"]["messages"])["execution_cached"]["nodes"])

    def read_results(self, entry):
        """A digest of each file that a run saved, by node and place in the node's list:
        pixels, arrays, or the bytes.
        """
        found, cached = {}, self.cached_nodes(entry)  # what a cached node once saved is deleted
        for node, output in entry["outputs"].items():
            if node in cached:
                continue
            listed = [
                item
                for items in output.values()
                for item in items
                if isinstance(item, dict) and "filename" in item
            ]
            for index, item in enumerate(listed):
                path = self.folders[item["type"]] / item["subfolder"] / item["filename"]
                found[f"{node}.{index}{path.suffix}"] = digest(path)
        return found


def digest(path: Path):
    """Of the pixels of a picture and the arrays of an NPZ, else of the file."""
    import numpy as np
    from PIL import Image

    found = hashlib.sha256()
    if path.suffix == ".png":
        with Image.open(path) as picture:
            found.update(f"{picture.mode} {picture.size}".encode() + picture.tobytes())
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            for name in sorted(arrays.files):
                found.update(
                    f"{name} {arrays[name].dtype} {arrays[name].shape}".encode() + arrays[name].tobytes()
                )
    else:
        found.update(path.read_bytes())
    return found.hexdigest()
