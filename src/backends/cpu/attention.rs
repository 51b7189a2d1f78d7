//! Attention in one order, so that a row has the same bits in a prefill, a decode step and a recompute.
//!
//! For one query (a row and a head):
//!
//! 1. `score[j]` = one fused chain over ascending d of `q[d] · k[j][d]` from 0, then times the scale.
//! 2. The keys of a segment (prompt or completion), counted from its start, are cut into chunks of 256 and those into tiles of 64.
//!    A chunk starts with m = −∞, l = 0, O = 0. Each tile that has a visible key does
//!    m' = max(m, scores); α = exp(m − m'); p[j] = exp(score[j] − m'), 0 beyond the visible keys;
//!    l = α · l + Σ p, fused, with Σ p = [`Simd::sum`] of ((p[0..16] + p[16..32]) + (p[32..48] + p[48..64]));
//!    O = α · O, then one fused chain over ascending visible j of `round(p[j]) · v[j]`; m = m'.
//! 3. A chunk gives O / l and L = m + ln l. The first chunk (of the prompt, if there is one) is the result so far, (O, L); each
//!    later one, prompt before completion, is merged: M = max(L, Lc), a = exp(L − M), b = exp(Lc − M),
//!    O = (a · O + b · Oc) / (a + b) with `fma(a, O, b · Oc)`, L = M + ln(a + b).
//!
//! Up to eight queries that share a kv head go through the blocks together. Keys that all of them see are multiplied by the GEMM's
//! loop; the few that only some see, one query at a time. Each query's chains are the same either way.

use std::ops::Range;

use super::gemm::{GROUP, PANEL, Sums, halves, halves_mut, multiply, multiply_sums, stride};
use super::kv::Kv;
use super::math::{self, Float};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::threads::{Threads, for_each_tile};
use super::weight::F32Row;
use crate::backends::{ATTENTION_CHUNK, ATTENTION_TILE, BLOCK_SIZE, HeadShape, Span};

/// Widest head, in panels.
const MAX_PANELS: usize = 4;
/// Queries that a work item takes through the keys, about.
const ITEM: usize = 24;
const TILE_BLOCKS: usize = ATTENTION_TILE / BLOCK_SIZE;

const _: () = assert!(ATTENTION_TILE == 4 * LANES && ATTENTION_CHUNK.is_multiple_of(ATTENTION_TILE));

/// A step's spans, cut into work items.
pub struct Plan {
    spans: Vec<Span>,
    tables: Vec<u32>,
    /// Span and rows of each item; the rows ascend.
    items: Vec<(usize, Range<usize>)>,
    ranges: Vec<Range<usize>>,
    rows_per_item: usize,
}

impl Plan {
    pub fn new(max_spans: usize, max_rows: usize, max_table: usize, shape: HeadShape) -> Self {
        Plan {
            spans: Vec::with_capacity(max_spans),
            tables: Vec::with_capacity(max_table),
            items: Vec::with_capacity(max_rows),
            ranges: Vec::with_capacity(max_rows),
            rows_per_item: (ITEM * shape.num_kv_heads / shape.num_heads).max(1),
        }
    }

    pub fn set(&mut self, spans: &[Span], tables: &[u32]) {
        self.spans.clear();
        self.spans.extend_from_slice(spans);
        self.tables.clear();
        self.tables.extend_from_slice(tables);
        self.items.clear();
        for (i, span) in spans.iter().enumerate() {
            let end = (span.first_row + span.num_rows) as usize;
            for first in (span.first_row as usize..end).step_by(self.rows_per_item) {
                self.items.push((i, first..(first + self.rows_per_item).min(end)));
            }
        }
        self.items.sort_by_key(|(_, rows)| rows.start);
        self.ranges.clear();
        self.ranges.extend(self.items.iter().map(|(_, rows)| rows.clone()));
    }
}

/// Up to eight queries of one kv head.
struct Queries<'a, T> {
    kv: &'a Kv,
    head: usize,
    /// `[head_dim][stride(count)]`
    q: &'a [f32],
    count: usize,
    scale: f32,
    /// Block table of each segment and how many of its keys each query sees.
    segments: [(&'a [u32], [usize; GROUP]); 2],
    /// `[count][head_dim]`
    out: &'a mut [T],
}

impl<T: Float> Kernel for Queries<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let dim = self.kv.head_dim();
        let panels = dim.div_ceil(PANEL);
        let mut result = [[[0.0; PANEL]; GROUP]; MAX_PANELS];
        let mut result_lse = [f32::NEG_INFINITY; GROUP];
        let mut has_result = [false; GROUP];
        for (table, keys) in &self.segments {
            let most = keys[..self.count].iter().copied().max().unwrap_or(0);
            for chunk in (0..most).step_by(ATTENTION_CHUNK) {
                let mut state = Chunk { m: [f32::NEG_INFINITY; GROUP], l: [0.0; GROUP], o: [[[0.0; PANEL]; GROUP]; MAX_PANELS] };
                for tile in (chunk..most.min(chunk + ATTENTION_CHUNK)).step_by(ATTENTION_TILE) {
                    let mut visible = [0; GROUP];
                    for v in 0..self.count {
                        visible[v] = keys[v].saturating_sub(tile).min(ATTENTION_TILE);
                    }
                    self.tile(s, &table[tile / BLOCK_SIZE..], &visible, panels, &mut state);
                }
                for v in 0..self.count {
                    if keys[v] > chunk {
                        let lse = state.m[v] + math::ln(state.l[v]);
                        let l = s.splat(state.l[v]);
                        for panel in 0..panels {
                            let (low, high) = halves_mut(&mut state.o[panel][v]);
                            s.store(s.div(s.load(low), l), low);
                            s.store(s.div(s.load(high), l), high);
                        }
                        if has_result[v] {
                            let (a, b) = weights(s, result_lse[v], lse);
                            for panel in 0..panels {
                                merge(s, a, b, &mut result[panel][v], &state.o[panel][v]);
                            }
                            result_lse[v] = result_lse[v].max(lse) + math::ln(a + b);
                        } else {
                            for panel in 0..panels {
                                result[panel][v] = state.o[panel][v];
                            }
                            result_lse[v] = lse;
                            has_result[v] = true;
                        }
                    }
                }
            }
        }
        for (v, out) in self.out.chunks_exact_mut(dim).enumerate() {
            for (panel, out) in out.chunks_mut(PANEL).enumerate() {
                for (x, out) in result[panel][v].iter().zip(out) {
                    *out = T::from_f32(*x);
                }
            }
        }
    }
}

/// Running softmax of one chunk.
struct Chunk {
    m: [f32; GROUP],
    l: [f32; GROUP],
    o: [Sums; MAX_PANELS],
}

/// What the result so far and a new chunk count in their merge, not yet normalised.
#[inline(always)]
fn weights<S: Simd>(s: S, lse: f32, chunk_lse: f32) -> (f32, f32) {
    let most = lse.max(chunk_lse);
    (math::exp_one(s, lse - most), math::exp_one(s, chunk_lse - most))
}

#[inline(always)]
fn merge<S: Simd>(s: S, a: f32, b: f32, result: &mut [f32; PANEL], chunk: &[f32; PANEL]) {
    let (low, high) = halves_mut(result);
    let (chunk_low, chunk_high) = halves(chunk);
    let (a, b, whole) = (s.splat(a), s.splat(b), s.splat(a + b));
    s.store(s.div(s.fma(a, s.load(low), s.mul(b, s.load(chunk_low))), whole), low);
    s.store(s.div(s.fma(a, s.load(high), s.mul(b, s.load(chunk_high))), whole), high);
}

impl<T: Float> Queries<'_, T> {
    /// Up to 64 keys; query v sees the first `visible[v]`.
    #[inline(always)]
    fn tile<S: Simd>(&self, s: S, table: &[u32], visible: &[usize; GROUP], panels: usize, state: &mut Chunk) {
        let width = stride(self.count);
        let seen = &visible[..self.count];
        let most = seen.iter().copied().max().unwrap_or(0);
        let common = seen.iter().copied().min().unwrap_or(0);
        let blocks = most.div_ceil(BLOCK_SIZE);

        let mut scores: [Sums; TILE_BLOCKS] = [[[0.0; PANEL]; GROUP]; TILE_BLOCKS];
        for (block, scores) in table.iter().zip(&mut scores).take(blocks) {
            let (keys, _) = self.kv.block(*block as usize, self.head);
            multiply(s, width, self.q, keys, scores);
        }

        let alpha = softmax_tile::<S, T>(s, self.scale, seen, &mut scores, &mut state.m, &mut state.l);

        for panel in 0..panels {
            let sums = &mut state.o[panel];
            for v in 0..self.count {
                let (low, high) = halves_mut(&mut sums[v]);
                s.store(s.mul(s.load(low), s.splat(alpha[v])), low);
                s.store(s.mul(s.load(high), s.splat(alpha[v])), high);
            }
            for (i, (block, p)) in table.iter().zip(&scores).enumerate().take(blocks) {
                let (_, values) = self.kv.block(*block as usize, self.head);
                let values = &values[panel * BLOCK_SIZE..][..BLOCK_SIZE];
                let within = |keys: usize| keys.saturating_sub(i * BLOCK_SIZE).min(BLOCK_SIZE);
                let together = within(common);
                multiply_sums(s, width, p, &values[..together], sums);
                for v in 0..self.count {
                    for j in together..within(seen[v]) {
                        add_value(s, p[v][j], &values[j], &mut sums[v]);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn add_value<S: Simd>(s: S, p: f32, value: &F32Row, sums: &mut [f32; PANEL]) {
    let (low, high) = halves_mut(sums);
    let p = s.splat(p);
    s.store(s.fma(p, s.load(&value.0[0]), s.load(low)), low);
    s.store(s.fma(p, s.load(&value.0[1]), s.load(high)), high);
}

/// Turns the dot products of a tile into rounded weights; updates m and l and returns α of each query.
#[inline(always)]
fn softmax_tile<S: Simd, T: Float>(
    s: S,
    scale: f32,
    seen: &[usize],
    scores: &mut [Sums; TILE_BLOCKS],
    m: &mut [f32; GROUP],
    l: &mut [f32; GROUP],
) -> [f32; GROUP] {
    let [first, second] = scores;
    // Queries that see no key of the tile keep m, and α = e^0; lanes beyond the queries are idle.
    let mut change = [0.0; LANES];
    for v in 0..seen.len() {
        if seen[v] == 0 {
            continue;
        }
        if seen[v] < ATTENTION_TILE {
            first[v][seen[v].min(BLOCK_SIZE)..].fill(f32::NEG_INFINITY);
            second[v][seen[v].saturating_sub(BLOCK_SIZE)..].fill(f32::NEG_INFINITY);
        }
        let scale = s.splat(scale);
        let x = load_tile(s, &first[v], &second[v]);
        let x = [s.mul(x[0], scale), s.mul(x[1], scale), s.mul(x[2], scale), s.mul(x[3], scale)];
        let most = s.largest(s.max(s.max(x[0], x[1]), s.max(x[2], x[3])));
        store_tile(s, x, &mut first[v], &mut second[v]);
        let next = if most > m[v] { most } else { m[v] };
        change[v] = m[v] - next;
        m[v] = next;
    }
    let mut alpha = [0.0; LANES];
    s.store(math::exp(s, s.load(&change)), &mut alpha);
    for v in 0..seen.len() {
        if seen[v] == 0 {
            continue;
        }
        let m = s.splat(m[v]);
        let x = load_tile(s, &first[v], &second[v]);
        let p = [math::exp(s, s.sub(x[0], m)), math::exp(s, s.sub(x[1], m)), math::exp(s, s.sub(x[2], m)), math::exp(s, s.sub(x[3], m))];
        l[v] = l[v].mul_add(alpha[v], s.sum(s.add(s.add(p[0], p[1]), s.add(p[2], p[3]))));
        store_tile(s, p, &mut first[v], &mut second[v]);
        if size_of::<T>() != size_of::<f32>() {
            for x in first[v].iter_mut().chain(&mut second[v]) {
                *x = T::from_f32(*x).to_f32();
            }
        }
    }
    std::array::from_fn(|v| alpha[v])
}

#[inline(always)]
fn load_tile<S: Simd>(s: S, first: &[f32; PANEL], second: &[f32; PANEL]) -> [S::F; 4] {
    let ((a, b), (c, d)) = (halves(first), halves(second));
    [s.load(a), s.load(b), s.load(c), s.load(d)]
}

#[inline(always)]
fn store_tile<S: Simd>(s: S, x: [S::F; 4], first: &mut [f32; PANEL], second: &mut [f32; PANEL]) {
    let ((a, b), (c, d)) = (halves_mut(first), halves_mut(second));
    s.store(x[0], a);
    s.store(x[1], b);
    s.store(x[2], c);
    s.store(x[3], d);
}

/// Packs queries `[count][dim]` (at `q[at(v)..]`) to `[dim][stride]`.
fn pack_queries<T: Float>(q: &[T], dim: usize, count: usize, at: impl Fn(usize) -> usize, out: &mut [f32]) {
    let width = stride(count);
    out[..dim * width].fill(0.0);
    for v in 0..count {
        for (x, out) in q[at(v)..][..dim].iter().zip(out[v..].iter_mut().step_by(width)) {
            *out = x.to_f32();
        }
    }
}

fn scale(shape: HeadShape) -> f32 {
    1.0 / (shape.head_dim as f32).sqrt()
}

pub fn attention<T: Float>((isa, threads): (Isa, &Threads), q: &[T], kv: &Kv, plan: &Plan, shape: HeadShape, out: &mut [T]) {
    let dim = shape.head_dim;
    assert!(dim <= MAX_PANELS * PANEL, "heads of {dim}");
    assert!(shape.num_heads.is_multiple_of(shape.num_kv_heads), "{shape:?}");
    let shared = shape.num_heads / shape.num_kv_heads;
    for_each_tile(threads, out, shape.q_width(), &plan.ranges, shared * dim, |item, head, mut out| {
        let (span, rows) = &plan.items[item];
        let span = &plan.spans[*span];
        let count = rows.len() * shared;
        for first in (0..count).step_by(GROUP) {
            let group = first..count.min(first + GROUP);
            // Query v is row v / shared of the item, head v % shared of the kv head.
            let at = |v: usize| ((rows.start + v / shared) * shape.num_heads + head * shared + v % shared) * dim;
            let mut packed = [0.0; MAX_PANELS * PANEL * GROUP];
            pack_queries(q, dim, group.len(), |v| at(first + v), &mut packed);
            let mut keys = [[0; GROUP]; 2];
            for v in group.clone() {
                let row = rows.start + v / shared - span.first_row as usize;
                let (prompt, own) = match span.own_keys {
                    0 => (span.prompt_keys as usize + row, 0),
                    own => (span.prompt_keys as usize, own as usize + row),
                };
                keys[0][v - first] = prompt;
                keys[1][v - first] = own;
            }
            let table = |start: u32, keys: &[usize; GROUP]| {
                let blocks = keys.iter().max().map_or(0, |keys| keys.div_ceil(BLOCK_SIZE));
                match blocks {
                    0 => &[],
                    _ => &plan.tables[start as usize..][..blocks],
                }
            };
            let mut result = [T::default(); MAX_PANELS * PANEL * GROUP];
            let result = &mut result[..group.len() * dim];
            isa.run(Queries {
                kv,
                head,
                q: &packed[..dim * stride(group.len())],
                count: group.len(),
                scale: scale(shape),
                segments: [(table(span.prompt_table, &keys[0]), keys[0]), (table(span.own_table, &keys[1]), keys[1])],
                out: result,
            });
            for (v, result) in group.zip(result.chunks_exact(dim)) {
                out.row(v / shared)[v % shared * dim..][..dim].copy_from_slice(result);
            }
        }
    });
}

/// Rows of queries that one work item of [`segment_attention`] takes.
const SEGMENT_ITEM: usize = 512;

/// Full attention within segments, in the same order as a segment of the cache.
pub fn segment_attention<T: Float>(
    (isa, threads): (Isa, &Threads),
    (q, k, v): (&[T], &[T], &[T]),
    cu_seqlens: &[u32],
    shape: HeadShape,
    out: &mut [T],
) {
    let dim = shape.head_dim;
    assert!(dim <= MAX_PANELS * PANEL, "heads of {dim}");
    // Long segments are cut, so that threads share them; each item packs the keys anew, which costs little beside its queries.
    let mut items: Vec<(Range<usize>, Range<usize>)> = Vec::new();
    for pair in cu_seqlens.windows(2) {
        let segment = pair[0] as usize..pair[1] as usize;
        items.extend(segment.clone().step_by(SEGMENT_ITEM).map(|first| (segment.clone(), first..(first + SEGMENT_ITEM).min(segment.end))));
    }
    let ranges: Vec<Range<usize>> = items.iter().map(|(_, rows)| rows.clone()).collect();
    for_each_tile(threads, out, shape.q_width(), &ranges, dim, |item, head, mut out| {
        let (segment, rows) = &items[item];
        let at = |row: usize| (row * shape.num_heads + head) * dim;
        let blocks = segment.len().div_ceil(BLOCK_SIZE);
        let mut kv = Kv::scratch(blocks, dim);
        for (slot, row) in segment.clone().enumerate() {
            let mut slot = kv.slot(slot, 0);
            for (d, (k, v)) in k[at(row)..][..dim].iter().zip(&v[at(row)..][..dim]).enumerate() {
                slot.write_key::<T>(d, k.to_f32());
                slot.write_value::<T>(d, v.to_f32());
            }
        }
        let table: Vec<u32> = (0..blocks as u32).collect();
        for first in rows.clone().step_by(GROUP) {
            let count = GROUP.min(rows.end - first);
            let mut packed = [0.0; MAX_PANELS * PANEL * GROUP];
            pack_queries(q, dim, count, |v| at(first + v), &mut packed);
            let mut result = [T::default(); MAX_PANELS * PANEL * GROUP];
            isa.run(Queries {
                kv: &kv,
                head: 0,
                q: &packed[..dim * stride(count)],
                count,
                scale: scale(shape),
                segments: [(&table, [segment.len(); GROUP]), (&[], [0; GROUP])],
                out: &mut result[..count * dim],
            });
            for (v, result) in result.chunks_exact(dim).enumerate().take(count) {
                out.row(first - rows.start + v).copy_from_slice(result);
            }
        }
    });
}

#[cfg(test)]
mod tests;
