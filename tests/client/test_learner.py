"""Runs the example learner for some steps against the real server: python test_learner.py target/release/grouper

Needs torch, transformers and Pillow beside httpx, numpy and safetensors. Prints how far the server's log-probabilities are from the
learner's own in float32, for text and pictures, and what the term of `--beta` does to the KL to the reference.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from argparse import Namespace

import torch
from test_client import IMAGE, MODEL, ROOT, SHORT, TEXT, Server

sys.path.insert(0, str(ROOT / "examples/learner"))
import grpo  # noqa: E402

STEPS, CLOSE = 12, 1e-4
TASKS = """
import sys
sys.path.insert(0, {folder!r})
from tasks import heldout_rows as all_rows, train_rows
def heldout_rows():
    return all_rows()[:8]
"""


def learn(server: Server) -> list[dict]:
    """The log lines of a run's steps."""
    tasks = server.folder / "few_tasks.py"
    tasks.write_text(TASKS.format(folder=str(ROOT / "examples/tiny-vl-math")))
    flags = {"url": server.url, "tasks": tasks, "steps": STEPS, "num-groups": 6, "num-generations": 3, "max-tokens": 24, "lr": 1e-3,
             "beta": 0.04, "eval-every": 1000, "device": "cpu", "checkpoint": server.folder / "checkpoint"}
    sys.argv = ["grpo.py", *(str(word) for name, value in flags.items() for word in (f"--{name}", value))]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        grpo.main()
    return [json.loads(line) for line in out.getvalue().splitlines()][:-1]


def check_distances(lines: list[dict]) -> None:
    for kind in ("text", "image"):
        found = {line["step"]: line.get(f"mean_abs_logp_difference_{kind}") for line in lines}
        pushes = {line["step"]: line["policy_version"] - lines[0]["policy_version"] for line in lines}
        last = max(step for step, difference in found.items() if difference is not None)
        assert found[0] is not None and pushes[last] >= 10 and all(d is None or d <= CLOSE for d in found.values()), (kind, found)
        print(f"{kind}: mean |Δ logp| {found[0]:.1e} at step 0, {found[last]:.1e} after {pushes[last]} pushes")


def a_batch_of_now(server: Server) -> grpo.Batch:
    """Samples of the policy that the run has left on the server."""
    client = grpo.Client(server.url)
    client.enqueue([*TEXT[:3], *IMAGE[:3]], num_generations=2, sampling=SHORT, queue="now", return_=["logps", "ref_logps", "pixel_values"])
    batch = next(iter(grpo.Batches(client, num_groups=6, queue="now")))
    assert batch.ack()
    return batch


def reference_is_the_start(batch: grpo.Batch) -> None:
    """`ref_per_token_logps` are those of the folder that the server started from, wherever the policy is."""
    with torch.no_grad():
        own = grpo.logps(grpo.load_model(MODEL, "cpu"), batch, torch.arange(12))
    mask, pictures = batch["completion_mask"], batch["num_images"][batch["group_index"]] > 0
    for kind, rows in (("text", ~pictures), ("image", pictures)):
        for name, close in (("ref_per_token_logps", True), ("old_per_token_logps", False)):
            difference = (((own - batch[name]).abs() * mask)[rows].sum() / mask[rows].sum()).item()
            assert (difference <= CLOSE) == close, (kind, name, difference)
            print(f"{kind}: mean |Δ logp| of the start to {name} {difference:.1e}")


def beta_pulls_back(server: Server, batch: grpo.Batch) -> None:
    """Without advantages, small steps down the loss bring the policy nearer to the reference."""
    model = grpo.load_model(MODEL, "cpu")
    model.load_state_dict(torch.load(grpo.Checkpoint(server.folder / "checkpoint").path / "state.pt")["model"])
    batch.tensors["advantages"] = torch.zeros(12)
    args = Namespace(beta=0.04, epsilon=0.2, updates=1, micro_batch=12, device="cpu", dtype="float32")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
    kl = [grpo.learn(model, optimizer, batch, args, batch.policy_version)["kl"] for _ in range(6)]
    print("KL to the reference:", ", ".join(f"{step:.4f}" for step in kl))
    assert kl[-1] > 0 and all(later < earlier for earlier, later in zip(kl, kl[1:])), kl


def main() -> None:
    torch.set_num_threads(1)  # threads that spin would wait for the server's
    server = Server(sys.argv[1], "--reference", "--threads", "1")
    try:
        lines = learn(server)
        check_distances(lines)
        assert abs(lines[0]["kl"]) < 1e-6 < 1e-3 < lines[-1]["kl"], "the policy begins as the reference, and leaves it"
        batch = a_batch_of_now(server)
        reference_is_the_start(batch)
        beta_pulls_back(server, batch)
        server.end()
    finally:
        server.kill()


if __name__ == "__main__":
    main()
