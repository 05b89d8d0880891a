//! Where a file stands: the names of all directories above it in its file system and its own, as one number. The kernel
//! walks up from a file and the agent down to one; both come to the same. It is no digest: who finds another way with the same
//! number (which is easy) has found one that is denied too, or to which an allowed file can be moved and run on.

use crate::{
    pod,
    rule::{ExecKey, FileId},
};

/// What a name further down weighs more.
pub const BASE: u64 = 0x9e37_79b9_7f4a_7c15;
/// What takes a weight back.
pub const INVERSE: u64 = inverse(BASE);
const _: () = assert!(BASE.wrapping_mul(INVERSE) == 1);

/// Bytes of the longest name that file systems of Linux have (`NAME_MAX`).
pub const NAME: u32 = 255;

/// All names from the root of a file system down to a file, and the file system.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The sum of the names' numbers, each times [`BASE`] to the power of the directories above it but for the root.
    pub names: u64,
    /// `super_block.s_dev`
    pub device: u32,
    /// Always 0.
    pub pad: u32,
}
const _: () = assert!(size_of::<Place>() == 16);

/// A place, and what a name below it weighs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Way {
    /// The place of the directory or file itself.
    pub place: Place,
    /// [`BASE`] to the power of the names on the way; 0: the way is not known.
    pub weight: u64,
}
const _: () = assert!(size_of::<Way>() == 24);

impl Way {
    /// The root of a file system.
    #[must_use]
    pub const fn root(device: u32) -> Self {
        Self { place: Place { names: 0, device, pad: 0 }, weight: 1 }
    }

    /// What is called so in this directory.
    #[must_use]
    pub fn below(self, name: &[u8]) -> Self {
        let names = self.place.names.wrapping_add(hash(name).wrapping_mul(self.weight));
        Self { place: Place { names, ..self.place }, weight: self.weight.wrapping_mul(BASE) }
    }
}

/// The key of a place in an inner map of `EXEC_RULES`; `kind`: `KIND_PLACE` or `KIND_PLACE_DIRECTORY`.
#[must_use]
pub const fn place_key(place: Place, kind: u32) -> ExecKey {
    ExecKey { file: FileId { inode: place.names, device: place.device, generation: 0 }, kind, pad: 0 }
}

/// The place of a key; see [`place_key`].
#[must_use]
pub const fn place_of(key: &ExecKey) -> Place {
    Place { names: key.file.inode, device: key.file.device, pad: 0 }
}

/// The number of one name, never 0.
#[must_use]
pub fn hash(name: &[u8]) -> u64 {
    let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
    let word = |part: &[u8]| {
        let mut bytes = [0; 8];
        bytes[..part.len()].copy_from_slice(part);
        u64::from_le_bytes(bytes)
    };
    last(name.chunks(8).fold(first(length), |number, part| next(number, word(part))))
}

/// The number of a name of so many bytes before its first word.
#[inline(always)]
#[must_use]
pub const fn first(length: u32) -> u64 {
    BASE ^ length as u64
}

/// With the next eight bytes, the first of them lowest; zeros after the name's end.
#[inline(always)]
#[must_use]
pub const fn next(number: u64, word: u64) -> u64 {
    let number = (number ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
    number ^ number >> 32
}

/// After the last word.
#[inline(always)]
#[must_use]
pub const fn last(number: u64) -> u64 {
    if number == 0 { 1 } else { number }
}

/// The inverse of an odd number among those of 64 bits: each step doubles the bits that are right.
const fn inverse(of: u64) -> u64 {
    let (mut found, mut steps) = (of, 0);
    while steps < 6 {
        found = found.wrapping_mul(2u64.wrapping_sub(of.wrapping_mul(found)));
        steps += 1;
    }
    found
}

pod!(Place, Way);

#[cfg(test)]
mod tests {
    use super::*;

    fn way(names: &[&str]) -> Way {
        names.iter().fold(Way::root(1), |way, name| way.below(name.as_bytes()))
    }

    #[test]
    fn a_walk_up_comes_to_the_same_as_one_down() {
        let names = ["usr", "lib", "a-name-of-more-than-sixteen-bytes", "x"];
        let whole = way(&names);
        // as the kernel adds up, and as it takes off again
        let up = names.iter().rev().fold(0u64, |sum, name| sum.wrapping_mul(BASE).wrapping_add(hash(name.as_bytes())));
        assert_eq!(up, whole.place.names);
        let (mut rest, mut weight) = (whole.place.names, whole.weight);
        for above in (0..names.len()).rev() {
            weight = weight.wrapping_mul(INVERSE);
            rest = rest.wrapping_sub(hash(names[above].as_bytes()).wrapping_mul(weight));
            assert_eq!((rest, weight), (way(&names[..above]).place.names, way(&names[..above]).weight));
        }
        assert_eq!((rest, weight), (0, 1));
    }

    #[test]
    fn other_ways_have_other_numbers() {
        let ways = [
            &["a", "b"][..],
            &["b", "a"],
            &["ab"],
            &["a", "b", "b"],
            &["a"],
            &["a\0"],
            &["aaaaaaaa"],
            &["aaaaaaaaa"],
            &["aaaaaaaa", "a"],
            &[],
        ];
        for (index, one) in ways.iter().enumerate() {
            assert!(ways[..index].iter().all(|other| way(other).place != way(one).place), "{one:?}");
        }
        let long = |end: &str| way(&[&("x".repeat(254) + end)]).place;
        assert!(long("y") != long("z") && long("") != long("x"));
        assert_ne!(way(&["a"]).place, Way::root(2).below(b"a").place);
    }
}
