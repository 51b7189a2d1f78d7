//! `grouper kernels time`: the kernels that a decode step spends its time in, by themselves, against what a copy moves.

use half::bf16;

use super::{Numbers, upload};
use crate::backends::cuda::Cuda;
use crate::backends::{
    BLOCK_SIZE, Backend, FloatData, HeadShape, Matrix, NO_COUNTS, NO_TOKEN, SampleInputs, SampleRow, SamplerState, Span, Store,
};
use crate::error::Result;
use crate::rng::draw_words;

/// Launches that are timed at once, and how often; the fastest counts.
const LAUNCHES: usize = 20;
const TIMES: usize = 5;
/// Bytes of the copy: far more than the device caches.
const COPIED: usize = 512 << 20;

/// Of Qwen2.5-VL-3B.
const HEADS: HeadShape = HeadShape { num_heads: 16, num_kv_heads: 2, head_dim: 128 };
const VOCAB: usize = 151_936;
const ROWS: usize = 512;
const GROUP: usize = 8;

/// Prints a row a kernel.
///
/// # Errors
///
/// A device that can't be used, or that has no room for the buffers.
pub fn run(ordinal: usize) -> Result<()> {
    let cuda = Cuda::new(ordinal, false, false)?;
    println!("{}: microseconds of a launch, the fastest of {TIMES} × {LAUNCHES}", cuda.name());
    let (from, mut to) = (cuda.alloc::<u32>(COPIED / 4)?, cuda.alloc::<u32>(COPIED / 4)?);
    let us = best(&cuda, || cuda.copy(&from, &mut to));
    // Each byte is read and written.
    let copy = 2.0 * COPIED as f64 / us / 1e3;
    println!("{:<64} {us:>8.1}  {copy:.0} GB/s", format!("copy of {} MiB", COPIED >> 20));
    drop((from, to));
    for rows in [64, 128, 256, 512, 8192] {
        gated(&cuda, rows, [11_008, 2048])?;
    }
    for (rows, prompt, own) in [(ROWS, 0, 1024), (ROWS, 256, 512), (ROWS, 256, 1024), (256, 1250, 8), (256, 1250, 256), (256, 1250, 512)] {
        attention(&cuda, rows, [prompt, own], copy)?;
    }
    sampler(&cuda)
}

fn best(cuda: &Cuda, mut launch: impl FnMut()) -> f64 {
    let once = |launch: &mut dyn FnMut()| cuda.time(|| (0..LAUNCHES).for_each(|_| launch())) * 1e3 / LAUNCHES as f64;
    once(&mut launch);
    (0..TIMES).map(|_| once(&mut launch)).fold(f64::MAX, f64::min)
}

/// The first product of the MLP with its activation, in one launch if that was admitted and in two. The weights change from launch to
/// launch, as in a step.
fn gated(cuda: &Cuda, rows: usize, [width, k]: [usize; 2]) -> Result<()> {
    let values = Numbers::new(53).rounded(1_000_003, 1.0 / (k as f32).sqrt());
    let values: Vec<bf16> = values.iter().copied().cycle().take(2 * width * k).collect();
    let half = |data| Matrix { rows: width, cols: k, data: FloatData::Bf16(data) };
    let layers = (0..4).map(|_| cuda.weight(&[half(&values[..width * k]), half(&values[width * k..])])).collect::<Result<Vec<_>>>()?;
    let x = upload(cuda, &Numbers::new(54).rounded(rows * k, 1.0))?;
    let (mut sums, mut out) = (cuda.alloc(rows * 2 * width)?, cuda.alloc(rows * width)?);
    let mut next = layers.iter().cycle();
    let mut layer = || next.next().unwrap_or(&layers[0]);
    let one = best(cuda, || cuda.gemm_silu_mul(&x, layer(), None, (rows, width), &mut sums, &mut out));
    let two = best(cuda, || {
        cuda.gemm(&x, layer(), None, rows, Store::Write, &mut sums);
        cuda.silu_mul(&sums, rows, width, &mut out);
    });
    let teraflops = 4.0 * (rows * width * k) as f64 / one / 1e6;
    println!(
        "{:<64} {one:>8.1}  {teraflops:.0} TFLOP/s; one after the other {two:.1}",
        format!("product and activation: {rows} rows by [2 · {width}, {k}]")
    );
    Ok(())
}

/// A decode step's attention: groups of eight with a prompt of their own.
fn attention(cuda: &Cuda, rows: usize, [prompt, own]: [usize; 2], copy: f64) -> Result<()> {
    let [prompt_blocks, own_blocks] = [prompt, own].map(|keys| keys.div_ceil(BLOCK_SIZE));
    let num_blocks = rows / GROUP * prompt_blocks + rows * own_blocks;
    let tables: Vec<u32> = (0..num_blocks as u32).collect();
    let span = |row: usize| Span {
        first_row: row as u32,
        num_rows: 1,
        prompt_table: (row / GROUP * prompt_blocks) as u32,
        prompt_keys: prompt as u32,
        own_table: (rows / GROUP * prompt_blocks + row * own_blocks) as u32,
        own_keys: own as u32,
    };
    let spans: Vec<Span> = (0..rows).map(span).collect();
    let q = upload(cuda, &Numbers::new(51).rounded(rows * HEADS.q_width(), 1.0))?;
    let kv = cuda.alloc_kv(num_blocks, HEADS)?;
    let mut plan = cuda.alloc_attention_plan(rows, rows, tables.len(), HEADS)?;
    cuda.plan_attention(&spans, &tables, &mut plan);
    let mut out = cuda.alloc::<bf16>(rows * HEADS.q_width())?;
    let us = best(cuda, || cuda.attention(&q, &kv, &plan, HEADS, rows, &mut out));
    let keys = rows / GROUP * prompt + rows * own;
    let gigabytes = (keys * HEADS.num_kv_heads * HEADS.head_dim * 4) as f64 / us / 1e3;
    let what = format!("attention: {rows} rows, {own} keys each, prompts of {prompt} for {GROUP} rows");
    println!("{what:<64} {us:>8.1}  {gigabytes:.0} GB/s of keys and values, {:.0} % of the copy", 100.0 * gigabytes / copy);
    Ok(())
}

fn sampler(cuda: &Cuda) -> Result<()> {
    let mut numbers = Numbers::new(52);
    // A short period keeps the making quick.
    let logits: Vec<f32> = numbers.values(1_000_003, 3.0).iter().copied().cycle().take(ROWS * VOCAB).collect();
    let logits = upload(cuda, &logits)?;
    let row = |i: usize| SampleRow {
        logits_row: i as u32,
        slot: i as u32,
        random: draw_words([i as u32, 7], 0, 0),
        temperature: 1.0,
        top_p: 1.0,
        repetition_penalty: 1.0,
        counts_row: NO_COUNTS,
        forced: NO_TOKEN,
        ..Default::default()
    };
    let plain: Vec<SampleRow> = (0..ROWS).map(row).collect();
    let filtered: Vec<SampleRow> = plain.iter().map(|row| SampleRow { top_p: 0.95, top_k: 50, ..*row }).collect();
    let (ids, values) = (upload(cuda, &[0u32; 8])?, upload(cuda, &[0f32; 8])?);
    let mut state = SamplerState::new(cuda, ROWS, 1, VOCAB)?;
    let mut out = cuda.alloc(ROWS)?;
    for (name, rows) in [("plain", plain), ("top-k 50, top-p 0.95", filtered)] {
        let rows = upload(cuda, &rows)?;
        let us = best(cuda, || {
            let inputs = SampleInputs { plain: false, rows: &rows, banned: &ids, bias_ids: &ids, bias_values: &values };
            cuda.sample(&logits, inputs, ROWS, &mut state, &mut out);
        });
        println!(
            "{:<64} {us:>8.1}  {:.0} GB/s of logits",
            format!("sampler, {name}: {ROWS} × {VOCAB}"),
            (ROWS * VOCAB * 4) as f64 / us / 1e3
        );
    }
    Ok(())
}
