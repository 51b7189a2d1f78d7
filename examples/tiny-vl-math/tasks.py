"""The made-up tasks that tiny-vl-math is trained on. Python, numpy and Pillow only.

Four kinds, in equal parts; the two image kinds each ask one fixed question, so only the picture tells the answer:

  add    What is 47+38?            <think>7+8=15</think><answer>85</answer>
  sub    What is 83-47?            <think>13-7=6</think><answer>36</answer>
  read   What number is shown?     <think>4 and 7</think><answer>47</answer>
  count  How many dots?            <think>I see 5</think><answer>5</answer>

`heldout_rows()` gives the 256 held-out prompts (64 of each kind), `train_rows(seed, n)` any number of training
prompts. A hash of the canonical task (operands, or pixels) sends each task to one side, so the two never meet.
"""

from __future__ import annotations

import base64
import hashlib
import io
import random
import re
from dataclasses import dataclass

import numpy as np

KINDS = ("add", "sub", "read", "count")
SIZES = ((56, 56), (56, 84))  # height, width: 4 and 6 image tokens
HELDOUT_SEED = 20250701
HELDOUT_SHARE = 8  # one task in eight is held out

FONT = {  # 5x7 digits, one row of bits per number
    0: (14, 17, 19, 21, 25, 17, 14), 1: (4, 12, 4, 4, 4, 4, 14), 2: (14, 17, 1, 2, 4, 8, 31),
    3: (31, 2, 4, 2, 1, 17, 14), 4: (2, 6, 10, 18, 31, 2, 2), 5: (31, 16, 30, 1, 1, 17, 14),
    6: (6, 8, 16, 30, 17, 17, 14), 7: (31, 1, 2, 4, 8, 8, 8), 8: (14, 17, 17, 14, 17, 17, 14),
    9: (14, 17, 17, 15, 1, 2, 12),
}
GLYPHS = {d: np.kron([[row >> (4 - x) & 1 for x in range(5)] for row in rows], np.ones((4, 4))).astype(bool)
          for d, rows in FONT.items()}


@dataclass
class Task:
    kind: str
    text: str
    gold: int
    a: int = 0
    b: int = 0
    image: np.ndarray | None = None  # uint8, height x width x 3

    def key(self) -> bytes:
        """The canonical task: what must not be on both sides of the split."""
        if self.image is not None:
            return self.kind.encode() + repr(self.image.shape).encode() + self.image.tobytes()
        operands = sorted((self.a, self.b)) if self.kind == "add" else (self.a, self.b)
        return f"{self.kind} {operands[0]} {operands[1]}".encode()

    def held_out(self) -> bool:
        return hashlib.sha256(self.key()).digest()[0] % HELDOUT_SHARE == 0


# ------------------------------------------------------------------ pictures
def canvas(rng: random.Random, mask: np.ndarray) -> np.ndarray:
    """Dark ink on a light ground, both of random colour."""
    ground = [rng.randint(180, 255) for _ in range(3)]
    ink = [rng.randint(0, 110) for _ in range(3)]
    return np.where(mask[..., None], np.array(ink, np.uint8), np.array(ground, np.uint8))


def draw_number(rng: random.Random, value: int) -> np.ndarray:
    h, w = rng.choice(SIZES)
    mask = np.zeros((h, w), bool)
    gap = rng.choice((4, 6, 8))
    x, y = (w - 40 - gap) // 2 + rng.randint(-4, 4), (h - 28) // 2 + rng.randint(-6, 6)
    for digit in divmod(value, 10):
        mask[y:y + 28, x:x + 20] = GLYPHS[digit]
        x += 20 + gap
    return canvas(rng, mask)


def draw_dots(rng: random.Random, count: int) -> np.ndarray:
    h, w = rng.choice(SIZES)
    mask = np.zeros((h, w), bool)
    for cell in rng.sample(range((h // 14) * (w // 14)), count):
        y, x = cell // (w // 14) * 14 + rng.randint(1, 5), cell % (w // 14) * 14 + rng.randint(1, 5)
        mask[y:y + 8, x:x + 8] = True
    return canvas(rng, mask)


def png_url(image: np.ndarray) -> str:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


# ------------------------------------------------------------------ tasks
def draw_task(rng: random.Random, kind: str) -> Task:
    if kind == "read":
        value = rng.randint(10, 99)
        return Task(kind, "What number is shown?", value, image=draw_number(rng, value))
    if kind == "count":
        value = rng.randint(1, 9)
        return Task(kind, "How many dots?", value, image=draw_dots(rng, value))
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    if kind == "add":
        return Task(kind, f"What is {a}+{b}?", a + b, a, b)
    a, b = max(a, b), min(a, b)
    return Task(kind, f"What is {a}-{b}?", a - b, a, b)


def stream(seed: int, held_out: bool = False):
    """Tasks of one side of the split, the kinds in turn."""
    rng = random.Random(seed)
    while True:
        for kind in KINDS:
            task = draw_task(rng, kind)
            while task.held_out() != held_out:
                task = draw_task(rng, kind)
            yield task


def train_tasks(seed: int, n: int) -> list[Task]:
    source = stream(seed)
    return [next(source) for _ in range(n)]


def heldout_tasks(n: int = 256) -> list[Task]:
    out, seen, need = [], set(), dict.fromkeys(KINDS, n // len(KINDS))
    for task in stream(HELDOUT_SEED, held_out=True):
        if need[task.kind] and task.key() not in seen:
            seen.add(task.key())
            need[task.kind] -= 1
            out.append(task)
        if len(out) == n:
            return out


def row(task: Task, name: str) -> dict:
    content: object = task.text
    if task.image is not None:
        picture = {"type": "image_url", "image_url": {"url": png_url(task.image)}}
        content = [picture, {"type": "text", "text": task.text}]
    return {"id": name, "messages": [{"role": "user", "content": content}], "solution": str(task.gold)}


def train_rows(seed: int, n: int) -> list[dict]:
    return [row(t, f"train-{seed}-{i:06d}-{t.kind}") for i, t in enumerate(train_tasks(seed, n))]


def heldout_rows() -> list[dict]:
    return [row(t, f"heldout-{i:03d}-{t.kind}") for i, t in enumerate(heldout_tasks())]


# ------------------------------------------------------------------ completions to imitate
def think_text(task: Task, value: int) -> str:
    """The reasoning that leads to `value`, right or wrong."""
    if task.kind == "read":
        return f"{value // 10} and {value % 10}"
    if task.kind == "count":
        return f"I see {value}"
    x, y, slip = task.a % 10, task.b % 10, value - task.gold
    slip = 0 if abs(slip) == 10 else slip  # a slip of ten happens after the ones column
    if task.kind == "add":
        return f"{x}+{y}={x + y + slip}"
    x += 10 if x < y else 0
    return f"{x}-{y}={x - y + slip}"


def near_values(task: Task) -> list[int]:
    """Wrong answers near the right one."""
    if task.kind == "count":
        return [v for d in (1, 2, 3) for v in (task.gold - d, task.gold + d) if 1 <= v <= 9]
    if task.kind == "read":
        return [v for d in (1, 2, 3, 10) for v in (task.gold - d, task.gold + d) if 10 <= v <= 99]
    ones = task.a % 10 + task.b % 10 if task.kind == "add" else (task.a - task.b) % 10
    slips = [d for d in (-3, -2, -1, 1, 2, 3) if ones + d >= 0] + [-10, 10]
    return [task.gold + d for d in slips if task.gold + d >= 0]


def completion(task: Task, rng: random.Random | None = None, wrong: float = 0.0, unformatted: float = 0.0) -> str:
    """What the student imitates: with probability `wrong` a near miss, with `unformatted` a broken think block."""
    value, broken = task.gold, False
    if rng is not None:
        value = rng.choice(near_values(task)) if rng.random() < wrong else value
        broken = rng.random() < unformatted
    think, answer = think_text(task, value), f"<answer>{value}</answer>"
    if broken:
        return answer if rng.random() < 0.5 else f"{think}</think>{answer}"
    return f"<think>{think}</think>{answer}"


# ------------------------------------------------------------------ rewards
def accuracy(text: str, solution: str) -> float:
    found = re.search(r"<answer>(.*?)</answer>", text.rsplit("</think>", 1)[-1], re.S)
    return float(found is not None and found.group(1).strip() == solution.strip())


def think_format(text: str) -> float:
    return float(text.startswith("<think>") and text.count("<think>") == 1 and "</think>" in text)
