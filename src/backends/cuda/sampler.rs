//! Draws: parts of rows' softmaxes, made of logits (`kernels/sample.cu`) or of the product that would make them (`kernels/gemm_sample.cu`, on
//! chips that have what it needs), then put together.
//!
//! Sums of the product are those of the admitted algorithms of cublasLt on the chips known so far; [`super::trial`] compares its parts with
//! those of logits before it is used.

use std::sync::Arc;

use super::Cuda;
use super::device::{Args, Buf, Device, Kernel};
use super::kernels::{self, BLOCK, Kernels};
use super::tiles::TileKernel;
use super::weight::Weight;
use crate::backends::{DRAW_TILE, SampleInputs, Sampled, SamplerState};
use crate::error::Result;

/// Bytes that are kept of a tile of a row.
pub const PART_BYTES: usize = 32;
/// Room for parts; more draws go in several launches.
const SCRATCH: usize = 32 << 20;
/// Threads of a block that looks at all of a row's scores.
const FULL_BLOCK: usize = 512;

pub struct Sampler {
    device: Arc<Device>,
    sample_parts: Kernel,
    sample: Kernel,
    sample_full: Kernel,
    /// By rows, ascending; none on chips that lack their instructions.
    of_products: Vec<TileKernel>,
    scratch: Buf<u32>,
}

/// Operands of a product of which only parts are wanted: addresses. `logits` get what rows with bans need of them.
#[derive(Clone, Copy)]
pub struct PartsCall {
    pub x: u64,
    pub rows: usize,
    pub asked: u64,
    pub banned: u64,
    pub logits: u64,
}

impl Sampler {
    /// # Errors
    ///
    /// No memory for parts.
    pub fn new(device: &Arc<Device>, kernels: &Kernels) -> Result<Self> {
        let variants = [("gemm_sample_64", 64, 160, 7), ("gemm_sample_128", 128, 384, 5), ("gemm_sample_256", 256, 384, 4)];
        let of_products = variants
            .into_iter()
            .filter_map(|(name, rows, threads, stages)| TileKernel::find(kernels, name, [rows, DRAW_TILE, DRAW_TILE], threads, stages));
        Ok(Sampler {
            device: device.clone(),
            sample_parts: kernels.get("sample_parts"),
            sample: kernels.get("sample"),
            sample_full: kernels.get("sample_full"),
            of_products: of_products.collect(),
            scratch: Buf::new(device, SCRATCH / size_of::<u32>())?,
        })
    }

    /// Parts of rows of one vocabulary that there is room for.
    fn at_once(vocab: usize) -> usize {
        SCRATCH / (vocab.div_ceil(DRAW_TILE) * PART_BYTES)
    }

    /// Whether parts of products of this shape can be made at all.
    pub fn takes(&self, w: &Weight) -> bool {
        !self.of_products.is_empty() && w.n >= DRAW_TILE
    }

    /// Whether there is room for so many rows of them.
    pub fn has_room(&self, w: &Weight, rows: usize) -> bool {
        rows <= Self::at_once(w.n)
    }

    /// Numbers of rows with which each kernel is tried: tiles that are full, begun, and several.
    pub fn trial_rows(&self, w: &Weight, most: usize) -> Vec<usize> {
        let edges = self.of_products.iter().flat_map(|v| [v.rows / 2 + 1, v.rows]);
        edges.chain([1, 700]).filter(|rows| *rows <= most.min(Self::at_once(w.n))).collect()
    }

    /// Where parts are, row by row, a tile after the other.
    pub fn parts(&self) -> &Buf<u32> {
        &self.scratch
    }

    /// Parts of `rows` rows from their logits; `asked`: the rows.
    pub fn launch_parts(&self, logits: u64, asked: u64, rows: usize, vocab: usize) {
        let tiles = vocab.div_ceil(DRAW_TILE);
        let args = Args::default().ptr(logits).ptr(asked).int(vocab).int(tiles).buf(&self.scratch);
        self.device.launch(self.sample_parts, [tiles.div_ceil(BLOCK / 4), rows, 1], BLOCK, 0, args);
    }

    /// The same parts of `x · wᵀ`.
    pub fn launch_parts_of_product(&self, w: &Weight, call: &PartsCall) {
        let last = &self.of_products[self.of_products.len() - 1];
        let v = self.of_products.iter().find(|v| call.rows <= v.rows).unwrap_or(last);
        let args = v.operands(w, call.x, call.rows).int(w.ld).int(call.rows).ptr(call.asked).ptr(call.banned);
        v.launch(&self.device, w, call.rows, args.int(w.n).buf(&self.scratch).ptr(call.logits));
    }

    /// Draws `n` tokens from logits.
    pub fn run(&self, logits: u64, inputs: &SampleInputs<'_, Cuda>, n: usize, state: &SamplerState<Cuda>, out: &Buf<Sampled>) {
        let at_once = Self::at_once(state.vocab);
        for first in (0..n).step_by(at_once) {
            let n = at_once.min(n - first);
            self.launch_parts(logits, inputs.rows.at(first), n, state.vocab);
            self.finish(logits, inputs, [first, n], state, out);
        }
    }

    /// Draws `n` tokens, the first of which is number `first`, whose parts are there.
    pub fn finish(
        &self,
        logits: u64,
        inputs: &SampleInputs<'_, Cuda>,
        [first, n]: [usize; 2],
        state: &SamplerState<Cuda>,
        out: &Buf<Sampled>,
    ) {
        let vocab = state.vocab;
        let lists = || Args::default().ptr(logits).ptr(inputs.rows.at(first)).buf(inputs.banned);
        let results = |args: Args| {
            let parts = args.int(vocab).int(vocab.div_ceil(DRAW_TILE)).buf(&self.scratch);
            parts.buf(&state.last_tokens).buf(&state.seen).buf(&state.counts).ptr(out.at(first))
        };
        let masses = vocab.div_ceil(DRAW_TILE) * size_of::<f64>();
        self.device.launch(self.sample, [n, 1, 1], BLOCK, masses, results(lists()));
        if !inputs.plain {
            let args = results(lists().buf(inputs.bias_ids).buf(inputs.bias_values));
            self.device.launch(self.sample_full, [n, 1, 1], FULL_BLOCK, kernels::sample_shared(vocab), args);
        }
    }
}
