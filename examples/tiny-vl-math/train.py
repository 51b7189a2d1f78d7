"""Makes assets/tiny-vl-math: tokenizer, proof run, early stop, held-out figures, GRPO dry run, model folder.

    python examples/tiny-vl-math/train.py --out assets/tiny-vl-math     # a few minutes on one GPU
    python examples/tiny-vl-math/train.py --smoke --out /tmp/smoke      # does it run at all (CPU, no bounds checked)
    python examples/tiny-vl-math/train.py --dry-run-from assets/tiny-vl-math --out /tmp/dry   # GRPO alone

Needs torch, transformers (written with 5.17), tokenizers, numpy, pillow.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import math
import sys
import time
from pathlib import Path

import tokenizers
import torch
import transformers

import tasks
from bundle import build_model, build_tokenizer, hub_config, write_folder, write_json
from policy import (MAX_NEW, Prompts, check_forward, completion_logits, completion_mask, decode, sample)

START = time.monotonic()


def say(*words):
    print(f"[{time.monotonic() - START:6.1f}s]", *words, flush=True)


# ------------------------------------------------------------------ measuring
def score(prompts: Prompts, index: torch.Tensor, comp: torch.Tensor):
    """Accuracy and think_format of each completion."""
    texts = decode(comp, prompts)
    golds = [prompts.golds[i] for i in index.tolist()]
    right = torch.tensor([tasks.accuracy(t, g) for t, g in zip(texts, golds)])
    form = torch.tensor([tasks.think_format(t) for t in texts])
    return right, form, texts


def evaluate(model, prompts: Prompts, samples: int = 8) -> dict:
    """Temperature 1, `samples` completions a prompt; greedy beside it."""
    n = len(prompts.tasks)
    index = torch.arange(n, device=prompts.device)
    many = index.repeat_interleave(samples)
    comp = sample(model, prompts, many)
    right, form, _ = score(prompts, many, comp)
    greedy, _, _ = score(prompts, index, sample(model, prompts, index, temperature=0.0))
    right = right.view(n, samples)
    length = completion_mask(comp, prompts).sum(1)
    out = {"accuracy": right.mean().item(), f"pass@{samples}": right.amax(1).mean().item(),
           "think_format": form.mean().item(), "greedy_accuracy": greedy.mean().item(),
           "mean_tokens": length.float().mean().item(), "max_tokens": length.max().item(),
           "prompts": n, "samples_per_prompt": samples, "kinds": {}}
    for kind in tasks.KINDS:
        here = torch.tensor([t.kind == kind for t in prompts.tasks])
        out["kinds"][kind] = {"accuracy": right[here].mean().item(),
                              f"pass@{samples}": right[here].amax(1).mean().item(),
                              "greedy_accuracy": greedy[here].mean().item()}
    return rounded(out)


def rounded(x):
    if isinstance(x, dict):
        return {k: rounded(v) for k, v in x.items()}
    return round(x, 4) if isinstance(x, float) else x


def brief(f: dict) -> str:
    kinds = " ".join(f"{k} {v['accuracy']:.2f}/{v['greedy_accuracy']:.2f}" for k, v in f["kinds"].items())
    return (f"acc {f['accuracy']:.3f} pass@8 {f['pass@8']:.3f} think {f['think_format']:.3f} "
            f"greedy {f['greedy_accuracy']:.3f} tokens {f['mean_tokens']:.1f} | {kinds}")


def good_stop(f: dict) -> bool:
    """The bounds of the bundled checkpoint, with some room, and the right answer the likeliest one in every kind."""
    return (0.30 <= f["accuracy"] <= 0.46 and f["pass@8"] >= 0.96 and f["think_format"] >= 0.70
            and all(k["accuracy"] >= 0.30 and k["pass@8"] >= 0.93 and k["greedy_accuracy"] >= 0.95
                    for k in f["kinds"].values()))


# ------------------------------------------------------------------ supervised fine-tuning
def finetune(name, model, prompts, targets, heldout, args, steps, every, seconds, stop=None):
    """Cross-entropy on the completions. Returns the curve and, with `stop`, whether a checkpoint met it."""
    opt = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.01)
    n, draws, _ = targets.shape
    gen = torch.Generator(prompts.device).manual_seed(args.seed)
    curve, done, step, began = [], False, 0, time.monotonic()
    while step < steps:
        step += 1
        if step == 100:  # a slow machine takes fewer steps and keeps the shape of the schedule
            steps = min(steps, int(seconds / ((time.monotonic() - began) / step)))
        warm = min(1.0, step / 200)
        opt.param_groups[0]["lr"] = args.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        index = torch.randint(n, (args.batch,), generator=gen, device=prompts.device)
        comp = targets[index, torch.randint(draws, (args.batch,), generator=gen, device=prompts.device)]
        logp = completion_logits(model, prompts, index, comp).log_softmax(-1).gather(-1, comp[..., None])[..., 0]
        mask = completion_mask(comp, prompts)
        loss = -(logp * mask).sum() / mask.sum()
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        if step % every == 0 or step == steps:
            figures = evaluate(model, heldout)
            curve.append({"step": step, "loss": round(loss.item(), 4),
                          **{k: figures[k] for k in ("accuracy", "pass@8", "think_format", "greedy_accuracy")}})
            say(f"{name} step {step} loss {loss.item():.4f} {brief(figures)}")
            if stop is not None and stop(figures):
                done = True
                break
    return curve, done


# ------------------------------------------------------------------ GRPO
def grpo(model, prompts, heldout, args, lr):
    """Plain GRPO: groups of G, advantage (r - mean) / (std + 1e-4), one on-policy step a batch, no KL term."""
    opt = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    gen = torch.Generator(prompts.device).manual_seed(args.seed + 1)
    curve, reached, began = [], None, time.monotonic()
    for step in range(args.grpo_steps + 1):
        if step % args.grpo_every == 0:
            figures = evaluate(model, heldout)
            curve.append({"step": step, **{k: figures[k] for k in ("accuracy", "think_format", "greedy_accuracy")}})
            say(f"grpo lr {lr:g} step {step} {brief(figures)}")
            if reached is None and figures["accuracy"] >= 0.85:
                reached = step
            if figures["accuracy"] >= 0.95:
                break
        index = torch.randint(len(prompts.tasks), (args.grpo_prompts,), generator=gen, device=prompts.device)
        index = index.repeat_interleave(args.group)
        comp = sample(model, prompts, index)
        right, form, _ = score(prompts, index, comp)
        reward = (right + args.format_weight * form).view(-1, args.group)
        advantage = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)
        advantage = advantage.view(-1, 1).to(prompts.device)
        logp = completion_logits(model, prompts, index, comp).log_softmax(-1).gather(-1, comp[..., None])[..., 0]
        mask = completion_mask(comp, prompts)
        loss = -(advantage * logp * mask).sum() / mask.sum()
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
    return {"lr": lr, "prompts_per_step": args.grpo_prompts, "group": args.group, "format_weight": args.format_weight,
            "reached_0.85_at_step": reached, "seconds": round(time.monotonic() - began, 1), "curve": curve}


# ------------------------------------------------------------------ the whole
def arguments():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--seed", type=int, default=7)
    ap.add_argument("--pool", type=int, default=100_000, help="training tasks to draw")
    ap.add_argument("--batch", type=int, default=512)
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--proof-steps", type=int, default=2500)
    ap.add_argument("--early-steps", type=int, default=3000)
    ap.add_argument("--minutes", type=float, default=60, help="shorten both runs so that the whole takes about this")
    ap.add_argument("--every", type=int, default=250, help="steps between held-out figures")
    ap.add_argument("--wrong", type=float, default=0.58, help="share of near misses in the early-stop data")
    ap.add_argument("--unformatted", type=float, default=0.15, help="share of broken think blocks there")
    ap.add_argument("--grpo-lr", type=float, nargs="+", default=[1e-4])
    ap.add_argument("--grpo-steps", type=int, default=300)
    ap.add_argument("--grpo-every", type=int, default=10)
    ap.add_argument("--grpo-prompts", type=int, default=32)
    ap.add_argument("--group", type=int, default=8)
    ap.add_argument("--format-weight", type=float, default=0.25, help="weight of think_format beside accuracy")
    ap.add_argument("--dry-run-from", type=Path, help="load this folder and run only GRPO")
    ap.add_argument("--smoke", action="store_true")
    args = ap.parse_args()
    if args.smoke:
        args.pool, args.batch, args.proof_steps, args.early_steps, args.every = 400, 32, 4, 4, 4
        args.grpo_steps, args.grpo_every, args.grpo_prompts = 2, 2, 4
    return args


def main() -> int:
    args = arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    tok = build_tokenizer()
    config = hub_config(tok)
    heldout = Prompts(tasks.heldout_tasks(16 if args.smoke else 256), tok, device)
    pool = Prompts(tasks.train_tasks(args.seed, args.pool), tok, device)
    assert not {t.key() for t in heldout.tasks} & {t.key() for t in pool.tasks}
    say(f"{device}, vocabulary {config['vocab_size']}, prompts of at most {pool.ids.shape[1]} tokens")
    args.out.mkdir(parents=True, exist_ok=True)

    if args.dry_run_from:
        for lr in args.grpo_lr:
            model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(args.dry_run_from).to(device)
            write_json(args.out / f"grpo-{lr:g}.json", grpo(model, pool, heldout, args, lr))
        return 0

    model = build_model(config).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    difference = check_forward(model, heldout)
    say(f"{parameters} parameters, batched forward against transformers': {difference:.1e}")
    assert difference < 1e-3
    fresh = copy.deepcopy(model.state_dict())

    say("proof run: right answers only")
    proof_curve, _ = finetune("proof", model, pool, pool.targets(1, args.seed), heldout, args, args.proof_steps,
                              args.every * 2, args.minutes * 60 * 0.45)
    proof = evaluate(model, heldout)
    say("proof", brief(proof))

    say("early stop: near misses and broken think blocks mixed in")
    model.load_state_dict(fresh)
    early_curve, stopped = finetune("early", model, pool, pool.targets(4, args.seed, args.wrong, args.unformatted),
                                    heldout, args, args.early_steps, args.every, args.minutes * 60 * 0.25, good_stop)
    write_folder(args.out, model, tok, config)
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(args.out).to(device)
    torch.manual_seed(args.seed)
    early = evaluate(model, heldout)
    say("early, as loaded from the folder:", brief(early))
    index = torch.arange(0, 8, device=device)
    for i, text in zip(index.tolist(), decode(sample(model, heldout, index), heldout)):
        say(f"  {heldout.tasks[i].text} [{heldout.golds[i]}] {text}")

    say("GRPO dry run")
    runs = [grpo(copy.deepcopy(model), pool, heldout, args, lr) for lr in args.grpo_lr]
    within = 0.25 <= early["accuracy"] <= 0.5 and early["pass@8"] >= 0.9 and early["think_format"] > 0.6
    ok = {"proof_at_least_0.97": proof["accuracy"] >= 0.97, "stop_rule_met": stopped, "early_within_bounds": within,
          "grpo_reaches_0.85": any(r["reached_0.85_at_step"] is not None for r in runs)}
    write_json(args.out / "figures.json", {
        "date": datetime.date.today().isoformat(), "seed": args.seed, "parameters": parameters,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__, "transformers": transformers.__version__, "tokenizers": tokenizers.__version__,
        "seconds": round(time.monotonic() - START, 1), "max_new_tokens": MAX_NEW,
        "settings": {k: v for k, v in vars(args).items() if k not in ("out", "dry_run_from", "smoke")},
        "bounds_met": ok, "bundled_checkpoint": early, "proof": proof,
        "early_stop_curve": early_curve, "proof_curve": proof_curve, "grpo_dry_run": runs})
    say("bounds", ok)
    return 0 if all(ok.values()) or args.smoke else 1


if __name__ == "__main__":
    sys.exit(main())
