"""Batches, forward pass and sampling for tiny-vl-math.

The weights live in transformers' Qwen2_5_VLForConditionalGeneration and its decoder runs as it is. Its vision tower
loops over images in Python, so `vision` runs the same modules over whole batches of images of one size; pictures of
at most 112x112 are one window, so window and full attention agree. `check_forward` compares the two.
"""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as F

import tasks
from bundle import prompt_text

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
MAX_NEW = 32


class Prompts:
    """Left-padded prompts with their M-RoPE positions and pictures, on one device."""

    def __init__(self, task_list: list[tasks.Task], tok, device):
        self.tasks, self.tok, self.device = task_list, tok, device
        self.golds = [str(t.gold) for t in task_list]
        self.pad, self.eos = tok.token_to_id("<|endoftext|>"), tok.token_to_id("<|im_end|>")
        self.image_id = tok.token_to_id("<|image_pad|>")
        rows = [e.ids for e in tok.encode_batch([prompt_text(t) for t in task_list])]
        n, p = len(rows), max(map(len, rows))
        ids, pos, keep = np.full((n, p), self.pad), np.zeros((n, 3, p), np.int64), np.zeros((n, p), bool)
        size, slot, pictures = np.full(n, -1), np.zeros(n, np.int64), [[] for _ in tasks.SIZES]
        for i, (row, task) in enumerate(zip(rows, task_list)):
            ids[i, p - len(row):], keep[i, p - len(row):] = row, True
            pos[i, :, p - len(row):] = self.positions(row, task.image)
            if task.image is not None:
                size[i] = tasks.SIZES.index(task.image.shape[:2])
                slot[i] = len(pictures[size[i]])
                pictures[size[i]].append(task.image)
        self.ids, self.pos, self.keep, self.size, self.slot = (
            torch.as_tensor(x, device=device) for x in (ids, pos, keep, size, slot))
        self.pictures = [torch.as_tensor(np.stack(x), device=device) if x else None for x in pictures]

    def positions(self, row: list[int], image: np.ndarray | None) -> np.ndarray:
        """Temporal, height and width positions; the text after a picture continues at the largest plus one."""
        out = np.tile(np.arange(len(row)), (3, 1))
        if image is not None:
            start, h, w = row.index(self.image_id), image.shape[0] // 28, image.shape[1] // 28
            end = start + h * w
            out[0, start:end] = start
            out[1, start:end] = start + np.repeat(np.arange(h), w)
            out[2, start:end] = start + np.tile(np.arange(w), h)
            out[:, end:] = start + max(h, w) + np.arange(len(row) - end)
        return out

    def targets(self, draws: int, seed: int, wrong: float = 0.0, unformatted: float = 0.0) -> torch.Tensor:
        """`draws` completions to imitate for every prompt, end token included: [prompts, draws, tokens]."""
        rng = random.Random(seed)
        texts = [tasks.completion(t, rng, wrong, unformatted) for t in self.tasks for _ in range(draws)]
        rows = [e.ids + [self.eos] for e in self.tok.encode_batch(texts)]
        out = np.full((len(rows), max(map(len, rows))), self.pad)
        for i, row in enumerate(rows):
            out[i, :len(row)] = row
        return torch.as_tensor(out, device=self.device).view(len(self.tasks), draws, -1)


def patch_rows(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 [n, height, width, 3] -> the image processor's rows [n, patches, 1176]."""
    n, h, w, _ = pictures.shape
    mean, std = (torch.tensor(x, device=pictures.device) for x in (MEAN, STD))
    x = (pictures.float() * (1 / 255) - mean) / std
    x = x.view(n, h // 28, 2, 14, w // 28, 2, 14, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)  # blocks, 2x2, channel, 14x14
    return x.unsqueeze(6).expand(*x.shape[:6], 2, 14, 14).reshape(n, h * w // 196, 1176)


def vision(visual, pictures: torch.Tensor) -> torch.Tensor:
    """The vision tower on pictures of one size: [n, merged patches, hidden]."""
    n, h, w = pictures.shape[0], pictures.shape[1] // 14, pictures.shape[2] // 14
    order = torch.arange(h * w, device=pictures.device).view(h // 2, 2, w // 2, 2).transpose(1, 2).flatten()
    x = F.linear(patch_rows(pictures), visual.patch_embed.proj.weight.flatten(1))
    cos, sin = visual.rotary_pos_emb(x, torch.stack([order // w, order % w], 1))
    for block in visual.blocks:
        qkv = block.attn.qkv(block.norm1(x)).view(n, h * w, 3, block.attn.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = (y * cos + torch.cat([-y[..., y.shape[-1] // 2:], y[..., :y.shape[-1] // 2]], -1) * sin for y in (q, k))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, h * w, -1)
        x = x + block.attn.proj(y)
        x = x + block.mlp(block.norm2(x))
    return visual.merger(x).view(n, h * w // 4, -1)


def embed(model, prompts: Prompts, index: torch.Tensor) -> torch.Tensor:
    ids, size = prompts.ids[index], prompts.size[index]
    x = model.model.language_model.embed_tokens(ids)
    for s, pictures in enumerate(prompts.pictures):
        chosen = (size == s).nonzero().flatten()
        if len(chosen):
            features = vision(model.model.visual, pictures[prompts.slot[index[chosen]]])
            here = (ids == prompts.image_id) & (size == s)[:, None]
            x = x.masked_scatter(here[..., None], features)
    return x


def decoder(model, x, pos, mask, cache=None):
    out = model.model.language_model(inputs_embeds=x, position_ids=pos.transpose(0, 1), past_key_values=cache,
                                     attention_mask={"full_attention": mask}, use_cache=cache is not None)
    return out.last_hidden_state


def causal(keep: torch.Tensor) -> torch.Tensor:
    """[n, 1, length, length]; a padding position sees itself, so that no row is empty."""
    length = keep.shape[1]
    lower = torch.ones(length, length, dtype=torch.bool, device=keep.device).tril()
    eye = torch.eye(length, dtype=torch.bool, device=keep.device)
    return ((keep[:, None, :] & lower) | eye)[:, None]


def completion_logits(model, prompts: Prompts, index: torch.Tensor, comp: torch.Tensor) -> torch.Tensor:
    """Logits that predict each token of `comp` [n, c] after the prompts `index`: [n, c, vocabulary]."""
    c, p = comp.shape[1], prompts.ids.shape[1]
    x = torch.cat([embed(model, prompts, index), model.model.language_model.embed_tokens(comp[:, :-1])], 1)
    pos = prompts.pos[index]
    after = pos[:, :, -1:] + torch.arange(1, c, device=pos.device)
    keep = torch.cat([prompts.keep[index], torch.ones_like(comp[:, :-1], dtype=torch.bool)], 1)
    hidden = decoder(model, x, torch.cat([pos, after], 2), causal(keep))
    return model.lm_head(hidden[:, p - 1:])


@torch.no_grad()
def sample(model, prompts: Prompts, index: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """One completion for each prompt of `index`, padded after the end token: [n, MAX_NEW]. Temperature 0 is greedy."""
    from transformers import DynamicCache

    cache, keep, last = DynamicCache(), prompts.keep[index], prompts.pos[index][:, :, -1:]
    out = torch.full((len(index), MAX_NEW), prompts.pad, device=index.device)
    done = torch.zeros(len(index), dtype=torch.bool, device=index.device)
    hidden = decoder(model, embed(model, prompts, index), prompts.pos[index], causal(keep), cache)
    for i in range(MAX_NEW):
        logits = model.lm_head(hidden[:, -1]).float()
        if temperature > 0:
            token = torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0]
        else:
            token = logits.argmax(-1)
        token = token.masked_fill(done, prompts.pad)
        out[:, i] = token
        done |= (token == prompts.eos) | (token == prompts.pad)
        if i % 4 == 3 and bool(done.all()):
            break
        keep = torch.cat([keep, keep.new_ones(len(index), 1)], 1)
        x = model.model.language_model.embed_tokens(token)[:, None]
        hidden = decoder(model, x, last + i + 1, keep[:, None, None], cache)
    return out


def completion_mask(comp: torch.Tensor, prompts: Prompts) -> torch.Tensor:
    """1 up to and including the first end token."""
    ends = (comp == prompts.eos) | (comp == prompts.pad)
    return (ends.cumsum(1) - ends.long()) == 0


def decode(comp: torch.Tensor, prompts: Prompts) -> list[str]:
    return prompts.tok.decode_batch([[t for t in row if t != prompts.pad] for row in comp.tolist()],
                                    skip_special_tokens=True)


def check_forward(model, prompts: Prompts, count: int = 8) -> float:
    """Largest difference of the logits to transformers' own forward, each row alone and unpadded."""
    index = torch.arange(count, device=prompts.device)
    comp = prompts.targets(1, 0)[index, 0]
    worst = 0.0
    with torch.no_grad():
        ours = completion_logits(model, prompts, index, comp)
        for i in range(count):
            ids = torch.cat([prompts.ids[i][prompts.keep[i]], comp[i, :-1]])[None]
            kwargs = {}
            if prompts.size[i] >= 0:
                picture = prompts.pictures[prompts.size[i]][prompts.slot[i]][None]
                grid = [[1, picture.shape[1] // 14, picture.shape[2] // 14]]
                grid = torch.tensor(grid, device=ids.device)
                kwargs = {"pixel_values": patch_rows(picture)[0], "image_grid_thw": grid}
            types = (ids == prompts.image_id).int()
            theirs = model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=types, **kwargs).logits
            worst = max(worst, (theirs[0, -comp.shape[1]:] - ours[i]).abs().max().item())
    return worst
