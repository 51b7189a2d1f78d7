"""A GRPO learner in plain PyTorch: leases scored groups, takes a step, puts the weights back.

    grouper serve assets/tiny-vl-math --dtype float32 --port 8000        # or: grouper demo
    python examples/learner/grpo.py --url http://127.0.0.1:8000

Needs torch and transformers beside grouper_rl, and Pillow for the pictures of the bundled task. One JSON line a step on
standard output. Chat template, images, sampling, rewards, advantages and the old log-probabilities are the server's.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "clients/python"))
from grouper_rl import Batch, Batches, Checkpoint, Client  # noqa: E402

REWARDS = [{"name": "accuracy", "weight": 1.0}, {"name": "think_format", "weight": 0.25}]


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--url", default="http://127.0.0.1:8000")
    p.add_argument("--control-socket", help="the server's, to lend it the weights in GPU memory")
    p.add_argument("--model", type=Path, default=ROOT / "assets/tiny-vl-math", help="the folder that the server started from")
    p.add_argument("--tasks", type=Path, default=ROOT / "examples/tiny-vl-math/tasks.py",
                   help="a module with train_rows(seed, n) and heldout_rows()")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--steps", type=int, default=100)
    p.add_argument("--num-groups", type=int, default=32, help="prompts a step")
    p.add_argument("--num-generations", type=int, default=8, help="completions a prompt")
    p.add_argument("--max-tokens", type=int, default=32)
    p.add_argument("--micro-batch", type=int, default=256, help="samples in one forward pass")
    p.add_argument("--updates", type=int, default=1, help="optimiser steps a batch")
    p.add_argument("--lr", type=float, default=2e-4)
    p.add_argument("--epsilon", type=float, default=0.2, help="the ratio is clipped to 1 ± this")
    p.add_argument("--beta", type=float, default=0.0,
                   help="weight of the k3 estimate of KL(policy ‖ reference); the reference is what a server with --reference started from")
    p.add_argument("--eval-every", type=int, default=10, help="steps between two evaluations on the held-out prompts")
    p.add_argument("--until", type=float, default=1.01, help="stop when the held-out accuracy is at least this")
    p.add_argument("--tolerance", type=float, default=1e-4, help="mean |Δ logp| to the server beyond which the run fails")
    p.add_argument("--checkpoint", type=Path, help="folder to keep checkpoints in, and to go on from")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the matrix products; weights are float32")
    return p.parse_args()


def load_module(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def load_model(folder: Path, device: str):
    import transformers

    vision = "vision_config" in json.loads((folder / "config.json").read_text())
    auto = transformers.AutoModelForImageTextToText if vision else transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32).to(device)


def with_pictures(model, batch: Batch, rows: torch.Tensor, ids, mask, embeds):
    """Puts the features of each group's pictures into its samples' embeddings; the M-RoPE positions."""
    group = batch["group_index"][rows].tolist()
    per_group = batch["num_images"].tolist()
    grids = batch["image_grid_thw"].split(per_group)
    patches = [int(grid.prod(1).sum()) for grid in grids]
    used = sorted(set(group))
    pixels = batch["pixel_values"].split(patches)
    features = dict.fromkeys(used, embeds.new_zeros(0, embeds.shape[-1]))
    seen = [g for g in used if per_group[g]]
    if seen:
        out = model.model.visual(torch.cat([pixels[g] for g in seen]), grid_thw=torch.cat([grids[g] for g in seen])).pooler_output
        merged = model.config.vision_config.spatial_merge_size ** 2
        features.update(zip(seen, out.split([patches[g] // merged for g in seen])))
    at = (ids == model.config.image_token_id)[..., None]
    embeds = embeds.masked_scatter(at, torch.cat([features[g] for g in group]).to(embeds.dtype))
    positions, _ = model.model.get_rope_index(ids, batch["mm_token_type_ids"][rows], torch.cat([grids[g] for g in group]),
                                              attention_mask=mask)
    return embeds, positions


def logps(model, batch: Batch, rows: torch.Tensor) -> torch.Tensor:
    """log softmax(logits / temperature) at the completion tokens of some samples: (samples, C)."""
    prompt, completion = batch["prompt_ids"][rows], batch["completion_ids"][rows]
    ids = torch.cat([prompt, completion], 1)
    mask = torch.cat([batch["prompt_mask"][rows], torch.ones_like(completion)], 1)  # nothing looks at what is right of it
    embeds, positions = model.get_input_embeddings()(ids), (mask.cumsum(1) - 1).clamp(min=0)
    if "pixel_values" in batch:
        embeds, positions = with_pictures(model, batch, rows, ids, mask, embeds)
    decoder = getattr(model.model, "language_model", model.model)
    hidden = decoder(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, prompt.shape[1] - 1:-1]).float() / batch["temperature"][rows, None, None]
    return logits.gather(-1, completion[..., None])[..., 0] - logits.logsumexp(-1)


def loss_of(new, old, ref, advantage, epsilon: float, beta: float) -> torch.Tensor:
    """GRPO's loss of every token: the clipped ratio to the policy that sampled it, and k3 to the reference."""
    ratio = (new - old).exp()
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)
    return loss + beta * k3(new, ref) if beta else loss


def k3(new, ref) -> torch.Tensor:
    """Estimate of KL(policy ‖ reference) at tokens of the policy: never negative, 0 where both agree."""
    return (ref - new).exp() - (ref - new) - 1


def learn(model, optimizer, batch: Batch, args, version: int) -> dict[str, float]:
    """The optimiser steps of one batch. Returns mean |Δ logp| to the server over what the present weights have sampled, of all samples
    and of those without and with pictures, and with beta the mean k3 to the reference before the first step."""
    rows_that_count = (batch["completion_mask"].any(1) & ((batch["advantages"] != 0) | bool(args.beta))).nonzero()[:, 0]
    if not len(rows_that_count):
        return {}  # every group is of one mind
    fresh = batch["completion_mask"] * (batch["policy_version"] == version)[:, None]
    difference, kl = torch.zeros(len(fresh), device=fresh.device), torch.zeros(len(fresh), device=fresh.device)
    for update in range(args.updates):
        for rows in rows_that_count.split(args.micro_batch):
            with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.dtype == "bfloat16"):
                new = logps(model, batch, rows)
            old, mask = batch["old_per_token_logps"][rows], batch["completion_mask"][rows]
            ref = batch["ref_per_token_logps"][rows] if args.beta else None
            if update == 0:
                difference[rows] = ((new.detach() - old).abs() * fresh[rows]).sum(1)
                if args.beta:
                    kl[rows] = (k3(new.detach(), ref) * mask).sum(1)
            loss = loss_of(new, old, ref, batch["advantages"][rows, None], args.epsilon, args.beta)
            ((loss * mask).sum() / max(batch.num_items_in_batch, 1)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    pictures = batch["num_images"][batch["group_index"]] > 0 if "num_images" in batch else torch.zeros_like(difference, dtype=torch.bool)
    counts = torch.zeros_like(difference)
    counts[rows_that_count] = fresh[rows_that_count].sum(1).float()
    kinds = {"": counts > 0, "_text": (counts > 0) & ~pictures, "_image": (counts > 0) & pictures}
    figures = {f"mean_abs_logp_difference{kind}": (difference[rows].sum() / counts[rows].sum()).item()
               for kind, rows in kinds.items() if rows.any()}
    return figures | ({"kl": (kl.sum() / max(batch.num_items_in_batch, 1)).item()} if args.beta else {})


def evaluate(client: Client, heldout: list[dict], args) -> dict:
    """One completion of every held-out prompt at temperature 1, scored by the server."""
    totals = dict.fromkeys(("accuracy", "think_format"), 0.0)
    for start in range(0, len(heldout), 256):
        rows = heldout[start:start + 256]
        reply = client.rollouts(rows, num_generations=1, seed=args.seed, sampling={"temperature": 1.0, "max_tokens": args.max_tokens},
                                rewards=[{"name": name} for name in totals], return_=[])
        for name in totals:
            totals[name] += sum(group["samples"][0]["rewards"][name] or 0.0 for group in reply["groups"])
    return {f"heldout_{name}": round(total / len(heldout), 4) for name, total in totals.items()}


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    tasks = load_module(args.tasks)
    rewards, heldout = getattr(tasks, "REWARDS", REWARDS), tasks.heldout_rows()
    checkpoint = Checkpoint(args.checkpoint) if args.checkpoint else None
    model = load_model(args.model, args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0)
    if checkpoint and checkpoint.path:
        state = torch.load(checkpoint.path / "state.pt", map_location=args.device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    client, queue = Client(args.url, control_socket=args.control_socket), f"grpo-{args.seed}"
    version = client.push_weights(model)["version"]
    batches = Batches(client, num_groups=args.num_groups, queue=queue, learner=queue, heartbeat=True, checkpoint=checkpoint,
                      on_reconnect=lambda: client.push_weights(model))
    source, began, first = iter(batches), time.monotonic(), checkpoint.step if checkpoint else 0
    sampling = {"temperature": 1.0, "max_tokens": args.max_tokens}
    wanted = ["logps"] + ["ref_logps"] * bool(args.beta) + ["pixel_values"] * hasattr(model.config, "vision_config")

    for step in itertools.count(first):
        line = {"step": step, "policy_version": version, "seconds": round(time.monotonic() - began, 1)}
        if step % args.eval_every == 0 or step == args.steps:
            line |= evaluate(client, heldout, args)
        if step == args.steps or line.get("heldout_accuracy", 0.0) >= args.until:
            print(json.dumps(line), flush=True)
            return
        client.enqueue(tasks.train_rows(100_000 * args.seed + step, args.num_groups), num_generations=args.num_generations,
                       sampling=sampling, rewards=rewards, return_=wanted, queue=queue, seed=100_000 * args.seed + step)
        batch = next(source).to(args.device)
        figures = learn(model, optimizer, batch, args, version)
        if checkpoint:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            checkpoint.save(step + 1, batch, lambda folder: torch.save(state, folder / "state.pt"))
        version = client.push_weights(model)["version"]
        batch.ack()
        weights = {reward["name"]: reward.get("weight", 1.0) for reward in rewards}
        weight = batch["rewards"].new_tensor([weights[name] for name in batch.reward_names])
        line |= {"reward": (batch["rewards"] * weight).nansum(1).mean().item()}
        line |= {name: batch["rewards"][:, i].nanmean().item() for i, name in enumerate(batch.reward_names)}
        print(json.dumps(line | figures), flush=True)
        difference = max((figure for name, figure in figures.items() if "difference" in name), default=0.0)
        if difference > args.tolerance:
            sys.exit(f"step {step}: the server's log-probabilities are {difference:.1e} away from this learner's")


if __name__ == "__main__":
    main()
