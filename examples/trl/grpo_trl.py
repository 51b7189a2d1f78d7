"""TRL's GRPOTrainer with a grouper server in place of its own generation: `rollout_func` asks the server for completions
and puts the trainer's weights there whenever an optimiser step has changed them; the rewards are the server's too.

    pip install trl==1.16.0 torch torchvision pillow
    grouper serve assets/tiny-vl-math --dtype float32 --port 8000
    python examples/trl/grpo_trl.py --url http://127.0.0.1:8000 --steps 5
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "clients/python"), str(ROOT / "examples/tiny-vl-math")]

import tasks  # noqa: E402
from datasets import Dataset, Features, Image, List, Value  # noqa: E402
from grouper_rl import Client  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402


def data_url(image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def openai_messages(prompt: list[dict]) -> list[dict]:
    """TRL's messages with PIL images as the server reads them."""
    def part(p: dict) -> dict:
        return {"type": "image_url", "image_url": {"url": data_url(p["image"])}} if p["type"] == "image" else p

    return [{**m, "content": m["content"] if isinstance(m["content"], str) else [part(p) for p in m["content"]]} for m in prompt]


class Rollouts:
    """TRL's `rollout_func`: the prompts of this process come in, each as often as it wants completions."""

    def __init__(self, client: Client):
        self.client, self.pushed_at = client, None

    def __call__(self, prompts: list, trainer: GRPOTrainer) -> dict:
        if self.pushed_at != trainer.state.global_step:
            self.client.push_weights(trainer.accelerator.unwrap_model(trainer.model))
            self.pushed_at = trainer.state.global_step
        args, G = trainer.args, trainer.num_generations if trainer.model.training else trainer.num_generations_eval
        sampling = {"temperature": args.temperature, "top_p": args.top_p, "max_tokens": args.max_completion_length}
        groups = [{"messages": openai_messages(prompt)} for prompt in prompts[::G]]
        reply = self.client.rollouts(groups, num_generations=G, sampling=sampling, rewards=[{"name": "think_format"}], return_=["logps"])
        samples = [(group, sample) for group in reply["groups"] for sample in group["samples"]]
        return {"prompt_ids": [group["prompt_token_ids"] for group, _ in samples],
                "completion_ids": [sample["token_ids"] for _, sample in samples],
                "logprobs": [sample["logps"] for _, sample in samples]}


def server_reward(client: Client, name: str, **arguments):
    """A reward of the server's catalogue as a reward function of TRL."""
    def reward(completions, solution, **_) -> list[float | None]:
        samples = [{"completion": completion[0]["content"], "solution": gold} for completion, gold in zip(completions, solution)]
        return [sample["rewards"][name] for sample in client.score(samples, [{"name": name, **arguments}])["samples"]]

    reward.__name__ = name
    return reward


def dataset(seed: int, n: int) -> Dataset:
    from PIL import Image as Pillow

    chosen = tasks.train_tasks(seed, n)
    rows = {"prompt": [[{"role": "user", "content": task.text}] for task in chosen],
            "images": [[] if task.image is None else [Pillow.fromarray(task.image)] for task in chosen],
            "solution": [str(task.gold) for task in chosen]}
    message = {"role": Value("string"), "content": Value("string")}
    return Dataset.from_dict(rows, features=Features({"prompt": List(message), "images": List(Image()), "solution": Value("string")}))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--url", default="http://127.0.0.1:8000")
    p.add_argument("--model", default=str(ROOT / "assets/tiny-vl-math"))
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--num-groups", type=int, default=16)
    p.add_argument("--num-generations", type=int, default=8)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", default="/tmp/grouper-trl")
    args = p.parse_args()

    client = Client(args.url)
    config = GRPOConfig(
        output_dir=args.out, seed=args.seed, max_steps=args.steps, learning_rate=2e-4, lr_scheduler_type="constant",
        per_device_train_batch_size=args.num_groups * args.num_generations, num_generations=args.num_generations,
        max_completion_length=32, temperature=1.0, adam_beta2=0.99, reward_weights=[1.0, 0.25], bf16=False,
        gradient_checkpointing=False, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True)
    trainer = GRPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(args.model, dtype="float32"),
        processing_class=AutoProcessor.from_pretrained(args.model), args=config,
        reward_funcs=[server_reward(client, "accuracy"), server_reward(client, "think_format")],
        train_dataset=dataset(args.seed, args.num_groups * args.steps), rollout_func=Rollouts(client))
    trainer.train()


if __name__ == "__main__":
    main()
