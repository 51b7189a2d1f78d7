//! Queries, keys and values in one: against the CPU's, and the bits of product and rotation one after the other.

use half::bf16;

use super::gemm::{inputs, weight};
use super::{Numbers, Operation, Pair, Table, differing_bits, read_rounded, upload};
use crate::backends::{BLOCK_SIZE, Backend, HeadShape, NO_SLOT, RopeQkv, RopeVision, Span, Store};
use crate::error::Result;

/// One rounding to bf16 apart, of sums of a product, a bias and a rotation.
const ROUNDED: f32 = 1.6e-2;
/// Numbers of rows: tiles of each kernel that are full, begun, and several.
const ROWS: [usize; 12] = [1, 9, 64, 65, 128, 200, 256, 300, 512, 513, 700, 2100];

pub fn run(pair: &Pair, small: bool, table: &mut Table) -> Result<()> {
    let heads = |num_heads, num_kv_heads, head_dim| HeadShape { num_heads, num_kv_heads, head_dim };
    let decoders =
        [(heads(2, 1, 128), 64), (heads(6, 2, 128), 72), (heads(4, 2, 32), 64), (heads(16, 2, 128), 2048), (heads(28, 4, 128), 3584)];
    for (shape, k) in decoders.into_iter().take(if small { 3 } else { 5 }) {
        let qkv = Qkv { shape, k, rows: 150 };
        let name = format!("{} / {} heads of {} from {k}", shape.num_heads, shape.num_kv_heads, shape.head_dim);
        pair.compare("gemm_rope_qkv, attention", format!("150 rows, {name}"), ROUNDED, &qkv, table)?;
        let outputs = |rows: usize, in_one: bool| -> Result<Vec<f32>> {
            let (q, kv) = Qkv { rows, ..qkv }.computed(&pair.cuda, in_one)?;
            Ok(q.into_iter().chain(pair.cuda.cached(&kv).into_iter().map(bf16::to_f32)).collect())
        };
        same_bits("qkv row bits", &name, outputs, table)?;
    }
    let towers = [(heads(2, 2, 80), 72), (heads(3, 3, 80), 64), (heads(4, 4, 16), 64), (heads(16, 16, 80), 1280)];
    for (shape, k) in towers.into_iter().take(if small { 3 } else { 4 }) {
        let vision = Vision { shape, k, rows: 150 };
        let name = format!("{} heads of {} from {k}", shape.num_heads, shape.head_dim);
        pair.compare("gemm_rope_vision", format!("150 rows, {name}"), ROUNDED, &vision, table)?;
        same_bits("tower qkv row bits", &name, |rows, in_one| Vision { rows, ..vision }.computed(&pair.cuda, in_one), table)?;
    }
    for ([n, k], admitted) in pair.cuda.gemm_turned().into_iter().filter(|(_, admitted)| admitted.contains(&true)) {
        println!("     queries, keys and values by [{n}, {k}]: own kernels with a cache {}, without {}", admitted[0], admitted[1]);
    }
    Ok(())
}

fn same_bits(name: &'static str, case: &str, outputs: impl Fn(usize, bool) -> Result<Vec<f32>>, table: &mut Table) -> Result<()> {
    let (mut differ, mut total) = (0, 0);
    for rows in ROWS {
        let (ours, apart) = (outputs(rows, true)?, outputs(rows, false)?);
        differ += differing_bits(&ours, &apart);
        total += ours.len();
    }
    table.push_bits(name, format!("1 to 2100 rows, {case}, in one and apart"), differ, total);
    Ok(())
}

#[derive(Clone, Copy)]
struct Qkv {
    shape: HeadShape,
    k: usize,
    rows: usize,
}

impl Qkv {
    /// Queries, and a cache that holds the keys of row `i` in slot `rows - 1 - i`, but for every seventh row.
    fn computed<B: Backend<Float = bf16>>(&self, b: &B, in_one: bool) -> Result<(Vec<f32>, B::Kv)> {
        let Qkv { shape, k, rows } = *self;
        let n = shape.qkv_width();
        let (w, x) = (weight(b, n, k)?, inputs(b, rows, k)?);
        let mut numbers = Numbers::new(31);
        let bias = upload(b, &numbers.values(n, 1.0))?;
        let rope = upload(b, &numbers.values(rows * shape.head_dim, 0.7))?;
        let slots: Vec<u32> = (0..rows).map(|i| if i % 7 == 3 { NO_SLOT } else { (rows - 1 - i) as u32 }).collect();
        let slot_mapping = upload(b, &slots)?;
        let (mut qkv, mut q) = (b.alloc(rows * n)?, b.alloc(rows * shape.q_width())?);
        let mut kv = b.alloc_kv(rows.div_ceil(BLOCK_SIZE), shape)?;
        let args = RopeQkv { bias: &bias, rope: &rope, slot_mapping: &slot_mapping, shape, rows };
        match in_one {
            true => b.gemm_rope_qkv((&x, &w), &mut qkv, args, &mut q, &mut kv),
            false => {
                b.gemm(&x, &w, None, rows, Store::Write, &mut qkv);
                b.rope_qkv(&qkv, args, &mut q, &mut kv);
            }
        }
        Ok((read_rounded(b, &q, rows * shape.q_width()), kv))
    }
}

impl Operation for Qkv {
    /// Queries, the mean of all values, and what a query of ones finds among all keys.
    fn run<B: Backend<Float = bf16>>(&self, b: &B) -> Result<Vec<f32>> {
        let (queries, kv) = self.computed(b, true)?;
        let tables: Vec<u32> = (0..self.rows.div_ceil(BLOCK_SIZE) as u32).collect();
        let span = Span { num_rows: 1, prompt_keys: self.rows as u32, ..Default::default() };
        let spans = [span, Span { first_row: 1, ..span }];
        let mut plan = b.alloc_attention_plan(2, 2, tables.len(), self.shape)?;
        b.plan_attention(&spans, &tables, &mut plan);
        let width = self.shape.q_width();
        let q: Vec<bf16> = [bf16::ZERO, bf16::ONE].into_iter().flat_map(|value| vec![value; width]).collect();
        let (q, mut found) = (upload(b, &q)?, b.alloc(2 * width)?);
        b.attention(&q, &kv, &plan, self.shape, 2, &mut found);
        Ok(queries.into_iter().chain(read_rounded(b, &found, 2 * width)).collect())
    }
}

#[derive(Clone, Copy)]
struct Vision {
    shape: HeadShape,
    k: usize,
    rows: usize,
}

impl Vision {
    fn computed<B: Backend<Float = bf16>>(&self, b: &B, in_one: bool) -> Result<Vec<f32>> {
        let Vision { shape, k, rows } = *self;
        let (n, len) = (3 * shape.q_width(), rows * shape.q_width());
        let (w, x) = (weight(b, n, k)?, inputs(b, rows, k)?);
        let mut numbers = Numbers::new(32);
        let bias = upload(b, &numbers.values(n, 1.0))?;
        let rope = upload(b, &numbers.values(rows * shape.head_dim, 0.7))?;
        let mut qkv = b.alloc(rows * n)?;
        let (mut q, mut k, mut v) = (b.alloc(len)?, b.alloc(len)?, b.alloc(len)?);
        let args = RopeVision { bias: &bias, rope: &rope, shape, rows };
        match in_one {
            true => b.gemm_rope_vision((&x, &w), &mut qkv, args, [&mut q, &mut k, &mut v]),
            false => {
                b.gemm(&x, &w, None, rows, Store::Write, &mut qkv);
                b.rope_vision(&qkv, args, [&mut q, &mut k, &mut v]);
            }
        }
        Ok([&q, &k, &v].into_iter().flat_map(|buf| read_rounded(b, buf, len)).collect())
    }
}

impl Operation for Vision {
    fn run<B: Backend<Float = bf16>>(&self, b: &B) -> Result<Vec<f32>> {
        self.computed(b, true)
    }
}
