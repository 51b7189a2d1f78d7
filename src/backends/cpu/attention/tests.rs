use half::bf16;

use super::*;
use crate::backends::cpu::{Cpu, Float};
use crate::backends::{Backend, RopeQkv, SegmentAttention};

fn numbers(len: usize, seed: u32) -> Vec<f32> {
    (0..len as u32).map(|i| crate::rng::philox([i, 0, 0, 0], [seed, 7])[0] as f32 / u32::MAX as f32 * 4.0 - 2.0).collect()
}

fn exp(x: f32) -> f32 {
    struct One(f32);
    impl Kernel for One {
        type Output = f32;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> f32 {
            math::exp_one(s, self.0)
        }
    }
    Isa::all().last().unwrap().run(One(x))
}

/// The order of the module's text for one query, keys and values given in the segments' order.
fn definition<T: Float>(q: &[T], segments: [&[(Vec<T>, Vec<T>)]; 2]) -> Vec<T> {
    let dim = q.len();
    let tree = |x: &[f32]| {
        let mut x = x.to_vec();
        while x.len() > 1 {
            let half = x.len() / 2;
            x = (0..half).map(|i| x[i] + x[i + half]).collect();
        }
        x[0]
    };
    let mut result: Option<(Vec<f32>, f32)> = None;
    for chunk in segments.iter().flat_map(|segment| segment.chunks(256)) {
        let (mut m, mut l, mut o) = (f32::NEG_INFINITY, 0.0f32, vec![0.0f32; dim]);
        for tile in chunk.chunks(64) {
            let scores: Vec<f32> = tile
                .iter()
                .map(|(k, _)| (0..dim).fold(0.0f32, |sum, d| q[d].to_f32().mul_add(k[d].to_f32(), sum)) * (1.0 / (dim as f32).sqrt()))
                .collect();
            let next = scores.iter().fold(m, |a, b| a.max(*b));
            let alpha = exp(m - next);
            let mut p: Vec<f32> = scores.iter().map(|s| exp(s - next)).collect();
            p.resize(64, 0.0);
            let folded: Vec<f32> = (0..16).map(|i| (p[i] + p[16 + i]) + (p[32 + i] + p[48 + i])).collect();
            l = l.mul_add(alpha, tree(&folded));
            for d in 0..dim {
                o[d] = tile.iter().zip(&p).fold(o[d] * alpha, |sum, ((_, v), p)| T::from_f32(*p).to_f32().mul_add(v[d].to_f32(), sum));
            }
            m = next;
        }
        let (o, lse): (Vec<f32>, f32) = (o.iter().map(|x| x / l).collect(), m + math::ln(l));
        result = Some(match result {
            None => (o, lse),
            Some((old, old_lse)) => {
                let most = old_lse.max(lse);
                let (a, b) = (exp(old_lse - most), exp(lse - most));
                (old.iter().zip(&o).map(|(x, y)| a.mul_add(*x, b * y) / (a + b)).collect(), most + math::ln(a + b))
            }
        });
    }
    result.unwrap().0.into_iter().map(T::from_f32).collect()
}

fn plain<T: Float>(x: &[T]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

fn upload<T: Float, E: crate::backends::Element>(cpu: &Cpu<T>, data: &[E]) -> <Cpu<T> as Backend>::Buf<E> {
    let mut buf = cpu.alloc(data.len()).unwrap();
    cpu.upload(data, &mut buf);
    buf
}

/// One sequence of `prompt` and `own` keys, written through `rope_qkv` without rotation.
struct Sequence<T: Float> {
    shape: HeadShape,
    kv: Kv,
    q: Vec<T>,
    keys: Vec<Vec<(Vec<T>, Vec<T>)>>,
    prompt: usize,
    tables: Vec<u32>,
    own_table: u32,
}

impl<T: Float> Sequence<T> {
    fn new(cpu: &Cpu<T>, shape: HeadShape, prompt: usize, own: usize) -> Self {
        let (dim, width, rows) = (shape.head_dim, shape.qkv_width(), prompt + own);
        let prompt_blocks = prompt.div_ceil(32);
        let blocks = prompt_blocks + own.div_ceil(32);
        // Blocks in a scrambled order, stale keys of another sequence everywhere.
        let tables: Vec<u32> = (0..blocks as u32).map(|i| (i * 7 + 3) % (blocks as u32 * 7)).collect();
        let mut kv = cpu.alloc_kv(7 * blocks, shape).unwrap();
        for slot in 0..7 * blocks * 32 {
            for (head, d) in (0..shape.num_kv_heads).flat_map(|head| (0..dim).map(move |d| (head, d))) {
                kv.slot(slot, head).write_key::<T>(d, f32::NAN);
                kv.slot(slot, head).write_value::<T>(d, f32::NAN);
            }
        }
        let slots: Vec<u32> = (0..rows)
            .map(|row| {
                let (block, offset) =
                    if row < prompt { (row / 32, row % 32) } else { (prompt_blocks + (row - prompt) / 32, (row - prompt) % 32) };
                tables[block] * 32 + offset as u32
            })
            .collect();
        let qkv = numbers(rows * width, 1);
        let rope: Vec<f32> = (0..rows).flat_map(|_| (0..dim).map(|i| if i < dim / 2 { 1.0 } else { 0.0 })).collect();
        let mut q = cpu.alloc(rows * shape.q_width()).unwrap();
        cpu.rope_qkv(
            &upload(cpu, &qkv),
            RopeQkv { bias: &upload(cpu, &vec![0.0; width]), rope: &upload(cpu, &rope), slot_mapping: &upload(cpu, &slots), shape, rows },
            &mut q,
            &mut kv,
        );
        let mut queries = vec![T::default(); rows * shape.q_width()];
        cpu.download(&q, &mut queries);
        let part = |row: usize, at: usize| -> Vec<T> { qkv[row * width + at..][..dim].iter().map(|x| T::from_f32(*x)).collect() };
        let keys = (0..shape.num_kv_heads)
            .map(|head| {
                let key = shape.q_width() + head * dim;
                (0..rows).map(|row| (part(row, key), part(row, key + shape.num_kv_heads * dim))).collect()
            })
            .collect();
        Sequence { shape, kv, q: queries, keys, prompt, tables, own_table: prompt_blocks as u32 }
    }

    /// Attention of rows `first..first + num` of the sequence, all in the prompt or all in the completion.
    fn run(&self, cpu: &Cpu<T>, first: usize, num: usize) -> Vec<f32> {
        let span = match first < self.prompt {
            true => Span { prompt_keys: first as u32 + 1, ..Span::default() },
            false => Span { prompt_keys: self.prompt as u32, own_keys: (first - self.prompt) as u32 + 1, ..Span::default() },
        };
        // Two idle rows in front: where a row stands in a step must not matter.
        let span = Span { first_row: 2, num_rows: num as u32, own_table: self.own_table, ..span };
        let width = self.shape.q_width();
        let mut q = vec![T::from_f32(f32::NAN); 2 * width];
        q.extend_from_slice(&self.q[first * width..(first + num) * width]);
        let mut plan = cpu.alloc_attention_plan(1, num + 2, self.tables.len(), self.shape).unwrap();
        cpu.plan_attention(&[span], &self.tables, &mut plan);
        let mut out = cpu.alloc((num + 2) * width).unwrap();
        cpu.attention(&upload(cpu, &q), &self.kv, &plan, self.shape, num + 2, &mut out);
        let mut result = vec![T::default(); (num + 2) * width];
        cpu.download(&out, &mut result);
        plain(&result[2 * width..])
    }

    fn definition(&self, row: usize) -> Vec<f32> {
        let dim = self.shape.head_dim;
        let shared = self.shape.num_heads / self.shape.num_kv_heads;
        let heads = (0..self.shape.num_heads).flat_map(|head| {
            let keys = &self.keys[head / shared];
            let (prompt, own) = keys[..row + 1].split_at(self.prompt.min(row + 1));
            definition(&self.q[(row * self.shape.num_heads + head) * dim..][..dim], [prompt, own])
        });
        plain(&heads.collect::<Vec<_>>())
    }
}

fn check<T: Float>(shape: HeadShape, prompt: usize, own: usize) {
    let mut spans = vec![(0, prompt), (prompt, own)];
    if prompt > 3 {
        spans.push((1, prompt - 2));
    }
    let width = shape.q_width();
    let cpu = Cpu::<T>::new(2).unwrap();
    let sequence = Sequence::new(&cpu, shape, prompt, own);
    let rows: Vec<usize> = (0..prompt + own).filter(|row| row % 37 == 0 || [prompt - 1, prompt, prompt + own - 1].contains(row)).collect();
    let decode: Vec<Vec<f32>> = rows.iter().map(|row| sequence.run(&cpu, *row, 1)).collect();
    for (row, decode) in rows.iter().zip(&decode) {
        assert_eq!(*decode, sequence.definition(*row), "row {row} of {prompt} + {own}, {shape:?}");
    }
    for isa in Isa::all() {
        // The portable kernels are slow without their instructions.
        let spans = if isa == Isa::best() { &spans[..] } else { &spans[1..2] };
        let cpu = Cpu::<T>::with_isa(3, isa).unwrap();
        for (first, num) in spans {
            if *num == 0 {
                continue;
            }
            let prefill = sequence.run(&cpu, *first, *num);
            for (row, decode) in rows.iter().zip(&decode).filter(|(row, _)| (*first..first + num).contains(row)) {
                assert_eq!(prefill[(row - first) * width..][..width], *decode, "row {row} of {prompt} + {own}, {}", isa.name());
            }
        }
    }
}

#[test]
fn rows_have_the_same_bits_in_prefill_and_decode() {
    let shape = HeadShape { num_heads: 6, num_kv_heads: 2, head_dim: 32 };
    for keys in [1, 31, 32, 33, 63, 64, 65, 255, 256, 257, 600] {
        check::<bf16>(shape, keys, 40);
        check::<f32>(shape, 33, keys);
    }
}

#[test]
fn any_even_head_dim_and_grouping() {
    for (num_heads, num_kv_heads, head_dim) in [(12, 2, 64), (7, 1, 128), (3, 3, 24), (16, 2, 16), (2, 1, 80), (9, 1, 10)] {
        check::<bf16>(HeadShape { num_heads, num_kv_heads, head_dim }, 70, 68);
    }
}

#[test]
fn segments_do_not_see_each_other() {
    let shape = HeadShape { num_heads: 3, num_kv_heads: 3, head_dim: 80 };
    let cu_seqlens = [0u32, 64, 65, 96, 96, 700];
    let rows = 700;
    let width = shape.q_width();
    for isa in Isa::all().into_iter().take(2) {
        let cpu = Cpu::<bf16>::with_isa(2, isa).unwrap();
        let part = |seed| numbers(rows * width, seed).into_iter().map(bf16::from_f32).collect::<Vec<_>>();
        let (q, k, v) = (part(1), part(2), part(3));
        let mut out = cpu.alloc(rows * width).unwrap();
        cpu.segment_attention(
            SegmentAttention {
                q: &upload(&cpu, &q),
                k: &upload(&cpu, &k),
                v: &upload(&cpu, &v),
                cu_seqlens: &upload(&cpu, &cu_seqlens),
                num_segments: 5,
                shape,
                rows,
            },
            &mut out,
        );
        let mut got = vec![bf16::default(); rows * width];
        cpu.download(&out, &mut got);
        for (row, head) in [0, 63, 64, 65, 95, 96, 611, 699].into_iter().flat_map(|row| (0..3).map(move |head| (row, head))) {
            let segment = cu_seqlens.windows(2).find(|s| (s[0] as usize..s[1] as usize).contains(&row)).unwrap();
            let of = |x: &[bf16], row: usize| x[(row * 3 + head) * 80..][..80].to_vec();
            let keys: Vec<_> = (segment[0] as usize..segment[1] as usize).map(|row| (of(&k, row), of(&v, row))).collect();
            assert_eq!(of(&got, row), definition(&of(&q, row), [&keys, &[]]), "row {row} head {head}");
        }
    }
}
