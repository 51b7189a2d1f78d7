use super::*;
use crate::backends::cpu::Cpu;
use crate::backends::{Backend, NO_COUNTS, SampleInputs, SamplerState};
use crate::rng::draw_words;

fn row() -> SampleRow {
    SampleRow {
        temperature: 1.0,
        top_p: 1.0,
        repetition_penalty: 1.0,
        counts_row: NO_COUNTS,
        forced: NO_TOKEN,
        random: draw_words([17, 4], 0, 0),
        ..SampleRow::default()
    }
}

fn draw<'a>(row: &'a SampleRow, logits: &'a [f32]) -> Draw<'a> {
    Draw { row, logits, banned: &[], bias_ids: &[], bias_values: &[], seen: &[], counts: None }
}

fn normal(len: usize, seed: u32, spread: f32) -> Vec<f32> {
    let uniform = |i: u32, j| (crate::rng::philox([i, 1, 0, 0], [seed, 0])[j] as f32 + 0.5) / 4_294_967_296.0;
    (0..len as u32).map(|i| spread * (-2.0 * uniform(i, 0).ln()).sqrt() * (std::f32::consts::TAU * uniform(i, 1)).cos()).collect()
}

fn softmax(z: &[f32]) -> Vec<f64> {
    let most = z.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let e: Vec<f64> = z.iter().map(|z| f64::from(z - most).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

/// Kept entries and probabilities of transformers' processors and warpers.
#[test]
fn keeps_what_transformers_keeps() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/hf/sampler.json");
    let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let floats = |v: &serde_json::Value| v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect::<Vec<_>>();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 10);
    for case in cases {
        let params = &case["params"];
        let param = |name: &str, default: f64| params[name].as_f64().unwrap_or(default) as f32;
        let logits = floats(&case["logits"]);
        let mut seen = vec![0u32; logits.len().div_ceil(32)];
        for id in case["previous_ids"].as_array().unwrap() {
            let id = id.as_u64().unwrap() as usize;
            seen[id / 32] |= 1 << (id % 32);
        }
        let kept: Vec<usize> = case["kept"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as usize).collect();
        for token in 0..logits.len() {
            let row = SampleRow {
                temperature: param("temperature", 1.0),
                top_k: param("top_k", 0.0) as u32,
                top_p: param("top_p", 1.0),
                min_p: param("min_p", 0.0),
                repetition_penalty: param("repetition_penalty", 1.0),
                forced: token as u32,
                ..row()
            };
            let sampled = sample(Isa::best(), &Draw { seen: &seen, ..draw(&row, &logits) });
            assert_eq!(sampled.logp_sampled > f32::NEG_INFINITY, kept.contains(&token), "{} token {token}", case["id"]);
            let probability = match kept.iter().position(|id| *id == token) {
                Some(i) if case["probs"].as_array().unwrap().len() == kept.len() => case["probs"][i].as_f64().unwrap(),
                _ => case["probs"][token].as_f64().unwrap_or(0.0),
            };
            assert!((f64::from(sampled.logp_sampled.exp()) - probability).abs() < 2e-6, "{} token {token}", case["id"]);
        }
    }
}

#[test]
fn logps_and_entropy_are_those_of_the_model() {
    for (vocab, temperature) in [(1, 1.0), (37, 1.0), (5000, 0.7), (151_936, 1.0), (32_000, 1.3)] {
        let logits = normal(vocab, 3, 2.5);
        let row = SampleRow { temperature, top_logprobs: 20, ..row() };
        let sampled = sample(Isa::best(), &draw(&row, &logits));
        let scaled: Vec<f32> = logits.iter().map(|x| x / temperature).collect();
        let (p, raw) = (softmax(&scaled), softmax(&logits));
        let token = sampled.token as usize;
        let entropy: f64 = p.iter().map(|p| -p * p.ln()).sum();
        let close = |got: f32, want: f64| assert!((f64::from(got) - want).abs() < 2e-6 * want.abs().max(1.0), "{vocab}: {got}, not {want}");
        close(sampled.logp, p[token].ln());
        close(sampled.logp_sampled, p[token].ln());
        close(sampled.logp_raw, raw[token].ln());
        close(sampled.entropy, entropy);
        let mut order: Vec<usize> = (0..vocab).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        assert_eq!(sampled.num_top as usize, vocab.min(20));
        for (i, id) in order.iter().enumerate().take(20) {
            assert_eq!(sampled.top_ids[i] as usize, *id);
            close(sampled.top_logps[i], raw[*id].ln());
        }
        for isa in Isa::all() {
            assert_eq!(sample(isa, &draw(&row, &logits)), sampled, "{}", isa.name());
        }
    }
}

/// Chi-square of draws against the softmax that is left.
#[test]
fn draws_follow_the_distribution() {
    let logits = normal(24, 8, 1.2);
    let draws = 40_000;
    for (temperature, top_k, top_p, min_p) in
        [(1.0, 0, 1.0, 0.0), (0.7, 0, 1.0, 0.0), (1.0, 9, 1.0, 0.0), (1.5, 0, 0.8, 0.0), (1.0, 20, 0.95, 0.05)]
    {
        let base = SampleRow { temperature, top_k, top_p, min_p, ..row() };
        let expected: Vec<f64> = (0..24)
            .map(|id| {
                f64::from(sample(Isa::best(), &draw(&SampleRow { forced: id, ..base }, &logits)).logp_sampled).exp() * f64::from(draws)
            })
            .collect();
        assert!((expected.iter().sum::<f64>() / f64::from(draws) - 1.0).abs() < 1e-5);
        let mut count = [0.0; 24];
        for i in 0..draws {
            let row = SampleRow { random: draw_words([17, 4], i % 8, i / 8), ..base };
            count[sample(Isa::best(), &draw(&row, &logits)).token as usize] += 1.0;
        }
        let kept = expected.iter().filter(|e| **e > 0.0).count();
        assert!(count.iter().zip(&expected).all(|(n, e)| *e > 0.0 || *n == 0.0));
        let chi: f64 = count.iter().zip(&expected).filter(|(_, e)| **e > 0.0).map(|(n, e)| (n - e) * (n - e) / e).sum();
        let freedom = (kept - 1) as f64;
        assert!(chi < freedom + 4.0 * (2.0 * freedom).sqrt(), "chi-square {chi} of {freedom} degrees");
    }
}

/// The filters by sorting everything.
fn kept_by_sorting(z: &[f32], row: &SampleRow) -> Vec<usize> {
    let mut order: Vec<usize> = (0..z.len()).collect();
    order.sort_by(|a, b| z[*b].partial_cmp(&z[*a]).unwrap().then(a.cmp(b)));
    if row.top_k > 0 {
        let least = z[order[(row.top_k as usize).min(z.len()) - 1]];
        order.retain(|id| z[*id] >= least);
    }
    if row.top_p < 1.0 {
        let p = softmax(&order.iter().map(|id| z[*id]).collect::<Vec<_>>());
        let mut before = 0.0;
        let keep = p.iter().take_while(|p| {
            let keep = before < f64::from(row.top_p);
            before += **p;
            keep
        });
        let keep = keep.count().max(1);
        order.truncate(keep);
    }
    if row.min_p > 0.0 {
        let top = z[order[0]];
        order.retain(|id| f64::from(z[*id] - top).exp() >= f64::from(row.min_p));
    }
    order.sort_unstable();
    order
}

#[test]
fn filters_keep_what_sorting_keeps() {
    for seed in 0..300u32 {
        let vocab = [50, 777, 5000][seed as usize % 3];
        let mut logits = normal(vocab, seed, [0.3, 2.0, 6.0, 30.0][seed as usize / 3 % 4]);
        if seed % 7 == 0 {
            logits.iter_mut().for_each(|x| *x = x.round());
        }
        let row = SampleRow {
            top_k: [0, 1, 5, 50, 400][seed as usize % 5],
            top_p: [1.0, 0.9, 0.5, 0.0, 0.999][seed as usize / 5 % 5],
            min_p: [0.0, 0.02, 0.3][seed as usize / 25 % 3],
            ..row()
        };
        let mut scores = logits.clone();
        let top = scores.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
        draw(&row, &logits).filter(Isa::best(), top, &mut scores);
        let kept: Vec<usize> = (0..vocab).filter(|id| scores[*id] > f32::NEG_INFINITY).collect();
        let want = kept_by_sorting(&logits, &row);
        assert!(kept == want, "seed {seed}: {} kept, not {}: {row:?}", kept.len(), want.len());
    }
}

#[test]
fn state_penalties_bans_and_forced_tokens() {
    let cpu = Cpu::<f32>::new(2).unwrap();
    let vocab = 70;
    let mut state = SamplerState::new(&cpu, 3, 2, vocab).unwrap();
    cpu.reset_slot(&mut state, 1, Some(1), &[5, 69], &[7]);
    let mut logits = normal(2 * vocab, 5, 0.1);
    logits[vocab + 7] = 4.0;
    logits[vocab + 9] = 3.9;
    logits[vocab + 11] = 3.8;
    logits[vocab + 5] = -1.0;
    let run = |row: SampleRow, state: &mut SamplerState<Cpu<f32>>, logits: &[f32]| {
        let mut device = cpu.alloc(2 * vocab).unwrap();
        cpu.upload(logits, &mut device);
        let (mut rows, mut banned, mut ids, mut values) =
            (cpu.alloc(1).unwrap(), cpu.alloc(4).unwrap(), cpu.alloc(4).unwrap(), cpu.alloc(4).unwrap());
        cpu.upload(&[row], &mut rows);
        cpu.upload(&[0, 7, 9, 0], &mut banned);
        cpu.upload(&[0, 11, 0, 0], &mut ids);
        cpu.upload(&[0.0, 0.5, 0.0, 0.0], &mut values);
        let mut out = cpu.alloc(1).unwrap();
        let inputs = SampleInputs { plain: false, rows: &rows, banned: &banned, bias_ids: &ids, bias_values: &values };
        cpu.sample(&device, inputs, 1, state, &mut out);
        cpu.wait(cpu.submit(&out, 1))[0]
    };
    let greedy = SampleRow { temperature: 0.0, logits_row: 1, slot: 1, counts_row: 1, ..row() };
    let token = |row, state: &mut _, logits: &[f32]| run(row, state, logits).token;
    assert_eq!(token(greedy, &mut state, &logits), 7);
    // Drawn twice now (once before the reset): 4 - 0.3 - 2 · 0.1 falls below 3.9.
    assert_eq!(token(SampleRow { presence_penalty: 0.3, frequency_penalty: 0.1, ..greedy }, &mut state, &logits), 9);
    assert_eq!(token(SampleRow { repetition_penalty: 1.2, ..greedy }, &mut state, &logits), 11);
    assert_eq!(token(SampleRow { banned_start: 1, banned_len: 2, ..greedy }, &mut state, &logits), 11);
    assert_eq!(token(SampleRow { bias_start: 1, bias_len: 1, ..greedy }, &mut state, &logits), 11);
    let forced = run(SampleRow { forced: 3, temperature: 1.0, ..greedy }, &mut state, &logits);
    assert_eq!(forced.token, 3);
    assert!((f64::from(forced.logp) - softmax(&logits[vocab..])[3].ln()).abs() < 1e-5);
    let mut last = [0; 3];
    cpu.download(&state.last_tokens, &mut last);
    assert_eq!(last, [0, 3, 0]);
    let mut counts = vec![0; 2 * vocab];
    cpu.download(&state.counts, &mut counts);
    assert_eq!([3, 7, 9, 11].map(|id| counts[vocab + id]), [1, 2, 1, 3]);
    assert_eq!(counts.iter().sum::<u32>(), 7);
    let mut seen = [0; 9];
    cpu.download(&state.seen, &mut seen);
    assert_eq!(seen, [0, 0, 0, 1 << 3 | 1 << 5 | 1 << 7 | 1 << 9 | 1 << 11, 0, 1 << 5, 0, 0, 0]);
    logits[vocab + 20] = f32::NAN;
    assert_eq!(run(greedy, &mut state, &logits).corrupt, 1);
    cpu.download(&state.last_tokens, &mut last);
    assert_eq!(last, [0, 3, 0]);
}
