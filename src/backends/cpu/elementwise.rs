//! Norms, activations and rotations: what happens to each row by itself between GEMMs. All arithmetic is f32; results that enter a
//! GEMM are rounded once, at the end.

use std::ops::Range;

use super::math::{self, Float};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::threads::{Threads, for_each_tile};
use crate::backends::HeadShape;

/// Below this many elements another thread costs more than it brings.
const WORTH: usize = 1 << 15;

/// Cuts `rows` rows of `cols` elements into ranges for threads and calls `fill(first row, rows of out)` for each.
pub fn for_row_blocks<E: Send>(threads: &Threads, out: &mut [E], cols: usize, fill: impl Fn(usize, &mut [E]) + Sync) {
    let rows = out.len().checked_div(cols).unwrap_or(0);
    if threads.count() == 1 || rows * cols < WORTH {
        fill(0, out);
        return;
    }
    let parts = (4 * threads.count()).min(rows);
    let block = rows.div_ceil(parts);
    let full = rows / block;
    let ranges: Vec<Range<usize>> = (0..full).map(|i| i..i + 1).collect();
    let (whole, tail) = out.split_at_mut(full * block * cols);
    for_each_tile(threads, whole, block * cols, &ranges, block * cols, |i, _, mut out| fill(i * block, out.row(0)));
    if !tail.is_empty() {
        fill(full * block, tail);
    }
}

struct RmsNorm<'a, T> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [T],
}

impl<T: Float> Kernel for RmsNorm<'_, T> {
    type Output = ();

    /// The mean square over sixteen lanes, lane i with every sixteenth element from i, then [`Simd::sum`].
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let (whole, rest) = x.as_chunks::<LANES>();
            let mut squares = s.splat(0.0);
            for x in whole {
                let x = s.load(x);
                squares = s.fma(x, x, squares);
            }
            let mut last = [0.0; LANES];
            last[..rest.len()].copy_from_slice(rest);
            let last = s.load(&last);
            let mean = s.sum(s.fma(last, last, squares)) / width as f32;
            let scale = 1.0 / (mean + self.eps).sqrt();
            for ((x, weight), out) in x.iter().zip(self.weight).zip(out) {
                *out = T::from_f32(weight * (x * scale));
            }
        }
    }
}

pub fn rms_norm<T: Float>((isa, threads): (Isa, &Threads), x: &[f32], weight: &[f32], eps: f32, out: &mut [T]) {
    let width = weight.len();
    for_row_blocks(threads, out, width, |first, out| {
        isa.run(RmsNorm { x: &x[first * width..][..out.len()], weight, eps, out });
    });
}

struct SiluMul<'a, T> {
    gate_up: &'a [f32],
    width: usize,
    out: &'a mut [T],
}

impl<T: Float> Kernel for SiluMul<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (gate_up, out) in self.gate_up.chunks_exact(2 * self.width).zip(self.out.chunks_exact_mut(self.width)) {
            let (gate, up) = gate_up.split_at(self.width);
            let (gates, gate_rest) = gate.as_chunks::<LANES>();
            let (ups, up_rest) = up.as_chunks::<LANES>();
            let (outs, out_rest) = out.as_chunks_mut::<LANES>();
            for ((gate, up), out) in gates.iter().zip(ups).zip(outs) {
                let product = silu_mul_lanes(s, gate, up);
                for i in 0..LANES {
                    out[i] = T::from_f32(product[i]);
                }
            }
            let mut last = [[0.0; LANES]; 2];
            last[0][..gate_rest.len()].copy_from_slice(gate_rest);
            last[1][..up_rest.len()].copy_from_slice(up_rest);
            for (x, out) in silu_mul_lanes(s, &last[0], &last[1]).iter().zip(out_rest) {
                *out = T::from_f32(*x);
            }
        }
    }
}

#[inline(always)]
fn silu_mul_lanes<S: Simd>(s: S, gate: &[f32; LANES], up: &[f32; LANES]) -> [f32; LANES] {
    let gate = s.load(gate);
    let e = math::exp(s, s.sub(s.splat(0.0), gate));
    let silu = s.div(gate, s.add(s.splat(1.0), e));
    let mut out = [0.0; LANES];
    s.store(s.mul(silu, s.load(up)), &mut out);
    out
}

/// `gate / (1 + e^-gate) · up`
pub fn silu_mul<T: Float>((isa, threads): (Isa, &Threads), gate_up: &[f32], width: usize, out: &mut [T]) {
    for_row_blocks(threads, out, width, |first, out| {
        isa.run(SiluMul { gate_up: &gate_up[2 * first * width..][..2 * out.len()], width, out });
    });
}

pub fn gelu<T: Float>(threads: &Threads, x: &[f32], width: usize, out: &mut [T]) {
    for_row_blocks(threads, out, width, |first, out| {
        for (x, out) in x[first * width..].iter().zip(out) {
            *out = T::from_f32(math::gelu(*x));
        }
    });
}

/// The angle is an f32 product, its cosine and sine are those of that f32, rounded once.
pub fn rope_table(threads: &Threads, positions: &[i32], inv_freq: &[f32], axis: &[u32], rows: usize, out: &mut [f32]) {
    let half = inv_freq.len();
    for_row_blocks(threads, &mut out[..rows * 2 * half], 2 * half, |first, out| {
        for (row, out) in out.chunks_exact_mut(2 * half).enumerate() {
            let (cos, sin) = out.split_at_mut(half);
            for f in 0..half {
                let position = positions[axis[f] as usize * rows + first + row];
                let angle = f64::from(position as f32 * inv_freq[f]);
                cos[f] = libm::cos(angle) as f32;
                sin[f] = libm::sin(angle) as f32;
            }
        }
    });
}

/// Adds the bias to one head and turns it by a row of the rope table; pairs are i and i + head_dim / 2.
#[inline(always)]
pub fn rotate(x: &[f32], bias: &[f32], rope: &[f32], mut write: impl FnMut(usize, f32)) {
    let half = x.len() / 2;
    let (cos, sin) = rope.split_at(half);
    for i in 0..half {
        let (a, b) = (x[i] + bias[i], x[half + i] + bias[half + i]);
        write(i, a * cos[i] - b * sin[i]);
        write(half + i, b * cos[i] + a * sin[i]);
    }
}

/// Queries of the fused projection `qkv[rows, qkv_width]`, turned, into `q[rows, heads · head_dim]`. `width` is the projection's.
pub fn rotate_heads<T: Float>(
    threads: &Threads,
    (qkv, bias, rope): (&[f32], &[f32], &[f32]),
    (width, first_column): (usize, usize),
    shape: HeadShape,
    q: &mut [T],
) {
    let dim = shape.head_dim;
    let cols = shape.q_width();
    for_row_blocks(threads, q, cols, |first, q| {
        for (row, q) in q.chunks_exact_mut(cols).enumerate() {
            let row = first + row;
            for (head, q) in q.chunks_exact_mut(dim).enumerate() {
                let at = first_column + head * dim;
                rotate(&qkv[row * width + at..][..dim], &bias[at..][..dim], &rope[row * dim..][..dim], |i, x| q[i] = T::from_f32(x));
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_do_not_see_each_other() {
        let x: Vec<f32> = (0..3000 * 50).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
        let weight: Vec<f32> = (0..50).map(|i| 1.0 + i as f32 / 50.0).collect();
        let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
        for (isa, count) in Isa::all().into_iter().flat_map(|isa| [(isa, 1), (isa, 3)]) {
            let threads = Threads::new(count).unwrap();
            let mut norm = vec![0.0f32; x.len()];
            rms_norm((isa, &threads), &x, &weight, 1e-6, &mut norm);
            let mut one = vec![0.0f32; 50];
            rms_norm((isa, &threads), &x[100..150], &weight, 1e-6, &mut one);
            assert_eq!(one, norm[100..150]);
            let mut silu = vec![0.0f32; x.len() / 2];
            silu_mul((isa, &threads), &x, 25, &mut silu);
            for (i, (norm, silu)) in norm.iter().zip(&silu).enumerate().take(200) {
                let row = &x[i / 50 * 50..][..50];
                let mean = row.iter().map(|x| x * x).sum::<f32>() / 50.0;
                assert!((norm - weight[i % 50] * x[i] / (mean + 1e-6).sqrt()).abs() < 1e-5);
                let (gate, up) = (x[i / 25 * 50 + i % 25], x[i / 25 * 50 + 25 + i % 25]);
                assert!((silu - gate / (1.0 + (-gate).exp()) * up).abs() < 1e-6);
            }
            match &first {
                None => first = Some((norm, silu)),
                Some(first) => assert!(first.0 == norm && first.1 == silu, "{} {count}", isa.name()),
            }
        }
    }

    #[test]
    fn rope_turns_pairs() {
        let threads = Threads::new(1).unwrap();
        let mut table = vec![0.0; 2 * 4];
        rope_table(&threads, &[3, 5, 1, 2], &[1.0, 0.5], &[0, 1], 2, &mut table);
        let want = [3f64.cos(), 0.5f64.cos(), 3f64.sin(), 0.5f64.sin(), 5f64.cos(), 1f64.cos(), 5f64.sin(), 1f64.sin()];
        for (got, want) in table.iter().zip(want) {
            assert_eq!(*got, want as f32);
        }
        let mut out = [0.0; 4];
        rotate(&[1.0, 2.0, 3.0, 4.0], &[0.5, 0.0, 0.0, 0.0], &[0.0, 1.0, 1.0, 0.0], |i, x| out[i] = x);
        assert_eq!(out, [-3.0, 2.0, 1.5, 4.0]);
    }
}
