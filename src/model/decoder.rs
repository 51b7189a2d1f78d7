//! The decoder of Qwen2.5 and Qwen2.5-VL: pre-norm blocks of grouped-query attention and SwiGLU over an f32 residual stream.

use super::activations::Activations;
use super::config::{Head, ModelConfig};
use super::mrope;
use super::weights::Checkpoint;
use crate::backends::{Backend, HeadShape, RopeQkv, Store, TokenSource};
use crate::error::Result;

pub struct Decoder<B: Backend> {
    embed: B::Weight,
    layers: Vec<Layer<B>>,
    norm: B::Buf<f32>,
    /// To the vocabulary, or to a score; `None`: the embedding table.
    head: Option<B::Weight>,
    inv_freq: B::Buf<f32>,
    /// Which position axis turns each frequency.
    rope_axis: B::Buf<u32>,
    shape: HeadShape,
    hidden: usize,
    intermediate: usize,
    eps: f32,
}

struct Layer<B: Backend> {
    input_norm: B::Buf<f32>,
    qkv: B::Weight,
    qkv_bias: B::Buf<f32>,
    o: B::Weight,
    post_norm: B::Buf<f32>,
    gate_up: B::Weight,
    down: B::Weight,
}

/// Device inputs of one pass: what each row is and where its keys go.
pub struct DecoderStep<'a, B: Backend> {
    pub source: TokenSource<'a, B>,
    /// `[3, rows]`, axis-major
    pub positions: &'a B::Buf<i32>,
    pub slot_mapping: &'a B::Buf<u32>,
    pub plan: &'a B::AttentionPlan,
    pub rows: usize,
    /// Media features that replace embeddings: (row of `features`, row of the step) pairs.
    pub features: &'a B::Buf<f32>,
    pub feature_pairs: &'a B::Buf<u32>,
    pub num_features: usize,
    /// Rows whose logits are wanted.
    pub logits_index: &'a B::Buf<u32>,
    pub num_logits: usize,
}

impl<B: Backend> Decoder<B> {
    pub fn load(b: &B, config: &ModelConfig, checkpoint: &Checkpoint) -> Result<Self> {
        let (hidden, inter) = (config.hidden_size, config.intermediate_size);
        let shape = HeadShape { num_heads: config.num_heads, num_kv_heads: config.num_kv_heads, head_dim: config.head_dim };
        let (q_width, kv_width) = (shape.q_width(), shape.num_kv_heads * shape.head_dim);
        let vector = |name: &str, len: usize| super::upload_vector(b, checkpoint, name, len);
        let weight = |names: &[(&str, usize)], prefix: &str, cols: usize| super::load_weight(b, checkpoint, prefix, names, cols);
        let layers = (0..config.num_layers)
            .map(|i| {
                let p = format!("model.layers.{i}.");
                let mut bias = Vec::with_capacity(shape.qkv_width());
                for (name, len) in [("q_proj", q_width), ("k_proj", kv_width), ("v_proj", kv_width)] {
                    bias.extend(checkpoint.claim(&format!("{p}self_attn.{name}.bias"), &[len])?.to_f32());
                }
                let mut qkv_bias = b.alloc(bias.len())?;
                b.upload(&bias, &mut qkv_bias);
                Ok(Layer {
                    input_norm: vector(&format!("{p}input_layernorm.weight"), hidden)?,
                    qkv: weight(&[("q_proj", q_width), ("k_proj", kv_width), ("v_proj", kv_width)], &format!("{p}self_attn."), hidden)?,
                    qkv_bias,
                    o: weight(&[("o_proj", hidden)], &format!("{p}self_attn."), q_width)?,
                    post_norm: vector(&format!("{p}post_attention_layernorm.weight"), hidden)?,
                    gate_up: weight(&[("gate_proj", inter), ("up_proj", inter)], &format!("{p}mlp."), hidden)?,
                    down: weight(&[("down_proj", hidden)], &format!("{p}mlp."), inter)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let head = match (config.head, config.tie_word_embeddings) {
            (Head::Score, _) => Some(weight(&[("score", 1)], "", hidden)?),
            (Head::Vocabulary, true) => None,
            (Head::Vocabulary, false) => Some(weight(&[("lm_head", config.vocab_size)], "", hidden)?),
        };
        let inv_freq = mrope::inv_freq(config.rope_theta, config.head_dim);
        // A text model has one position an axis: all frequencies may read the first.
        let axis: Vec<u32> = match config.mrope_section {
            Some(section) => mrope::frequency_axes(section).into_iter().map(|a| a as u32).collect(),
            None => vec![0; config.head_dim / 2],
        };
        Ok(Decoder {
            embed: weight(&[("embed_tokens", config.vocab_size)], "model.", hidden)?,
            layers,
            norm: vector("model.norm.weight", hidden)?,
            head,
            inv_freq: super::upload_new(b, &inv_freq)?,
            rope_axis: super::upload_new(b, &axis)?,
            shape,
            hidden,
            intermediate: inter,
            eps: config.rms_norm_eps,
        })
    }

    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    pub fn shape(&self) -> HeadShape {
        self.shape
    }

    /// Runs `step`, writes keys and values into `kv` and leaves the wanted rows' logits in `act.logits`.
    pub fn forward(&self, b: &B, step: &DecoderStep<'_, B>, kv: &mut [B::Kv], act: &mut Activations<B>) {
        let (rows, hidden) = (step.rows, self.hidden);
        b.embed(TokenSource { ..step.source }, &self.embed, rows, &mut act.x);
        if step.num_features > 0 {
            b.scatter_rows(step.features, step.feature_pairs, step.num_features, hidden, &mut act.x);
        }
        b.rope_table(step.positions, &self.inv_freq, &self.rope_axis, self.shape.head_dim / 2, rows, &mut act.rope);
        for (layer, kv) in self.layers.iter().zip(kv) {
            b.rms_norm(&act.x, &layer.input_norm, self.eps, rows, hidden, &mut act.normed);
            b.gemm(&act.normed, &layer.qkv, None, rows, Store::Write, &mut act.qkv);
            let rope =
                RopeQkv { qkv: &act.qkv, bias: &layer.qkv_bias, rope: &act.rope, slot_mapping: step.slot_mapping, shape: self.shape, rows };
            b.rope_qkv(rope, &mut act.q, kv);
            b.attention(&act.q, kv, step.plan, self.shape, &mut act.attended);
            b.gemm(&act.attended, &layer.o, None, rows, Store::Add, &mut act.x);
            b.rms_norm(&act.x, &layer.post_norm, self.eps, rows, hidden, &mut act.normed);
            b.gemm(&act.normed, &layer.gate_up, None, rows, Store::Write, &mut act.gate_up);
            b.silu_mul(&act.gate_up, rows, self.intermediate, &mut act.mlp);
            b.gemm(&act.mlp, &layer.down, None, rows, Store::Add, &mut act.x);
        }
        if step.num_logits > 0 {
            b.gather_rows(&act.x, step.logits_index, step.num_logits, hidden, &mut act.last);
            b.rms_norm(&act.last, &self.norm, self.eps, step.num_logits, hidden, &mut act.last_normed);
            b.gemm(&act.last_normed, self.head.as_ref().unwrap_or(&self.embed), None, step.num_logits, Store::Write, &mut act.logits);
        }
    }
}
