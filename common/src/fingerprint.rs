//! One word that stands for an address and the revision of rules it was judged under. What is kept of a verdict is kept under
//! such a word, so nobody may be able to choose two addresses that have the same one.

use crate::pod;

/// 32-bit words that are hashed: four of the address, the revision, protocol and port.
pub const WORDS: usize = 6;
/// Random numbers that the hashes are made with.
pub const SECRETS: usize = 2 * WORDS + 2;

/// The fingerprint of six words; never 0, which stands for "none". `secret` gives the load's random numbers, by index below
/// [`SECRETS`].
///
/// Each half is the upper half of a sum of products with random numbers modulo 2⁶⁴ (multilinear hashing: Dietzfelbinger,
/// "Universal hashing and k-wise independent random variables via integer arithmetic without primes", 1996): two different
/// inputs, whatever they are, have the same half with a probability of 2⁻³². A hash of multiplications one after the other is
/// cheaper and no such thing: differences in the highest bits pass through it whatever the secret is.
#[inline(always)]
pub fn fingerprint(secret: impl Fn(usize) -> u64, words: [u32; WORDS]) -> u64 {
    let (mut upper, mut lower) = (0_u64, 0_u64);
    let mut at = 0;
    while at < WORDS {
        let word = u64::from(words[at]);
        upper = upper.wrapping_add(secret(at).wrapping_mul(word));
        lower = lower.wrapping_add(secret(WORDS + at).wrapping_mul(word));
        at += 1;
    }
    (upper & !0xffff_ffff) | (lower >> 32) | 1
}

/// Which of `1 << bits` places is a fingerprint's, by a hash of its own: who finds out by the time that it takes which
/// addresses share a place does not know bits of their fingerprints by that.
#[inline(always)]
pub fn place(secret: impl Fn(usize) -> u64, mark: u64, bits: u32) -> u32 {
    let (upper, lower) = (mark >> 32, mark & 0xffff_ffff);
    let sum = secret(2 * WORDS).wrapping_mul(upper).wrapping_add(secret(2 * WORDS + 1).wrapping_mul(lower));
    (sum >> (u64::BITS - bits)) as u32
}

/// The value in `ANSWERS`: what the rules said of one destination. Both words are written without a lock: those of two writers
/// do not fit each other, unless both said the same.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Verdict in the upper half, rule in the lower.
    pub said: u64,
    /// The fingerprint, sealed with what was said: [`seal`].
    pub seal: u64,
}
const _: () = assert!(size_of::<Answer>() == 16);

/// Binds a fingerprint to what was said. Its own inverse: what was said and the seal give the fingerprint.
#[inline(always)]
#[must_use]
pub const fn seal(mark: u64, said: u64) -> u64 {
    mark ^ said.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

pod!(Answer);

#[cfg(test)]
mod tests {
    use super::{SECRETS, WORDS, fingerprint, place, seal};

    /// A generator that is good enough for secrets of a test (splitmix64).
    fn secrets(seed: u64) -> [u64; SECRETS] {
        let mut state = seed;
        core::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        })
    }

    fn of(secrets: &[u64; SECRETS], words: [u32; WORDS]) -> u64 {
        fingerprint(|at| secrets[at], words)
    }

    /// Every difference of up to three bits, among them the highest of each word, whatever the secret.
    #[test]
    fn words_that_differ_in_few_bits_differ_in_their_fingerprint() {
        let base = [0x2001_0db8, 0, 0, 1, 7, 6 << 16 | 443];
        let bits = WORDS * 32;
        let flip = |mut words: [u32; WORDS], bit: usize| {
            words[bit / 32] ^= 1 << (bit % 32);
            words
        };
        for seed in 0..4 {
            let secrets = secrets(seed);
            let mark = of(&secrets, base);
            for a in 0..bits {
                for b in a..bits {
                    for c in b..bits {
                        let other = flip(flip(flip(base, a), b), c);
                        // two of the same bit leave one, which was looked at
                        assert!(other == base || of(&secrets, other) != mark, "seed {seed}, bits {a}, {b}, {c}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_place_says_nothing_of_the_fingerprint() {
        let (one, mut two) = (secrets(1), secrets(1));
        two[2 * WORDS..].copy_from_slice(&secrets(2)[2 * WORDS..]);
        let marks = (0..64).map(|n| [n, 0, 0, 0, 7, 53]);
        let moved = marks.filter(|words| {
            let mark = of(&one, *words);
            assert_eq!(mark, of(&two, *words));
            let [before, after] = [&one, &two].map(|secrets| place(|at| secrets[at], mark, 12));
            assert!(before < 4096 && after < 4096);
            before != after
        });
        assert!(moved.count() > 56);
    }

    #[test]
    fn no_fingerprint_is_none() {
        assert_ne!(of(&[0; SECRETS], [0; WORDS]), 0);
    }

    #[test]
    fn half_of_another_answer_does_not_fit() {
        let secrets = secrets(9);
        let (one, two) = (of(&secrets, [1; WORDS]), of(&secrets, [2; WORDS]));
        let (allow, deny) = (5_u64, 1 << 32 | 9);
        assert_eq!(seal(seal(one, allow), allow), one);
        for torn in [seal(seal(one, allow), deny), seal(seal(two, deny), allow)] {
            assert!(torn != one && torn != two);
        }
    }
}
