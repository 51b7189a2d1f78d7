//! The products that make queries, keys and values, turned where they are summed: `kernels/gemm_rope.cu`, on chips that have what it needs.
//!
//! Their sums are those of the admitted algorithms of cublasLt on the chips known so far; [`super::trial`] compares them before they are used.

use std::sync::Arc;

use super::attention::padded_dim;
use super::device::{Args, Device};
use super::kernels::Kernels;
use super::tiles::{self, TileKernel};
use super::weight::Weight;
use crate::backends::HeadShape;

/// Outputs of the largest product that is tried: others do not make queries, keys and values.
const MOST_OUTPUTS: usize = 16_384;

/// A kernel and the most rows that it is the best for.
struct Variant {
    tiles: TileKernel,
    most: usize,
}

/// The kernels for one width of heads and one sort of places, by `most`; none on chips that lack their instructions.
struct Family {
    head_dim: usize,
    variants: Vec<Variant>,
}

pub struct Turned {
    device: Arc<Device>,
    paged: Family,
    apart: Family,
}

/// Operands of a call: addresses.
#[derive(Clone, Copy)]
pub struct TurnedCall {
    pub x: u64,
    pub bias: u64,
    pub rope: u64,
    pub rows: usize,
}

/// Where queries, keys and values go: addresses.
#[derive(Clone, Copy)]
pub enum Places {
    /// Keys and values to a layer's cache.
    Paged { shape: HeadShape, slot_mapping: u64, q: u64, kv: u64 },
    /// Each in rows of its own.
    Apart { shape: HeadShape, q: u64, k: u64, v: u64 },
}

impl Turned {
    pub fn new(device: &Arc<Device>, kernels: &Kernels) -> Self {
        let variant =
            |name, tile, threads, stages, most| Some(Variant { tiles: TileKernel::find(kernels, name, tile, threads, stages)?, most });
        let paged = [
            variant("gemm_rope_qkv_64x64", [64, 64, 32], 160, 12, 128),
            variant("gemm_rope_qkv_64x128", [64, 128, 64], 160, 9, 256),
            variant("gemm_rope_qkv_128x128", [128, 128, 64], 288, 6, 512),
            variant("gemm_rope_qkv_128x256", [128, 256, 64], 384, 4, usize::MAX),
        ];
        let apart = [variant("gemm_rope_vision_256x160", [256, 160, 40], 384, 4, usize::MAX)];
        Turned {
            device: device.clone(),
            paged: Family { head_dim: 128, variants: paged.into_iter().flatten().collect() },
            apart: Family { head_dim: 80, variants: apart.into_iter().flatten().collect() },
        }
    }

    /// Places, all for queries, in which every output of a product can be looked at, `[rows, n]` by thirds at `q`; by sort. `None`: no
    /// kernel takes the product.
    pub fn trials(&self, w: &Weight, rows: usize, q: u64) -> [Option<Places>; 2] {
        let heads = |family: &Family, parts: usize| {
            let takes = !family.variants.is_empty() && w.n.is_multiple_of(parts * family.head_dim) && w.n <= MOST_OUTPUTS;
            takes.then(|| HeadShape { num_heads: w.n / family.head_dim / parts, num_kv_heads: 0, head_dim: family.head_dim })
        };
        let third = (rows * w.n / 3 * 2) as u64;
        [
            heads(&self.paged, 1).map(|shape| Places::Paged { shape, slot_mapping: 0, q, kv: 0 }),
            heads(&self.apart, 3).map(|shape| Places::Apart { shape, q, k: q + third, v: q + 2 * third }),
        ]
    }

    /// Numbers of rows with which each kernel of a family is tried: tiles that are full, begun, and several.
    pub fn trial_rows(&self, places: &Places) -> Vec<usize> {
        let variants = &self.family(places).variants;
        let edges = variants.iter().flat_map(|v| [v.tiles.rows / 2 + 1, v.tiles.rows, v.most.min(700)]);
        edges.chain([1]).collect()
    }

    /// Whether there are kernels for these heads.
    pub fn takes(&self, places: &Places) -> bool {
        let (Places::Paged { shape, .. } | Places::Apart { shape, .. }) = places;
        shape.head_dim == self.family(places).head_dim
    }

    fn family(&self, places: &Places) -> &Family {
        match places {
            Places::Paged { .. } => &self.paged,
            Places::Apart { .. } => &self.apart,
        }
    }

    pub fn launch(&self, w: &Weight, call: &TurnedCall, places: &Places) {
        let variants = &self.family(places).variants;
        let v = variants.iter().find(|v| call.rows <= v.most).unwrap_or(&variants[variants.len() - 1]);
        let operands = v.tiles.operands(w, call.x, call.rows);
        let rows = |args: Args| args.int(w.ld).int(call.rows).ptr(call.bias).ptr(call.rope);
        let args = match *places {
            Places::Paged { shape, slot_mapping, q, kv } => {
                let heads = rows(operands).ptr(slot_mapping).int(shape.num_heads).int(shape.num_kv_heads);
                heads.int(padded_dim(shape.head_dim)).ptr(q).ptr(kv)
            }
            Places::Apart { shape, q, k, v } => {
                let to = |address| tiles::outputs(address, call.rows, shape.q_width(), shape.head_dim / 2);
                rows(operands.map(to(q)).map(to(k)).map(to(v))).int(shape.num_heads)
            }
        };
        v.tiles.launch(&self.device, w, call.rows, args);
    }
}
