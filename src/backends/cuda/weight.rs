//! GEMM operands: bf16, row-major as in the checkpoint, rows padded so that each begins on 16 bytes.

use std::sync::Arc;

use half::bf16;
use rayon::prelude::*;

use super::device::{Device, Memory};
use super::staging::Uploads;
use crate::backends::{FloatData, Matrix};
use crate::error::Result;

/// Values to which rows are padded with zeros.
pub const ROW_ALIGN: usize = 8;

/// Leading dimension of bf16 rows with `width` values.
pub fn row_stride(width: usize) -> usize {
    width.next_multiple_of(ROW_ALIGN)
}

/// `[n, k]` with `ld` values from one row to the next.
pub struct Weight {
    memory: Memory,
    pub n: usize,
    pub k: usize,
    pub ld: usize,
    /// Index of its shape's plan in [`super::gemm::Gemm`].
    pub plan: usize,
}

impl Weight {
    /// Stacks the parts along their rows. Numbers are rounded to bf16.
    pub fn upload(device: &Arc<Device>, uploads: &Uploads, parts: &[Matrix<'_>]) -> Result<Self> {
        let k = parts.first().map_or(0, |part| part.cols);
        for part in parts {
            assert_eq!(part.cols, k, "parts of one weight differ in width");
            assert_eq!(part.data.len(), part.rows * part.cols, "a part of {} x {}", part.rows, part.cols);
        }
        let n = parts.iter().map(|part| part.rows).sum();
        let ld = row_stride(k);
        let weight = Weight { memory: device.alloc(n * ld * size_of::<bf16>())?, n, k, ld, plan: 0 };
        let mut first_row = 0;
        for part in parts {
            weight.write(uploads, first_row, part);
            first_row += part.rows;
        }
        Ok(weight)
    }

    /// Writes rows `first_row..`, in the order of the stream.
    pub fn write(&self, uploads: &Uploads, first_row: usize, part: &Matrix<'_>) {
        assert_eq!(part.cols, self.k, "rows of another width");
        assert!(first_row + part.rows <= self.n, "rows {first_row} and {} more of {}", part.rows, self.n);
        let row_bytes = self.ld * size_of::<bf16>();
        let rows_a_copy = (Uploads::MAX_FILL / row_bytes).max(1);
        let start = self.ptr() + (first_row * row_bytes) as u64;
        for first in (0..part.rows).step_by(rows_a_copy) {
            let rows = rows_a_copy.min(part.rows - first);
            uploads.fill(rows * row_bytes, start + (first * row_bytes) as u64, |staged| {
                staged.par_chunks_mut(row_bytes).enumerate().with_min_len(64).for_each(|(row, to)| {
                    write_row(&part.data, (first + row) * self.k, self.k, to);
                });
            });
        }
    }

    pub fn ptr(&self) -> u64 {
        self.memory.ptr()
    }

    /// Bytes that a pass over the weight reads.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }
}

fn write_row(data: &FloatData<'_>, start: usize, k: usize, to: &mut [u8]) {
    let (values, padding) = to.split_at_mut(k * size_of::<bf16>());
    padding.fill(0);
    match data {
        FloatData::Bf16(v) => values.copy_from_slice(bytemuck::cast_slice(&v[start..start + k])),
        _ => {
            for (i, to) in values.chunks_exact_mut(size_of::<bf16>()).enumerate() {
                to.copy_from_slice(&bf16::from_f32(data.get(start + i)).to_le_bytes());
            }
        }
    }
}
