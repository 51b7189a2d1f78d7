//! What top-k, top-p and min-p keep, without sorting the vocabulary.
//!
//! Each keeps a beginning of one order, larger scores first and the lowest id first among equals, so that together they are one
//! [`Cutoff`] in it.

use std::cmp::Ordering;

use super::math;
use super::simd::{Isa, Kernel, LANES, Simd};

/// The last entry that stays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cutoff {
    score: f32,
    id: u32,
}

impl Cutoff {
    pub const NONE: Cutoff = Cutoff::at_least(f32::NEG_INFINITY);

    pub const fn at_least(score: f32) -> Self {
        Cutoff { score, id: u32::MAX }
    }

    pub fn tighter(self, other: Cutoff) -> Self {
        match descending(self.score, other.score) {
            Ordering::Less => self,
            Ordering::Greater => other,
            Ordering::Equal => Cutoff { score: self.score, id: self.id.min(other.id) },
        }
    }

    /// Puts −∞ in place of what is cut off.
    pub fn apply(self, scores: &mut [f32]) {
        for (id, x) in scores.iter_mut().enumerate() {
            *x = if *x > self.score || (*x == self.score && id as u32 <= self.id) { *x } else { f32::NEG_INFINITY };
        }
    }
}

/// Of numbers that are not NaN; 0 and −0 are equal, unlike in `total_cmp`.
fn descending(a: f32, b: f32) -> Ordering {
    b.partial_cmp(&a).unwrap_or(Ordering::Equal)
}

/// Larger scores first, then lower ids.
fn by_score(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    descending(a.0, b.0).then(a.1.cmp(&b.1))
}

/// Entries that include the `k` largest: those no smaller than the k-th largest of the blocks' largest.
fn candidates(scores: &[f32], k: usize) -> Vec<(f32, u32)> {
    let mut tops: Vec<f32> =
        scores.chunks(BLOCK).map(|block| block.iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a })).collect();
    let least = match k <= tops.len() {
        true => *tops.select_nth_unstable_by(k - 1, |a, b| descending(*a, *b)).1,
        false => f32::NEG_INFINITY,
    };
    collect(scores, |x| x >= least)
}

const BLOCK: usize = 64;

/// The entries that are wanted; blocks without one are passed over in vector code.
#[inline(always)]
fn collect(scores: &[f32], wanted: impl Fn(f32) -> bool) -> Vec<(f32, u32)> {
    let mut found = Vec::new();
    for (i, block) in scores.chunks(BLOCK).enumerate() {
        if block.iter().fold(false, |any, x| any | wanted(*x)) {
            found.extend(block.iter().enumerate().filter(|(_, x)| wanted(**x)).map(|(j, x)| (*x, (i * BLOCK + j) as u32)));
        }
    }
    found
}

/// The k-th largest score, 1 ≤ k ≤ len.
pub fn largest(scores: &[f32], k: usize) -> f32 {
    candidates(scores, k).select_nth_unstable_by(k - 1, by_score).1.0
}

/// Ids of the `k` largest, in order.
pub fn best(scores: &[f32], k: usize) -> Vec<u32> {
    let mut found = candidates(scores, k.min(scores.len()));
    found.sort_unstable_by(by_score);
    found.into_iter().take(k).map(|(_, id)| id).collect()
}

/// Buckets of scores by distance from the largest.
const BUCKETS: usize = 1024;
const PER_NAT: f32 = 16.0;

#[inline(always)]
fn bucket(top: f32, score: f32) -> usize {
    (((top - score) * PER_NAT) as usize).min(BUCKETS - 1)
}

/// Whether [`bucket`] is `bucket`, in vector code.
#[inline(always)]
fn is_in(bucket: usize, top: f32, score: f32) -> bool {
    let distance = (top - score) * PER_NAT;
    (distance >= bucket as f32) & ((distance < (bucket + 1) as f32) | (bucket == BUCKETS - 1))
}

/// Mass of e^(score − top) in each bucket, of scores no smaller than `least`.
struct Histogram<'a> {
    scores: &'a [f32],
    top: f32,
    least: f32,
}

impl Kernel for Histogram<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<f64> {
        // Four sums a bucket, since neighbours often share one and would wait for each other.
        let mut mass = vec![[0.0; 4]; BUCKETS];
        let (whole, rest) = self.scores.as_chunks::<LANES>();
        let mut last = [f32::NEG_INFINITY; LANES];
        last[..rest.len()].copy_from_slice(rest);
        for scores in whole.iter().chain([&last]) {
            let mut e = [0.0; LANES];
            s.store(math::exp(s, s.sub(s.load(scores), s.splat(self.top))), &mut e);
            for i in 0..LANES {
                let e = if scores[i] >= self.least { e[i] } else { 0.0 };
                mass[bucket(self.top, scores[i])][i % 4] += f64::from(e);
            }
        }
        mass.iter().map(|[a, b, c, d]| (a + b) + (c + d)).collect()
    }
}

/// Keeps, of what `within` leaves, an entry while those before it in the order have less than `p` of the mass; always the first.
///
/// Only the bucket in which the mass crosses `p` is sorted.
pub fn top_p(isa: Isa, scores: &[f32], top: f32, p: f32, within: Cutoff) -> Cutoff {
    let mass = isa.run(Histogram { scores, top, least: within.score });
    let wanted = f64::from(p) * mass.iter().sum::<f64>();
    let mut before = 0.0;
    let Some(crossing) = mass.iter().position(|mass| {
        let crosses = *mass > 0.0 && before + mass >= wanted;
        if !crosses {
            before += mass;
        }
        crosses
    }) else {
        return within;
    };
    let wanted_entry = |x: f32| is_in(crossing, top, x) & (x >= within.score) & (x > f32::NEG_INFINITY);
    let mut entries = collect(scores, wanted_entry);
    entries.sort_unstable_by(by_score);
    let mut last = None;
    for (score, id) in entries {
        if last.is_some() && before >= wanted {
            break;
        }
        last = Some(Cutoff { score, id });
        before += f64::from(isa.run(math::ExpOne(score - top)));
    }
    last.map_or(within, |last| within.tighter(last))
}
