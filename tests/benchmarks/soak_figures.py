"""What the runs of soak.py come to: growth of memory and handles, failures, and the report."""

import math
import os
import statistics

LIMIT = 0.01  # growth
SIZES = ("rss", "pss", "private", "anonymous", "unsettled", "allocated")
COMPLETED = ("run", "again")
BYTES_A_TENSOR = 64  # two integers
COUNTED = ("objects", "tensors of core", "tensors of pack")


def summarize(soak, left):
    """The figures, and what of them is a failure."""
    rows, window = soak.rows, soak.options.window
    early, late, failures = rows[window : 2 * window], rows[-window:], list(soak.failures)
    growth = {}
    for key in (*SIZES, "handles", "threads", "children"):
        before, after, most = (f([row[key] for row in part]) for f, part in (
            (statistics.median, early), (statistics.median, late), (max, rows[window:]),
        ))  # fmt: skip
        scale = 1e6 if key in SIZES else 1
        growth[key] = {
            "early": round(before / scale, 3),
            "late": round(after / scale, 3),
            "most": round(most / scale, 3),
        }
        if key in SIZES:
            growth[key]["percent"] = round(100 * (after / before - 1), 3)
            growth[key]["kilobytes a run"] = [round(value / 1e3, 2) for value in slope(rows[window:], key)]
        elif after > before:
            failures.append(f"{key}: {before} before, {after} at the end")
    for key in COUNTED:
        growth[key] = {"a run": [round(value, 1) for value in slope(rows[window:], key)]}
    lost = [BYTES_A_TENSOR * growth[f"tensors of {name}"]["a run"][0] / 1e3 for name in ("core", "pack")]
    growth["lost in the safetensors library, kilobytes a run"] = dict(
        zip(("core's loads", "the pack's loads"), lost, strict=True)
    )
    failures += [
        f"{key} grew by {growth[key]['percent']} %"
        for key in ("rss", "pss", "private")
        if growth[key]["percent"] >= 100 * LIMIT
    ]
    failures += [f"still open or mapped at the end: {path}" for path in left["ours"]]
    if left["children"]:
        failures.append(f"{left['children']} child processes at the end")
    return growth, failures


def slope(rows, key):
    """(growth a run, two standard errors): one straight line through the completed runs,
    each workflow at a height of its own.
    """
    groups = [
        [row for row in rows if row["graph"] == name and row["kind"] in COMPLETED]
        for name in {row["graph"] for row in rows}
    ]
    pairs = []
    for group in filter(None, groups):
        middles = [statistics.fmean(row[name] for row in group) for name in ("run", key)]
        pairs += [(row["run"] - middles[0], row[key] - middles[1]) for row in group]
    spread, free = sum(x * x for x, _ in pairs), len(pairs) - sum(map(bool, groups)) - 1
    if not spread or free < 1:  # hardly a workflow ran twice
        return math.nan, math.nan
    found = sum(x * y for x, y in pairs) / spread
    return found, 2 * (sum((y - found * x) ** 2 for x, y in pairs) / free / spread) ** 0.5


def report(soak, growth, left, failures, *, flags):
    options, kinds = soak.options, [row["kind"] for row in soak.rows]
    again = [row for row in soak.rows if row["kind"] == "again"]
    cancelled = [found for found in soak.occasions if found["kind"].startswith("cancelled")]
    times = {
        name: [row["seconds"] for row in soak.rows if row["graph"] == name and row["kind"] == "run"]
        for name in soak.graphs.names
    }
    unequal, compared = sum(not row["equal"] for row in again), sum(row["results"] for row in again)
    window = options.window
    course = [soak.rows[at : at + window] for at in range(0, len(soak.rows), window)]
    run_counts = {name: sum(row["graph"] == name for row in soak.rows) for name in soak.graphs.names}
    return {
        "passed": not failures,
        "failures": failures,
        "runs": len(kinds),
        "flags": flags,
        "control": options.control,
        "safetensors mended": options.mend_safetensors,
        "allocators": {name: value for name, value in sorted(os.environ.items()) if "MALLOC" in name},
        "file system of its own": soak.client.mounted,
        "comfyui": soak.client.server.get_json("/system_stats")["system"]["comfyui_version"],
        "growth": growth,
        "at the end, models unloaded": {
            key: left[key] for key in ("rss", "handles", "kinds", "threads", "children", "ours")
        },
        "kinds of run": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "compared with the first": {"runs": len(again), "files": compared, "unequal": unequal},
        "cancelled": {
            "runs": len(cancelled),
            "slowest to end, seconds": max((found.get("seconds", 0) for found in cancelled), default=0),
        },
        "faults": [found for found in soak.occasions if found not in cancelled],
        "workflows": {
            name: {
                "runs": run_counts[name],
                "files": len(soak.first.get(name, ())),
                "median seconds": round(statistics.median(each), 2) if each else None,
            }
            for name, each in times.items()
        },
        "course": [
            {
                "runs": f"{part[0]['run']}-{part[-1]['run']}",
                "rss": round(statistics.median(row["rss"] for row in part) / 1e6, 1),
                "handles": statistics.median(row["handles"] for row in part),
            }
            for part in course
        ],
    }
