"""Sums of two-digit numbers, after four examples. A hash of the sum's operands sends it to training or to the held-out prompts."""

from __future__ import annotations

import hashlib
import random

REWARDS = [{"name": "accuracy"}]
SHOTS = ((23, 45), (61, 17), (38, 54), (72, 19))
HELDOUT_SHARE = 8  # one sum in eight is held out


def row(name: str, a: int, b: int) -> dict:
    turns = []
    for x, y in SHOTS:
        turns += [{"role": "user", "content": f"What is {x} + {y}?"}, {"role": "assistant", "content": f"{x} + {y} = {x + y}"}]
    return {"id": name, "messages": [*turns, {"role": "user", "content": f"What is {a} + {b}?"}], "solution": str(a + b)}


def held_out(a: int, b: int) -> bool:
    return hashlib.sha256(f"{min(a, b)} {max(a, b)}".encode()).digest()[0] % HELDOUT_SHARE == 0


def draw(seed: int, n: int, side: bool) -> list[tuple[int, int]]:
    rng, out = random.Random(seed), []
    while len(out) < n:
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        if held_out(a, b) == side:
            out.append((a, b))
    return out


def train_rows(seed: int, n: int) -> list[dict]:
    return [row(f"train-{seed}-{i:04d}", a, b) for i, (a, b) in enumerate(draw(seed, n, False))]


def heldout_rows() -> list[dict]:
    return [row(f"heldout-{i:03d}", a, b) for i, (a, b) in enumerate(draw(20250701, 256, True))]
