//! GEMMs: sums against the CPU's, and rows whose bits must not depend on how many there are.

use half::bf16;

use super::{Numbers, Operation, Pair, Table, differing_bits, read, read_rounded, upload};
use crate::backends::{Backend, FloatData, Matrix, Store};
use crate::error::Result;

/// Relative to the mean size of the outputs: sums in f32 in different orders.
const SUMS: f32 = 1e-4;

#[derive(Clone, Copy)]
struct Shape {
    n: usize,
    k: usize,
    bias: bool,
    store: Store,
}

const fn shape(n: usize, k: usize, bias: bool, store: Store) -> Shape {
    Shape { n, k, bias, store }
}

/// Small models, their towers, and rows that are not a multiple of sixteen bytes.
const SMALL: &[Shape] = &[
    shape(256, 128, false, Store::Write),
    shape(128, 256, false, Store::Add),
    shape(1040, 128, false, Store::Write),
    shape(344, 64, true, Store::Write),
    shape(64, 172, true, Store::Add),
    shape(64, 1176, false, Store::Write),
];

/// Qwen2.5-VL-3B and its tower.
const REAL: &[Shape] = &[
    shape(2560, 2048, false, Store::Write),
    shape(2048, 2048, false, Store::Add),
    shape(22_016, 2048, false, Store::Write),
    shape(2048, 11_008, false, Store::Add),
    shape(151_936, 2048, false, Store::Write),
    shape(1280, 1176, false, Store::Write),
    shape(3840, 1280, false, Store::Write),
    shape(1280, 1280, true, Store::Add),
    shape(6840, 1280, true, Store::Write),
    shape(1280, 3420, true, Store::Add),
    shape(5120, 5120, true, Store::Write),
    shape(2048, 5120, true, Store::Write),
];

/// Gates, columns and whether there is a bias: small models, then Qwen2.5-VL-3B and its tower.
const SMALL_GATED: &[(usize, usize, bool)] = &[(172, 64, true), (256, 128, false), (90, 72, true)];
const REAL_GATED: &[(usize, usize, bool)] = &[(11_008, 2048, false), (3420, 1280, true)];

pub fn run(pair: &Pair, small: bool, table: &mut Table) -> Result<()> {
    let shapes = SMALL.iter().chain(if small { &[] } else { REAL });
    for shape in shapes.copied() {
        let rows = if shape.n > 100_000 { 3 } else { 37 };
        let name = format!(
            "[{}, {}]{}{}",
            shape.n,
            shape.k,
            if shape.bias { " + bias" } else { "" },
            if shape.store == Store::Add { ", added" } else { "" }
        );
        pair.compare("gemm", format!("{rows} rows by {name}"), SUMS, &Gemm { shape, rows }, table)?;
        row_bits(pair, shape, &name, table)?;
    }
    for (width, k, bias) in SMALL_GATED.iter().chain(if small { &[] } else { REAL_GATED }).copied() {
        let gated = Gated { shape: shape(2 * width, k, bias, Store::Write), rows: 37 };
        let name = format!("[2 · {width}, {k}]{}", if bias { " + bias" } else { "" });
        pair.compare("gemm_silu_mul", format!("37 rows by {name}"), ROUNDED, &gated, table)?;
        let (mut differ, mut total) = (0, 0);
        for rows in [1, 9, 64, 65, 128, 200, 256, 300, 513, 2100] {
            let gated = Gated { rows, ..gated };
            let (ours, apart) = (gated.computed(&pair.cuda, true)?, gated.computed(&pair.cuda, false)?);
            differ += differing_bits(&ours, &apart);
            total += ours.len();
        }
        table.push_bits("gated row bits", format!("1 to 2100 rows by {name}, in one and apart"), differ, total);
    }
    for choice in pair.cuda.gemm_choices().iter().filter(|c| c.admitted != Some(0)) {
        println!("     cublasLt: {choice:?}");
    }
    for ([n, k], rows) in pair.cuda.gemm_few() {
        println!("     products of few rows by [{n}, {k}]: own kernel up to {rows} rows");
    }
    for ([n, k], admitted) in pair.cuda.gemm_gated() {
        println!("     products by [{n}, {k}], activated: own kernel without a bias {}, with one {}", admitted[0], admitted[1]);
    }
    Ok(())
}

/// One rounding to bf16 apart.
const ROUNDED: f32 = 8e-3;

/// A gated MLP's first product with its activation.
#[derive(Clone, Copy)]
struct Gated {
    shape: Shape,
    rows: usize,
}

impl Gated {
    /// Product and activation in one, or one after the other.
    fn computed<B: Backend<Float = bf16>>(&self, b: &B, in_one: bool) -> Result<Vec<f32>> {
        let (Shape { n, k, bias, .. }, rows) = (self.shape, self.rows);
        let (width, stride) = (n / 2, b.row_stride(n / 2));
        let (w, x) = (weight(b, n, k)?, inputs(b, rows, k)?);
        let bias = bias.then(|| upload(b, &Numbers::new(13).values(n, 1.0))).transpose()?;
        let (mut sums, mut out) = (b.alloc(rows * n)?, b.alloc(rows * stride)?);
        match in_one {
            true => b.gemm_silu_mul(&x, &w, bias.as_ref(), (rows, width), &mut sums, &mut out),
            false => {
                b.gemm(&x, &w, bias.as_ref(), rows, Store::Write, &mut sums);
                b.silu_mul(&sums, rows, width, &mut out);
            }
        }
        let padded = read_rounded(b, &out, rows * stride);
        Ok(padded.chunks_exact(stride).flat_map(|row| row[..width].iter().copied()).collect())
    }
}

impl Operation for Gated {
    fn run<B: Backend<Float = bf16>>(&self, b: &B) -> Result<Vec<f32>> {
        self.computed(b, true)
    }
}

pub(super) fn weight<B: Backend>(b: &B, n: usize, k: usize) -> Result<B::Weight> {
    // A short period keeps the making of large ones quick; it is prime, so rows differ.
    let some = Numbers::new(11).rounded((n * k).min(1_000_003), 1.0 / (k as f32).sqrt());
    let values: Vec<bf16> = some.iter().copied().cycle().take(n * k).collect();
    let (half, rest) = values.split_at(n / 2 * k);
    let part = |values| Matrix { rows: 0, cols: k, data: FloatData::Bf16(values) };
    b.weight(&[Matrix { rows: n / 2, ..part(half) }, Matrix { rows: n - n / 2, ..part(rest) }])
}

/// Rows of `k` values at the stride that the backend's GEMMs read.
pub(super) fn inputs<B: Backend<Float = bf16>>(b: &B, rows: usize, k: usize) -> Result<B::Buf<bf16>> {
    let values = Numbers::new(12).rounded(rows * k, 1.0);
    let stride = b.row_stride(k);
    let mut padded = vec![bf16::ZERO; rows * stride];
    for (to, from) in padded.chunks_exact_mut(stride).zip(values.chunks_exact(k)) {
        to[..k].copy_from_slice(from);
    }
    upload(b, &padded)
}

struct Gemm {
    shape: Shape,
    rows: usize,
}

impl Operation for Gemm {
    fn run<B: Backend<Float = bf16>>(&self, b: &B) -> Result<Vec<f32>> {
        let Shape { n, k, bias, store } = self.shape;
        let (w, x) = (weight(b, n, k)?, inputs(b, self.rows, k)?);
        let mut numbers = Numbers::new(13);
        let bias = bias.then(|| upload(b, &numbers.values(n, 1.0))).transpose()?;
        let mut out = upload(b, &numbers.values(self.rows * n, 1.0))?;
        b.gemm(&x, &w, bias.as_ref(), self.rows, store, &mut out);
        Ok(read(b, &out, self.rows * n))
    }
}

/// The first rows of many against the same rows of fewer, down to one.
fn row_bits(pair: &Pair, shape: Shape, name: &str, table: &mut Table) -> Result<()> {
    let b = &pair.cuda;
    let Shape { n, k, store, .. } = shape;
    let most = ((48 << 20) / n).clamp(64, 4096);
    let (w, x) = (weight(b, n, k)?, inputs(b, most, k)?);
    let bias = shape.bias.then(|| upload(b, &Numbers::new(13).values(n, 1.0))).transpose()?;
    let before = Numbers::new(14).values(n, 1.0);
    let before: Vec<f32> = before.iter().copied().cycle().take(most * n).collect();
    let run = |rows: usize| -> Result<Vec<f32>> {
        let mut out = upload(b, &before[..rows * n])?;
        b.gemm(&x, &w, bias.as_ref(), rows, store, &mut out);
        Ok(read(b, &out, rows * n))
    };
    let expected = run(most)?;
    let (mut differ, mut total) = (0, 0);
    // What decode steps are padded to, and what prompts may have.
    for rows in b.captured_rows(1024).into_iter().chain([3, 5, 13, 17, 33, 100, 200, 777, 2000, 2048, 4095]) {
        if rows < most {
            differ += differing_bits(&run(rows)?, &expected[..rows * n]);
            total += rows * n;
        }
    }
    table.push_bits("gemm row bits", format!("1 to {most} rows by {name}"), differ, total);
    Ok(())
}
