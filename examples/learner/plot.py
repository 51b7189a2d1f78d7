"""Held-out accuracy and reward against time, one line a run: python plot.py OUT.png RUN.jsonl …   Needs matplotlib."""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def main() -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for path in map(Path, sys.argv[2:]):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        held = [row for row in rows if "heldout_accuracy" in row]
        left.plot([row["seconds"] for row in held], [row["heldout_accuracy"] for row in held], marker="o", ms=3, label=path.stem)
        steps = [row for row in rows if "reward" in row]
        right.plot([row["step"] for row in steps], [row["reward"] for row in steps], lw=1, label=path.stem)
    left.axhline(0.85, color="grey", lw=0.8, ls="--")
    left.set(xlabel="seconds (server and learner on the same machine)", ylabel="held-out accuracy, temperature 1", ylim=(0, 1))
    right.set(xlabel="step", ylabel="mean reward of the batch")
    left.legend(frameon=False)
    figure.savefig(sys.argv[1], dpi=130)


if __name__ == "__main__":
    main()
