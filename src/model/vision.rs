//! The vision tower of Qwen2.5-VL: window and full attention blocks over patches, then a merger that turns 2×2 patches into one
//! token's features.

use super::activations::VisionActivations;
use super::config::VisionConfig;
use super::input::{MediaInput, Patches};
use super::mrope;
use super::param::{Loader, Param, Vector, Weight};
use super::windows::WindowPlan;
use crate::backends::{Backend, HeadShape, RopeVision, SegmentAttention, Store};
use crate::error::Result;

/// Fixed in the reference implementation, not a setting of checkpoints.
const EPS: f32 = 1e-6;
const ROPE_THETA: f64 = 10_000.0;

pub struct VisionTower<B: Backend> {
    config: VisionConfig,
    patch_embed: Weight<B>,
    blocks: Vec<Block<B>>,
    merger_norm: Vector<B>,
    merger_in: Linear<B>,
    merger_out: Linear<B>,
    inv_freq: B::Buf<f32>,
    rope_axis: B::Buf<u32>,
}

struct Block<B: Backend> {
    norm1: Vector<B>,
    qkv: Linear<B>,
    proj: Linear<B>,
    norm2: Vector<B>,
    gate_up: Linear<B>,
    down: Linear<B>,
    full_attention: bool,
}

struct Linear<B: Backend> {
    weight: Weight<B>,
    bias: Vector<B>,
}

impl<B: Backend> VisionTower<B> {
    pub fn load(loader: &Loader<'_, B>, config: &VisionConfig) -> Result<Self> {
        let (hidden, inter) = (config.hidden_size, config.intermediate_size);
        let merge_width = hidden * config.merge_unit();
        let linear = |prefix: &str, names: &[(&str, usize)], cols: usize| -> Result<Linear<B>> {
            let named = |kind: &str| names.iter().map(|(name, rows)| (format!("{prefix}{name}.{kind}"), *rows)).collect::<Vec<_>>();
            Ok(Linear { weight: loader.weight(&named("weight"), cols)?, bias: loader.vector(&named("bias"))? })
        };
        let blocks = (0..config.depth)
            .map(|i| {
                let p = format!("visual.blocks.{i}.");
                let norm = |name: &str| loader.vector(&[(format!("{p}{name}.weight"), hidden)]);
                Ok(Block {
                    norm1: norm("norm1")?,
                    qkv: linear(&p, &[("attn.qkv", 3 * hidden)], hidden)?,
                    proj: linear(&p, &[("attn.proj", hidden)], hidden)?,
                    norm2: norm("norm2")?,
                    gate_up: linear(&p, &[("mlp.gate_proj", inter), ("mlp.up_proj", inter)], hidden)?,
                    down: linear(&p, &[("mlp.down_proj", hidden)], inter)?,
                    full_attention: config.full_attention_blocks.contains(&i),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        // A 3-D convolution whose stride is its kernel is a matrix over the flattened patch.
        let conv_shape = [hidden, config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size];
        // Rows turn the first half of the frequencies, columns the second.
        let inv_freq = mrope::inv_freq(ROPE_THETA, config.head_dim() / 2);
        let axis: Vec<u32> = [vec![0; inv_freq.len()], vec![1; inv_freq.len()]].concat();
        Ok(VisionTower {
            patch_embed: loader.weight_as("visual.patch_embed.proj.weight", &conv_shape, None)?,
            blocks,
            merger_norm: loader.vector(&[("visual.merger.ln_q.weight".into(), hidden)])?,
            merger_in: linear("visual.merger.", &[("mlp.0", merge_width)], merge_width)?,
            merger_out: linear("visual.merger.", &[("mlp.2", config.out_hidden_size)], merge_width)?,
            inv_freq: loader.constant(&inv_freq.repeat(2))?,
            rope_axis: loader.constant(&axis)?,
            config: config.clone(),
        })
    }

    pub fn params(&mut self) -> Vec<Param<'_, B>> {
        let mut params = vec![Param::Weight(&mut self.patch_embed), Param::Vector(&mut self.merger_norm)];
        let mut linears = vec![&mut self.merger_in, &mut self.merger_out];
        for block in &mut self.blocks {
            params.extend([&mut block.norm1, &mut block.norm2].map(Param::Vector));
            linears.extend([&mut block.qkv, &mut block.proj, &mut block.gate_up, &mut block.down]);
        }
        params.extend(linears.into_iter().flat_map(|linear| [Param::Weight(&mut linear.weight), Param::Vector(&mut linear.bias)]));
        params
    }

    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// Features of `media`, all in one pass, into rows of `features` (f32 `[.., out_hidden]`): token `i` of the concatenated
    /// media, in processor order, goes to row `rows[i]`.
    pub fn forward(&self, b: &B, media: &[&MediaInput], rows: &[u32], features: &mut B::Buf<f32>, act: &mut VisionActivations<B>) {
        let (tokens, patches) = self.embed(b, media, act);
        let plan = WindowPlan::new(&media.iter().map(|m| m.grid_thw).collect::<Vec<_>>(), &self.config);
        for i in 0..self.blocks.len() {
            self.block(b, i, &plan, patches, act);
        }
        self.merge(b, tokens, patches, act);
        // The merger worked in window order; each unit goes to the row of its place in the prompt.
        let pairs: Vec<u32> = plan.order.iter().enumerate().flat_map(|(place, unit)| [place as u32, rows[*unit as usize]]).collect();
        b.upload(&pairs, &mut act.pairs);
        b.scatter_rows(&act.merged, &act.pairs, tokens, self.config.out_hidden_size, features);
    }

    /// Patches in window order through the patch embedding; rotary tables and segment borders. Returns (tokens, patches).
    pub fn embed(&self, b: &B, media: &[&MediaInput], act: &mut VisionActivations<B>) -> (usize, usize) {
        let grids: Vec<[usize; 3]> = media.iter().map(|m| m.grid_thw).collect();
        let plan = WindowPlan::new(&grids, &self.config);
        let (tokens, unit) = (plan.order.len(), self.config.merge_unit());
        let patches = tokens * unit;
        // Of each merged unit: its medium, and its first patch there.
        let units: Vec<(&dyn Patches, usize)> =
            media.iter().flat_map(|m| (0..m.num_patches()).step_by(unit).map(|first| (m.patches.as_ref(), first))).collect();
        let write = |row: usize, values: &mut [f32]| {
            let (medium, first) = units[plan.order[row / unit] as usize];
            medium.write(first + row % unit, values);
        };
        b.upload_patches([patches, self.config.patch_len()], &write, &mut act.patches);
        let axis_of = |axis: usize| {
            let hw = &plan.rotary_hw;
            plan.order.iter().flat_map(move |u| (0..unit).map(move |p| hw[*u as usize * unit + p][axis]))
        };
        let positions: Vec<i32> = axis_of(0).chain(axis_of(1)).collect();
        b.upload(&positions, &mut act.positions);
        b.rope_table(&act.positions, &self.inv_freq, &self.rope_axis, self.config.head_dim() / 2, patches, &mut act.rope);
        let borders = |cu: &[i32]| cu.iter().map(|c| *c as u32).collect::<Vec<_>>();
        b.upload(&borders(&plan.cu_window_seqlens), &mut act.cu_windows);
        b.upload(&borders(&plan.cu_frame_seqlens), &mut act.cu_frames);
        b.gemm(&act.patches, &self.patch_embed.operand, None, patches, Store::Write, &mut act.x);
        (tokens, patches)
    }

    /// One transformer block over all patches.
    pub fn block(&self, b: &B, index: usize, plan: &WindowPlan, patches: usize, act: &mut VisionActivations<B>) {
        let block = &self.blocks[index];
        let hidden = self.config.hidden_size;
        let shape = HeadShape { num_heads: self.config.num_heads, num_kv_heads: self.config.num_heads, head_dim: self.config.head_dim() };
        b.rms_norm(&act.x, &block.norm1.values, EPS, patches, hidden, &mut act.normed);
        let rope = RopeVision { bias: &block.qkv.bias.values, rope: &act.rope, shape, rows: patches };
        let operands = (&act.normed, &block.qkv.weight.operand);
        b.gemm_rope_vision(operands, &mut act.qkv, rope, [&mut act.q, &mut act.k, &mut act.v]);
        let (cu_seqlens, num_segments) = match block.full_attention {
            true => (&act.cu_frames, plan.cu_frame_seqlens.len() - 1),
            false => (&act.cu_windows, plan.cu_window_seqlens.len() - 1),
        };
        let attention = SegmentAttention { q: &act.q, k: &act.k, v: &act.v, cu_seqlens, num_segments, shape, rows: patches };
        b.segment_attention(attention, &mut act.attended);
        b.gemm(&act.attended, &block.proj.weight.operand, Some(&block.proj.bias.values), patches, Store::Add, &mut act.x);
        b.rms_norm(&act.x, &block.norm2.values, EPS, patches, hidden, &mut act.normed);
        let (gate_up, bias) = (&block.gate_up.weight.operand, Some(&block.gate_up.bias.values));
        b.gemm_silu_mul(&act.normed, gate_up, bias, (patches, self.config.intermediate_size), &mut act.gate_up, &mut act.mlp);
        b.gemm(&act.mlp, &block.down.weight.operand, Some(&block.down.bias.values), patches, Store::Add, &mut act.x);
    }

    /// Norm, then each unit's four patches side by side through two layers; `act.merged` in window order.
    pub fn merge(&self, b: &B, tokens: usize, patches: usize, act: &mut VisionActivations<B>) {
        let width = self.config.hidden_size * self.config.merge_unit();
        b.rms_norm(&act.x, &self.merger_norm.values, EPS, patches, self.config.hidden_size, &mut act.normed);
        b.gemm(&act.normed, &self.merger_in.weight.operand, Some(&self.merger_in.bias.values), tokens, Store::Write, &mut act.merge_hidden);
        b.gelu(&act.merge_hidden, tokens, width, &mut act.merge_act);
        b.gemm(&act.merge_act, &self.merger_out.weight.operand, Some(&self.merger_out.bias.values), tokens, Store::Write, &mut act.merged);
    }
}
