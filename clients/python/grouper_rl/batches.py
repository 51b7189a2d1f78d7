"""Batches leased from a server: scored groups as tensors under TRL's names, each to be acknowledged once."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

import httpx

from .checkpoint import Checkpoint
from .client import SAFETENSORS, Client, given
from .errors import Conflict, EndOfData, GrouperError

Framework = Literal["torch", "numpy"]


@dataclass
class Batch:
    """Whole groups, held under a lease. `batch["advantages"]` is a tensor; its row is a sample.

    `prompt_ids`, `prompt_mask` (B, P) are padded on the left, `completion_ids`, `completion_mask` and `old_per_token_logps`
    (B, C) on the right; `advantages` (B); `rewards` (B, K) in the order of `reward_names`, NaN where there is no verdict;
    `group_index` (B); pictures as `pixel_values` and `image_grid_thw` once a group, with `num_images` (groups).
    """

    tensors: dict[str, Any]
    lease_id: str
    fence: str
    uids: list[str]
    reward_names: list[str]
    metrics: dict[str, float]
    policy_version: int
    num_items_in_batch: int
    _source: Batches = field(repr=False)
    _done: threading.Event = field(default_factory=threading.Event, repr=False)

    def __getitem__(self, name: str) -> Any:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def get(self, name: str, default: Any = None) -> Any:
        return self.tensors.get(name, default)

    def to(self, device: Any) -> Batch:
        """The tensors on a device (torch only); the lease stays with this object."""
        self.tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return self

    def ack(self) -> bool:
        """Declares the groups learned from. `False` when the lease was lost: the groups come again, and this source of
        batches will then acknowledge them without handing them out."""
        self._done.set()
        return self._source._ack(self.lease_id, self.fence, self.uids)

    def nack(self, reason: str | None = None) -> None:
        """Gives the groups back, unlearned."""
        self._done.set()
        self._source.client._post(f"/v1/batches/{self.lease_id}/nack", {"fence": self.fence, "reason": reason}, repeatable=True)

    def extend(self, lease_ms: int | None = None) -> None:
        """Holds the groups for `lease_ms` more from now. `Conflict` when the lease was lost."""
        body = {"fence": self.fence, "lease_ms": lease_ms or self._source.lease_ms}
        self._source.client._post(f"/v1/batches/{self.lease_id}/extend", body, repeatable=True)

    def _keep_alive(self) -> None:
        while not self._done.wait(self._source.lease_ms / 3000):
            try:
                self.extend()
            except GrouperError:
                return  # lost: the ack will say so
            except httpx.TransportError:
                continue


class Batches:
    """Iterates over batches of `num_groups` groups until the dataset ends; without one, for ever.

    A name for `learner` makes a restart cheap: what its predecessor of that name still held is given back at once instead of
    when its lease ends. With a [`Checkpoint`] nothing is learned from twice. `heartbeat` extends the lease while a batch
    is worked on. `on_reconnect` is called when the server was away: weights that came over HTTP died with it. `framework` is torch where it is installed, else numpy.
    """

    def __init__(self, client: Client | str, *, num_groups: int, queue: str | None = None, wait_ms: int = 10_000,
                 lease_ms: int = 600_000, max_staleness: int | None = None, learner: str | None = None, heartbeat: bool = False,
                 checkpoint: Checkpoint | None = None, on_reconnect: Callable[[], object] | None = None,
                 expand_images: bool = False, framework: Framework | None = None):
        self.client = Client(client) if isinstance(client, str) else client
        self.num_groups, self.queue, self.wait_ms, self.lease_ms = num_groups, queue, wait_ms, lease_ms
        self.max_staleness, self.learner, self.heartbeat = max_staleness, learner, heartbeat
        self.on_reconnect, self.expand_images = on_reconnect, expand_images
        self.framework: Framework = framework or ("torch" if find_spec("torch") else "numpy")
        self.checkpoint = checkpoint
        #: groups that were learned from and whose ack was not confirmed
        self.learned: set[str] = set(checkpoint.learned) if checkpoint else set()
        if checkpoint and checkpoint.lease:
            self._ack(*checkpoint.lease)
        if learner:
            self.give_back()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            try:
                batch = self.lease()
            except EndOfData:
                return
            if batch is not None:
                yield batch

    def lease(self) -> Batch | None:
        """One batch, or `None` when there were not enough groups within `wait_ms`."""
        body = given({"num_groups": self.num_groups, "wait_ms": self.wait_ms, "lease_ms": self.lease_ms, "queue": self.queue,
                      "max_staleness": self.max_staleness, "learner": self.learner})
        params = {"expand_images": "true" if self.expand_images else None}
        try:
            response = self.client.request("POST", "/v1/batches/lease", json=body, params=params, headers={"Accept": SAFETENSORS})
        except httpx.TransportError:
            self._reconnect()
            return None
        if response.status_code == 204:
            if self.on_reconnect and self._weights_are_gone():
                self.on_reconnect()
            return None
        batch = self._read(response.content)
        known = [uid for uid in batch.uids if uid in self.learned]
        if len(known) == len(batch.uids):
            batch.ack()
            return None
        if known:
            self._leave_out(batch, known)
        if self.heartbeat:
            threading.Thread(target=batch._keep_alive, daemon=True).start()
        return batch

    def give_back(self) -> int:
        """Gives back what is leased under this learner's name: of a life before, or in a reply that was lost. How many leases."""
        leases = self.client.request("GET", "/v1/batches/leases", params={"learner": self.learner}).json()["leases"]
        for lease in leases:
            try:
                body = {"fence": lease["fence"], "reason": "learner restarted"}
                self.client._post(f"/v1/batches/{lease['lease_id']}/nack", body, repeatable=True)
            except Conflict:
                pass  # it ended in the meantime
        return len(leases)

    def _reconnect(self) -> None:
        """The server may have gone, or have leased groups in a reply that never arrived."""
        self.client.request("GET", "/health")
        if self.learner:
            self.give_back()
        if self.on_reconnect:
            self.on_reconnect()

    def _weights_are_gone(self) -> bool:
        policy = self.client.policy()
        return policy["held"]["version"] != policy["expected"]

    def _ack(self, lease_id: str, fence: str, uids: Iterable[str]) -> bool:
        try:
            self.client._post(f"/v1/batches/{lease_id}/ack", {"fence": fence}, repeatable=True)
        except Conflict:
            self.learned.update(uids)
            return False
        self.learned.difference_update(uids)
        return True

    def _leave_out(self, batch: Batch, uids: list[str]) -> None:
        """Some groups were learned from before: their samples stay in the batch and count nothing."""
        known = [batch.uids.index(uid) for uid in uids]
        for row, group in enumerate(batch["group_index"].tolist()):
            if group in known:
                batch["completion_mask"][row] = 0
                batch["advantages"][row] = 0
        batch.num_items_in_batch = int(batch["completion_mask"].sum())

    def _read(self, content: bytes) -> Batch:
        (length,) = struct.unpack("<Q", content[:8])
        about: dict[str, Any] = json.loads(content[8:8 + length]).get("__metadata__", {})
        if self.framework == "torch":
            from safetensors.torch import load
        else:
            from safetensors.numpy import load
        return Batch(tensors=load(content), lease_id=about["lease_id"], fence=about["fence"], uids=json.loads(about["uids"]),
                     reward_names=json.loads(about["reward_names"]), metrics=json.loads(about["metrics"]),
                     policy_version=int(about["policy_version"]), num_items_in_batch=int(about["num_items_in_batch"]), _source=self)
