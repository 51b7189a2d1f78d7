//! GEMMs of a few rows: `kernels/gemm_few.cu`, which asks for weights before the launch that makes its input has ended.
//!
//! It sums as the admitted algorithms of cublasLt do on the chips known so far; [`super::gemm`] compares its bits before it is used.

use std::sync::Arc;

use super::device::{Args, Device, Kernel};
use super::gemm::Call;
use super::kernels::Kernels;
use super::weight::Weight;

/// Rows of one launch at most.
pub const MAX_ROWS: usize = 8;
const THREADS: usize = 256;
/// Outputs of a tile, columns of a stage and its bytes.
const OUTPUTS: usize = 8;
const COLUMNS: usize = 128;
const STAGE: usize = 2 * OUTPUTS * COLUMNS;

struct Variant {
    kernel: Kernel,
    warps: usize,
    depth: usize,
}

pub struct Few {
    device: Arc<Device>,
    /// By warps, ascending.
    variants: [Variant; 3],
}

impl Few {
    pub fn new(device: &Arc<Device>, kernels: &Kernels) -> Self {
        let variant = |name, warps, depth| Variant { kernel: kernels.get(name), warps, depth };
        let variants = [variant("gemm_few_2", 2, 24), variant("gemm_few_3", 3, 16), variant("gemm_few_7", 7, 8)];
        Few { device: device.clone(), variants }
    }

    /// Every warp of the device has a tile, or as many as there can be.
    fn variant(&self, n: usize) -> &Variant {
        let enough = |v: &&Variant| n / OUTPUTS <= v.warps * self.device.multiprocessors();
        self.variants.iter().find(enough).unwrap_or(&self.variants[self.variants.len() - 1])
    }

    fn shared(&self, w: &Weight, rows: usize) -> usize {
        let v = self.variant(w.n);
        v.warps * v.depth * STAGE + rows * (2 * w.ld + 16)
    }

    /// Whether a product of this shape can be computed at all.
    pub fn takes(&self, w: &Weight, rows: usize) -> bool {
        rows <= MAX_ROWS
            && w.n.is_multiple_of(OUTPUTS)
            && w.ld.is_multiple_of(COLUMNS)
            && self.shared(w, rows) <= self.device.shared_memory()
    }

    pub fn launch(&self, w: &Weight, call: &Call) {
        let v = self.variant(w.n);
        let args = Args::default().ptr(call.w).ptr(call.x).int(w.n).int(w.ld).int(call.rows).word(call.add.into()).ptr(call.out);
        let grid = self.device.multiprocessors().min(w.n / OUTPUTS);
        self.device.launch(v.kernel, [grid, 1, 1], THREADS, self.shared(w, call.rows), args);
    }
}
