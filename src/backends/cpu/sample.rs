//! One token from one row of logits.
//!
//! The scores that are drawn from follow Hugging Face's order: bans, bias, repetition, presence and frequency penalties,
//! temperature, then what top-k, top-p and min-p leave (`filter`). An entry is drawn by the masses that are left ([`super::draw`]).
//! `logp`, `logp_raw` and `entropy` are of the model alone: of the logits as they came, at the row's temperature and at 1.
//!
//! Sums run over tiles of [`DRAW_TILE`] entries in f32, lane i of 16 with every sixteenth entry, and over tiles in f64.

use std::cell::RefCell;

use super::draw::draw;
use super::filter::{self, Cutoff};
use super::math;
use super::simd::{Isa, Kernel, LANES, Simd};
use crate::backends::{DRAW_TILE, MAX_TOP_LOGPROBS, NO_TOKEN, SampleRow, Sampled};

/// All that one draw reads.
pub struct Draw<'a> {
    pub row: &'a SampleRow,
    pub logits: &'a [f32],
    pub banned: &'a [u32],
    pub bias_ids: &'a [u32],
    pub bias_values: &'a [f32],
    /// Bitmap of the slot's tokens.
    pub seen: &'a [u32],
    pub counts: Option<&'a [u32]>,
}

thread_local! {
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

pub fn sample(isa: Isa, draw: &Draw<'_>) -> Sampled {
    SCORES.with_borrow_mut(|scores| draw.sample(isa, scores))
}

impl Draw<'_> {
    fn sample(&self, isa: Isa, scores: &mut Vec<f32>) -> Sampled {
        let corrupt = Sampled { corrupt: 1, ..Sampled::default() };
        let row = self.row;
        let greedy = row.temperature == 0.0;
        let temperature = if greedy { 1.0 } else { row.temperature };
        let Largest { most, finite: true } = isa.run(FindLargest(self.logits)) else { return corrupt };
        let raw = isa.run(Exponentials { x: self.logits, most, temperature: 1.0 });
        let scaled = (temperature != 1.0).then(|| isa.run(Exponentials { x: self.logits, most, temperature }));
        let model = scaled.as_ref().unwrap_or(&raw);

        // Scores that can be drawn, over the temperature; −∞ for what is out.
        let changed = self.changes_logits();
        let filtered = !greedy && (row.top_k > 0 || row.top_p < 1.0 || row.min_p > 0.0);
        let (scores, top): (&[f32], f32) = if changed || filtered || temperature != 1.0 {
            scores.clear();
            scores.extend_from_slice(self.logits);
            if changed {
                self.change_logits(scores);
            }
            if temperature != 1.0 {
                isa.run(Divide(scores, temperature));
            }
            let top = isa.run(FindLargest(scores)).most;
            if filtered {
                self.filter(isa, top, scores);
            }
            (scores, top)
        } else {
            (self.logits, most)
        };
        if top == f32::NEG_INFINITY {
            return corrupt;
        }
        let left = (!greedy && (changed || filtered)).then(|| isa.run(Exponentials { x: scores, most: top, temperature: 1.0 }));
        let weight = |id: usize| scores.get(id).map_or(0.0, |score| isa.run(math::ExpOne(score - top)));
        let token = match row.forced {
            NO_TOKEN if greedy => first(scores, top),
            NO_TOKEN => draw(&left.as_ref().unwrap_or(model).masses, row.random, weight),
            forced => forced as usize,
        };
        let logp = model.log_softmax(self.logits[token]);
        let logp_sampled = match &left {
            _ if greedy => 0.0,
            None => logp,
            Some(left) => left.log_softmax(scores[token]),
        };
        let mut sampled = Sampled {
            token: token as u32,
            logp,
            logp_raw: raw.log_softmax(self.logits[token]),
            logp_sampled,
            entropy: model.entropy(),
            ..Sampled::default()
        };
        if row.top_logprobs > 0 {
            let ids = filter::best(self.logits, (row.top_logprobs as usize).min(MAX_TOP_LOGPROBS));
            sampled.num_top = ids.len() as u32;
            for (i, id) in ids.into_iter().enumerate() {
                sampled.top_ids[i] = id;
                sampled.top_logps[i] = raw.log_softmax(self.logits[id as usize]);
            }
        }
        sampled
    }

    fn penalises_counts(&self) -> bool {
        self.counts.is_some() && (self.row.presence_penalty != 0.0 || self.row.frequency_penalty != 0.0)
    }

    fn changes_logits(&self) -> bool {
        !self.banned.is_empty() || !self.bias_ids.is_empty() || self.row.repetition_penalty != 1.0 || self.penalises_counts()
    }

    fn change_logits(&self, x: &mut [f32]) {
        for id in self.banned {
            x[*id as usize] = f32::NEG_INFINITY;
        }
        for (id, bias) in self.bias_ids.iter().zip(self.bias_values) {
            x[*id as usize] += bias;
        }
        let penalty = self.row.repetition_penalty;
        if penalty != 1.0 {
            for (x, word) in x.chunks_mut(32).zip(self.seen) {
                let mut word = *word;
                while word != 0 {
                    let x = &mut x[word.trailing_zeros() as usize];
                    *x = if *x < 0.0 { *x * penalty } else { *x / penalty };
                    word &= word - 1;
                }
            }
        }
        if let Some(counts) = self.counts.filter(|_| self.penalises_counts()) {
            for (x, count) in x.iter_mut().zip(counts) {
                if *count > 0 {
                    *x -= self.row.presence_penalty + self.row.frequency_penalty * *count as f32;
                }
            }
        }
    }

    /// Puts −∞ for what top-k, then top-p, then min-p drop.
    fn filter(&self, isa: Isa, top: f32, scores: &mut [f32]) {
        let row = self.row;
        let mut cutoff = Cutoff::NONE;
        if row.top_k > 0 && (row.top_k as usize) < scores.len() {
            cutoff = Cutoff::at_least(filter::largest(scores, row.top_k as usize));
        }
        if row.top_p < 1.0 {
            cutoff = filter::top_p(isa, scores, top, row.top_p, cutoff);
        }
        if row.min_p > 0.0 {
            cutoff = cutoff.tighter(Cutoff::at_least(top + math::ln(row.min_p).min(0.0)));
        }
        cutoff.apply(scores);
    }
}

/// Where `x` first stands in `scores`, which have it.
fn first(scores: &[f32], x: f32) -> usize {
    const BLOCK: usize = 64;
    let has = |block: &[f32]| block.iter().fold(false, |any, score| any | (*score == x));
    let block = scores.chunks(BLOCK).position(has).expect("the largest score is one of them") * BLOCK;
    scores[block..].iter().position(|score| *score == x).map_or(block, |i| block + i)
}

struct Largest {
    most: f32,
    finite: bool,
}

struct FindLargest<'a>(&'a [f32]);

impl Kernel for FindLargest<'_> {
    type Output = Largest;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Largest {
        let (whole, rest) = self.0.as_chunks::<LANES>();
        let mut most = s.splat(f32::NEG_INFINITY);
        // A number times 0 is 0, or NaN when it is not finite; NaN stays.
        let mut check = s.splat(0.0);
        for x in whole {
            let x = s.load(x);
            most = s.max(x, most);
            check = s.fma(x, s.splat(0.0), check);
        }
        let (mut most, mut check) = (s.largest(most), s.sum(check));
        for x in rest {
            most = if *x > most { *x } else { most };
            check += *x * 0.0;
        }
        Largest { most, finite: check == 0.0 }
    }
}

struct Divide<'a>(&'a mut [f32], f32);

impl Kernel for Divide<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let divisor = s.splat(self.1);
        let (whole, rest) = self.0.as_chunks_mut::<LANES>();
        for x in whole {
            s.store(s.div(s.load(x), divisor), x);
        }
        rest.iter_mut().for_each(|x| *x /= self.1);
    }
}

/// Sums of one softmax.
struct Softmax {
    most: f32,
    temperature: f32,
    /// Σ e^z' for z' = (x − most) / temperature
    sum: f64,
    /// Σ e^z' · z'
    weighted: f64,
    /// Of each tile, Σ e^z'.
    masses: Vec<f32>,
}

impl Softmax {
    fn log_softmax(&self, x: f32) -> f32 {
        (f64::from(x / self.temperature - self.most / self.temperature) - libm::log(self.sum)) as f32
    }

    fn entropy(&self) -> f32 {
        (libm::log(self.sum) - self.weighted / self.sum) as f32
    }
}

struct Exponentials<'a> {
    x: &'a [f32],
    most: f32,
    temperature: f32,
}

impl Kernel for Exponentials<'_> {
    type Output = Softmax;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Softmax {
        let temperature = s.splat(self.temperature);
        let most = s.splat(self.most / self.temperature);
        let scaled = self.temperature != 1.0;
        let masses = Vec::with_capacity(self.x.len().div_ceil(DRAW_TILE));
        let mut softmax = Softmax { most: self.most, temperature: self.temperature, sum: 0.0, weighted: 0.0, masses };
        for block in self.x.chunks(DRAW_TILE) {
            let mut sum = s.splat(0.0);
            let mut weighted = s.splat(0.0);
            let (whole, rest) = block.as_chunks::<LANES>();
            let mut last = [f32::NEG_INFINITY; LANES];
            last[..rest.len()].copy_from_slice(rest);
            for x in whole.iter().chain((!rest.is_empty()).then_some(&last)) {
                let x = s.load(x);
                let z = s.sub(if scaled { s.div(x, temperature) } else { x }, most);
                // e^z is 0 long before; a finite z keeps 0 · z from NaN.
                let z = s.max(z, s.splat(-200.0));
                let e = math::exp(s, z);
                sum = s.add(sum, e);
                weighted = s.fma(e, z, weighted);
            }
            let mass = s.sum(sum);
            softmax.masses.push(mass);
            softmax.sum += f64::from(mass);
            softmax.weighted += f64::from(s.sum(weighted));
        }
        softmax
    }
}

#[cfg(test)]
mod tests;
