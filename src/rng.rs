//! Random numbers that depend on nothing but what they are for.
//!
//! Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a bijection of a 128-bit
//! counter under a 64-bit key. A draw names its key (the group) and its counter (entry of the vocabulary, position, sample), so
//! its noise is the same on every backend, in every batch and after every preemption.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: u32 = 10;

/// Four random words of a counter.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    philox_lanes(counter.map(|word| [word]), key).map(|[word]| word)
}

/// [`philox`] of `N` counters at once: `counters[w][i]` is word `w` of counter `i`. Plain loops, so that a caller compiled for
/// wide registers gets wide code.
#[inline(always)]
pub fn philox_lanes<const N: usize>(counters: [[u32; N]; 4], key: [u32; 2]) -> [[u32; N]; 4] {
    let [mut a, mut b, mut c, mut d] = counters;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        for i in 0..N {
            let p = u64::from(MULTIPLIERS[0]) * u64::from(a[i]);
            let q = u64::from(MULTIPLIERS[1]) * u64::from(c[i]);
            a[i] = (q >> 32) as u32 ^ b[i] ^ k0;
            b[i] = q as u32;
            c[i] = (p >> 32) as u32 ^ d[i] ^ k1;
            d[i] = p as u32;
        }
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [a, b, c, d]
}

/// Standard Gumbel noise of a random word: `-ln(-ln(1 - u))` with `u = (word + ½) / 2³²`.
///
/// Large noise, which decides draws, comes from small `u`, where words are finest: up to 22.87 (`word = 0`). Computed in f64
/// (`-ln(1 - u)` as `-log1p(-u)`) and rounded once.
pub fn gumbel(word: u32) -> f32 {
    let u = (f64::from(word) + 0.5) * (-32f64).exp2();
    -libm::log(-libm::log1p(-u)) as f32
}

/// ln 2, rounded up by more than the products of [`gumbel_bound`] can lose.
const LN_2_ABOVE: f32 = 0.693_147_4;

/// No smaller than [`gumbel`] of the word, by less than 0.7 where noise is large: `u ≥ 2^-(z + 1)` for `z` leading zeros,
/// and `-ln(1 - u) ≥ u`.
#[inline(always)]
pub fn gumbel_bound(word: u32) -> f32 {
    LN_2_ABOVE * (word.leading_zeros() + 1) as f32
}

/// No smaller than any noise.
pub const GUMBEL_MAX: f32 = 33.0 * LN_2_ABOVE;

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the authors' library (Random123, kat_vectors).
    #[test]
    fn philox_known_answers() {
        let check = |counter, key, want: [u32; 4]| assert_eq!(philox(counter, key), want);
        check([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        check([u32::MAX; 4], [u32::MAX; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        check([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0], [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }

    #[test]
    fn philox_lanes_are_philox() {
        let index: [u32; 16] = std::array::from_fn(|i| 1000 + i as u32);
        let lanes = philox_lanes([index, [7; 16], [3; 16], [0; 16]], [11, 12]);
        for i in 0..16 {
            assert_eq!(philox([index[i], 7, 3, 0], [11, 12]), lanes.map(|word| word[i]));
        }
    }

    #[test]
    fn gumbel_is_finite_and_bounded() {
        let mut words = vec![0, 1, 2, 3, u32::MAX, u32::MAX - 1, 1 << 31, (1 << 31) - 1];
        words.extend((0..32).flat_map(|bit| [1u32 << bit, (1 << bit) - 1, (1 << bit) + 1]));
        words.extend((0..20_000).map(|i| philox([i, 0, 0, 0], [1, 2])[0]));
        for word in words {
            let noise = gumbel(word);
            assert!(noise.is_finite() && noise <= gumbel_bound(word) && gumbel_bound(word) <= GUMBEL_MAX, "{word}: {noise}");
        }
        assert!((gumbel(0) - 22.8739).abs() < 1e-3, "{}", gumbel(0));
    }

    #[test]
    fn gumbel_has_the_mean_and_variance_of_its_law() {
        let n = 200_000;
        let noise: Vec<f64> = (0..n).map(|i| f64::from(gumbel(philox([i, 0, 0, 0], [5, 6])[0]))).collect();
        let mean = noise.iter().sum::<f64>() / f64::from(n);
        let variance = noise.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(n);
        assert!((mean - 0.577_216).abs() < 0.01, "{mean}");
        assert!((variance - std::f64::consts::PI.powi(2) / 6.0).abs() < 0.03, "{variance}");
    }
}
