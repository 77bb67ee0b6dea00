"""What a process holds, as Linux tells it in /proc: memory, handles, mapped files, threads, children."""

from collections import Counter
from pathlib import Path

KINDS = ("Rss", "Pss", "Private_Clean", "Private_Dirty", "Anonymous")  # of smaps_rollup, in KiB


def read_memory(pid):
    """Bytes: rss (resident), pss (shared pages by the number of their users),
    private, anonymous (in no file).
    """
    found = dict.fromkeys(KINDS, 0)
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0]) * 1024
    private = found["Private_Clean"] + found["Private_Dirty"]
    return {"rss": found["Rss"], "pss": found["Pss"], "private": private, "anonymous": found["Anonymous"]}


def read_handles(pid):
    """Where each open handle leads, as /proc has it."""
    places = []
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        try:
            places.append(str(handle.readlink()))
        except FileNotFoundError:  # closed meanwhile
            continue
    return places


def count_kinds(places):
    """Handles by kind: socket, pipe, anon_inode (event loops), device, file."""
    kinds = Counter()
    for place in places:
        head = place.split(":")[0]
        kinds[
            "file"
            if place.startswith("/") and not place.startswith("/dev/")
            else "device"
            if place.startswith("/")
            else head
        ] += 1
    return dict(sorted(kinds.items()))


def read_mapped(pid):
    """Paths of the files mapped into memory; of one that was replaced or deleted the path ends in "
    (deleted)".
    """
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {
        parts[5]
        for parts in (line.split(maxsplit=5) for line in lines)
        if len(parts) == 6 and parts[5].startswith("/")
    }


def count_children(pid):
    """Children of any thread of the process."""
    return sum(len((task / "children").read_text().split()) for task in Path(f"/proc/{pid}/task").iterdir())


def count_threads(pid):
    return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())


def measure(pid, folders):
    """All of it; `ours` are the files open or mapped below `folders`, by path."""
    places, mapped = read_handles(pid), read_mapped(pid)
    ours = sorted(place for place in {*places, *mapped} if place.startswith(tuple(map(str, folders))))
    counts = {
        "handles": len(places),
        "kinds": count_kinds(places),
        "threads": count_threads(pid),
        "children": count_children(pid),
    }
    return read_memory(pid) | counts | {"ours": ours}
