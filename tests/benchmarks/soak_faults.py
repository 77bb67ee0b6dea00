"""Runs that are cancelled, and runs that meet a fault. Each says how it ended;
AssertionError where that is not as it should be.
"""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

# a client of ComfyUI's websocket that reads until it is killed; a line when it is joined, and one at the
# first bytes of progress
LISTENER = """
import os, socket, sys
host, port, client = sys.argv[1], int(sys.argv[2]), sys.argv[3]
talk = socket.create_connection((host, port))
key = "c29hayBzb2FrIHNvYWshIQ=="
talk.sendall(f"GET /ws?clientId={client} HTTP/1.1\\r\\nHost: {host}:{port}\\r\\n"
             f"Upgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
             f"Sec-WebSocket-Key: {key}\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n".encode())
seen = b""
for wanted in (b"101 Switching", b'"progress"'):
    while wanted not in seen:
        seen += talk.recv(65536)
    print(wanted.decode(), flush=True)
while talk.recv(65536):
    pass
"""
MODELS = {  # what our loaders read, by workflow
    "joint_klein_9b": "diffusion_models/flux_rgbd_9b_v2.safetensors",
    "intrinsic_sd21": "vae/intrinsic_vae.safetensors",
    "intrinsic_sdxl": "loras/intrinsic_lora_sdxl.safetensors",
}
SAVING = ("depth_to_blender", "joint_klein_9b", "build_intrinsic_dataset")  # have a Save Depth
READING = ("image_to_depth", "build_intrinsic_dataset")
BLOCKER = "joint_image_depth"


def explain(entry, base="-"):
    """What the failing node said, the folder `base` left out."""
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_error":
            said = data["exception_message"].strip().replace(f"{base}/", "")
            return (
                f"node {data['node_id']} ({data['node_type']}): "
                f"{data['exception_type'].split('.')[-1]}: {said[:400]}"
            )
    return "nothing"


class Faults:
    """`graphs` and `client` with a seeded `random`;
    pictures lie in the input folder under the names that `picture` gives.
    """

    def __init__(self, client, graphs, random, write_picture):
        self.client, self.graphs, self.random, self.write_picture = client, graphs, random, write_picture

    @contextlib.contextmanager
    def busy(self):
        """ComfyUI has a long run, so that what is queued now has to wait. It is cancelled at the end."""
        name = BLOCKER if BLOCKER in self.graphs.whole else self.graphs.names[0]
        run = self.client.queue(self.graphs.make(name, 1, "soak.png", steps=5000))
        self.client.wait_until_running(run)
        yield
        self.stop(run)

    def stop(self, run):
        """Interrupt a run that goes on; seconds until it ended.
        A press before core has begun the run is lost in core, hence again.
        """
        pressed = time.monotonic()
        self.client.interrupt(run)
        ended, entry = self.client.end(run, again=lambda: self.client.interrupt(run))
        assert ended == "interrupted", f"a cancelled run ended with {ended}: {explain(entry)}"
        return time.monotonic() - pressed

    # cancelled ----------------------------------------------------------------------------------------------

    def cancel_queued(self, graph):
        """Deleted from the queue behind another: it never runs."""
        with self.busy():
            run = self.client.queue(graph)
            time.sleep(self.random.uniform(0, 0.3))
            assert self.client.is_waiting(run)
            self.client.post("/queue", {"delete": [run]})
            assert not self.client.is_waiting(run)
        assert self.client.find(run) is None, "a run deleted from the queue ran"
        return {"ended": "deleted from the queue"}

    def cancel_started(self, graph):
        """Interrupted as soon as it is no longer in the queue: while models load and words are encoded."""
        run = self.client.queue(graph)
        self.client.wait_until_running(run)
        time.sleep(self.random.uniform(0, 0.1))
        return {"ended": "interrupted", "seconds": round(self.stop(run), 2)}

    def cancel_later(self, graph):
        """Interrupted at any moment of two seconds, mostly while it samples."""
        run = self.client.queue(graph)
        self.client.wait_until_running(run)
        time.sleep(self.random.uniform(0.2, 2))
        return {"ended": "interrupted", "seconds": round(self.stop(run), 2)}

    # faults -------------------------------------------------------------------------------------------------

    def missing_when_queued(self, name, seed):
        """The picture is not there: refused at the door."""
        graph = self.graphs.make(name, seed, "not_there.png")
        try:
            self.client.queue(graph)
        except self.client.runner.RunError as error:
            return {"ended": "refused", "said": str(error)}
        raise AssertionError("a graph whose picture is missing was taken")

    def missing_when_run(self, name, seed):
        """The picture is there when the graph is queued and gone when it is run."""
        picture = self.write_picture("soak_gone.png", seed)
        with self.busy():
            run = self.client.queue(self.graphs.make(name, seed, picture.name))
            picture.unlink()
        return self.expect_error(run)

    def full_disk(self, name, seed, left):
        """No page but `left` bytes to save to."""
        with self.filled(left):
            found = self.expect_error(
                self.client.queue(self.graphs.make(name, seed, self.write_picture("soak.png", seed).name))
            )
            found["left behind"] = [
                f"{path.name}, {path.stat().st_size} bytes" for path in self.client.files()
            ]
        return found

    @contextlib.contextmanager
    def filled(self, left):
        """The disk of the output folder is full; without a mount of its own,
        no file may grow beyond `left` bytes.
        """
        if not self.client.mounted:
            import resource

            old = resource.prlimit(self.client.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(self.client.pid, resource.RLIMIT_FSIZE, (left, old[1]))
            yield
            resource.prlimit(self.client.pid, resource.RLIMIT_FSIZE, old)
            return
        filler = self.client.output / "filler"
        free = os.statvfs(self.client.output)
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - left)
        yield
        filler.unlink()

    def killed_client(self, name, seed):
        """Whoever queued the run dies while it samples: it goes on to its end."""
        host, port = self.client.server.url.removeprefix("http://").split(":")
        call = [sys.executable, "-c", LISTENER, host, port, f"soak-{seed}"]
        with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as listener:
            try:
                assert "101" in listener.stdout.readline()
                run = self.client.queue(
                    self.graphs.make(name, seed, "soak.png", steps=40), client=f"soak-{seed}"
                )
                assert "progress" in listener.stdout.readline()
            finally:
                listener.kill()
        over = self.client.find(run) is not None
        ended, entry = self.client.end(run)
        assert ended == "success" and self.client.read_results(entry), (
            f"it ended with {ended}: {explain(entry)}"
        )
        return {"ended": ended, "said": "killed when it was over" if over else "killed while it ran"}

    def damaged_weights(self, name, seed, way):
        """A file under our loader is cut off, or a page of a server instead; put back afterwards as it was.
        """
        path = self.client.base / "models" / MODELS[name]
        self.client.forget()  # what is loaded would not be read again
        whole, status = path.read_bytes(), path.stat()
        bad = {
            "cut off": whole[: len(whole) // 2],
            "a web page": b"<!DOCTYPE html><html><body>Not found</body></html>",
        }[way]
        try:
            replace(path, bad)
            graph = self.graphs.make(name, seed, "soak.png")
            try:
                found = self.expect_error(self.client.queue(graph))
            except self.client.runner.RunError as error:
                found = {"ended": "refused", "said": str(error)}
        finally:
            replace(path, whole, status)
        assert path.name in found["said"], f"the message does not name {path.name}: {found['said']}"
        return {**found, "way": way}

    def expect_error(self, run):
        ended, entry = self.client.end(run)
        assert ended == "error", f"a run with a fault ended with {ended}"
        return {"ended": ended, "said": explain(entry, self.client.base)}


def replace(path: Path, content: bytes, status=None):
    """Another file under the same name, as a download makes it: what has the old one open keeps it."""
    other = path.with_suffix(".part")
    other.write_bytes(content)
    if status:
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
