"""A pytest plugin: processor seconds by file and by test, which other load on the machine does not
change much.

PYTHONPATH=tests/benchmarks pytest -p processor_time ...

Counted are the process and the child processes that it waited for, on Linux also those that still run, as
the ComfyUI that all tests of the nodes share. A fixture is counted in the first test that needs it.
Unix only.
"""

import os
import resource
from collections import Counter
from pathlib import Path

import pytest

MOST = 25  # lines of each table
SPENT = Counter()


def processor_seconds():
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages) + running_seconds()


def running_seconds():
    """Of the child processes that still run, and of theirs; 0 where there is no /proc."""
    parents, spent = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        pid = int(stat.parent.name)
        parents[pid] = int(fields[1])
        spent[pid] = sum(int(ticks) for ticks in fields[11:15])
    total, family = 0, {os.getpid()}
    while family:
        family = {pid for pid, parent in parents.items() if parent in family}
        total += sum(spent[pid] for pid in family)
    return total / os.sysconf("SC_CLK_TCK")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    before = processor_seconds()
    yield
    SPENT[item.nodeid] += processor_seconds() - before


def pytest_terminal_summary(terminalreporter):
    by_file = Counter()
    for name, seconds in SPENT.items():
        by_file[name.partition("::")[0]] += seconds
    for title, table in (("file", by_file), ("test", SPENT)):
        terminalreporter.write_sep("=", f"processor seconds by {title}")
        for name, seconds in table.most_common(MOST):
            terminalreporter.write_line(f"{seconds:8.2f}  {name}")
    terminalreporter.write_line(
        f"{sum(SPENT.values()):8.2f}  in all tests, {processor_seconds():.2f} with start and collection"
    )
