//! The product that a gated MLP begins with, activated where it is summed: `kernels/gemm_silu.cu`, on chips that have what it needs.
//!
//! Its sums are those of the admitted algorithms of cublasLt on the chips known so far; [`super::gemm`] compares what comes out with
//! product and activation one after the other before it is used.

use std::sync::Arc;

use super::device::{Args, Device, Kernel};
use super::kernels::{self, Kernels};
use super::tiles::{self, TileKernel};
use super::weight::{Weight, row_stride};

/// Gates of a tile, with as many ups.
const WIDTH: usize = 88;

pub struct Gated {
    device: Arc<Device>,
    silu_mul: Kernel,
    /// By rows, ascending; none on chips that lack their instructions.
    variants: Vec<TileKernel>,
}

/// Operands of a call: addresses. Rows of `out` are [`row_stride`] of half the outputs apart.
#[derive(Clone, Copy)]
pub struct GatedCall {
    pub x: u64,
    pub bias: Option<u64>,
    pub rows: usize,
    pub out: u64,
}

impl Gated {
    pub fn new(device: &Arc<Device>, kernels: &Kernels) -> Self {
        let variants = [("gemm_silu_64", 64, 160, 7), ("gemm_silu_128", 128, 288, 5), ("gemm_silu_256", 256, 384, 4)];
        let loaded = variants
            .into_iter()
            .filter_map(|(name, rows, threads, stages)| TileKernel::find(kernels, name, [rows, 2 * WIDTH, WIDTH], threads, stages));
        Gated { device: device.clone(), silu_mul: kernels.get("silu_mul"), variants: loaded.collect() }
    }

    /// Whether a product of this shape can be computed at all.
    pub fn takes(&self, w: &Weight) -> bool {
        !self.variants.is_empty() && w.n.is_multiple_of(4)
    }

    /// Numbers of rows with which each kernel is tried: tiles that are full, begun, and several.
    pub fn trial_rows(&self, most: usize) -> Vec<usize> {
        let edges = self.variants.iter().flat_map(|v| [v.rows / 2 + 1, v.rows]);
        edges.chain([1, 700, most]).filter(|rows| *rows <= most).collect()
    }

    pub fn launch(&self, w: &Weight, call: &GatedCall) {
        let last = &self.variants[self.variants.len() - 1];
        let v = self.variants.iter().find(|v| call.rows <= v.rows).unwrap_or(last);
        let width = w.n / 2;
        let args = v.operands(w, call.x, call.rows).map(tiles::outputs(call.out, call.rows, row_stride(width), WIDTH));
        let args = args.int(width).int(w.ld).int(call.rows).ptr(call.bias.unwrap_or(0));
        v.launch(&self.device, w, call.rows, args);
    }

    /// The activation alone, of sums `[rows, 2 · width]`.
    pub fn activate(&self, sums: u64, rows: usize, width: usize, out: u64) {
        let grid = [width.div_ceil(kernels::ELEMENTS), rows.min(65_535), 1];
        let args = Args::default().ptr(sums).int(rows).int(width).int(row_stride(width)).ptr(out);
        self.device.launch(self.silu_mul, grid, kernels::BLOCK, 0, args);
    }
}
