//! Row operations and rotary embeddings.

use half::bf16;

use super::{Numbers, Operation, Pair, Table, read, read_rounded, upload};
use crate::backends::{Backend, HeadShape, NO_TOKEN, RopeVision, TokenSource};
use crate::error::Result;
use crate::model::mrope;

/// One rounding to bf16 apart.
const ROUNDING: f32 = 8e-3;

pub fn run(pair: &Pair, small: bool, table: &mut Table) -> Result<()> {
    let widths: &[usize] = if small { &[64, 128, 160] } else { &[64, 128, 160, 1280, 2048, 3584, 8192] };
    for width in widths.iter().copied() {
        for rows in [1, 5, 67] {
            pair.compare("rms_norm", format!("{rows} x {width}"), ROUNDING, &RmsNorm { rows, width }, table)?;
        }
        pair.compare("embed and moves", format!("33 x {width}"), 0.0, &Moves { rows: 33, width }, table)?;
    }
    let widths: &[usize] = if small { &[172, 256, 428] } else { &[172, 256, 428, 3420, 11_008] };
    for width in widths.iter().copied() {
        pair.compare("silu_mul", format!("19 x {width}"), ROUNDING, &SiluMul { rows: 19, width }, table)?;
    }
    for width in [256, 5120] {
        pair.compare("gelu", format!("19 x {width}"), ROUNDING, &Gelu { rows: 19, width }, table)?;
    }
    for (sections, dim) in [([16, 24, 24], 128), ([4, 6, 6], 32)] {
        pair.compare("rope_table", format!("203 rows, heads of {dim}"), 2e-5, &RopeTable { rows: 203, sections, dim }, table)?;
    }
    for (heads, dim) in [(16, 80), (4, 16), (2, 80)] {
        pair.compare("rope_vision", format!("77 rows, {heads} heads of {dim}"), ROUNDING, &Vision { rows: 77, heads, dim }, table)?;
    }
    let patches = Patches { len: 1176 * 37 };
    pair.compare("upload_patches", format!("{} values", patches.len), 0.0, &patches, table)
}

struct RmsNorm {
    rows: usize,
    width: usize,
}

impl Operation for RmsNorm {
    fn run<B: Backend<Float = bf16>>(&self, b: &B) -> Result<Vec<f32>> {
        let mut numbers = Numbers::new(1);
        let x = upload(b, &numbers.values(self.rows * self.width, 3.0))?;
        let weight = upload(b, &numbers.values(self.width, 1.0))?;
        let mut out = b.alloc(self.rows * self.width)?;
        b.rms_norm(&x, &weight, 1e-6, self.rows, self.width, &mut out);
        Ok(read_rounded(b, &out, self.rows * self.width))
    }
}

/// Embedding from host ids and from slots, then features over some rows, then some rows elsewhere.
struct Moves {
    rows: usize,
    width: usize,
}

impl Operation for Moves {
    fn run<B: Backend<Float = bf16>>(&self, b: &B) -> Result<Vec<f32>> {
        let (rows, width, vocab) = (self.rows, self.width, 200);
        let mut numbers = Numbers::new(2);
        let values = numbers.rounded(vocab * width, 1.0);
        let table = b.weight(&[crate::backends::Matrix { rows: vocab, cols: width, data: crate::backends::FloatData::Bf16(&values) }])?;
        let ids: Vec<u32> = (0..rows).map(|_| numbers.below(vocab) as u32).collect();
        let slots: Vec<u32> = (0..rows as u32).map(|i| if i % 3 == 0 { NO_TOKEN } else { i / 2 }).collect();
        let last: Vec<u32> = (0..rows).map(|_| numbers.below(vocab) as u32).collect();
        let (ids, slots, last) = (upload(b, &ids)?, upload(b, &slots)?, upload(b, &last)?);
        let mut out = b.alloc(rows * width)?;
        b.embed(TokenSource { ids: &ids, slots: &slots, last_tokens: &last }, &table, rows, &mut out);
        let features = upload(b, &numbers.values(4 * width, 1.0))?;
        let pairs = upload(b, &[3u32, 0, 1, 7, 0, 20])?;
        b.scatter_rows(&features, &pairs, 3, width, &mut out);
        let index = upload(b, &[20u32, 0, 31, 31, 5])?;
        let mut gathered = b.alloc(5 * width)?;
        b.gather_rows(&out, &index, 5, width, &mut gathered);
        Ok([read(b, &out, rows * width), read(b, &gathered, 5 * width)].concat())
    }
}

struct SiluMul {
    rows: usize,
    width: usize,
}

impl Operation for SiluMul {
    fn run<B: Backend<Float = bf16>>(&self, b: &B) -> Result<Vec<f32>> {
        let (rows, width, stride) = (self.rows, self.width, b.row_stride(self.width));
        let x = upload(b, &Numbers::new(3).values(rows * 2 * width, 3.0))?;
        let mut out = b.alloc(rows * stride)?;
        b.silu_mul(&x, rows, width, &mut out);
        let padded = read_rounded(b, &out, rows * stride);
        Ok(padded.chunks_exact(stride).flat_map(|row| row[..width].iter().copied()).collect())
    }
}

struct Gelu {
    rows: usize,
    width: usize,
}

impl Operation for Gelu {
    fn run<B: Backend<Float = bf16>>(&self, b: &B) -> Result<Vec<f32>> {
        let x = upload(b, &Numbers::new(4).values(self.rows * self.width, 2.0))?;
        let mut out = b.alloc(self.rows * self.width)?;
        b.gelu(&x, self.rows, self.width, &mut out);
        Ok(read_rounded(b, &out, self.rows * self.width))
    }
}

struct RopeTable {
    rows: usize,
    sections: [usize; 3],
    dim: usize,
}

impl Operation for RopeTable {
    fn run<B: Backend<Float = bf16>>(&self, b: &B) -> Result<Vec<f32>> {
        let mut numbers = Numbers::new(5);
        let positions: Vec<i32> = (0..3 * self.rows).map(|_| numbers.below(32_768) as i32).collect();
        let axis: Vec<u32> = mrope::frequency_axes(self.sections).into_iter().map(|axis| axis as u32).collect();
        let (positions, axis) = (upload(b, &positions)?, upload(b, &axis)?);
        let inv_freq = upload(b, &mrope::inv_freq(1e6, self.dim))?;
        let mut out = b.alloc(self.rows * self.dim)?;
        b.rope_table(&positions, &inv_freq, &axis, self.dim / 2, self.rows, &mut out);
        Ok(read(b, &out, self.rows * self.dim))
    }
}

struct Vision {
    rows: usize,
    heads: usize,
    dim: usize,
}

impl Operation for Vision {
    fn run<B: Backend<Float = bf16>>(&self, b: &B) -> Result<Vec<f32>> {
        let shape = HeadShape { num_heads: self.heads, num_kv_heads: self.heads, head_dim: self.dim };
        let width = shape.q_width();
        let mut numbers = Numbers::new(6);
        let qkv = upload(b, &numbers.values(self.rows * 3 * width, 1.0))?;
        let bias = upload(b, &numbers.values(3 * width, 0.3))?;
        let rope = upload(b, &numbers.values(self.rows * self.dim, 0.7))?;
        let (mut q, mut k, mut v) = (b.alloc(self.rows * width)?, b.alloc(self.rows * width)?, b.alloc(self.rows * width)?);
        b.rope_vision(&qkv, RopeVision { bias: &bias, rope: &rope, shape, rows: self.rows }, [&mut q, &mut k, &mut v]);
        Ok([&q, &k, &v].into_iter().flat_map(|buf| read_rounded(b, buf, self.rows * width)).collect())
    }
}

struct Patches {
    len: usize,
}

impl Operation for Patches {
    fn run<B: Backend<Float = bf16>>(&self, b: &B) -> Result<Vec<f32>> {
        let mut out = b.alloc(self.len)?;
        let values = Numbers::new(7).values(self.len, 1.0);
        // In another order than in memory.
        let rows: Vec<&[f32]> = values.chunks_exact(1176).rev().collect();
        b.upload_patches([rows.len(), 1176], &|row, values| values.copy_from_slice(rows[row]), &mut out);
        Ok(read_rounded(b, &out, self.len))
    }
}
