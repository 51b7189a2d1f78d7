"""What a learner must keep to learn from every group once, whatever dies.

The order is: learn, `save`, push the weights, `ack`. After a restart: load, push, and give the checkpoint to [`Batches`], which
acknowledges again. If that ack comes too late (the lease had ended), the groups come again and are acknowledged unseen.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batches import Batch

Saver = Callable[[Path], None]


class Checkpoint:
    """A folder of checkpoints, of which `CURRENT` names the last whole one; the one before it is removed."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.about: dict[str, Any] = {}
        current = self.folder / "CURRENT"
        if current.exists():
            self.about = json.loads((self.folder / current.read_text().strip() / "about.json").read_text())

    @property
    def path(self) -> Path | None:
        """Where the state of the last whole checkpoint is."""
        return self.folder / self.about["name"] if self.about else None

    @property
    def step(self) -> int:
        return self.about.get("step", 0)

    @property
    def lease(self) -> tuple[str, str, list[str]] | None:
        """Lease, fence and groups of the batch that was learned from last."""
        return (self.about["lease_id"], self.about["fence"], self.about["uids"]) if self.about else None

    @property
    def learned(self) -> list[str]:
        """All groups that this state has learned from and whose ack was not confirmed when it was saved."""
        return self.about["uids"] + self.about["learned"] if self.about else []

    def save(self, step: int, batch: Batch, write: Saver) -> None:
        """Keeps what `write(folder)` writes (weights, optimiser) together with the batch that it has learned from."""
        name = f"step-{step:08d}"
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        write(folder)
        about = {"name": name, "step": step, "lease_id": batch.lease_id, "fence": batch.fence, "uids": batch.uids,
                 "learned": sorted(batch._source.learned)}
        (folder / "about.json").write_text(json.dumps(about))
        for path in folder.rglob("*"):
            if path.is_file():
                sync(path)
        sync(folder)
        temporary = self.folder / "CURRENT.tmp"
        temporary.write_text(name)
        sync(temporary)
        temporary.replace(self.folder / "CURRENT")
        sync(self.folder)
        old, self.about = self.path, about
        if old and old != folder:
            for path in sorted(old.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            old.rmdir()


def sync(path: Path) -> None:
    """On the disk, not only on its way there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
