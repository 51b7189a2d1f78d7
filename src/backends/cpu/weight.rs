//! GEMM operands, packed for the loop of [`super::gemm`].

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use bytemuck::Zeroable;

use super::gemm::PANEL;
use super::math::Float;
use super::simd::{LANES, Simd};
use super::threads::{Threads, for_each_tile};
use crate::backends::{FloatData, Matrix};

/// One k of a panel: 32 numbers in two vectors.
pub trait PanelRow: Copy + Send + Sync + Zeroable {
    fn from_numbers(x: [f32; PANEL]) -> Self;
    fn get(&self, column: usize) -> f32;
    /// Columns `16 · HALF ..`.
    fn half<S: Simd, const HALF: usize>(&self, s: S) -> S::F;
}

/// bf16 pairs: columns i and 16 + i are the low and high half of word i, so that one shift or mask widens sixteen.
#[derive(Clone, Copy, Zeroable)]
#[repr(align(64))]
pub struct Bf16Row([u32; LANES]);

#[derive(Clone, Copy, Zeroable)]
#[repr(align(64))]
pub struct F32Row(pub [[f32; LANES]; 2]);

impl PanelRow for Bf16Row {
    fn from_numbers(x: [f32; PANEL]) -> Self {
        Bf16Row(std::array::from_fn(|i| x[i].to_bits() >> 16 | x[LANES + i].to_bits() & 0xFFFF_0000))
    }
    fn get(&self, column: usize) -> f32 {
        let word = self.0[column % LANES];
        f32::from_bits(if column < LANES { word << 16 } else { word & 0xFFFF_0000 })
    }
    #[inline(always)]
    fn half<S: Simd, const HALF: usize>(&self, s: S) -> S::F {
        let words = s.load_bits(&self.0);
        s.float(if HALF == 0 { s.shift_left::<16>(words) } else { s.and(words, s.splat_bits(0xFFFF_0000)) })
    }
}

impl PanelRow for F32Row {
    fn from_numbers(x: [f32; PANEL]) -> Self {
        F32Row(std::array::from_fn(|half| std::array::from_fn(|i| x[half * LANES + i])))
    }
    fn get(&self, column: usize) -> f32 {
        self.0[column / LANES][column % LANES]
    }
    #[inline(always)]
    fn half<S: Simd, const HALF: usize>(&self, s: S) -> S::F {
        s.load(&self.0[HALF])
    }
}

impl F32Row {
    pub const ZERO: F32Row = F32Row([[0.0; LANES]; 2]);
}

/// A GEMM operand `[n, k]` in panels.
pub struct Weight {
    n: usize,
    k: usize,
    panels: Panels,
}

pub enum Panels {
    Bf16(Vec<Bf16Row>),
    F32(Vec<F32Row>),
}

impl Weight {
    /// Stacks the parts along their rows. Numbers are rounded to `T` first.
    pub fn pack<T: Float>(threads: &Threads, parts: &[Matrix<'_>]) -> Self {
        let k = parts.first().map_or(0, |part| part.cols);
        for part in parts {
            assert_eq!(part.cols, k, "parts of one weight differ in width");
            assert_eq!(part.data.len(), part.rows * part.cols, "a part of {} x {}", part.rows, part.cols);
        }
        let n = parts.iter().map(|part| part.rows).sum();
        let panels = match parts.iter().all(|part| all_bf16::<T>(threads, part.data)) {
            true => Panels::Bf16(pack_rows::<T, _>(threads, parts, n, k)),
            false => Panels::F32(pack_rows::<T, _>(threads, parts, n, k)),
        };
        Weight { n, k, panels }
    }

    /// Writes rows `first..` anew, in place. Panels of bf16 widen, which is exact, where a new number is none.
    pub fn rewrite<T: Float>(&mut self, threads: &Threads, first: usize, part: &Matrix<'_>) {
        assert_eq!(part.cols, self.k, "rows of another width");
        assert!(first + part.rows <= self.n, "rows {first} and {} more of {}", part.rows, self.n);
        if let Panels::Bf16(rows) = &self.panels
            && !all_bf16::<T>(threads, part.data)
        {
            let widened = rows.iter().map(|row| F32Row::from_numbers(std::array::from_fn(|column| row.get(column))));
            self.panels = Panels::F32(widened.collect());
        }
        match &mut self.panels {
            Panels::Bf16(rows) => write_rows::<T, _>(threads, rows, first, part),
            Panels::F32(rows) => write_rows::<T, _>(threads, rows, first, part),
        }
    }

    pub fn n(&self) -> usize {
        self.n
    }

    pub fn k(&self) -> usize {
        self.k
    }

    pub fn panels(&self) -> &Panels {
        &self.panels
    }

    /// Bytes that a pass over the weight reads.
    pub fn bytes(&self) -> usize {
        match &self.panels {
            Panels::Bf16(rows) => size_of_val(rows.as_slice()),
            Panels::F32(rows) => size_of_val(rows.as_slice()),
        }
    }

    /// Row `row` of the matrix that was packed.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.n, "row {row} of {}", self.n);
        fn read<R: PanelRow>(rows: &[R], column: usize, out: &mut [f32]) {
            for (row, out) in rows.iter().zip(out) {
                *out = row.get(column);
            }
        }
        let panel = row / PANEL * self.k..(row / PANEL + 1) * self.k;
        match &self.panels {
            Panels::Bf16(rows) => read(&rows[panel], row % PANEL, out),
            Panels::F32(rows) => read(&rows[panel], row % PANEL, out),
        }
    }
}

/// Whether all values are bf16 numbers once they are rounded to `T`.
fn all_bf16<T: Float>(threads: &Threads, data: FloatData<'_>) -> bool {
    if size_of::<T>() == 2 {
        return true;
    }
    let short = |x: f32| x.to_bits() & 0xFFFF == 0;
    let all = AtomicBool::new(true);
    const BLOCK: usize = 1 << 16;
    threads.run(data.len().div_ceil(BLOCK), |block| {
        let part = block * BLOCK..data.len().min((block + 1) * BLOCK);
        let fine = match data {
            FloatData::F32(v) => v[part].iter().all(|x| short(*x)),
            FloatData::F16(v) => v[part].iter().all(|x| short(x.to_f32())),
            FloatData::Bf16(_) => true,
        };
        all.fetch_and(fine, Ordering::Relaxed);
    });
    all.into_inner()
}

fn pack_rows<T: Float, R: PanelRow>(threads: &Threads, parts: &[Matrix<'_>], n: usize, k: usize) -> Vec<R> {
    let mut rows: Vec<R> = bytemuck::zeroed_vec(n.div_ceil(PANEL) * k);
    let mut first = 0;
    for part in parts {
        write_rows::<T, R>(threads, &mut rows, first, part);
        first += part.rows;
    }
    rows
}

/// Puts a part's rows at columns `first..` of the panels, whose other columns stay.
fn write_rows<T: Float, R: PanelRow>(threads: &Threads, rows: &mut [R], first: usize, part: &Matrix<'_>) {
    const BLOCK: usize = 64;
    let (k, last) = (part.cols, first + part.rows);
    let panels: Vec<Range<usize>> = (first / PANEL..last.div_ceil(PANEL)).map(|panel| panel..panel + 1).collect();
    for_each_tile(threads, rows, k, &panels, BLOCK, |i, block, mut tile| {
        let start = panels[i].start * PANEL;
        let rows = tile.row(0);
        let mut numbers = [[0.0; PANEL]; BLOCK];
        for (row, numbers) in rows.iter().zip(&mut numbers) {
            *numbers = std::array::from_fn(|column| row.get(column));
        }
        for at_row in start.max(first)..last.min(start + PANEL) {
            let from = (at_row - first) * k + block * BLOCK;
            let range = from..from + rows.len();
            let mut put = |at: usize, x: f32| numbers[at][at_row - start] = T::from_f32(x).to_f32();
            match part.data {
                FloatData::F32(v) => v[range].iter().enumerate().for_each(|(at, x)| put(at, *x)),
                FloatData::F16(v) => v[range].iter().enumerate().for_each(|(at, x)| put(at, x.to_f32())),
                FloatData::Bf16(v) => v[range].iter().enumerate().for_each(|(at, x)| put(at, Float::to_f32(*x))),
            }
        }
        for (row, numbers) in rows.iter_mut().zip(numbers) {
            *row = R::from_numbers(numbers);
        }
    });
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn weights_keep_the_checkpoint_s_types() {
        let threads = Threads::new(2).unwrap();
        let values: Vec<f32> = (0..240).map(|i| (i as f32).sin()).collect();
        let half: Vec<half::f16> = values.iter().map(|x| half::f16::from_f32(*x)).collect();
        let short: Vec<bf16> = values.iter().map(|x| bf16::from_f32(*x)).collect();
        let mut row = vec![0.0; 6];
        let weight = Weight::pack::<f32>(&threads, &[Matrix { rows: 40, cols: 6, data: FloatData::F16(&half) }]);
        weight.read_row(37, &mut row);
        assert_eq!(row, half[37 * 6..38 * 6].iter().map(|x| x.to_f32()).collect::<Vec<_>>());
        let weight = Weight::pack::<f32>(&threads, &[Matrix { rows: 40, cols: 6, data: FloatData::Bf16(&short) }]);
        assert_eq!(weight.bytes(), 2 * 6 * 64);
        weight.read_row(37, &mut row);
        assert_eq!(row, short[37 * 6..38 * 6].iter().map(|x| x.to_f32()).collect::<Vec<_>>());
    }
    #[test]
    fn rows_are_written_in_place() {
        let threads = Threads::new(2).unwrap();
        let old: Vec<bf16> = (0..70 * 6).map(|i| bf16::from_f32(i as f32)).collect();
        let new: Vec<f32> = (0..40 * 6).map(|i| 0.1 + i as f32).collect();
        let mut weight = Weight::pack::<f32>(&threads, &[Matrix { rows: 70, cols: 6, data: FloatData::Bf16(&old) }]);
        weight.rewrite::<f32>(&threads, 20, &Matrix { rows: 40, cols: 6, data: FloatData::F32(&new) });
        let mut row = vec![0.0; 6];
        for i in 0..70 {
            weight.read_row(i, &mut row);
            let expected: Vec<f32> = match i {
                20..60 => new[(i - 20) * 6..(i - 19) * 6].to_vec(),
                _ => old[i * 6..(i + 1) * 6].iter().map(|x| x.to_f32()).collect(),
            };
            assert_eq!(row, expected, "row {i}");
        }
    }
}
