//! The backend of machines without a GPU, and the definition that GPU kernels are tested against.
//!
//! `Cpu<f32>` keeps f32 throughout and shows that the mathematics is right; `Cpu<bf16>` rounds where GPU kernels round and shows
//! that they are. Both give the same bits for every number of threads and every instruction set.

mod attention;
mod draw;
mod elementwise;
mod filter;
mod gemm;
mod kv;
mod math;
mod sample;
mod simd;
mod threads;
mod weight;

use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};

use super::{
    Backend, Element, HeadShape, Matrix, NO_COUNTS, NO_SLOT, NO_TOKEN, RopeQkv, RopeVision, SampleInputs, SampleRow, Sampled, SamplerState,
    SegmentAttention, Span, Store, TokenSource,
};
use crate::error::Result;
pub use math::Float;
pub use simd::Isa;
use threads::Threads;
use weight::Weight;

pub struct Cpu<T> {
    isa: Isa,
    threads: Threads,
    /// Packed inputs of a GEMM.
    scratch: Mutex<Vec<f32>>,
    float: PhantomData<T>,
}

impl<T: Float> Cpu<T> {
    pub fn new(threads: usize) -> Result<Self> {
        Self::with_isa(threads, Isa::best())
    }

    /// With given instructions, to compare them.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Self> {
        Ok(Cpu { isa, threads: Threads::new(threads)?, scratch: Mutex::new(Vec::new()), float: PhantomData })
    }

    fn with(&self) -> (Isa, &Threads) {
        (self.isa, &self.threads)
    }
}

/// A buffer of fixed length.
pub struct Buf<E>(Box<[E]>);

impl<T: Float> Backend for Cpu<T> {
    type Float = T;
    type Buf<E: Element> = Buf<E>;
    type Weight = Weight;
    type Kv = kv::Kv;
    type AttentionPlan = attention::Plan;
    type Ticket = Vec<Sampled>;

    fn name(&self) -> String {
        format!("cpu ({}, {}, {} threads)", T::NAME, self.isa.name(), self.threads.count())
    }

    fn alloc<E: Element>(&self, len: usize) -> Result<Buf<E>> {
        Ok(Buf(vec![E::default(); len].into_boxed_slice()))
    }

    fn weight(&self, parts: &[Matrix<'_>]) -> Result<Weight> {
        Ok(Weight::pack::<T>(&self.threads, parts))
    }

    fn rewrite_weight(&self, weight: &mut Weight, first_row: usize, rows: Matrix<'_>) {
        weight.rewrite::<T>(&self.threads, first_row, &rows);
    }

    fn copy_weight(&self, from: &Weight, to: &mut Weight) {
        to.clone_from(from);
    }

    fn kv_block_bytes(&self, shape: HeadShape) -> usize {
        kv::Kv::block_bytes(shape)
    }

    fn alloc_kv(&self, num_blocks: usize, shape: HeadShape) -> Result<kv::Kv> {
        Ok(kv::Kv::new(num_blocks, shape))
    }

    fn alloc_attention_plan(&self, max_spans: usize, max_rows: usize, max_table: usize, shape: HeadShape) -> Result<attention::Plan> {
        Ok(attention::Plan::new(max_spans, max_rows, max_table, shape))
    }

    fn upload<E: Element>(&self, src: &[E], dst: &mut Buf<E>) {
        dst.0[..src.len()].copy_from_slice(src);
    }

    fn download<E: Element>(&self, src: &Buf<E>, dst: &mut [E]) {
        dst.copy_from_slice(&src.0[..dst.len()]);
    }

    fn plan_attention(&self, spans: &[Span], tables: &[u32], plan: &mut attention::Plan) {
        plan.set(spans, tables);
    }

    fn embed(&self, source: TokenSource<'_, Self>, table: &Weight, rows: usize, out: &mut Buf<f32>) {
        let width = table.k();
        elementwise::for_row_blocks(&self.threads, &mut out.0[..rows * width], width, |first, out| {
            for (i, out) in out.chunks_exact_mut(width).enumerate() {
                let id = match source.slots.0[first + i] {
                    NO_TOKEN => source.ids.0[first + i],
                    slot => source.last_tokens.0[slot as usize],
                };
                table.read_row(id as usize, out);
            }
        });
    }

    fn scatter_rows(&self, src: &Buf<f32>, pairs: &Buf<u32>, n: usize, width: usize, out: &mut Buf<f32>) {
        for pair in pairs.0[..2 * n].chunks_exact(2) {
            let (from, to) = (pair[0] as usize * width, pair[1] as usize * width);
            out.0[to..to + width].copy_from_slice(&src.0[from..from + width]);
        }
    }

    fn gather_rows(&self, src: &Buf<f32>, index: &Buf<u32>, n: usize, width: usize, out: &mut Buf<f32>) {
        for (row, out) in index.0[..n].iter().zip(out.0.chunks_exact_mut(width)) {
            out.copy_from_slice(&src.0[*row as usize * width..][..width]);
        }
    }

    fn rms_norm(&self, x: &Buf<f32>, weight: &Buf<f32>, eps: f32, rows: usize, width: usize, out: &mut Buf<T>) {
        elementwise::rms_norm(self.with(), &x.0, &weight.0[..width], eps, &mut out.0[..rows * width]);
    }

    fn gemm(&self, x: &Buf<T>, w: &Weight, bias: Option<&Buf<f32>>, rows: usize, store: Store, out: &mut Buf<f32>) {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        gemm::gemm(self.with(), &x.0, w, bias.map(|bias| &bias.0[..w.n()]), rows, store, (&mut scratch, &mut out.0));
    }

    fn rope_table(&self, positions: &Buf<i32>, inv_freq: &Buf<f32>, axis: &Buf<u32>, half: usize, rows: usize, out: &mut Buf<f32>) {
        elementwise::rope_table(&self.threads, &positions.0, &inv_freq.0[..half], &axis.0, rows, &mut out.0);
    }

    fn rope_qkv(&self, qkv: &Buf<f32>, args: RopeQkv<'_, Self>, q: &mut Buf<T>, kv: &mut kv::Kv) {
        let RopeQkv { bias, rope, slot_mapping, shape, rows } = args;
        let (dim, width, q_width) = (shape.head_dim, shape.qkv_width(), shape.q_width());
        elementwise::rotate_heads(&self.threads, (&qkv.0, &bias.0, &rope.0), (width, 0), shape, &mut q.0[..rows * q_width]);
        for (row, slot) in slot_mapping.0[..rows].iter().enumerate().filter(|(_, slot)| **slot != NO_SLOT) {
            let qkv = &qkv.0[row * width..][..width];
            for head in 0..shape.num_kv_heads {
                let key = q_width + head * dim;
                let value = key + shape.num_kv_heads * dim;
                let mut slot = kv.slot(*slot as usize, head);
                elementwise::rotate(&qkv[key..][..dim], &bias.0[key..][..dim], &rope.0[row * dim..][..dim], |d, x| {
                    slot.write_key::<T>(d, x);
                });
                for d in 0..dim {
                    slot.write_value::<T>(d, qkv[value + d] + bias.0[value + d]);
                }
            }
        }
    }

    fn attention(&self, q: &Buf<T>, kv: &kv::Kv, plan: &attention::Plan, shape: HeadShape, _rows: usize, out: &mut Buf<T>) {
        attention::attention(self.with(), &q.0, kv, plan, shape, &mut out.0);
    }

    fn silu_mul(&self, gate_up: &Buf<f32>, rows: usize, width: usize, out: &mut Buf<T>) {
        elementwise::silu_mul(self.with(), &gate_up.0, width, &mut out.0[..rows * width]);
    }

    fn sample(&self, logits: &Buf<f32>, inputs: SampleInputs<'_, Self>, n: usize, state: &mut SamplerState<Self>, out: &mut Buf<Sampled>) {
        let vocab = state.vocab;
        let words = vocab.div_ceil(32);
        let rows = &inputs.rows.0[..n];
        let out = &mut out.0[..n];
        let every: Vec<_> = (0..n).map(|i| i..i + 1).collect();
        let (seen, counts) = (&state.seen.0, &state.counts.0);
        threads::for_each_tile(&self.threads, out, 1, &every, 1, |i, _, mut out| {
            let row = &rows[i];
            let range = |start: u32, len: u32| start as usize..start as usize + len as usize;
            let bias = range(row.bias_start, row.bias_len);
            out.row(0)[0] = sample::sample(
                self.isa,
                &sample::Draw {
                    row,
                    logits: &logits.0[row.logits_row as usize * vocab..][..vocab],
                    banned: &inputs.banned.0[range(row.banned_start, row.banned_len)],
                    bias_ids: &inputs.bias_ids.0[bias.clone()],
                    bias_values: &inputs.bias_values.0[bias],
                    seen: &seen[row.slot as usize * words..][..words],
                    counts: (row.counts_row != NO_COUNTS).then(|| &counts[row.counts_row as usize * vocab..][..vocab]),
                },
            );
        });
        for (row, sampled) in rows.iter().zip(out).filter(|(_, sampled)| sampled.corrupt == 0) {
            record(state, row, sampled.token);
        }
    }

    fn reset_slot(&self, state: &mut SamplerState<Self>, slot: u32, counts_row: Option<u32>, prompt: &[u32], completion: &[u32]) {
        let words = state.vocab.div_ceil(32);
        let seen = &mut state.seen.0[slot as usize * words..][..words];
        seen.fill(0);
        for token in prompt.iter().chain(completion) {
            seen[*token as usize / 32] |= 1 << (token % 32);
        }
        if let Some(row) = counts_row {
            let counts = &mut state.counts.0[row as usize * state.vocab..][..state.vocab];
            counts.fill(0);
            for token in completion {
                counts[*token as usize] += 1;
            }
        }
        if let Some(last) = completion.last().or(prompt.last()) {
            state.last_tokens.0[slot as usize] = *last;
        }
    }

    fn submit(&self, out: &Buf<Sampled>, n: usize) -> Vec<Sampled> {
        out.0[..n].to_vec()
    }

    fn wait(&self, ticket: Vec<Sampled>) -> Vec<Sampled> {
        ticket
    }

    fn upload_patches(&self, [patches, len]: [usize; 2], write: &(dyn Fn(usize, &mut [f32]) + Sync), out: &mut Buf<T>) {
        elementwise::for_row_blocks(&self.threads, &mut out.0[..patches * len], len, |first, out| {
            let mut row = vec![0.0; len];
            for (i, out) in out.chunks_exact_mut(len).enumerate() {
                write(first + i, &mut row);
                row.iter().zip(out).for_each(|(x, out)| *out = T::from_f32(*x));
            }
        });
    }

    fn rope_vision(&self, qkv: &Buf<f32>, args: RopeVision<'_, Self>, [q, k, v]: [&mut Buf<T>; 3]) {
        let RopeVision { bias, rope, shape, rows } = args;
        let width = shape.q_width();
        let parts = (qkv.0.as_ref(), bias.0.as_ref(), rope.0.as_ref());
        elementwise::rotate_heads(&self.threads, parts, (3 * width, 0), shape, &mut q.0[..rows * width]);
        elementwise::rotate_heads(&self.threads, parts, (3 * width, width), shape, &mut k.0[..rows * width]);
        elementwise::for_row_blocks(&self.threads, &mut v.0[..rows * width], width, |first, v| {
            for (row, v) in v.chunks_exact_mut(width).enumerate() {
                let value = &qkv.0[((first + row) * 3 + 2) * width..][..width];
                for ((x, bias), v) in value.iter().zip(&bias.0[2 * width..]).zip(v) {
                    *v = T::from_f32(x + bias);
                }
            }
        });
    }

    fn segment_attention(&self, args: SegmentAttention<'_, Self>, out: &mut Buf<T>) {
        let SegmentAttention { q, k, v, cu_seqlens, num_segments, shape, rows } = args;
        let out = &mut out.0[..rows * shape.q_width()];
        attention::segment_attention(self.with(), (&q.0, &k.0, &v.0), &cu_seqlens.0[..num_segments + 1], shape, out);
    }

    fn gelu(&self, x: &Buf<f32>, rows: usize, width: usize, out: &mut Buf<T>) {
        elementwise::gelu(&self.threads, &x.0, width, &mut out.0[..rows * width]);
    }
}

/// Remembers a token that a slot drew or was given.
fn record<T: Float>(state: &mut SamplerState<Cpu<T>>, row: &SampleRow, token: u32) {
    let words = state.vocab.div_ceil(32);
    state.last_tokens.0[row.slot as usize] = token;
    state.seen.0[row.slot as usize * words + token as usize / 32] |= 1 << (token % 32);
    if row.counts_row != NO_COUNTS {
        state.counts.0[row.counts_row as usize * state.vocab + token as usize] += 1;
    }
}
