//! What the host knows of a kernel over `kernels/gemm_tiles.cuh`: the shape of its tiles, its operands, how it is launched.

use cudarc::driver::sys;

use super::device::{Args, Device, Kernel};
use super::kernels::Kernels;
use super::tensor_map::RowTiles;
use super::weight::Weight;

/// Columns of a stage.
const COLUMNS: usize = 64;
/// Rows of outputs that leave together.
const STRIP: usize = 16;
/// Swizzled tiles begin at multiples of this.
const ALIGN: usize = 1024;

/// A kernel by its tiles: rows of x by outputs, which are so many rows of w, some a box.
pub struct TileKernel {
    kernel: Kernel,
    pub rows: usize,
    outputs: usize,
    box_rows: usize,
    threads: usize,
    stages: usize,
}

impl TileKernel {
    /// `None` on chips that lack its instructions. `tile`: rows, outputs, rows of w in a box.
    pub fn find(kernels: &Kernels, name: &str, tile: [usize; 3], threads: usize, stages: usize) -> Option<Self> {
        let [rows, outputs, box_rows] = tile;
        Some(TileKernel { kernel: kernels.find(name)?, rows, outputs, box_rows, threads, stages })
    }

    /// The first arguments of every such kernel: `rows` rows of x at an address, then w.
    pub fn operands(&self, w: &Weight, x: u64, rows: usize) -> Args {
        let x = RowTiles { address: x, rows, width: w.ld, stride: w.ld, boxes: [self.rows, COLUMNS], swizzled: true };
        let weights = RowTiles { address: w.ptr(), rows: w.n, boxes: [self.box_rows, COLUMNS], ..x };
        Args::default().map(x.encode()).map(weights.encode())
    }

    pub fn launch(&self, device: &Device, w: &Weight, rows: usize, args: Args) {
        let tiles = rows.div_ceil(self.rows) * w.n.div_ceil(self.outputs);
        let shared = self.stages * 2 * COLUMNS * (self.rows + self.outputs) + ALIGN;
        device.launch(self.kernel, [tiles.min(device.multiprocessors()), 1, 1], self.threads, shared, args);
    }
}

/// Rows of outputs, `width` values each and as many apart, which leave in boxes of `box_width`.
pub fn outputs(address: u64, rows: usize, width: usize, box_width: usize) -> sys::CUtensorMap {
    RowTiles { address, rows, width, stride: width, boxes: [STRIP, box_width], swizzled: false }.encode()
}
