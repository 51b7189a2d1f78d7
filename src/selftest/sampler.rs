//! Draws: the same token from the same random words, figures close, and what a slot remembers; the bits of draws from products.

use half::bf16;

use super::gemm::{inputs, weight};
use super::{Numbers, Pair, Table, upload};
use crate::backends::{Backend, NO_COUNTS, NO_TOKEN, SampleInputs, SampleRow, Sampled, SamplerState};
use crate::error::Result;
use crate::rng::draw_words;

/// Of log-probabilities and entropies, which are sums over a vocabulary.
const TOLERANCE: f32 = 2e-4;

pub fn run(pair: &Pair, small: bool, table: &mut Table) -> Result<()> {
    let vocabularies: &[usize] = if small { &[1040, 1041] } else { &[1040, 1041, 8192, 151_936, 152_064] };
    for vocab in vocabularies.iter().copied() {
        for (name, rows) in rows() {
            let (expected, remembered) = draw(&pair.cpu, vocab, &rows)?;
            let (ours, ours_remembered) = draw(&pair.cuda, vocab, &rows)?;
            compare(&format!("{name}, {vocab} tokens"), &expected, &ours, table);
            let differ = remembered.iter().zip(&ours_remembered).filter(|(a, b)| a != b).count();
            let allowed = expected.iter().zip(&ours).filter(|(a, b)| a.token != b.token).count();
            table.push(
                "slots",
                format!("{name}, {vocab} tokens"),
                differ == 0 || allowed > 0,
                format!("{differ} of {} words differ", remembered.len()),
            );
        }
    }
    let heads: &[[usize; 2]] = if small { &[[1040, 72], [200, 64]] } else { &[[1040, 72], [200, 64], [8192, 256], [151_936, 2048]] };
    for [vocab, k] in heads.iter().copied() {
        products(pair, [vocab, k], table)?;
    }
    for ([n, k], admitted) in pair.cuda.gemm_sampled().into_iter().filter(|([n, k], _)| heads.contains(&[*n, *k])) {
        println!("     draws from products by [{n}, {k}]: own kernels {admitted}");
    }
    Ok(())
}

/// Draws from products in one and one after the other: every figure of every row, and what slots remember.
fn products(pair: &Pair, [vocab, k]: [usize; 2], table: &mut Table) -> Result<()> {
    let b = &pair.cuda;
    let w = weight(b, vocab, k)?;
    let (mut differ, mut total) = (0, 0);
    for rows in [1, 9, 37, 64, 65, 128, 200, 256, 300, 512, 700] {
        let x = inputs(b, rows, k)?;
        let mut numbers = Numbers::new(32);
        let ids: Vec<u32> = (0..64).map(|_| numbers.below(vocab) as u32).collect();
        let row = |i: u32| SampleRow {
            logits_row: i,
            slot: i,
            random: draw_words([i * 77, 5], i / 3, i * 11),
            temperature: [1.0, 0.6, 1.0, 1.0, 0.0][i as usize % 5],
            banned_start: i % 32,
            banned_len: if i % 5 == 2 { 1 + i % 8 } else { 0 },
            ..PLAIN
        };
        let asked: Vec<SampleRow> = (0..rows as u32).map(row).collect();
        let (draws, banned, values) = (upload(b, &asked)?, upload(b, &ids)?, upload(b, &[0f32; 64])?);
        let run = |plain: bool| -> Result<(Vec<Sampled>, Vec<u32>)> {
            let mut state = SamplerState::new(b, rows, 1, vocab)?;
            let (mut logits, mut out) = (b.alloc(rows * vocab)?, b.alloc(rows)?);
            let inputs = SampleInputs { plain, rows: &draws, banned: &banned, bias_ids: &banned, bias_values: &values };
            b.gemm_sample((&x, &w), &mut logits, inputs, [rows, rows], &mut state, &mut out);
            let sampled = b.wait(b.submit(&out, rows));
            let mut remembered = vec![0; rows * (1 + vocab.div_ceil(32))];
            let (last, seen) = remembered.split_at_mut(rows);
            b.download(&state.last_tokens, last);
            b.download(&state.seen, seen);
            Ok((sampled, remembered))
        };
        let (in_one, apart) = (run(true)?, run(false)?);
        let same = |(a, b): (&Sampled, &Sampled)| {
            let figures = |s: &Sampled| [s.logp, s.logp_raw, s.logp_sampled, s.entropy].map(f32::to_bits);
            (a.token, a.corrupt, figures(a)) == (b.token, b.corrupt, figures(b)) && a.corrupt == 0
        };
        differ += in_one.0.iter().zip(&apart.0).filter(|pair| !same(*pair)).count();
        differ += in_one.1.iter().zip(&apart.1).filter(|(a, b)| a != b).count();
        total += rows;
    }
    table.push_bits("draw bits", format!("1 to 700 rows by [{vocab}, {k}], in one and apart"), differ, total);
    Ok(())
}

/// Draws as the model says.
const PLAIN: SampleRow = SampleRow {
    logits_row: 0,
    slot: 0,
    random: [0; 4],
    temperature: 1.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    repetition_penalty: 1.0,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    counts_row: NO_COUNTS,
    banned_start: 0,
    banned_len: 0,
    bias_start: 0,
    bias_len: 0,
    top_logprobs: 0,
    forced: NO_TOKEN,
};

/// Rows by sort of sampling; slot and logits row are their places.
fn rows() -> Vec<(&'static str, Vec<SampleRow>)> {
    let plain = PLAIN;
    let many = |change: &dyn Fn(u32) -> SampleRow| {
        (0..24u32)
            .map(|i| SampleRow { logits_row: i % 12, slot: i, random: draw_words([i * 77, 5], i / 3, i * 11), ..change(i) })
            .collect::<Vec<_>>()
    };
    vec![
        ("plain", many(&|_| plain)),
        ("greedy and cool", many(&|i| SampleRow { temperature: if i % 2 == 0 { 0.0 } else { 0.6 }, ..plain })),
        ("top_k", many(&|i| SampleRow { top_k: 1 + i * 9, ..plain })),
        ("top_p", many(&|i| SampleRow { top_p: 0.05 + 0.04 * i as f32, temperature: 0.8, ..plain })),
        ("min_p", many(&|i| SampleRow { min_p: 0.01 * (1 + i) as f32, ..plain })),
        (
            "penalties",
            many(&|i| SampleRow { repetition_penalty: 1.2, presence_penalty: 0.4, frequency_penalty: 0.3, counts_row: i, ..plain }),
        ),
        ("bias and bans", many(&|i| SampleRow { banned_start: i, banned_len: 9, bias_start: i, bias_len: 5, ..plain })),
        ("few bans", many(&|i| SampleRow { banned_start: i % 12, banned_len: 1 + i % 8, ..plain })),
        ("forced", many(&|i| SampleRow { forced: 17 + i, top_logprobs: i % 21, ..plain })),
        (
            "all together",
            many(&|i| SampleRow {
                top_k: 50,
                top_p: 0.9,
                min_p: 0.01,
                temperature: 1.3,
                repetition_penalty: 1.1,
                frequency_penalty: 0.2,
                counts_row: i,
                banned_start: i,
                banned_len: 3,
                bias_start: 2,
                bias_len: 4,
                top_logprobs: 20,
                ..plain
            }),
        ),
        (
            "corrupt",
            many(&|i| SampleRow { logits_row: 12 + i % 2, ..plain })
                .into_iter()
                .enumerate()
                .map(|(i, r)| SampleRow { logits_row: 12 + i as u32 % 2, ..r })
                .collect(),
        ),
    ]
}

fn draw<B: Backend<Float = bf16>>(b: &B, vocab: usize, rows: &[SampleRow]) -> Result<(Vec<Sampled>, Vec<u32>)> {
    let mut numbers = Numbers::new(31);
    let mut logits = numbers.values(14 * vocab, 3.0);
    logits[12 * vocab + vocab / 2] = f32::NAN;
    logits[13 * vocab + vocab - 1] = f32::INFINITY;
    let mut ids: Vec<u32> = (0..64).map(|_| numbers.below(vocab) as u32).collect();
    // An id that is named twice, and rows of which nearly all is banned.
    ids[10] = ids[9];
    for row in [3, 7] {
        logits[row * vocab + ids[row] as usize] = 25.0;
    }
    let logits = upload(b, &logits)?;
    let values = numbers.values(64, 4.0);
    let (draws, banned, bias_values) = (upload(b, rows)?, upload(b, &ids)?, upload(b, &values)?);
    let mut state = SamplerState::new(b, rows.len(), rows.len(), vocab)?;
    for slot in 0..rows.len() as u32 {
        let prompt: Vec<u32> = (0..40).map(|_| numbers.below(vocab) as u32).collect();
        let completion: Vec<u32> = (0..slot).map(|i| i * 3 % 50).collect();
        b.reset_slot(&mut state, slot, Some(slot), &prompt, &completion);
    }
    let mut out = b.alloc(rows.len())?;
    let inputs = SampleInputs { plain: false, rows: &draws, banned: &banned, bias_ids: &banned, bias_values: &bias_values };
    b.sample(&logits, inputs, rows.len(), &mut state, &mut out);
    let sampled = b.wait(b.submit(&out, rows.len()));
    let mut remembered = vec![0; rows.len() * (1 + vocab.div_ceil(32) + vocab)];
    let (last, rest) = remembered.split_at_mut(rows.len());
    let (seen, counts) = rest.split_at_mut(rows.len() * vocab.div_ceil(32));
    b.download(&state.last_tokens, last);
    b.download(&state.seen, seen);
    b.download(&state.counts, counts);
    Ok((sampled, remembered))
}

fn compare(case: &str, expected: &[Sampled], ours: &[Sampled], table: &mut Table) {
    let mut worst = 0f32;
    let (mut tokens, mut tops, mut corrupt) = (0, 0, 0);
    for (a, b) in expected.iter().zip(ours) {
        corrupt += usize::from(a.corrupt != b.corrupt);
        if a.corrupt != 0 {
            continue;
        }
        tokens += usize::from(a.token != b.token);
        tops += usize::from(a.num_top != b.num_top || a.top_ids != b.top_ids);
        if a.token == b.token {
            let figures = [(a.logp, b.logp), (a.logp_raw, b.logp_raw), (a.logp_sampled, b.logp_sampled), (a.entropy, b.entropy)];
            let alternatives = a.top_logps.iter().copied().zip(b.top_logps);
            worst = figures.into_iter().chain(alternatives).map(|(x, y)| (x - y).abs()).fold(worst, f32::max);
        }
    }
    let passed = tokens == 0 && tops == 0 && corrupt == 0 && worst <= TOLERANCE;
    let found = format!("{worst:.1e} of {TOLERANCE:.0e}; differ: {tokens} tokens, {tops} lists, {corrupt} flags of {}", expected.len());
    table.push("sample", case.to_owned(), passed, found);
}
