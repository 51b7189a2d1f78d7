//! The decoder of Qwen2.5 and Qwen2.5-VL: pre-norm blocks of grouped-query attention and SwiGLU over an f32 residual stream.

use super::activations::Activations;
use super::config::{Head, ModelConfig};
use super::mrope;
use super::param::{Loader, Param, Vector, Weight};
use crate::backends::{Backend, HeadShape, RopeQkv, SampleInputs, Sampled, SamplerState, Store, TokenSource};
use crate::error::Result;

pub struct Decoder<B: Backend> {
    embed: Weight<B>,
    layers: Vec<Layer<B>>,
    norm: Vector<B>,
    /// To the vocabulary, or to a score; `None`: the embedding table.
    head: Option<Weight<B>>,
    inv_freq: B::Buf<f32>,
    /// Which position axis turns each frequency.
    rope_axis: B::Buf<u32>,
    shape: HeadShape,
    hidden: usize,
    intermediate: usize,
    eps: f32,
}

struct Layer<B: Backend> {
    input_norm: Vector<B>,
    qkv: Weight<B>,
    qkv_bias: Vector<B>,
    o: Weight<B>,
    post_norm: Vector<B>,
    gate_up: Weight<B>,
    down: Weight<B>,
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
    pub fn load(loader: &Loader<'_, B>, config: &ModelConfig) -> Result<Self> {
        let (hidden, inter) = (config.hidden_size, config.intermediate_size);
        let shape = HeadShape { num_heads: config.num_heads, num_kv_heads: config.num_kv_heads, head_dim: config.head_dim };
        let (q_width, kv_width) = (shape.q_width(), shape.num_kv_heads * shape.head_dim);
        let layers = (0..config.num_layers)
            .map(|i| {
                let weight = |names: &[(&str, usize)], cols| {
                    let named: Vec<_> = names.iter().map(|(name, rows)| (format!("model.layers.{i}.{name}.weight"), *rows)).collect();
                    loader.weight(&named, cols)
                };
                let vector = |names: &[(&str, usize)], kind: &str| {
                    let named: Vec<_> = names.iter().map(|(name, len)| (format!("model.layers.{i}.{name}.{kind}"), *len)).collect();
                    loader.vector(&named)
                };
                let qkv = [("self_attn.q_proj", q_width), ("self_attn.k_proj", kv_width), ("self_attn.v_proj", kv_width)];
                Ok(Layer {
                    input_norm: vector(&[("input_layernorm", hidden)], "weight")?,
                    qkv: weight(&qkv, hidden)?,
                    qkv_bias: vector(&qkv, "bias")?,
                    o: weight(&[("self_attn.o_proj", hidden)], q_width)?,
                    post_norm: vector(&[("post_attention_layernorm", hidden)], "weight")?,
                    gate_up: weight(&[("mlp.gate_proj", inter), ("mlp.up_proj", inter)], hidden)?,
                    down: weight(&[("mlp.down_proj", hidden)], inter)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        const HEAD: &str = "lm_head.weight";
        let table = [config.vocab_size, hidden];
        let tied = config.head == Head::Vocabulary && config.tie_word_embeddings;
        let head = match config.head {
            Head::Score => Some(loader.weight_as("score.weight", &[1, hidden], None)?),
            Head::Vocabulary => (!tied).then(|| loader.weight_as(HEAD, &table, None)).transpose()?,
        };
        let inv_freq = mrope::inv_freq(config.rope_theta, config.head_dim);
        // A text model has one position an axis: all frequencies may read the first.
        let axis: Vec<u32> = match config.mrope_section {
            Some(section) => mrope::frequency_axes(section).into_iter().map(|a| a as u32).collect(),
            None => vec![0; config.head_dim / 2],
        };
        Ok(Decoder {
            embed: loader.weight_as("model.embed_tokens.weight", &table, tied.then_some(HEAD))?,
            layers,
            norm: loader.vector(&[("model.norm.weight".into(), hidden)])?,
            head,
            inv_freq: loader.constant(&inv_freq)?,
            rope_axis: loader.constant(&axis)?,
            shape,
            hidden,
            intermediate: inter,
            eps: config.rms_norm_eps,
        })
    }

    pub fn params(&mut self) -> Vec<Param<'_, B>> {
        let mut params = vec![Param::Weight(&mut self.embed), Param::Vector(&mut self.norm)];
        params.extend(self.head.as_mut().map(Param::Weight));
        for layer in &mut self.layers {
            let Layer { input_norm, qkv, qkv_bias, o, post_norm, gate_up, down } = layer;
            params.extend([input_norm, qkv_bias, post_norm].map(Param::Vector));
            params.extend([qkv, o, gate_up, down].map(Param::Weight));
        }
        params
    }

    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    pub fn shape(&self) -> HeadShape {
        self.shape
    }

    /// Runs `step`, writes keys and values into `kv` and leaves the wanted rows, ready for the head, in `act.last_normed`.
    pub fn forward(&self, b: &B, step: &DecoderStep<'_, B>, kv: &mut [B::Kv], act: &mut Activations<B>) {
        let (rows, hidden) = (step.rows, self.hidden);
        b.embed(TokenSource { ..step.source }, &self.embed.operand, rows, &mut act.x);
        if step.num_features > 0 {
            b.scatter_rows(step.features, step.feature_pairs, step.num_features, hidden, &mut act.x);
        }
        b.rope_table(step.positions, &self.inv_freq, &self.rope_axis, self.shape.head_dim / 2, rows, &mut act.rope);
        for (i, (layer, kv)) in self.layers.iter().zip(kv).enumerate() {
            b.rms_norm(&act.x, &layer.input_norm.values, self.eps, rows, hidden, &mut act.normed);
            let (bias, rope) = (&layer.qkv_bias.values, &act.rope);
            let rope = RopeQkv { bias, rope, slot_mapping: step.slot_mapping, shape: self.shape, rows };
            b.gemm_rope_qkv((&act.normed, &layer.qkv.operand), &mut act.qkv, rope, &mut act.q, kv);
            b.attention(&act.q, kv, step.plan, self.shape, rows, &mut act.attended);
            b.gemm(&act.attended, &layer.o.operand, None, rows, Store::Add, &mut act.x);
            // No row attends to what the last layer makes after its attention: it is made for the wanted rows alone.
            let (x, rows) = match i + 1 == self.layers.len() {
                false => (&mut act.x, rows),
                true if step.num_logits == 0 => return,
                true => {
                    b.gather_rows(&act.x, step.logits_index, step.num_logits, hidden, &mut act.last);
                    (&mut act.last, step.num_logits)
                }
            };
            b.rms_norm(x, &layer.post_norm.values, self.eps, rows, hidden, &mut act.normed);
            b.gemm_silu_mul(&act.normed, &layer.gate_up.operand, None, (rows, self.intermediate), &mut act.gate_up, &mut act.mlp);
            b.gemm(&act.mlp, &layer.down.operand, None, rows, Store::Add, x);
        }
        b.rms_norm(&act.last, &self.norm.values, self.eps, step.num_logits, hidden, &mut act.last_normed);
    }

    /// After [`Decoder::forward`]: logits of the wanted rows into `act.logits`.
    pub fn logits(&self, b: &B, num_logits: usize, act: &mut Activations<B>) {
        b.gemm(&act.last_normed, self.head(), None, num_logits, Store::Write, &mut act.logits);
    }

    /// After [`Decoder::forward`]: draws `draws` tokens from the logits of the wanted rows.
    pub fn sample(
        &self,
        b: &B,
        [num_logits, draws]: [usize; 2],
        inputs: SampleInputs<'_, B>,
        act: &mut Activations<B>,
        state: &mut SamplerState<B>,
        out: &mut B::Buf<Sampled>,
    ) {
        b.gemm_sample((&act.last_normed, self.head()), &mut act.logits, inputs, [num_logits, draws], state, out);
    }

    fn head(&self) -> &B::Weight {
        &self.head.as_ref().unwrap_or(&self.embed).operand
    }
}
