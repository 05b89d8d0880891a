//! What the rules said of destinations that were asked about lately. A look at the tries costs the more the more rules there
//! are, and a map of its own before that; of an address that was judged under the same revision a moment ago the answer is
//! one look away. What a revision says does not change, and no two of a load have the same number.

use tipstaff_common::{
    fingerprint::{self, Answer, seal},
    limits,
};

use crate::{kernel, maps::ANSWERS, verdict::Decision};

/// Which entry is a fingerprint's. Another destination may have it.
#[inline(always)]
fn place(mark: u64) -> u32 {
    fingerprint::place(kernel::secret, mark, limits::ANSWERS.ilog2())
}
const _: () = assert!(limits::ANSWERS.is_power_of_two());

/// What was said of the destination with this fingerprint, if it is remembered.
#[inline(always)]
pub fn answer(mark: u64) -> Option<Decision> {
    let entry: *const Answer = ANSWERS.get_ptr_mut(place(mark))?;
    // SAFETY: points into the map. VERIFIER: volatile, because other processors write the words meanwhile; those of two
    // writers do not fit each other, unless both said the same.
    let (said, sealed) = unsafe {
        (core::ptr::read_volatile(&raw const (*entry).said), core::ptr::read_volatile(&raw const (*entry).seal))
    };
    (seal(sealed, said) == mark).then_some(Decision { verdict: (said >> 32) as u32, rule: said as u32 })
}

/// Remembers what was said.
#[inline(always)]
pub fn keep(mark: u64, decision: Decision) {
    let Some(entry) = ANSWERS.get_ptr_mut(place(mark)) else { return };
    let said = u64::from(decision.verdict) << 32 | u64::from(decision.rule);
    // SAFETY: as in `answer`.
    unsafe {
        core::ptr::write_volatile(&raw mut (*entry).said, said);
        core::ptr::write_volatile(&raw mut (*entry).seal, seal(mark, said));
    }
}
