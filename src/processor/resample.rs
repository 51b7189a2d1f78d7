//! Bicubic resizing of 8-bit RGB, bit for bit as Pillow (before 13) and torchvision do it.
//!
//! Both run a horizontal pass, round to 8 bits, and run a vertical pass, with antialiasing (the kernel widens with the scale) and
//! a = −0.5. They differ in the fixed-point weights: Pillow has 22 bits after the point, torchvision as many as keep the largest weight
//! of a pass in 16 bits. Source: Pillow's `Resample.c`, PyTorch's `UpSampleKernel.cpp`.

use std::borrow::Cow;

use rayon::prelude::*;
use wide::{bytemuck, i16x8, i32x4, i32x8, u8x16};

/// Whose rounding the resized pixels carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Resample {
    /// Exactly what transformers computes on its Pillow backend. The default: one result on every machine, where the torchvision
    /// backend gives another one on a GPU (float, unclipped) than on the CPU. The two differ by at most 2 levels in under 1 % of values.
    #[default]
    Pillow,
    /// What transformers computes on its torchvision backend on the CPU, for learners that process images with it.
    Torchvision,
}

/// 8-bit RGB pixels, row by row.
#[derive(Clone, PartialEq, Eq)]
pub struct RgbImage {
    pub height: usize,
    pub width: usize,
    /// `[height, width, 3]`.
    pub pixels: Vec<u8>,
}

/// Weights of one pass: output `i` is the weighted sum of `2 · pairs` inputs from `starts[i]` on.
struct Weights {
    starts: Vec<usize>,
    /// `[outputs, pairs]`; an output that needs fewer inputs has zeros.
    weights: Vec<PairWeight>,
    pairs: usize,
    /// Bits after the point.
    precision: u32,
}

/// The fixed-point weights of two neighbouring inputs, alternating through the lanes, in halves of 16 bits: `256 · high + low`.
///
/// Every x86-64 and ARM processor multiplies pairs of 16-bit numbers and adds them in one instruction, whereas 32-bit products take
/// several on the older ones. Since the sums stay below 2^31, the halves make the same integers.
#[derive(Clone, Copy)]
struct PairWeight {
    high: i16x8,
    low: i16x8,
}

/// Elements that are summed at a time, and rows that go through the horizontal pass together.
const LANES: usize = 16;
/// Elements of one parallel task: small images stay on one thread.
const TASK_LEN: usize = 96 * 1024;

/// `image` at the given size; a pass whose size is unchanged is left out, as in Pillow.
pub fn resize(image: &RgbImage, height: usize, width: usize, resample: Resample) -> RgbImage {
    let mut pixels = Cow::Borrowed(&image.pixels);
    if width != image.width {
        pixels = Cow::Owned(horizontal(&pixels, image.width, width, &Weights::new(image.width, width, resample)));
    }
    if height != image.height {
        pixels = Cow::Owned(vertical(&pixels, 3 * width, height, &Weights::new(image.height, height, resample)));
    }
    RgbImage { height, width, pixels: pixels.into_owned() }
}

impl Weights {
    fn new(inputs: usize, outputs: usize, resample: Resample) -> Self {
        let scale = inputs as f64 / outputs as f64;
        let filter_scale = scale.max(1.0);
        let support = 2.0 * filter_scale;
        let inverse = 1.0 / filter_scale;
        let bounds = |i: usize| {
            let center = (i as f64 + 0.5) * scale;
            // Truncation towards zero comes before the maximum, in this order, as in C.
            let start = ((center - support + 0.5) as i64).max(0) as usize;
            let end = ((center + support + 0.5) as i64).min(inputs as i64) as usize;
            (center, start, end)
        };
        let most = (0..outputs).map(bounds).map(|(_, start, end)| end - start).max().unwrap_or(0);
        let pairs = most.div_ceil(2);
        let mut starts = Vec::with_capacity(outputs);
        let mut exact = vec![0.0; outputs * 2 * pairs];
        for (i, row) in exact.chunks_exact_mut(2 * pairs).enumerate() {
            let (center, start, end) = bounds(i);
            let row = &mut row[..end - start];
            for (x, weight) in row.iter_mut().enumerate() {
                *weight = cubic(((x + start) as f64 - center + 0.5) * inverse);
            }
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|weight| *weight /= sum);
            starts.push(start);
        }
        let precision = match resample {
            Resample::Pillow => 22,
            Resample::Torchvision => precision_of_16_bit_weights(exact.iter().copied().fold(0.0, f64::max)),
        };
        let one = f64::from(1u32 << precision);
        let fixed: Vec<i32> = exact.iter().map(|w| (w * one + if *w < 0.0 { -0.5 } else { 0.5 }) as i32).collect();
        let lanes = |[a, b]: [i32; 2]| i16x8::from(std::array::from_fn(|lane| if lane % 2 == 0 { a as i16 } else { b as i16 }));
        let pair = |[a, b]: &[i32; 2]| PairWeight { high: lanes([a >> 8, b >> 8]), low: lanes([a & 0xff, b & 0xff]) };
        Weights { starts, weights: fixed.as_chunks().0.iter().map(pair).collect(), pairs, precision }
    }

    /// Sixteen elements of one output, from the same elements of each of its inputs.
    #[inline(always)]
    fn sum(&self, output: usize, input: impl Fn(usize) -> u8x16) -> u8x16 {
        let start = self.starts[output];
        let mut high = [i32x4::ZERO; 4];
        let mut low = [i32x4::splat(1 << (self.precision - 1)); 4];
        for (i, weight) in self.weights[output * self.pairs..][..self.pairs].iter().enumerate() {
            let (a, b) = (input(start + 2 * i), input(start + 2 * i + 1));
            let (front, back) = (u8x16::unpack_low(a, b), u8x16::unpack_high(a, b));
            let quarters =
                [i16x8::from_u8x16_low(front), i16x8::from_u8x16_high(front), i16x8::from_u8x16_low(back), i16x8::from_u8x16_high(back)];
            for (i, quarter) in quarters.into_iter().enumerate() {
                high[i] += quarter.dot(weight.high);
                low[i] += quarter.dot(weight.low);
            }
        }
        let quarter = |i: usize| ((high[i] << 8) + low[i]) >> self.precision as i32;
        let half = |i: usize| i16x8::from_i32x8_saturate(bytemuck::cast::<[i32x4; 2], i32x8>([quarter(i), quarter(i + 1)]));
        u8x16::narrow_i16x8(half(0), half(2))
    }
}

/// The cubic convolution kernel with a = −0.5, in Pillow's order of operations.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// PyTorch's search for the most bits with which the largest weight still fits an i16.
fn precision_of_16_bit_weights(largest: f64) -> u32 {
    (0..22).find(|bits| (0.5 + largest * f64::from(1u32 << (bits + 1))) as i64 >= 1 << 15).unwrap_or(22)
}

/// Blocks of sixteen rows are transposed, so that the sums run over contiguous memory as in the vertical pass.
fn horizontal(pixels: &[u8], inputs: usize, outputs: usize, weights: &Weights) -> Vec<u8> {
    let rows = pixels.len() / (3 * inputs);
    let mut out = vec![0; rows * outputs * 3];
    let task_rows = (TASK_LEN / (3 * outputs)).max(1).next_multiple_of(LANES);
    let scratch = || {
        // Near the end, weights of zero reach past the last pixel.
        let columns = (3 * (inputs + 2 * weights.pairs)).next_multiple_of(LANES);
        (vec![u8x16::ZERO; columns], vec![u8x16::ZERO; (3 * outputs).next_multiple_of(LANES)])
    };
    out.par_chunks_mut(3 * outputs * task_rows).zip(pixels.par_chunks(3 * inputs * task_rows)).for_each_init(
        scratch,
        |(columns, summed), (out, pixels)| {
            for (out, pixels) in out.chunks_mut(3 * outputs * LANES).zip(pixels.chunks(3 * inputs * LANES)) {
                for (i, tile) in columns.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                    *tile = transpose(std::array::from_fn(|row| match pixels.get(row * 3 * inputs..(row + 1) * 3 * inputs) {
                        Some(row) => load(row, i * LANES),
                        None => u8x16::ZERO,
                    }));
                }
                for (x, pixel) in summed.chunks_exact_mut(3).take(outputs).enumerate() {
                    for (c, sum) in pixel.iter_mut().enumerate() {
                        *sum = weights.sum(x, |input| columns[3 * input + c]);
                    }
                }
                for (i, tile) in summed.as_chunks::<LANES>().0.iter().enumerate() {
                    for (lanes, row) in transpose(*tile).into_iter().zip(out.chunks_exact_mut(3 * outputs)) {
                        store(lanes, row, i * LANES);
                    }
                }
            }
        },
    );
    out
}

fn vertical(pixels: &[u8], row_len: usize, outputs: usize, weights: &Weights) -> Vec<u8> {
    let mut out = vec![0; outputs * row_len];
    let last = pixels.len() / row_len - 1;
    let task_rows = (TASK_LEN / row_len).max(1);
    out.par_chunks_mut(row_len * task_rows).enumerate().for_each(|(task, out)| {
        for (i, out) in out.chunks_exact_mut(row_len).enumerate() {
            for at in (0..row_len).step_by(LANES) {
                let sum = weights.sum(task * task_rows + i, |input| load(&pixels[input.min(last) * row_len..][..row_len], at));
                store(sum, out, at);
            }
        }
    });
    out
}

/// Sixteen elements from `at` on, zeros past the end.
#[inline(always)]
fn load(row: &[u8], at: usize) -> u8x16 {
    let rest = row.get(at..).unwrap_or_default();
    match rest.first_chunk::<LANES>() {
        Some(lanes) => u8x16::from(*lanes),
        None => {
            let mut lanes = [0; LANES];
            lanes[..rest.len()].copy_from_slice(rest);
            u8x16::from(lanes)
        }
    }
}

/// Writes sixteen elements from `at` on, fewer at the end.
#[inline(always)]
fn store(lanes: u8x16, row: &mut [u8], at: usize) {
    let rest = row.get_mut(at..).unwrap_or_default();
    let lanes = lanes.to_array();
    match rest.first_chunk_mut::<LANES>() {
        Some(out) => *out = lanes,
        None => rest.copy_from_slice(&lanes[..rest.len()]),
    }
}

/// The transpose of sixteen rows of sixteen elements: four rounds of interleaving row `i` with row `i + 8`.
#[inline(always)]
fn transpose(rows: [u8x16; LANES]) -> [u8x16; LANES] {
    interleave(interleave(interleave(interleave(rows))))
}

/// Written out, so that the rows stay in registers instead of arrays that are copied.
#[inline(always)]
fn interleave(rows: [u8x16; LANES]) -> [u8x16; LANES] {
    let low = |i: usize| u8x16::unpack_low(rows[i], rows[i + 8]);
    let high = |i: usize| u8x16::unpack_high(rows[i], rows[i + 8]);
    let [a, b, c, d, e, f, g, h] = std::array::from_fn(|i| [low(i), high(i)]);
    [a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1], e[0], e[1], f[0], f[1], g[0], g[1], h[0], h[1]]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One pass over rows of `row_len` elements as the libraries define it, without anything done for speed.
    fn plain_pass(
        pixels: &[u8],
        inputs: usize,
        outputs: usize,
        at: impl Fn(usize, usize) -> usize,
        lines: usize,
        resample: Resample,
    ) -> Vec<Vec<u8>> {
        let scale = inputs as f64 / outputs as f64;
        let filter_scale = scale.max(1.0);
        let weights: Vec<(usize, Vec<f64>)> = (0..outputs)
            .map(|i| {
                let center = (i as f64 + 0.5) * scale;
                let start = ((center - 2.0 * filter_scale + 0.5) as i64).max(0) as usize;
                let end = ((center + 2.0 * filter_scale + 0.5) as i64).min(inputs as i64) as usize;
                let raw: Vec<f64> = (start..end).map(|x| cubic((x as f64 - center + 0.5) * (1.0 / filter_scale))).collect();
                let sum: f64 = raw.iter().sum();
                (start, raw.iter().map(|w| w / sum).collect())
            })
            .collect();
        let largest = weights.iter().flat_map(|(_, w)| w).copied().fold(0.0, f64::max);
        let precision = if resample == Resample::Pillow { 22 } else { precision_of_16_bit_weights(largest) };
        let fixed = |w: f64| (w * f64::from(1u32 << precision) + if w < 0.0 { -0.5 } else { 0.5 }) as i64;
        let line = |line: usize| {
            let value = |(start, w): &(usize, Vec<f64>)| {
                let sum: i64 = w.iter().enumerate().map(|(i, w)| fixed(*w) * i64::from(pixels[at(line, start + i)])).sum();
                ((sum + (1 << (precision - 1))) >> precision).clamp(0, 255) as u8
            };
            weights.iter().map(value).collect()
        };
        (0..lines).map(line).collect()
    }

    fn plain(image: &RgbImage, height: usize, width: usize, resample: Resample) -> Vec<u8> {
        let mut pixels = image.pixels.clone();
        if width != image.width {
            let at = |line: usize, x: usize| (line / 3 * image.width + x) * 3 + line % 3;
            let lines = plain_pass(&pixels, image.width, width, at, 3 * image.height, resample);
            pixels = (0..image.height * width * 3).map(|i| lines[i / (3 * width) * 3 + i % 3][i / 3 % width]).collect();
        }
        if height != image.height {
            let lines = plain_pass(&pixels, image.height, height, |line, y| y * 3 * width + line, 3 * width, resample);
            pixels = (0..height * width * 3).map(|i| lines[i % (3 * width)][i / (3 * width)]).collect();
        }
        pixels
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn every_size_equals_the_plain_sums(
            (height, width) in (1usize..70, 1usize..70), (new_height, new_width) in (1usize..70, 1usize..70), seed: u64, edges: bool,
        ) {
            let noise = |i: usize| ((i as u64 + 1).wrapping_mul(seed | 1) >> 33) as u8;
            let pixels = (0..3 * height * width).map(|i| if edges { (noise(i) & 1) * 255 } else { noise(i) }).collect();
            let image = RgbImage { height, width, pixels };
            for resample in [Resample::Pillow, Resample::Torchvision] {
                let got = resize(&image, new_height, new_width, resample);
                prop_assert_eq!((got.height, got.width), (new_height, new_width));
                prop_assert!(got.pixels == plain(&image, new_height, new_width, resample), "{resample:?}");
            }
        }
    }
}
