//! Attention over the paged cache and within segments: against the definition, and a row's bits whatever its step looks like.

use half::bf16;

use super::{Numbers, Operation, Pair, Table, differing_bits, read_rounded, upload};
use crate::backends::{BLOCK_SIZE, Backend, HeadShape, NO_SLOT, RopeQkv, SegmentAttention, Span};
use crate::error::Result;

/// Weights are rounded to bf16 before they are summed, so a last bit of an exponential can show.
const TOLERANCE: f32 = 2e-2;

pub fn run(pair: &Pair, small: bool, table: &mut Table) -> Result<()> {
    let heads = |num_heads, num_kv_heads, head_dim| HeadShape { num_heads, num_kv_heads, head_dim };
    let own: &[usize] = if small { &[1, 31, 33, 257] } else { &[1, 31, 32, 33, 255, 256, 257, 300, 520, 64, 64, 64, 7] };
    let shapes =
        [heads(4, 2, 32), heads(3, 1, 64), heads(2, 1, 128), heads(4, 4, 16), heads(16, 2, 128), heads(28, 4, 128), heads(12, 2, 80)];
    for shape in &shapes[..if small { 4 } else { 7 }] {
        let scene = Scene { shape: *shape, prompt: if small { 300 } else { 613 }, own: own.to_vec() };
        let case = format!("{} / {} heads of {}, {} rows", shape.num_heads, shape.num_kv_heads, shape.head_dim, scene.rows());
        pair.compare("rope_qkv, attention", case.clone(), TOLERANCE, &scene, table)?;
        bits(pair, &scene, &case, table)?;
    }
    let segments: &[(HeadShape, &[usize])] = &[
        (heads(4, 4, 16), &[64, 64, 16, 48, 4, 300]),
        (heads(2, 2, 80), &[64, 64, 16, 48, 4, 300]),
        (heads(16, 16, 80), &[64, 64, 64, 16, 32, 64, 1218]),
    ];
    for (shape, lengths) in &segments[..if small { 2 } else { 3 }] {
        let case = format!("{} heads of {}, segments {lengths:?}", shape.num_heads, shape.head_dim);
        pair.compare("segment_attention", case, TOLERANCE, &Segments { shape: *shape, lengths: lengths.to_vec() }, table)?;
    }
    Ok(())
}

/// One prompt and completions of it.
struct Scene {
    shape: HeadShape,
    prompt: usize,
    own: Vec<usize>,
}

impl Scene {
    fn rows(&self) -> usize {
        self.prompt + self.own.iter().sum::<usize>()
    }

    /// Block tables of prompt and completions in one list, blocks in no order, and where each begins.
    fn tables(&self) -> (Vec<u32>, Vec<usize>) {
        let blocks: Vec<usize> = std::iter::once(self.prompt).chain(self.own.iter().copied()).map(|n| n.div_ceil(BLOCK_SIZE)).collect();
        let mut starts = vec![0];
        blocks.iter().for_each(|n| starts.push(starts[starts.len() - 1] + n));
        let mut tables: Vec<u32> = (0..starts[blocks.len()] as u32).collect();
        let mut numbers = Numbers::new(21);
        for i in (1..tables.len()).rev() {
            tables.swap(i, numbers.below(i + 1));
        }
        (tables, starts)
    }

    /// (segment, token) of each row; segment 0 is the prompt.
    fn tokens(&self) -> Vec<(usize, usize)> {
        let lengths = std::iter::once(self.prompt).chain(self.own.iter().copied());
        lengths.enumerate().flat_map(|(s, n)| (0..n).map(move |t| (s, t))).collect()
    }

    /// A span of `num_rows` rows of a step from `first_row`, the first of which is `token`.
    fn span(&self, (segment, token): (usize, usize), first_row: usize, num_rows: usize) -> Span {
        let starts = self.tables().1;
        let span = Span { first_row: first_row as u32, num_rows: num_rows as u32, ..Default::default() };
        match segment {
            0 => Span { prompt_keys: token as u32 + 1, ..span },
            s => Span { prompt_keys: self.prompt as u32, own_table: starts[s] as u32, own_keys: token as u32 + 1, ..span },
        }
    }

    /// Every row of the scene in one step, a span a segment.
    fn whole(&self) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut row = 0;
        for (s, n) in std::iter::once(self.prompt).chain(self.own.iter().copied()).enumerate() {
            spans.push(self.span((s, 0), row, n));
            row += n;
        }
        spans
    }

    /// Writes all keys and values; returns the queries.
    fn fill<B: Backend<Float = bf16>>(&self, b: &B) -> Result<(B::Kv, Vec<bf16>)> {
        let (rows, shape) = (self.rows(), self.shape);
        let (tables, starts) = self.tables();
        let mut numbers = Numbers::new(22);
        let qkv = upload(b, &numbers.values(rows * shape.qkv_width(), 1.0))?;
        let bias = upload(b, &numbers.values(shape.qkv_width(), 0.5))?;
        let rope = upload(b, &numbers.values(rows * shape.head_dim, 0.7))?;
        let place = |(s, t): (usize, usize)| tables[starts[s] + t / BLOCK_SIZE] * BLOCK_SIZE as u32 + (t % BLOCK_SIZE) as u32;
        let slots: Vec<u32> = self.tokens().into_iter().map(place).collect();
        let mut q = b.alloc(rows * shape.q_width())?;
        let mut kv = b.alloc_kv(tables.len(), shape)?;
        let slot_mapping = upload(b, &slots)?;
        b.rope_qkv(&qkv, RopeQkv { bias: &bias, rope: &rope, slot_mapping: &slot_mapping, shape, rows }, &mut q, &mut kv);
        let mut queries = vec![bf16::ZERO; rows * shape.q_width()];
        b.download(&q, &mut queries);
        // A row that fills up a step writes nowhere.
        let nowhere = upload(b, &[NO_SLOT])?;
        b.rope_qkv(&bias, RopeQkv { bias: &bias, rope: &rope, slot_mapping: &nowhere, shape, rows: 1 }, &mut q, &mut kv);
        Ok((kv, queries))
    }

    fn attend<B: Backend<Float = bf16>>(&self, b: &B, kv: &B::Kv, queries: &[bf16], spans: &[Span]) -> Result<Vec<f32>> {
        let (tables, _) = self.tables();
        let rows = queries.len() / self.shape.q_width();
        let mut plan = b.alloc_attention_plan(spans.len(), rows, tables.len(), self.shape)?;
        b.plan_attention(spans, &tables, &mut plan);
        let q = upload(b, queries)?;
        let mut out = b.alloc(queries.len())?;
        b.attention(&q, kv, &plan, self.shape, rows, &mut out);
        Ok(read_rounded(b, &out, queries.len()))
    }
}

impl Operation for Scene {
    fn run<B: Backend<Float = bf16>>(&self, b: &B) -> Result<Vec<f32>> {
        let (kv, queries) = self.fill(b)?;
        let attended = self.attend(b, &kv, &queries, &self.whole())?;
        Ok(queries.iter().map(|x| x.to_f32()).chain(attended).collect())
    }
}

/// The same rows as a prefill, one by one in any order, and in small spans.
fn bits(pair: &Pair, scene: &Scene, case: &str, table: &mut Table) -> Result<()> {
    let (b, width) = (&pair.cuda, scene.shape.q_width());
    let (kv, queries) = scene.fill(b)?;
    let expected = scene.attend(b, &kv, &queries, &scene.whole())?;
    let tokens = scene.tokens();
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    let mut numbers = Numbers::new(23);
    for i in (1..order.len()).rev() {
        order.swap(i, numbers.below(i + 1));
    }
    for (name, step) in [("decode = prefill", 1usize), ("spans of 5", 5), ("spans of 17", 17)] {
        // Runs of consecutive rows of one segment, in an order of their own.
        let starts: Vec<usize> = order.iter().copied().filter(|row| tokens[*row].1.is_multiple_of(step)).collect();
        let (mut spans, mut rows) = (Vec::new(), Vec::new());
        for start in starts {
            let (segment, token) = tokens[start];
            let n = (start..tokens.len()).take(step).take_while(|row| tokens[*row].0 == segment).count();
            spans.push(scene.span((segment, token), rows.len(), n));
            rows.extend(start..start + n);
        }
        let pick = |row: &usize| *row * width..(*row + 1) * width;
        let picked: Vec<bf16> = rows.iter().flat_map(|row| queries[pick(row)].iter().copied()).collect();
        let wanted: Vec<f32> = rows.iter().flat_map(|row| expected[pick(row)].iter().copied()).collect();
        let ours = scene.attend(b, &kv, &picked, &spans)?;
        table.push_bits(name, case.to_owned(), differing_bits(&ours, &wanted), wanted.len());
    }
    Ok(())
}

struct Segments {
    shape: HeadShape,
    lengths: Vec<usize>,
}

impl Operation for Segments {
    fn run<B: Backend<Float = bf16>>(&self, b: &B) -> Result<Vec<f32>> {
        let rows: usize = self.lengths.iter().sum();
        let len = rows * self.shape.q_width();
        let mut numbers = Numbers::new(24);
        let [q, k, v] = [(); 3].map(|()| numbers.rounded(len, 1.0));
        let (q, k, v) = (upload(b, &q)?, upload(b, &k)?, upload(b, &v)?);
        let mut cu = vec![0u32];
        self.lengths.iter().for_each(|n| cu.push(cu[cu.len() - 1] + *n as u32));
        let cu_seqlens = upload(b, &cu)?;
        let mut out = b.alloc(len)?;
        let args =
            SegmentAttention { q: &q, k: &k, v: &v, cu_seqlens: &cu_seqlens, num_segments: self.lengths.len(), shape: self.shape, rows };
        b.segment_attention(args, &mut out);
        Ok(read_rounded(b, &out, len))
    }
}
