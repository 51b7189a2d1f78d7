"""Runs the example learner for some steps against the real server: python test_learner.py target/release/grouper

Needs torch, transformers and Pillow beside httpx, numpy and safetensors. Prints how far the server's log-probabilities are from the
learner's own in float32, for text and pictures, and what the pull to the reference does to the KL.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

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


def learn(server: Server, beta: float) -> list[dict]:
    """The log lines of a run's steps."""
    tasks = server.folder / "few_tasks.py"
    tasks.write_text(TASKS.format(folder=str(ROOT / "examples/tiny-vl-math")))
    flags = {"url": server.url, "tasks": tasks, "steps": STEPS, "num-groups": 6, "num-generations": 4, "max-tokens": 24, "lr": 1e-3,
             "beta": beta, "eval-every": 1000, "device": "cpu", "seed": int(beta)}
    sys.argv = ["grpo.py", *(str(word) for name, value in flags.items() for word in (f"--{name}", value))]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        grpo.main()
    return [json.loads(line) for line in out.getvalue().splitlines()][:STEPS]


def check_distances(lines: list[dict]) -> None:
    for kind in ("text", "image"):
        found = {line["step"]: line.get(f"mean_abs_logp_difference_{kind}") for line in lines}
        pushes = {line["step"]: line["policy_version"] - lines[0]["policy_version"] for line in lines}
        last = max(step for step, difference in found.items() if difference is not None)
        assert found[0] is not None and pushes[last] >= 10 and all(d is None or d <= CLOSE for d in found.values()), (kind, found)
        print(f"{kind}: mean |Δ logp| {found[0]:.1e} at step 0, {found[last]:.1e} after {pushes[last]} pushes")


def reference_is_the_start(server: Server) -> None:
    """`ref_per_token_logps` of samples of the present policy are those of the folder that the server started from."""
    client, model = grpo.Client(server.url), grpo.load_model(MODEL, "cpu")
    client.enqueue([*TEXT[:3], *IMAGE[:3]], num_generations=2, sampling=SHORT, queue="ref", return_=["logps", "ref_logps", "pixel_values"])
    batch = next(iter(grpo.Batches(client, num_groups=6, queue="ref")))
    with torch.no_grad():
        own = grpo.logps(model, batch, torch.arange(12))
    mask, pictures = batch["completion_mask"], batch["num_images"][batch["group_index"]] > 0
    for kind, rows in (("text", ~pictures), ("image", pictures)):
        for name, close in (("ref_per_token_logps", True), ("old_per_token_logps", False)):
            difference = (((own - batch[name]).abs() * mask)[rows].sum() / mask[rows].sum()).item()
            assert (difference <= CLOSE) == close, (kind, name, difference)
            print(f"{kind}: mean |Δ logp| of the start to {name} {difference:.1e}")
    assert batch.ack()


def main() -> None:
    server = Server(sys.argv[1], "--reference")
    try:
        free = learn(server, 1e-9)
        check_distances(free)
        reference_is_the_start(server)
        held = learn(server, 5.0)
        check_distances(held)
        # The policy begins as the reference; the pull keeps it there.
        assert all(abs(lines[0]["kl"]) < 1e-8 for lines in (free, held)) and free[-1]["kl"] > 10 * held[-1]["kl"] > 0, (free, held)
        print(f"KL to the reference after {STEPS - 1} steps: {free[-1]['kl']:.1e} with beta 1e-9, {held[-1]['kl']:.1e} with beta 5")
        server.end()
    finally:
        server.kill()


if __name__ == "__main__":
    main()
