"""Messages without the folders of the slides: a data set may not tell how a laboratory sorts its patients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .manifest import Manifest


@dataclass(frozen=True, slots=True)
class Folders:
    """What to write for each path that a message may hold, longest first."""

    names: Mapping[str, str]

    @classmethod
    def of(cls, manifest: Manifest) -> Folders:
        """The paths that the cells of a manifest name, and its own folder."""
        parts = {part.strip() for cell in manifest.cells for part in (cell, *cell.split(";"))}
        own = manifest.path.parent
        names: dict[str, str] = {}
        for cell in {part for part in parts if Path(part).name and not any(character < " " for character in part)}:
            for path in (cell, str(own / cell), str((own / cell).resolve())):
                names[path] = Path(cell).name
        names |= {f"{folder}/": "" for folder in (own, own.resolve()) if str(folder) != "."}
        return cls(dict(sorted(names.items(), key=lambda item: -len(item[0]))))

    def removed(self, message: str) -> str:
        """The message with base names in place of paths."""
        for path, name in self.names.items():
            if "/" in path or "\\" in path:
                message = message.replace(path, name)
        return message
