//! `x · wᵀ` with one order of summation for every shape.
//!
//! Each output is one chain of fused multiply-adds over ascending k that starts from 0; a bias and the old output are added
//! after it. Tiling over rows and columns, threads and instruction sets never touch that order, so the bits of a row depend on
//! nothing but the row.
//!
//! Weights lie in panels of 32 columns, `[panel][k][32]`, and are read front to back. A panel row is 64 bytes when every weight
//! of the matrix is a bf16 number: half the memory traffic, and widening is exact. Rows of `x` are packed eight at a time as
//! `[k][8]`, so that the inner loop reads two streams: per k it loads 32 weights, broadcasts eight inputs and does 256
//! multiply-adds in registers. Attention uses the same loop for `q · kᵀ` and `p · v`.

use std::hint::black_box;
use std::ops::Range;

use super::math::Float;
use super::simd::{Isa, Kernel, LANES, Simd};
use super::threads::{Threads, Tile, for_each_tile};
use super::weight::{PanelRow, Panels, Weight};
use crate::backends::Store;

/// Columns of a panel.
pub const PANEL: usize = 2 * LANES;
/// Rows that share one pass over a panel.
pub const GROUP: usize = 8;
/// Sums of a group of rows over a panel's columns.
pub type Sums = [[f32; PANEL]; GROUP];

/// How many lanes a group of `rows` rows is packed to.
pub fn stride(rows: usize) -> usize {
    match rows {
        1 | 2 | 4 | 6 | 8 => rows,
        3 | 5 | 7 => rows + 1,
        _ => panic!("a group of {rows} rows"),
    }
}

/// Rows of a call, packed in groups of eight; the last one may have fewer.
struct Inputs<'a> {
    packed: &'a [f32],
    rows: usize,
    k: usize,
}

impl<'a> Inputs<'a> {
    fn len(rows: usize, k: usize) -> usize {
        let tail = rows % GROUP;
        (rows - tail + if tail == 0 { 0 } else { stride(tail) }) * k
    }

    fn group(&self, first: usize) -> (&'a [f32], usize) {
        let rows = GROUP.min(self.rows - first);
        let width = stride(rows);
        (&self.packed[first * self.k..][..width * self.k], rows)
    }
}

/// Packs one group `[rows][k]` to `[k][stride]`, zeros beyond `rows`.
fn pack_group<T: Float>(x: &[T], k: usize, out: &mut [f32]) {
    let rows = x.len() / k;
    let width = stride(rows);
    for row in 0..width {
        match row < rows {
            true => {
                for (x, out) in x[row * k..][..k].iter().zip(out[row..].iter_mut().step_by(width)) {
                    *out = x.to_f32();
                }
            }
            false => out[row..].iter_mut().step_by(width).for_each(|out| *out = 0.0),
        }
    }
}

/// A group's inputs in the order in which the loop reads them.
trait Operand: Copy {
    fn len(&self) -> usize;
    /// Input of row `row` at `k`.
    fn at(&self, k: usize, row: usize) -> f32;
    /// Those from `k` on.
    fn from(&self, k: usize) -> Self;
}

/// `[k][STRIDE]`
#[derive(Clone, Copy)]
struct Packed<'a, const STRIDE: usize>(&'a [[f32; STRIDE]]);

impl<const STRIDE: usize> Operand for Packed<'_, STRIDE> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.0.len()
    }
    #[inline(always)]
    fn at(&self, k: usize, row: usize) -> f32 {
        self.0[k][row]
    }
    #[inline(always)]
    fn from(&self, k: usize) -> Self {
        Packed(&self.0[k..])
    }
}

/// `[row][k]`, 32 of k: weights of a block's keys.
#[derive(Clone, Copy)]
struct ByRow<'a>(&'a Sums);

impl Operand for ByRow<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        PANEL
    }
    #[inline(always)]
    fn at(&self, k: usize, row: usize) -> f32 {
        self.0[row][k]
    }
    #[inline(always)]
    fn from(&self, k: usize) -> Self {
        assert_eq!(k, 0, "sums have one block");
        *self
    }
}

/// Adds `x · panel` to the sums: `x` is `[k][stride]`, one chain over ascending k for each output.
#[inline(always)]
pub fn multiply<S: Simd, R: PanelRow>(s: S, stride: usize, x: &[f32], panel: &[R], sums: &mut Sums) {
    match stride {
        1 => chains::<S, R, _, 1>(s, Packed(x.as_chunks::<1>().0), panel, sums),
        2 => chains::<S, R, _, 2>(s, Packed(x.as_chunks::<2>().0), panel, sums),
        4 => chains::<S, R, _, 4>(s, Packed(x.as_chunks::<4>().0), panel, sums),
        6 => chains::<S, R, _, 6>(s, Packed(x.as_chunks::<6>().0), panel, sums),
        _ => chains::<S, R, _, 8>(s, Packed(x.as_chunks::<8>().0), panel, sums),
    }
}

/// [`multiply`] for at most 32 of k, with `x` as sums of an earlier product: `[row][k]`.
#[inline(always)]
pub fn multiply_sums<S: Simd, R: PanelRow>(s: S, stride: usize, x: &Sums, panel: &[R], sums: &mut Sums) {
    match stride {
        1 => chains::<S, R, _, 1>(s, ByRow(x), panel, sums),
        2 => chains::<S, R, _, 2>(s, ByRow(x), panel, sums),
        4 => chains::<S, R, _, 4>(s, ByRow(x), panel, sums),
        6 => chains::<S, R, _, 6>(s, ByRow(x), panel, sums),
        _ => chains::<S, R, _, 8>(s, ByRow(x), panel, sums),
    }
}

/// With 32 registers all sums stay in them; with 16, one half of the columns and up to six rows, block by block of a panel that
/// the first level cache holds.
#[inline(always)]
fn chains<S: Simd, R: PanelRow, X: Operand, const ROWS: usize>(s: S, x: X, panel: &[R], sums: &mut Sums) {
    const BLOCK: usize = 128;
    if S::WIDE || ROWS <= 2 {
        both_halves::<S, R, X, ROWS>(s, x, panel, sums);
        return;
    }
    for (block, panel) in panel.chunks(BLOCK).enumerate() {
        let x = x.from(block * BLOCK);
        // Else the compiler keeps all sums in registers that it does not have.
        let sums = black_box(&mut *sums);
        if ROWS == 8 {
            one_half::<S, R, X, 0, 4, 0>(s, x, panel, sums);
            one_half::<S, R, X, 0, 4, 1>(s, x, panel, sums);
            one_half::<S, R, X, 4, 4, 0>(s, x, panel, sums);
            one_half::<S, R, X, 4, 4, 1>(s, x, panel, sums);
        } else {
            one_half::<S, R, X, 0, ROWS, 0>(s, x, panel, sums);
            one_half::<S, R, X, 0, ROWS, 1>(s, x, panel, sums);
        }
    }
}

/// Rows of a panel, 64 or 128 bytes each, that are asked for ahead of their use.
const AHEAD: usize = 16;

#[inline(always)]
fn both_halves<S: Simd, R: PanelRow, X: Operand, const ROWS: usize>(s: S, x: X, panel: &[R], sums: &mut Sums) {
    let mut c = [[s.splat(0.0); 2]; ROWS];
    for i in 0..ROWS {
        let (low, high) = halves(&sums[i]);
        c[i] = [s.load(low), s.load(high)];
    }
    for k in 0..panel.len().min(x.len()) {
        let w = &panel[k];
        s.prefetch(w, AHEAD);
        let low = w.half::<S, 0>(s);
        let high = w.half::<S, 1>(s);
        for i in 0..ROWS {
            let a = s.splat(x.at(k, i));
            c[i][0] = s.fma(a, low, c[i][0]);
            c[i][1] = s.fma(a, high, c[i][1]);
        }
    }
    for i in 0..ROWS {
        let (low, high) = halves_mut(&mut sums[i]);
        s.store(c[i][0], low);
        s.store(c[i][1], high);
    }
}

#[inline(always)]
fn one_half<S: Simd, R: PanelRow, X: Operand, const FIRST: usize, const ROWS: usize, const HALF: usize>(
    s: S,
    x: X,
    panel: &[R],
    sums: &mut Sums,
) {
    let mut c = [s.splat(0.0); ROWS];
    for i in 0..ROWS {
        let (low, high) = halves(&sums[FIRST + i]);
        c[i] = s.load(if HALF == 0 { low } else { high });
    }
    for k in 0..panel.len().min(x.len()) {
        if HALF == 0 && FIRST == 0 {
            s.prefetch(&panel[k], AHEAD);
        }
        let w = panel[k].half::<S, HALF>(s);
        for i in 0..ROWS {
            c[i] = s.fma(s.splat(x.at(k, FIRST + i)), w, c[i]);
        }
    }
    for i in 0..ROWS {
        let (low, high) = halves_mut(&mut sums[FIRST + i]);
        s.store(c[i], if HALF == 0 { low } else { high });
    }
}

#[inline(always)]
pub fn halves(row: &[f32; PANEL]) -> (&[f32; LANES], &[f32; LANES]) {
    let halves = row.as_chunks::<LANES>().0;
    (&halves[0], &halves[1])
}

#[inline(always)]
pub fn halves_mut(row: &mut [f32; PANEL]) -> (&mut [f32; LANES], &mut [f32; LANES]) {
    let (low, high) = row.as_chunks_mut::<LANES>().0.split_at_mut(1);
    (&mut low[0], &mut high[0])
}

/// What all tiles of a call share.
struct Call<'a> {
    inputs: Inputs<'a>,
    n: usize,
    /// Rows that go through a panel together.
    ranges: Vec<Range<usize>>,
    bias: Option<&'a [f32]>,
    store: Store,
}

impl Call<'_> {
    fn run<R: PanelRow>(&self, (isa, threads): (Isa, &Threads), panels: &[R], out: &mut [f32]) {
        let k = self.inputs.k;
        for_each_tile(threads, out, self.n, &self.ranges, PANEL, |range, panel, out| {
            let bias = self.bias.map(|bias| &bias[panel * PANEL..self.n.min((panel + 1) * PANEL)]);
            isa.run(PanelOfRows { call: self, rows: self.ranges[range].clone(), panel: &panels[panel * k..][..k], bias, out });
        });
    }
}

/// One panel for a range of rows.
struct PanelOfRows<'a, R> {
    call: &'a Call<'a>,
    rows: Range<usize>,
    panel: &'a [R],
    bias: Option<&'a [f32]>,
    out: Tile<'a, f32>,
}

impl<R: PanelRow> Kernel for PanelOfRows<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for first in self.rows.clone().step_by(GROUP) {
            let (x, rows) = self.call.inputs.group(first);
            let mut sums = [[0.0; PANEL]; GROUP];
            multiply(s, stride(rows), x, self.panel, &mut sums);
            for (i, sums) in sums.iter_mut().enumerate().take(rows) {
                let out = self.out.row(first - self.rows.start + i);
                if let Some(bias) = self.bias {
                    for (sum, bias) in sums.iter_mut().zip(bias) {
                        *sum += bias;
                    }
                }
                if self.call.store == Store::Add {
                    for (sum, out) in sums.iter_mut().zip(out.iter()) {
                        *sum += out;
                    }
                }
                out.copy_from_slice(&sums[..out.len()]);
            }
        }
    }
}

/// Inputs that stay in the second level cache while all panels pass by.
const BLOCK_BYTES: usize = 256 << 10;
/// Fewer rows than this pass together, whatever their bytes: reading the weights again would cost more.
const BLOCK_ROWS: usize = 64;

/// `x[rows, k] · wᵀ (+ bias)` into `out[rows, n]`, or added to it. `scratch` grows to the packed inputs.
pub fn gemm<T: Float>(
    (isa, threads): (Isa, &Threads),
    x: &[T],
    w: &Weight,
    bias: Option<&[f32]>,
    rows: usize,
    store: Store,
    (scratch, out): (&mut Vec<f32>, &mut [f32]),
) {
    let (n, k) = (w.n(), w.k());
    if rows == 0 || n == 0 {
        return;
    }
    let len = Inputs::len(rows, k);
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    pack(threads, &x[..rows * k], k, &mut scratch[..len]);
    let block = (BLOCK_BYTES / (4 * k.max(1)) / GROUP * GROUP).max(BLOCK_ROWS);
    let ranges = (0..rows).step_by(block).map(|first| first..(first + block).min(rows)).collect();
    let call = Call { inputs: Inputs { packed: &scratch[..len], rows, k }, n, ranges, bias, store };
    let out = &mut out[..rows * n];
    match w.panels() {
        Panels::Bf16(panels) => call.run((isa, threads), panels, out),
        Panels::F32(panels) => call.run((isa, threads), panels, out),
    }
}

/// Packs all groups of a call.
fn pack<T: Float>(threads: &Threads, x: &[T], k: usize, packed: &mut [f32]) {
    let groups = x.len().div_ceil(GROUP * k);
    let group = |i: usize, out: &mut [f32]| pack_group(&x[i * GROUP * k..x.len().min((i + 1) * GROUP * k)], k, out);
    let whole = x.len() / (GROUP * k);
    let (full, tail) = packed.split_at_mut(whole * GROUP * k);
    if whole > 1 {
        let every: Vec<Range<usize>> = (0..whole).map(|i| i..i + 1).collect();
        for_each_tile(threads, full, GROUP * k, &every, GROUP * k, |i, _, mut out| group(i, out.row(0)));
    } else if whole == 1 {
        group(0, full);
    }
    if groups > whole {
        group(whole, tail);
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::backends::{FloatData, Matrix};

    fn numbers(len: usize, seed: u32) -> Vec<f32> {
        (0..len as u32).map(|i| crate::rng::philox([i, 0, 0, 0], [seed, 0])[0] as f32 / u32::MAX as f32 - 0.5).collect()
    }

    /// The definition.
    fn chain(x: &[f32], w: &[f32], k: usize, n: usize, bias: Option<&[f32]>, store: Store, out: &mut [f32]) {
        for (r, x) in x.chunks_exact(k).enumerate() {
            for j in 0..n {
                let sum = x.iter().zip(&w[j * k..][..k]).fold(0.0f32, |sum, (x, w)| x.mul_add(*w, sum));
                let sum = bias.map_or(sum, |bias| sum + bias[j]);
                out[r * n + j] = if store == Store::Add { out[r * n + j] + sum } else { sum };
            }
        }
    }

    fn check<T: Float>(rows: usize, n: usize, k: usize, exact: bool, store: Store, with_bias: bool) {
        let round = |v: Vec<f32>| v.into_iter().map(|x| bf16::from_f32(x).to_f32()).collect::<Vec<_>>();
        let x: Vec<T> = numbers(rows * k, 1).into_iter().map(T::from_f32).collect();
        let mut w = numbers(n * k, 2);
        if !exact || size_of::<T>() == 2 {
            w = round(w);
        }
        let bias = with_bias.then(|| numbers(n, 3));
        let old = numbers(rows * n, 4);
        let mut want = old.clone();
        let wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
        chain(&wide, &w, k, n, bias.as_deref(), store, &mut want);
        for (isa, count) in Isa::all().into_iter().flat_map(|isa| [(isa, 1), (isa, 3)]) {
            let threads = Threads::new(count).unwrap();
            let split = n / 3;
            let (first, second) = w.split_at(split * k);
            let part = |data, rows| Matrix { rows, cols: k, data: FloatData::F32(data) };
            let weight = Weight::pack::<T>(&threads, &[part(first, split), part(second, n - split)]);
            assert_eq!(matches!(weight.panels(), Panels::F32(_)), exact && size_of::<T>() == 4);
            let mut out = old.clone();
            gemm((isa, &threads), &x, &weight, bias.as_deref(), rows, store, (&mut Vec::new(), &mut out));
            for (i, (got, want)) in out.iter().zip(&want).enumerate() {
                assert!(
                    got.to_bits() == want.to_bits(),
                    "{} {count} threads, {rows} x {n} x {k}, output {i}: {got}, not {want}",
                    isa.name()
                );
            }
            let mut row = vec![0.0; k];
            weight.read_row(n - 1, &mut row);
            assert_eq!(row, w[(n - 1) * k..]);
        }
    }

    #[test]
    fn every_output_is_one_chain() {
        for rows in (1..=9).chain([16, 23]) {
            for (n, k) in [(32, 64), (70, 130), (5, 7), (1, 1), (33, 300)] {
                check::<f32>(rows, n, k, true, Store::Write, false);
                check::<f32>(rows, n, k, false, Store::Add, true);
                check::<bf16>(rows, n, k, true, Store::Add, false);
            }
        }
        check::<f32>(100, 64, 2048, false, Store::Write, true);
    }
}
