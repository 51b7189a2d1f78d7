//! Which entry a row draws: a tile of neighbours by its mass, then an entry of it by its own. The twin of `kernels/sample_tile.cuh` and
//! `kernels/sample_merge.cuh`.
//!
//! A point is drawn in all mass there is; the tile is the last one that has mass and before which lies no more of it than the point. A tile's
//! entries stand as the sums of a warpgroup's products do: four lanes, lane t with entries 8 j + 2 t and 8 j + 2 t + 1, its masses summed by runs
//! of six. A second point is followed down the tree of those sums, then through a run.

use crate::backends::DRAW_TILE;

const LANES: usize = 4;
const ENTRIES: usize = DRAW_TILE / LANES;
const RUN: usize = 6;
const RUNS: usize = ENTRIES / RUN;

/// The entry that `random` draws of `masses`, the sums of [`DRAW_TILE`] neighbours each; `weight`: of an entry of the vocabulary, 0
/// beyond its end.
pub fn draw(masses: &[f32], random: [u32; 4], weight: impl Fn(usize) -> f32) -> usize {
    let total: f64 = masses.iter().copied().map(f64::from).sum();
    let point = ((u64::from(random[0]) << 32 | u64::from(random[1])) as f64 + 0.5) * (-64f64).exp2() * total;
    let (mut tile, mut before) = (0, 0.0);
    for (i, mass) in masses.iter().copied().map(f64::from).enumerate() {
        if mass > 0.0 && before <= point {
            tile = i;
        }
        before += mass;
    }
    let id = |lane: usize, i: usize| tile * DRAW_TILE + i / 2 * 8 + 2 * lane + i % 2;
    let runs: [[f32; RUNS]; LANES] =
        std::array::from_fn(|lane| std::array::from_fn(|run| (run * RUN..(run + 1) * RUN).fold(0.0, |sum, i| sum + weight(id(lane, i)))));
    let lanes = runs.map(|runs| tree(&runs));
    let point = (random[2] as f32 + 0.5) * (-32f32).exp2() * tree(&lanes);
    let (lane, point) = follow(&lanes, point);
    let (run, point) = follow(&runs[lane], point);
    let (mut entry, mut before) = (id(lane, run * RUN), 0.0);
    for i in run * RUN..(run + 1) * RUN {
        let mass = weight(id(lane, i));
        if mass > 0.0 && before <= point {
            entry = id(lane, i);
        }
        before += mass;
    }
    entry
}

/// The sum of neighbours, of which there are a power of two, as a tree.
fn tree(masses: &[f32]) -> f32 {
    match masses {
        [mass] => *mass,
        _ => {
            let (first, second) = masses.split_at(masses.len() / 2);
            tree(first) + tree(second)
        }
    }
}

/// The leaf of a tree of masses that a point of their sum lies in, and the point within that.
fn follow(masses: &[f32], point: f32) -> (usize, f32) {
    if masses.len() == 1 {
        return (0, point);
    }
    let (first, second) = masses.split_at(masses.len() / 2);
    let before = tree(first);
    if tree(second) > 0.0 && before <= point {
        let (leaf, point) = follow(second, point - before);
        return (first.len() + leaf, point);
    }
    follow(first, point)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::philox;

    fn masses(weights: &[f32]) -> Vec<f32> {
        weights.chunks(DRAW_TILE).map(|tile| tile.iter().sum()).collect()
    }

    fn draw_of(weights: &[f32], random: [u32; 4]) -> usize {
        draw(&masses(weights), random, |id| weights.get(id).copied().unwrap_or(0.0))
    }

    #[test]
    fn only_what_has_mass_is_drawn() {
        for seed in 0..4000u32 {
            let len = 1 + (seed as usize * 37) % 1000;
            let words: Vec<u32> = (0..len as u32).map(|i| philox([i, 3, 0, 0], [seed, 1])[0]).collect();
            let sparse = seed % 97;
            let mut weights: Vec<f32> = words.iter().map(|w| if w % 97 < sparse { 0.0 } else { *w as f32 / u32::MAX as f32 }).collect();
            weights[seed as usize % len] = 1e-30;
            let ends = [[0; 4], [u32::MAX; 4], [u32::MAX, u32::MAX, 0, 0], [0, 0, u32::MAX, 0]];
            for random in ends.into_iter().chain([philox([seed, 0, 0, 0], [9, 9])]) {
                let entry = draw_of(&weights, random);
                assert!(weights.get(entry).is_some_and(|w| *w > 0.0), "seed {seed}, {random:?}: {entry} of {len}");
            }
        }
    }

    /// Every entry of a tile and every tile has the share of points that its mass is.
    #[test]
    fn points_are_shared_by_mass() {
        let weights: Vec<f32> = (0..500).map(|i| (1 + i * 7 % 13) as f32).collect();
        let total: f32 = weights.iter().sum();
        let draws = 400_000;
        let mut count = vec![0f64; weights.len()];
        for i in 0..draws {
            count[draw_of(&weights, philox([i, 1, 0, 0], [3, 5]))] += 1.0;
        }
        let expected = weights.iter().map(|w| f64::from(w / total) * f64::from(draws));
        let chi: f64 = count.iter().zip(expected).map(|(n, e)| (n - e) * (n - e) / e).sum();
        assert!(chi < 499.0 + 4.0 * (2.0f64 * 499.0).sqrt(), "chi-square {chi} of 499 degrees");
    }
}
