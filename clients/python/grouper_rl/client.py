"""The calls of a learner, one method each. Replies are the JSON of the server's contract (`/docs` of a running server)."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import httpx

from . import weights
from .errors import Conflict, QueueFull, error_of

Apply = Literal["finish", "continue", "abort"]
Transport = Literal["auto", "http", "path", "ipc"]
SAFETENSORS = "application/vnd.safetensors"


class Client:
    """A connection to a server; threads may share it.

    `api_key` and `control_key` default to `GROUPER_API_KEY` and `GROUPER_CONTROL_KEY`. `control_socket` is the server's
    `--control-socket` and `weights_dir` a folder below its `--policy-root`: with one of them, weights don't travel over HTTP.
    A server that can't be reached is tried again for `reconnect_s` seconds, where that can't do a thing twice.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", *, api_key: str | None = None, control_key: str | None = None,
                 control_socket: str | os.PathLike[str] | None = None, weights_dir: str | os.PathLike[str] | None = None,
                 timeout: float = 600.0, reconnect_s: float = 60.0):
        self.url = url.rstrip("/")
        self.api_key = api_key or os.environ.get("GROUPER_API_KEY")
        self.control_key = control_key or os.environ.get("GROUPER_CONTROL_KEY") or self.api_key
        self.weights_dir = None if weights_dir is None else Path(weights_dir)
        self.timeout, self.reconnect_s = timeout, reconnect_s
        limits = httpx.Timeout(timeout, connect=10.0)
        self._http = httpx.Client(timeout=limits, trust_env=False)
        transport = None if control_socket is None else httpx.HTTPTransport(uds=str(control_socket))
        self._socket = None if transport is None else httpx.Client(transport=transport, timeout=limits)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()
        if self._socket:
            self._socket.close()

    # ------------------------------------------------------------------ requests
    def request(self, method: str, path: str, *, json: Any = None, params: Mapping[str, Any] | None = None, content: Any = None,
                headers: Mapping[str, str] | None = None, control: bool = False, over_socket: bool = False,
                repeatable: bool | None = None) -> httpx.Response:
        """Any call of the contract. Raises [`GrouperError`] for an answer that is none of 2xx.

        A `repeatable` call (GET is, unless said otherwise) is sent again when the connection broke, any call when none was made.
        """
        http, base = (self._socket, "http://grouper") if over_socket else (self._http, self.url)
        if http is None:
            raise ValueError("this client was made without control_socket")
        key = self.control_key if control else self.api_key
        headers = {**({"Authorization": f"Bearer {key}"} if key else {}), **(headers or {})}
        params = {name: value for name, value in (params or {}).items() if value is not None}
        repeatable = method == "GET" if repeatable is None else repeatable
        deadline, pause = time.monotonic() + self.reconnect_s, 0.1
        while True:
            try:
                response = http.request(method, base + path, json=json, params=params, content=content, headers=headers)
                break
            except httpx.TransportError as error:
                again = isinstance(error, httpx.ConnectError) or (repeatable and not isinstance(error, httpx.ReadTimeout))
                if not again or time.monotonic() > deadline:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, 5.0)
        if not response.is_success:
            raise error_of(response)
        return response

    def _post(self, path: str, body: Mapping[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        return self.request("POST", path, json=given(body or {}), **options).json()

    # ------------------------------------------------------------------ rollouts
    def rollouts(self, groups: Sequence[Mapping[str, Any]], *, num_generations: int = 8, sampling: Mapping[str, Any] | None = None,
                 rewards: Sequence[Mapping[str, Any]] | None = None, **options: Any) -> dict[str, Any]:
        """`POST /v1/rollouts`, waiting for all groups. `options` are other fields of the request: `seed`, `advantage`,
        `zero_std`, `deadline_ms`, `idempotency_key`, … (`return_` for `return`)."""
        return self._post("/v1/rollouts", rollout_body(groups, num_generations, sampling, rewards, options),
                          repeatable="idempotency_key" in options)

    def enqueue(self, groups: Sequence[Mapping[str, Any]], *, num_generations: int = 8, sampling: Mapping[str, Any] | None = None,
                rewards: Sequence[Mapping[str, Any]] | None = None, queue: str | None = None, wait: bool = True,
                **options: Any) -> dict[str, Any]:
        """As `rollouts`, but the groups are generated for a queue, from which [`Batches`] leases them; returns when they are
        accepted. A call that is repeated after a lost connection adds them once. `wait`: a full queue is waited for."""
        options = {"idempotency_key": uuid.uuid4().hex, **options, "mode": "queue", "queue": queue}
        body = rollout_body(groups, num_generations, sampling, rewards, options)
        while True:
            try:
                return self._post("/v1/rollouts", body, repeatable=True)
            except QueueFull as full:
                if not wait:
                    raise
                time.sleep(full.retry_after or 1.0)

    def rollout(self, rollout_id: str, *, groups: bool = False) -> dict[str, Any]:
        """Progress of a queued rollout; with `groups` those that are finished, unconsumed."""
        return self.request("GET", f"/v1/rollouts/{rollout_id}", params={"groups": "true" if groups else None}).json()

    def cancel(self, rollout_id: str) -> dict[str, Any]:
        """Cancels what has not finished of a queued rollout."""
        return self.request("DELETE", f"/v1/rollouts/{rollout_id}", repeatable=True).json()

    def score(self, samples: Sequence[Mapping[str, Any]], rewards: Sequence[Mapping[str, Any]], *,
              advantage: str | Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Rewards, and with `group` in the samples advantages, of completions from anywhere."""
        return self._post("/v1/rewards/score", {"samples": samples, "rewards": rewards, "advantage": advantage}, repeatable=True)

    def queues(self) -> dict[str, Any]:
        """Counts of groups by queue and state."""
        return self.request("GET", "/v1/batches").json()

    # ------------------------------------------------------------------ policy
    def policy(self) -> dict[str, Any]:
        """What is served (`held`), what should be (`expected`), the reference, and what is staged."""
        return self.request("GET", "/v1/policy", control=True).json()

    def push_weights(self, source: Any, version: int | None = None, apply: Apply = "finish", *, transport: Transport = "auto",
                     partial: bool = False, part_bytes: int = 2 << 30) -> dict[str, Any]:
        """Makes a module or a state dict (torch or numpy, hub names) the policy; returns when requests see it.

        `transport`: `http` sends the bytes (in one request, or staged in parts of `part_bytes`), `path` writes a file into
        `weights_dir`, `ipc` lends CUDA memory over the control socket; `auto` takes `ipc` or `path` where the client was made
        for it. `partial`: these tensors replace some of the policy's.
        """
        tensors = weights.named_tensors(source)
        options = {"version": version, "apply": apply, "partial": partial or None}
        if transport == "auto":
            on_gpu = all(getattr(tensor, "is_cuda", False) for tensor in tensors.values())
            transport = "ipc" if self._socket and on_gpu else "path" if self.weights_dir else "http"
        if transport == "ipc":
            if self._socket is None:
                raise ValueError("this client was made without control_socket")
            body = {**options, **weights.ipc_handles(tensors)}
            return self._in_turn(lambda: self._post("/v1/policy/ipc", body, control=True, over_socket=True))
        if transport == "path":
            return self._push_file(tensors, options)
        pieces = weights.parts(tensors, part_bytes)
        if len(pieces) == 1:
            return self._in_turn(lambda: self._put(tensors, {**options, "partial": "true" if partial else None}))
        stage = uuid.uuid4().hex
        for piece in pieces:
            self._put(piece, {"stage": stage})
        return self._in_turn(lambda: self._post("/v1/policy", {**options, "stage": stage}, control=True))

    def _in_turn(self, update: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Waits while another update is under way, at most `timeout`: it may be that of a learner's life before."""
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                return update()
            except Conflict as conflict:
                if conflict.code != "update_under_way" or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _put(self, tensors: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
        length, body = weights.safetensors(tensors)
        headers = {"Content-Type": SAFETENSORS, "Content-Length": str(length)}
        return self.request("PUT", "/v1/policy", content=body, params=params, headers=headers, control=True).json()

    def _push_file(self, tensors: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        if self.weights_dir is None:
            raise ValueError("this client was made without weights_dir")
        path = self.weights_dir / f"policy-{uuid.uuid4().hex}.safetensors"
        with path.open("wb") as file:
            file.writelines(weights.safetensors(tensors)[1])
        body = {**options, "path": str(path.resolve())}
        reply = self._in_turn(lambda: self._post("/v1/policy", body, control=True))
        for old in self.weights_dir.glob("policy-*.safetensors"):  # the newest stays: the server loads it again after a restart
            if old != path:
                old.unlink(missing_ok=True)
        return reply

    def set_reference(self, path: str | None = None) -> dict[str, Any]:
        """Freezes the present policy, or loads a folder on the server's machine, as the reference of `ref_logps`."""
        return self._post("/v1/policy/reference", {"path": path}, control=True)

    def pause(self, mode: Literal["keep", "abort", "finish"] = "keep") -> dict[str, Any]:
        return self._post("/v1/engine/pause", params={"mode": mode}, control=True)

    def resume(self) -> dict[str, Any]:
        return self._post("/v1/engine/resume", control=True)


def given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that were given."""
    return {name: value for name, value in fields.items() if value is not None}


def rollout_body(groups: Sequence[Mapping[str, Any]], num_generations: int, sampling: Mapping[str, Any] | None,
                 rewards: Sequence[Mapping[str, Any]] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    body = {"groups": list(groups), "num_generations": num_generations, "sampling": sampling, "rewards": rewards, **options}
    return {name.rstrip("_"): value for name, value in body.items()}
