"""A thousand tiny runs of the shipped workflows in one ComfyUI: what is left in memory and of handles, and
whether runs stay bit-equal. Those of a megapixel (joyai_*) run where --graphs names them; those without a
seed (vggt_*) do not.

    python tests/benchmarks/soak.py COMFYUI PACK [--runs 1000] [--json FILE] [--log FILE]
    python tests/benchmarks/soak.py COMFYUI PACK --control [--runs 1000] [--json FILE]

Linux only. ComfyUI runs on the CPU with the pack in custom_nodes, small random models under the names of the
big ones, and a file system of 24 MB in memory for what runs save (needs the right to mount; without it the
full disk is a limit on the size of files). Each workflow has a first run; from then on they take turns, each
time with another seed, so that nothing comes out of ComfyUI's cache. Every tenth run is cancelled (deleted
from the queue, interrupted at once, interrupted later), every hundredth meets a fault, and the run after
either is the same workflow's with the seed of its first: every file it saves must be the first's, pixel by
pixel and number by number.

After each run the files are deleted and ComfyUI's history is cleared, which else grows by design to 10,000
runs. Its cache of results is the default one, or that of --classic (what the last graph had) or --lru N (the
last N nodes'). Under the first two another workflow's models are loaded anew.

Then garbage is collected, the C library gives back what it kept, and memory and handles are read in /proc;
"unsettled" is the memory before that. Growth is the median of the last 50 runs against that of the 50 after
the first 50. "objects" are Python's (sys.getallocatedblocks), "tensors" those that core's loader read of
safetensors files, for its own nodes and for the pack's (cumulative), "allocated" the bytes that glibc has
given out: what is in use, without what is merely kept. --control: without the pack, what core does in these
workflows (loads the same small files, encodes words, samples SD2.1, SDXL and PixArt, decodes), without
cancels and faults, for comparison. --mend-safetensors: core reads safetensors files without the library's
leak of 64 bytes a tensor.

Exit status 1 when memory grew by 1 % or more, a handle is left, a run was not bit-equal, or a cancelled or
faulty run ended otherwise than it should.
"""

import argparse
import importlib.util
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

HERE = Path(__file__).resolve().parent
FLAGS = ("--preview-method", "auto")
SETTLE = 13  # seconds after which core has collected garbage
FAULTS = ("missing when queued", "full disk", "killed client", "damaged weights", "missing when run")


def load(path):
    spec = importlib.util.spec_from_file_location(f"soak_{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


process, graphs_of, clients, faults_of, results = (
    load(HERE / f"soak_{name}.py") for name in ("process", "graphs", "client", "faults", "figures")
)


def install(pack, base, control, mend=False):
    """A ComfyUI base directory with the pack and the small models."""
    nodes = base / "custom_nodes"
    (base / "input").mkdir(parents=True)
    nodes.mkdir()
    for name in ("inside_small_bases.py", "inside_small_klein.py", "inside_small_estimators.py"):
        shutil.copy(HERE.parent / "workflows" / name, nodes)
    shutil.copy(HERE / "inside_soak.py", nodes)
    if mend:
        shutil.copy(HERE / "inside_mended_safetensors.py", nodes)
    if not control:
        shutil.copytree(
            pack, nodes / "spatialweave", ignore=shutil.ignore_patterns(".*", "__pycache__", "tests", "docs")
        )
        folder = base / "models" / "diffusion_models"
        load(HERE.parent / "workflows" / "conftest.py").write_small_network(
            folder / "flux_rgbd_9b_v2.safetensors"
        )


class Soak:
    """The runs, one after another, with what was measured after each."""

    def __init__(self, client, graphs, options):
        self.client, self.graphs, self.options = client, graphs, options
        self.random, self.seeds, self.turn = random.Random(0), count(1000), 0
        self.faults = faults_of.Faults(client, graphs, self.random, self.write_picture)
        self.first, self.rows, self.failures, self.occasions = {}, [], [], []
        self.stopped = False
        self.disturbed = None  # the workflow whose last run was cancelled or faulty

    def write_picture(self, name, seed):
        """Noise, as a file of the input folder."""
        import numpy as np
        from PIL import Image

        path = self.client.folders["input"] / name
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path)
        return path

    def run_all(self):
        """Runs, until their number is reached or the program is told to stop;
        one that is stopped early still reports.
        """
        for number in range(1, self.options.runs + 1):
            if self.stopped and len(self.rows) >= 3 * self.options.window:
                break
            began = time.monotonic()
            row = {"run": number, **self.choose(number)}
            row["seconds"] = round(time.monotonic() - began, 3)
            self.client.clear()
            row["unsettled"] = process.read_memory(self.client.pid)["rss"]
            row |= json.loads(self.client.post("/soak/settle", {})) | self.measure()
            self.rows.append(row)
            if self.options.log:
                with self.options.log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            if number % 50 == 0:
                say(
                    f"run {number}: {row['rss'] / 1e6:.1f} MB, {row['handles']} handles, "
                    f"{len(self.failures)} failures"
                )

    def measure(self):
        """What the process holds, once it has closed the connections of this program's last questions."""
        found, deadline = process.measure(self.client.pid, [self.client.base]), time.monotonic() + 1
        while (
            found["handles"] > min((row["handles"] for row in self.rows), default=0)
            and time.monotonic() < deadline
        ):
            time.sleep(0.05)
            found = process.measure(self.client.pid, [self.client.base])
        return found

    def choose(self, number):
        """Do the run of this number; what it was."""
        name, self.disturbed = self.disturbed, None
        if name:
            return self.run_again(name)
        if self.first and number % self.options.fault_every == 0:
            return self.meet(number)
        if self.first and number % self.options.cancel_every == 0:
            return self.cancel(number)
        for name in self.graphs.names:
            if name not in self.first:
                return self.run_first(name)
        return self.run_once(next_of(self.graphs.names, self))

    def run_once(self, name):
        graph = self.graphs.make(name, seed := next(self.seeds), self.write_picture("soak.png", seed).name)
        return {"kind": "run", "graph": name, "results": len(self.succeed(name, graph)[0])}

    def run_first(self, name):
        self.first[name], _ = self.succeed(name, self.first_graph(name))
        return {"kind": "first", "graph": name, "results": len(self.first[name])}

    def first_graph(self, name):
        """With a seed of this workflow alone: two may begin alike,
        and core's cache would know the second's beginning.
        """
        seed = 10 + self.graphs.names.index(name)
        return self.graphs.make(name, seed, self.write_picture("soak.png", seed).name)

    def run_again(self, name):
        """The first run's seed: every result must be the first's."""
        if name not in self.first:
            return self.run_first(name)
        graph = self.first_graph(name)
        self.client.forget()  # so that all of it runs again
        found, cached = self.succeed(name, graph)
        unshown = [node for node in cached if not graph[node]["class_type"].startswith("Save")]
        wanted = {
            key: value
            for key, value in self.first[name].items()
            if key in found or key.split(".")[0] not in unshown
        }
        other = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        if other:
            self.fail(f"run {len(self.rows) + 1}, {name}: not the first run's {', '.join(other)}")
        return {"kind": "again", "graph": name, "equal": not other, "results": len(found)}

    def succeed(self, name, graph):
        """Run to the end; (digests of the results, the nodes that did not run as core had their results)."""
        ended, entry = self.client.end(self.client.queue(graph))
        if ended != "success":
            self.fail(
                f"run {len(self.rows) + 1}, {name}: ended with {ended}: "
                f"{faults_of.explain(entry, self.client.base)}"
            )
        return self.client.read_results(entry), self.client.cached_nodes(entry)

    def fail(self, line):
        self.failures.append(line)
        say(line)

    def cancel(self, number):
        name, seed = self.random.choice(sorted(self.first)), next(self.seeds)
        graph = self.graphs.make(name, seed, self.write_picture("soak.png", seed).name, steps=graphs_of.LONG)
        ways = {
            "queued": self.faults.cancel_queued,
            "started": self.faults.cancel_started,
            "later": self.faults.cancel_later,
        }
        way = [*ways, "later"][self.random.randrange(4)]
        return self.disturb(number, name, f"cancelled, {way}", lambda: ways[way](graph))

    def meet(self, number):
        """The next kind of fault; every kind has its workflows."""
        places = {
            "full disk": faults_of.SAVING,
            "damaged weights": [*faults_of.MODELS],
            "killed client": self.graphs.names[2:],
        }
        last = self.rows[-1]["graph"]  # its weights are in core's cache and would not be read
        found = {
            kind: [
                name for name in places.get(kind, faults_of.READING) if name in self.first and name != last
            ]
            for kind in FAULTS
        }
        kinds = [kind for kind in FAULTS if found[kind]]
        turn, kind = self.turn // len(kinds), kinds[self.turn % len(kinds)]
        self.turn += 1
        name = found[kind][(turn + FAULTS.index(kind)) % len(found[kind])]
        seed, met = next(self.seeds), self.faults
        self.write_picture("soak.png", seed)
        call = {
            "missing when queued": lambda: met.missing_when_queued(name, seed),
            "missing when run": lambda: met.missing_when_run(name, seed),
            "full disk": lambda: met.full_disk(name, seed, left=(0, 4096)[turn % 2]),
            "killed client": lambda: met.killed_client(name, seed),
            "damaged weights": lambda: met.damaged_weights(name, seed, ("cut off", "a web page")[turn % 2]),
        }[kind]
        return self.disturb(number, name, kind, call)

    def disturb(self, number, name, kind, call):
        self.disturbed = name
        try:
            found = call()
        except AssertionError as error:
            found = {"ended": "not as it should", "said": str(error)}
            self.fail(f"run {number}, {name}, {kind}: {error}")
        self.occasions.append({"run": number, "graph": name, "kind": kind, **found})
        return {"kind": kind, "graph": name}


def flags_of(options):
    """ComfyUI's, of which the cache may be one."""
    cache = (
        ["--cache-lru", str(options.lru)] if options.lru else ["--cache-classic"] if options.classic else []
    )
    return [*cache, *FLAGS]


def next_of(names, soak):
    """The workflow that waits longest for its turn."""
    last = {row["graph"]: row["run"] for row in soak.rows}
    return min(names, key=lambda name: last.get(name, 0))


def say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("pack", type=Path)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument(
        "--window",
        type=int,
        default=50,
        help="runs whose median is compared, and that go before (default: %(default)s)",
    )
    parser.add_argument("--cancel-every", type=int, default=10)
    parser.add_argument("--fault-every", type=int, default=100)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--log", type=Path, help="write a line of JSON after each run to this file")
    parser.add_argument("--server-log", type=Path, help="keep what ComfyUI logged in this file")
    parser.add_argument(
        "--control",
        action="store_true",
        help="core's own nodes alone, without the pack, no cancels, no faults",
    )
    parser.add_argument(
        "--mend-safetensors",
        action="store_true",
        help="core reads safetensors files without the library's leak",
    )
    parser.add_argument(
        "--classic", action="store_true", help="keep the results of the last graph alone (--cache-classic)"
    )
    parser.add_argument(
        "--lru",
        type=int,
        metavar="N",
        help="keep the results of the last N nodes, models among them, from run to run",
    )
    parser.add_argument(
        "--graphs", nargs="+", help="only these workflows, by name, to find which of them grows"
    )
    options = parser.parse_args(arguments)
    if options.runs < 3 * options.window:
        parser.error(
            f"--runs {options.runs} is too few: expected at least three times --window {options.window}"
        )
    if options.control:
        options.cancel_every = options.fault_every = options.runs + 1
    return options


def main():
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the server and the mount go, too
    pack, folder = options.pack.resolve(), Path(tempfile.mkdtemp(prefix="soak-"))
    install(pack, folder / "base", options.control, options.mend_safetensors)
    if options.log:
        options.log.unlink(missing_ok=True)
    runner = load(pack / "workflows" / "run.py")
    names = options.graphs or ([*graphs_of.CONTROL] if options.control else graphs_of.list_graphs(pack))
    client = clients.Client(runner, options.comfyui.resolve(), folder / "base", flags_of(options))
    try:
        client.server.wait_until_up(client.process, 900)
        soak = Soak(client, graphs_of.Graphs(runner, pack, names), options)
        signal.signal(signal.SIGTERM, lambda *_: setattr(soak, "stopped", True))
        soak.run_all()
        client.forget()
        time.sleep(SETTLE)
        client.post("/soak/settle", {})
        left = process.measure(client.pid, [client.base])
        left["ours"] = [path for path in left["ours"] if path != str(client.log)]
        growth, failures = results.summarize(soak, left)
        figures = results.report(soak, growth, left, failures, flags=flags_of(options))
    finally:
        client.stop()
        if options.server_log:
            shutil.copy(client.log, options.server_log)
        shutil.rmtree(folder)
    text = json.dumps(figures, indent=1)
    if options.json:
        options.json.write_text(text + "\n")
    say(text)
    say("PASSED" if figures["passed"] else "FAILED: " + "; ".join(figures["failures"]))
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
