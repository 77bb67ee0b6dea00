"""Results of a benchmark as they come, a JSON line each, so that a stopped run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.text_files import read_text, show_path


class WorkFile:
    """A file whose first line states what its results are of."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(dict(settings)))

    def read(self) -> dict[str, dict[str, Any]]:
        """The results by name so far. ValueError if they are of other settings.

        A last line that was cut off in the middle is dropped, from the file as well.
        """
        if not self.path.is_file():
            self._start()
            return {}
        lines = read_text(self.path).split("\n")
        whole, rest = lines[:-1], lines[-1]
        found = [self._parse(line) for line in whole]
        if not found:
            self._start()
            return {}
        if found[0] != self.settings:
            raise ValueError(
                f"Expected results of {self._describe(self.settings)} in {show_path(self.path)}, got those "
                f"of {self._describe(found[0])}. Choose another work file, or remove it."
            )
        if rest:
            self.path.write_text("\n".join(whole) + "\n", encoding="utf-8")
        return {row["name"]: row["result"] for row in found[1:]}

    def add(self, name: str, result: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "result": dict(result)}) + "\n")

    def _start(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.settings) + "\n", encoding="utf-8")

    def _parse(self, line: str) -> Any:
        try:
            return json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"Expected results of a benchmark in {show_path(self.path)}, got other text. Choose another "
                "work file, or remove it."
            ) from error

    def _describe(self, settings: Any) -> str:
        if not isinstance(settings, dict):
            return "something else"
        other = {key: value for key, value in settings.items() if value != self.settings.get(key)}
        return json.dumps(other or settings)
