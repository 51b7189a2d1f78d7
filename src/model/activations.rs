//! Buffers of a forward pass, allocated once for the largest step.

use super::config::{ModelConfig, VisionConfig};
use crate::backends::{Backend, HeadShape};
use crate::error::Result;

/// Decoder buffers for `rows` tokens and `logits` rows of logits.
pub struct Activations<B: Backend> {
    /// Residual stream, f32 `[rows, hidden]`.
    pub x: B::Buf<f32>,
    pub normed: B::Buf<B::Float>,
    pub qkv: B::Buf<f32>,
    pub rope: B::Buf<f32>,
    pub q: B::Buf<B::Float>,
    pub attended: B::Buf<B::Float>,
    pub gate_up: B::Buf<f32>,
    pub mlp: B::Buf<B::Float>,
    pub last: B::Buf<f32>,
    pub last_normed: B::Buf<B::Float>,
    /// f32 `[logits, vocab]`
    pub logits: B::Buf<f32>,
}

impl<B: Backend> Activations<B> {
    pub fn new(b: &B, config: &ModelConfig, rows: usize, logits: usize) -> Result<Self> {
        let shape = HeadShape { num_heads: config.num_heads, num_kv_heads: config.num_kv_heads, head_dim: config.head_dim };
        Ok(Activations {
            x: b.alloc(rows * config.hidden_size)?,
            normed: b.alloc(rows * config.hidden_size)?,
            qkv: b.alloc(rows * shape.qkv_width())?,
            rope: b.alloc(rows * shape.head_dim)?,
            q: b.alloc(rows * shape.q_width())?,
            attended: b.alloc(rows * shape.q_width())?,
            gate_up: b.alloc(rows * 2 * config.intermediate_size)?,
            mlp: b.alloc(rows * b.row_stride(config.intermediate_size))?,
            last: b.alloc(logits * config.hidden_size)?,
            last_normed: b.alloc(logits * config.hidden_size)?,
            logits: b.alloc(logits * config.vocab_size)?,
        })
    }
}

/// Tower buffers for `patches` patches.
pub struct VisionActivations<B: Backend> {
    pub patches: B::Buf<B::Float>,
    pub positions: B::Buf<i32>,
    pub cu_windows: B::Buf<u32>,
    pub cu_frames: B::Buf<u32>,
    pub x: B::Buf<f32>,
    pub normed: B::Buf<B::Float>,
    pub qkv: B::Buf<f32>,
    pub rope: B::Buf<f32>,
    pub q: B::Buf<B::Float>,
    pub k: B::Buf<B::Float>,
    pub v: B::Buf<B::Float>,
    pub attended: B::Buf<B::Float>,
    pub gate_up: B::Buf<f32>,
    pub mlp: B::Buf<B::Float>,
    /// `[patches / 4, 4 · hidden]`: four patches side by side.
    pub merge_hidden: B::Buf<f32>,
    pub merge_act: B::Buf<B::Float>,
    pub merged: B::Buf<f32>,
    /// (window row, destination row) pairs.
    pub pairs: B::Buf<u32>,
}

impl<B: Backend> VisionActivations<B> {
    pub fn new(b: &B, config: &VisionConfig, patches: usize) -> Result<Self> {
        let hidden = config.hidden_size;
        let tokens = patches / config.merge_unit();
        let merge_width = hidden * config.merge_unit();
        Ok(VisionActivations {
            patches: b.alloc(patches * config.patch_len())?,
            positions: b.alloc(2 * patches)?,
            cu_windows: b.alloc(tokens + 1)?,
            cu_frames: b.alloc(tokens + 1)?,
            x: b.alloc(patches * hidden)?,
            normed: b.alloc(patches * hidden)?,
            qkv: b.alloc(patches * 3 * hidden)?,
            rope: b.alloc(patches * config.head_dim())?,
            q: b.alloc(patches * hidden)?,
            k: b.alloc(patches * hidden)?,
            v: b.alloc(patches * hidden)?,
            attended: b.alloc(patches * hidden)?,
            gate_up: b.alloc(patches * 2 * config.intermediate_size)?,
            mlp: b.alloc(patches * b.row_stride(config.intermediate_size))?,
            merge_hidden: b.alloc(tokens * merge_width)?,
            merge_act: b.alloc(tokens * merge_width)?,
            merged: b.alloc(tokens * config.out_hidden_size)?,
            pairs: b.alloc(2 * tokens)?,
        })
    }
}
