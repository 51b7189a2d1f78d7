//! Keys and values of one layer.
//!
//! Per block and kv head: keys as `[head_dim][32]`, so that scores of 32 keys are one panel of the GEMM's loop, and values as
//! panels `[ceil(head_dim / 32)][32 keys][32]`, so that `p · v` is another. Numbers are stored as f32, already rounded to the
//! backend's `Float`.

use super::gemm::PANEL;
use super::math::Float;
use super::simd::LANES;
use super::weight::F32Row;
use crate::backends::{BLOCK_SIZE, HeadShape};

const _: () = assert!(BLOCK_SIZE == PANEL);

pub struct Kv {
    rows: Vec<F32Row>,
    heads: usize,
    head_dim: usize,
}

impl Kv {
    pub fn new(num_blocks: usize, shape: HeadShape) -> Self {
        let rows = num_blocks * shape.num_kv_heads * rows_per_head(shape.head_dim);
        Kv { rows: bytemuck::zeroed_vec(rows), heads: shape.num_kv_heads, head_dim: shape.head_dim }
    }

    /// What one block of one layer takes.
    pub fn block_bytes(shape: HeadShape) -> usize {
        shape.num_kv_heads * rows_per_head(shape.head_dim) * size_of::<F32Row>()
    }

    /// Room for the keys of one head within a call.
    pub fn scratch(num_blocks: usize, head_dim: usize) -> Self {
        Kv { rows: bytemuck::zeroed_vec(num_blocks * rows_per_head(head_dim)), heads: 1, head_dim }
    }

    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    fn start(&self, block: usize, head: usize) -> usize {
        (block * self.heads + head) * rows_per_head(self.head_dim)
    }

    /// Keys `[head_dim]` and values `[panels · 32]` of a block.
    #[inline(always)]
    pub fn block(&self, block: usize, head: usize) -> (&[F32Row], &[F32Row]) {
        self.rows[self.start(block, head)..][..rows_per_head(self.head_dim)].split_at(self.head_dim)
    }

    /// Where a key's numbers go.
    pub fn slot(&mut self, slot: usize, head: usize) -> Slot<'_> {
        let start = self.start(slot / BLOCK_SIZE, head);
        Slot { rows: &mut self.rows[start..start + rows_per_head(self.head_dim)], head_dim: self.head_dim, key: slot % BLOCK_SIZE }
    }
}

/// One key and value of one head.
pub struct Slot<'a> {
    rows: &'a mut [F32Row],
    head_dim: usize,
    key: usize,
}

impl Slot<'_> {
    #[inline(always)]
    pub fn write_key<T: Float>(&mut self, d: usize, x: f32) {
        self.rows[d].0[self.key / LANES][self.key % LANES] = T::from_f32(x).to_f32();
    }

    #[inline(always)]
    pub fn write_value<T: Float>(&mut self, d: usize, x: f32) {
        self.rows[self.head_dim + d / PANEL * BLOCK_SIZE + self.key].0[d % PANEL / LANES][d % LANES] = T::from_f32(x).to_f32();
    }
}

fn rows_per_head(head_dim: usize) -> usize {
    head_dim + head_dim.div_ceil(PANEL) * BLOCK_SIZE
}
