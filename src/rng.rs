//! Random numbers that depend on nothing but what they are for.
//!
//! Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a bijection of a 128-bit
//! counter under a 64-bit key. A draw names its key (the group) and its counter (position, sample), so it is the same on every backend,
//! in every batch and after every preemption.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: u32 = 10;

/// Four random words of a counter.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut a, mut b, mut c, mut d] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let p = u64::from(MULTIPLIERS[0]) * u64::from(a);
        let q = u64::from(MULTIPLIERS[1]) * u64::from(c);
        [a, b, c, d] = [(q >> 32) as u32 ^ b ^ k0, q as u32, (p >> 32) as u32 ^ d ^ k1, p as u32];
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [a, b, c, d]
}

/// What decides one token of a sample. `key`: of the group; `sample`: its index there; `position`: in the completion.
pub fn draw_words(key: [u32; 2], sample: u32, position: u32) -> [u32; 4] {
    philox([0, position, sample, 0], key)
}

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
}
