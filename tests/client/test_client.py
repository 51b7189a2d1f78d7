"""Runs the Python client against the real server: python test_client.py target/release/grouper

Needs httpx, numpy and safetensors. Each check starts from an idle server; the first that fails ends the run.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "clients/python"))
from grouper_rl import BadRequest, Batch, Batches, Checkpoint, Client, Conflict, GrouperError, NotFound, QueueFull  # noqa: E402
from grouper_rl import weights as weights_module  # noqa: E402

MODEL = ROOT / "assets/tiny-vl-math"
HELDOUT = [json.loads(line) for line in (MODEL / "heldout.jsonl").read_text().splitlines()]
TEXT = [row for row in HELDOUT if isinstance(row["messages"][0]["content"], str)]
IMAGE = [row for row in HELDOUT if not isinstance(row["messages"][0]["content"], str)]
SHORT = {"max_tokens": 24}
MAX_QUEUED = 32


class Server:
    """The program with a folder that outlives it."""

    def __init__(self, binary: str, *flags: str):
        self.binary, self.flags = binary, flags
        self.folder = Path(tempfile.mkdtemp(prefix="grouper-client-"))
        (self.folder / "weights").mkdir()
        self.port = 0
        self.start()

    def start(self) -> None:
        log = self.folder / "server.log"
        command = [self.binary, "serve", str(MODEL), "--dtype", "float32", "--device", "cpu", "--port", str(self.port), "--data-dir",
                   str(self.folder / "data"), "--policy-root", str(self.folder / "weights"), "--max-queued-groups", str(MAX_QUEUED),
                   "--control-socket", str(self.folder / "control.sock"), *self.flags]
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        for _ in range(300):
            found = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())
            if found:
                self.url, self.port = found[0], int(found[1])
                return
            assert self.process.poll() is None, log.read_text()
            time.sleep(0.05)
        raise AssertionError(f"the server did not start: {log.read_text()}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0
        shutil.rmtree(self.folder)


def refused(kind: type[GrouperError], call, *args, **kwargs) -> GrouperError:
    try:
        call(*args, **kwargs)
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was expected")


def batches(client: Client, queue: str, num_groups: int = 2, **options) -> Batches:
    return Batches(client, num_groups=num_groups, queue=queue, wait_ms=20_000, framework="numpy", **options)


def counts(client: Client, queue: str) -> dict:
    return client.queues()["queues"][queue]


def rollouts(server: Server, client: Client) -> None:
    reply = client.rollouts(TEXT[:2], num_generations=4, seed=5, sampling=SHORT, return_=["text", "logps"])
    assert [len(group["samples"]) for group in reply["groups"]] == [4, 4], reply
    again = client.rollouts(TEXT[:2], num_generations=4, seed=5, sampling=SHORT, return_=["text", "logps"])
    assert [g["samples"] for g in again["groups"]] != [] and again["groups"][0]["samples"][0]["token_ids"] == \
        reply["groups"][0]["samples"][0]["token_ids"], "a seed replays"
    error = refused(BadRequest, client.rollouts, [{**TEXT[0], "solutoin": "1"}])
    assert error.status == 400 and "solutoin" in str(error) and error.param, vars(error)
    refused(NotFound, client.rollout, "no-such-rollout")
    scored = client.score([{"completion": "<think>x</think>12", "solution": "12", "group": 0},
                           {"completion": "13", "solution": "12", "group": 0}], [{"name": "accuracy"}, {"name": "think_format"}])
    assert [s["rewards"] for s in scored["samples"]] == [{"accuracy": 1.0, "think_format": 1.0}, {"accuracy": 0.0, "think_format": 0.0}]


def a_batch(server: Server, client: Client) -> None:
    """The tensors say what the JSON says."""
    accepted = client.enqueue([TEXT[0], IMAGE[0], IMAGE[1], TEXT[1]], num_generations=3, seed=1, sampling=SHORT, queue="a",
                              return_=["logps", "pixel_values"])
    batch = next(iter(batches(client, "a", 4)))
    groups = client.rollout(accepted["rollout_id"], groups=True)["groups"]
    assert [group["uid"] for group in groups] == batch.uids and batch.policy_version == 0
    samples = [(index, group, sample) for index, group in enumerate(groups) for sample in group["samples"]]
    assert len(batch["advantages"]) == len(samples) == 12
    for row, (index, group, sample) in enumerate(samples):
        prompt, length = group["prompt_token_ids"], len(sample["token_ids"])
        assert batch["group_index"][row] == index and batch["advantages"][row] == np.float32(sample["advantage"])
        assert batch["prompt_ids"][row][batch["prompt_mask"][row] == 1].tolist() == prompt
        assert batch["prompt_mask"][row][-len(prompt):].all(), "padded on the left"
        assert batch["completion_ids"][row][:length].tolist() == sample["token_ids"]
        assert batch["completion_mask"][row].tolist() == [1] * length + [0] * (batch["completion_ids"].shape[1] - length)
        assert batch["old_per_token_logps"][row][:length].tolist() == np.float32(sample["logps"]).tolist()
        rewards = [np.float32(np.nan if sample["rewards"][name] is None else sample["rewards"][name]) for name in batch.reward_names]
        np.testing.assert_array_equal(batch["rewards"][row], rewards)
    assert batch["num_images"].tolist() == [0, 1, 1, 0]
    assert len(batch["pixel_values"]) == batch["image_grid_thw"].prod(1).sum() and batch["pixel_values"].std() > 0.1
    assert batch["mm_token_type_ids"].shape == (12, batch["prompt_ids"].shape[1] + batch["completion_ids"].shape[1])
    assert batch.num_items_in_batch == batch["completion_mask"].sum()
    assert batch.ack() and batch.ack(), "an ack may be repeated"
    assert counts(client, "a")["acked"] == 4
    assert refused(Conflict, batch.extend).status == 409


def all_ready(client: Client, queue: str, groups: int) -> None:
    """Before that, a group that is ready earlier overtakes those that are not."""
    deadline = time.monotonic() + 60
    while counts(client, queue)["ready"] != groups:
        assert time.monotonic() < deadline, counts(client, queue)
        time.sleep(0.01)


def given_back(server: Server, client: Client) -> None:
    client.enqueue(TEXT[:2], num_generations=2, sampling=SHORT, queue="b")
    source = batches(client, "b")
    first = next(iter(source))
    first.nack("not now")
    second = next(iter(source))
    assert second.uids == first.uids and second.lease_id != first.lease_id
    second.extend(60_000)
    assert second.ack() and counts(client, "b")["acked"] == 2
    assert Batches(client, num_groups=1, queue="b", wait_ms=0).lease() is None


def heartbeats(server: Server, client: Client) -> None:
    client.enqueue(TEXT[:2], num_generations=2, sampling=SHORT, queue="c")
    held = next(iter(batches(client, "c", heartbeat=True, lease_ms=900)))
    time.sleep(2)
    assert held.ack(), "the lease was extended"


def a_lost_lease(server: Server, client: Client) -> None:
    """Groups that were learned from under a lease that ended are acknowledged when they come again, and not handed out."""
    client.enqueue(TEXT[:4], num_generations=2, sampling=SHORT, queue="d")
    all_ready(client, "d", 4)
    source = batches(client, "d", lease_ms=200)
    first = next(iter(source))
    time.sleep(0.5)
    assert not first.ack() and source.learned == set(first.uids)
    source.lease_ms = 60_000
    assert source.lease() is None and not source.learned and counts(client, "d")["acked"] == 2
    second = source.lease()
    assert second is not None and not set(second.uids) & set(first.uids)
    second.nack()
    source.learned = set(second.uids[:1])  # one of the two is known
    mixed = source.lease()
    known = mixed["group_index"] == 0
    assert not mixed["completion_mask"][known].any() and mixed["completion_mask"][~known].any()
    assert mixed.num_items_in_batch == mixed["completion_mask"].sum() and mixed.ack() and not source.learned


def restarts_of_the_learner(server: Server, client: Client) -> None:
    client.enqueue(TEXT[:4], num_generations=2, sampling=SHORT, queue="e")
    all_ready(client, "e", 4)
    folder = server.folder / "checkpoints"
    batch = next(iter(batches(client, "e", learner="anna")))
    Checkpoint(folder).save(7, batch, lambda path: (path / "state").write_text("weights"))
    # It dies before the ack; its heir acknowledges what the checkpoint has learned from.
    checkpoint = Checkpoint(folder)
    assert checkpoint.step == 7 and (checkpoint.path / "state").read_text() == "weights"
    heirs = batches(client, "e", learner="anna", checkpoint=checkpoint)
    assert counts(client, "e")["acked"] == 2
    # It dies holding a lease of which no checkpoint knows: the next gives that back at once.
    unlearned = next(iter(heirs))
    third = next(iter(batches(client, "e", learner="anna", checkpoint=Checkpoint(folder))))
    assert third.uids == unlearned.uids and not set(third.uids) & set(batch.uids)
    checkpoint.save(8, third, lambda path: (path / "state").write_text("more"))
    assert [path.name for path in folder.glob("step-*")] == ["step-00000008"]
    # The lease of the checkpoint ends before the heir comes: the groups come again and are not learned from.
    third.nack()
    last = batches(client, "e", learner="anna", checkpoint=Checkpoint(folder))
    assert last.learned == set(third.uids) and last.lease() is None and counts(client, "e")["acked"] == 4


def state() -> dict[str, np.ndarray]:
    return load_file(MODEL / "model.safetensors")


def weights(server: Server, client: Client) -> None:
    def logps() -> np.ndarray:
        reply = client.rollouts(TEXT[:1], num_generations=1, seed=1, sampling={"temperature": 0, "max_tokens": 4}, return_=["logps"])
        assert reply["policy_version"] == client.policy()["held"]["version"]
        return np.array(reply["groups"][0]["samples"][0]["logps"])

    tensors, before, began = state(), logps(), client.policy()["held"]["version"]
    norm = next(name for name in tensors if name.endswith("norm.weight") and "layers" not in name and "visual" not in name)
    changed = {**tensors, norm: tensors[norm] * np.float32(0.5)}
    assert client.push_weights(changed)["version"] == began + 1
    assert np.abs(logps() - before).max() > 1e-3
    small = {"part_bytes": 1 << 19}
    assert client.push_weights(tensors, began + 5, **small)["version"] == began + 5, "in parts, under a version of one's own"
    np.testing.assert_array_equal(logps(), before)
    assert client.push_weights({norm: changed[norm]}, partial=True)["version"] == began + 6
    assert np.abs(logps() - before).max() > 1e-3
    with Client(server.url, weights_dir=server.folder / "weights") as local:
        assert local.push_weights(tensors)["source"].startswith("path:")
    np.testing.assert_array_equal(logps(), before)
    held = client.policy()["held"]
    again = client.push_weights(tensors, held["version"])
    assert again["version"] == held["version"] and again["sha256"] == held["sha256"], "the same again changes nothing"
    error = refused(BadRequest, client.push_weights, {**tensors, norm: tensors[norm][:-1]})
    assert norm in str(error), error
    error = refused(BadRequest, client.push_weights, {**tensors, norm: tensors[norm] * np.float32(np.nan)})
    assert norm in str(error), error
    assert client.policy()["held"] == held, "anything wrong leaves the old weights"


def updates_take_turns(server: Server, client: Client) -> None:
    """A push that finds another under way waits for it."""
    tensors = state()
    with ThreadPoolExecutor(4) as pool:
        versions = [reply["version"] for reply in pool.map(lambda _: client.push_weights(tensors), range(8))]
    assert len(set(versions)) == 8 and client.policy()["held"]["version"] == max(versions)
    conflict = refused(Conflict, client.push_weights, {name: tensor * np.float32(2) for name, tensor in tensors.items()}, max(versions))
    assert conflict.code == "conflict", "held with other weights: waiting would not help"


def a_reference(server: Server, client: Client) -> None:
    """Log-probabilities under frozen weights stay what they are while the policy moves."""
    def batch() -> Batch:
        client.enqueue([TEXT[0], IMAGE[0]], num_generations=2, seed=4, sampling=SHORT, queue="r", return_=["logps", "ref_logps"])
        leased = next(iter(batches(client, "r")))
        assert leased.ack()
        return leased

    tensors = state()
    client.push_weights(tensors)
    client.set_reference()
    before = batch()
    np.testing.assert_array_equal(before["ref_per_token_logps"], before["old_per_token_logps"])
    client.push_weights({name: tensor * np.float32(0.98) for name, tensor in tensors.items()})
    moved = batch()
    assert np.abs(moved["ref_per_token_logps"] - moved["old_per_token_logps"]).max() > 1e-3
    client.push_weights(tensors)
    rows = [(prompt[mask == 1].tolist(), completion[kept == 1].tolist()) for prompt, mask, completion, kept in zip(
        moved["prompt_ids"], moved["prompt_mask"], moved["completion_ids"], moved["completion_mask"])]
    for row, (prompt, completion) in enumerate(rows):
        sequence = {"prompt_token_ids": prompt, "completion_token_ids": completion}
        if moved["group_index"][row] == 1:
            sequence = {"messages": IMAGE[0]["messages"], "completion_token_ids": completion}
        scored = client.request("POST", "/v1/logps", json={"sequences": [sequence]}).json()["sequences"][0]["logps"]
        np.testing.assert_array_equal(np.float32(scored), moved["ref_per_token_logps"][row][:len(completion)])


class FakeCuda:
    """Stands for torch and the driver where there is no GPU: tensors whose memory lies at made-up addresses of one allocation."""

    BASE, DEVICE = 1 << 32, type("Device", (), {"type": "cuda"})()

    def __init__(self, tensors: dict[str, np.ndarray]):
        cuda = SimpleNamespace(device=contextlib.nullcontext, synchronize=lambda: None,
                               get_device_properties=lambda _: SimpleNamespace(uuid="00112233-4455-6677-8899-aabbccddeeff"))
        self.torch, self.tensors, address = SimpleNamespace(cuda=cuda), {}, self.BASE
        for name, array in tensors.items():
            self.tensors[name] = SimpleNamespace(shape=array.shape, dtype=array.dtype, device=self.DEVICE, is_cuda=True,
                                                 data_ptr=lambda at=address: at, is_contiguous=lambda: True)
            address += array.nbytes

    def cuMemGetAddressRange_v2(self, base, size, pointer) -> int:
        base._obj.value, size._obj.value = self.BASE, 1 << 30
        return 0

    def cuIpcGetMemHandle(self, handle, base) -> int:
        ctypes.memmove(handle, bytes(range(64)), 64)
        return 0


def weights_by_ipc(server: Server, client: Client) -> None:
    """What the client says on the control socket is understood to the end, where a server without a GPU says that it has none."""
    tensors, held = state(), client.policy()["held"]
    assert "without control_socket" in str(refused(ValueError, client.push_weights, tensors, transport="ipc"))
    with Client(server.url, control_socket=server.folder / "control.sock") as local:
        assert "on one GPU" in str(refused(ValueError, local.push_weights, tensors, transport="ipc"))
        fake, real = FakeCuda(tensors), weights_module.ctypes.CDLL
        sys.modules["torch"], weights_module.ctypes.CDLL = fake.torch, lambda _: fake
        try:
            error = refused(BadRequest, local.push_weights, fake.tensors)
            assert "needs its GPU" in error.message, error
            # One tensor too few is found before the GPU is looked for: the others were read.
            missing = fake.tensors.popitem()[0]
            assert missing in refused(BadRequest, local.push_weights, fake.tensors).message
        finally:
            weights_module.ctypes.CDLL = real
            del sys.modules["torch"]
        assert local.push_weights(tensors)["version"] == held["version"] + 1, "auto takes HTTP for memory that is no GPU's"


def pausing(server: Server, client: Client) -> None:
    client.pause()
    client.enqueue(TEXT[:2], num_generations=2, sampling=SHORT, queue="f")
    source = batches(client, "f")
    source.wait_ms = 300
    assert source.lease() is None
    client.resume()
    source.wait_ms = 20_000
    assert source.lease().ack()


def a_full_queue(server: Server, client: Client) -> None:
    client.enqueue(TEXT[:MAX_QUEUED], num_generations=1, sampling=SHORT, queue="h")
    full = refused(QueueFull, client.enqueue, TEXT[:1], num_generations=1, sampling=SHORT, queue="h", wait=False)
    assert full.retry_after, vars(full)
    refused(BadRequest, client.enqueue, TEXT[:MAX_QUEUED + 1], num_generations=1, sampling=SHORT, queue="h")
    assert next(iter(batches(client, "h", MAX_QUEUED))).ack()
    client.enqueue(TEXT[:1], num_generations=1, sampling=SHORT, queue="h")
    assert next(iter(batches(client, "h", 1))).ack()


def restarts_of_the_server(server: Server, client: Client) -> None:
    """Accepted groups outlive `kill -9`; weights that came over HTTP don't, and the learner puts them there again."""
    learned = {name: tensor * np.float32(0.999) for name, tensor in state().items()}  # unlike those of the server's folder
    version = client.push_weights(learned)["version"]
    client.enqueue(TEXT[:4], num_generations=2, sampling=SHORT, queue="g")
    source = batches(client, "g", learner="berta", on_reconnect=lambda: client.push_weights(learned))
    first = next(iter(source))
    server.kill()
    server.start()
    assert first.ack(), "leases outlive a restart"
    client.enqueue(TEXT[4:6], num_generations=2, sampling=SHORT, queue="g")
    seen = set(first.uids)
    source.wait_ms = 1000
    for _ in range(2):
        batch = next(iter(source))
        assert not seen & set(batch.uids)
        seen |= set(batch.uids)
        assert batch.ack()
    assert len(seen) == 6 and counts(client, "g")["acked"] == 6
    assert client.policy()["held"]["version"] == client.policy()["expected"] > version


CHECKS = [rollouts, a_batch, given_back, heartbeats, a_lost_lease, restarts_of_the_learner, weights, updates_take_turns, a_reference,
          weights_by_ipc, pausing, a_full_queue, restarts_of_the_server]


def main() -> None:
    server = Server(sys.argv[1], "--reference")
    client = Client(server.url)
    try:
        for check in [check for check in CHECKS if len(sys.argv) < 3 or check.__name__ in sys.argv[2:]]:
            began = time.monotonic()
            check(server, client)
            print(f"{check.__name__}: ok, {time.monotonic() - began:.1f} s", flush=True)
        client.close()
        server.end()
    finally:
        server.kill()


if __name__ == "__main__":
    main()
