//! What a policy's rules say of where a program stands, whichever file stands there: by all names from the root of its file
//! system down, and for directories by those that lead to each of them. And whether a file that is allowed for where its rule's
//! path led still stands there.

use core::{arch::asm, ffi::c_void};

use aya_ebpf::helpers::bpf_loop;
use tipstaff_common::{
    limits::DEPTH,
    place::{self, BASE, INVERSE, Place, Way, place_key},
    rule::{ExecKey, KIND_FILE, KIND_PLACE, KIND_PLACE_DIRECTORY, KNOWN_ONLY, NO_RULE, REASON_CHANGED, STRICT},
    session::{HAS_PLACE_DIRECTORIES, HAS_PLACES, PolicyEntry},
};

use crate::{
    kernel::{self, Dentry, File},
    maps::{EXEC_RULES, ExecRules, POLICIES},
    program::{NO_ENTRY, UNREADABLE, entry, of_entry, word},
    verdict::{Decision, Fault},
};

/// The denial of the place where an allowed `file` stands, as [`word`] has it, or a fault in the place of the verdict; 0: it is
/// not denied. `own` is not 0 where it may stand nowhere else than when the agent looked at it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn rules_on_place(policy: u32, file: u64, own: u32) -> u64 {
    match by_place(policy, File(file), own != 0) {
        Ok(None) => 0,
        Ok(Some(denied)) => word(denied),
        Err(Fault::NoEntry) => u64::from(NO_ENTRY) << 32,
        Err(_) => u64::from(UNREADABLE) << 32,
    }
}

#[inline(always)]
fn by_place(policy: u32, file: File, own: bool) -> Result<Option<Decision>, Fault> {
    let policy: &PolicyEntry = POLICIES.get(policy).ok_or(Fault::NoEntry)?;
    if policy.flags & HAS_PLACES == 0 && !own {
        return Ok(None);
    }
    // SAFETY: the inner map lives at least until the program ends (RCU).
    let rules: &ExecRules = unsafe { EXEC_RULES.get(&policy.revision) }.ok_or(Fault::NoEntry)?;
    let inode = file.inode()?;
    if inode.is_nowhere()? {
        return Ok(None);
    }
    let dentry = file.dentry()?;
    let way = way(dentry, inode.device()?)?;
    if way.weight == 1 {
        // a file that is its own root was opened by a handle and hangs in no directory that is known
        return Err(Fault::Unreadable);
    }
    let known = entry(rules, ExecKey { file: inode.identity()?, kind: KIND_FILE, pad: 0 });
    if let Some(found) = entry(rules, place_key(way.place, KIND_PLACE)) {
        if found.flags & KNOWN_ONLY == 0 {
            return Ok(Some(of_entry(found)));
        }
        // one that is strict and allowed is what it was when the agent looked
        if known.is_none_or(|known| known.flags & (STRICT | NO_RULE) != STRICT) {
            return Ok(Some(Decision::deny(REASON_CHANGED)));
        }
    }
    // a directory above it was renamed: its rule's path leads elsewhere by now
    if own && known.is_none_or(|known| known.place != way.place.names) {
        return Ok(Some(Decision::deny(REASON_CHANGED)));
    }
    if policy.flags & HAS_PLACE_DIRECTORIES == 0 {
        return Ok(None);
    }
    let mut walk = Directories { rules, entry: dentry, way, best: Decision::allow(0), end: ON_THE_WAY };
    let context = core::ptr::from_mut(&mut walk).cast::<c_void>();
    // SAFETY: the callback takes what it is given here, and the walk outlives the call. VERIFIER: as in `by_directories`.
    unsafe { bpf_loop(DEPTH + 1, take_off as *mut c_void, context, 0) };
    match walk.end {
        ARRIVED => Ok(None),
        DENIED => Ok(Some(walk.best)),
        // moved on its way from one look to the other
        _ => Err(Fault::Unreadable),
    }
}

/// The walk goes on.
const ON_THE_WAY: u32 = 0;
/// The root is reached.
const ARRIVED: u32 = 1;
/// A name or a directory could not be read.
const LOST: u32 = 2;
/// `best` is the decision.
const DENIED: u32 = 3;

/// The walk up that adds the names up.
#[repr(C)]
struct Names {
    entry: Dentry,
    names: u64,
    weight: u64,
    end: u32,
}

/// Where an entry stands, in a file system that has this device number.
#[inline(always)]
pub fn way(entry: Dentry, device: u32) -> Result<Way, Fault> {
    let mut walk = Names { entry, names: unknown(0), weight: unknown(1), end: ON_THE_WAY };
    let context = core::ptr::from_mut(&mut walk).cast::<c_void>();
    // SAFETY: the callback takes what it is given here, and the walk outlives the call. VERIFIER: as in `by_directories`.
    unsafe { bpf_loop(DEPTH + 1, add_up as *mut c_void, context, 0) };
    match walk.end {
        ARRIVED => Ok(Way { place: Place { names: walk.names, device, pad: 0 }, weight: walk.weight }),
        LOST => Err(Fault::Unreadable),
        _ => Err(Fault::TooDeep),
    }
}

/// The value itself.
///
/// VERIFIER: before 6.7 it looks at a loop's callback as if it were called once, and takes what it finds then for all that can be: who
/// arrived would have the weight that it began with, and the branch for any other is removed. Of what a global function
/// returns it knows nothing.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn unknown(mut value: u64) -> u64 {
    // SAFETY: no instruction at all; the compiler may not know the value either.
    unsafe { asm!("", inout("r0") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// One step; the last only tells whether the root was reached. 0: go on, 1: stop.
#[inline(never)]
extern "C" fn add_up(step: u32, context: *mut c_void) -> i64 {
    // SAFETY: `way` passes its `Names`, which nothing else holds meanwhile.
    let walk = unsafe { &mut *context.cast::<Names>() };
    let Ok(above) = walk.entry.parent() else {
        walk.end = LOST;
        return 1;
    };
    if above == walk.entry {
        walk.end = ARRIVED;
        return 1;
    }
    if step == DEPTH {
        return 1;
    }
    let name = hash_of_name(walk.entry.0);
    if name == 0 {
        walk.end = LOST;
        return 1;
    }
    walk.names = walk.names.wrapping_mul(BASE).wrapping_add(name);
    walk.weight = walk.weight.wrapping_mul(BASE);
    walk.entry = above;
    0
}

/// The walk up that takes the names off again: what is left is the place of each directory.
#[repr(C)]
struct Directories<'a> {
    rules: &'a ExecRules,
    entry: Dentry,
    way: Way,
    best: Decision,
    end: u32,
}

/// One step. 0: go on, 1: stop.
#[inline(never)]
extern "C" fn take_off(_step: u32, context: *mut c_void) -> i64 {
    // SAFETY: `by_place` passes its `Directories`, which nothing else holds meanwhile.
    let walk = unsafe { &mut *context.cast::<Directories<'_>>() };
    let Ok(above) = walk.entry.parent() else {
        walk.end = LOST;
        return 1;
    };
    if above == walk.entry {
        // something is left where a directory was renamed since the names were added up
        walk.end = if walk.way.place.names == 0 { ARRIVED } else { LOST };
        return 1;
    }
    let name = hash_of_name(walk.entry.0);
    if name == 0 {
        walk.end = LOST;
        return 1;
    }
    walk.way.weight = walk.way.weight.wrapping_mul(INVERSE);
    walk.way.place.names = walk.way.place.names.wrapping_sub(name.wrapping_mul(walk.way.weight));
    walk.entry = above;
    if let Some(found) = entry(walk.rules, place_key(walk.way.place, KIND_PLACE_DIRECTORY)) {
        walk.best = of_entry(found);
        walk.end = DENIED;
        return 1;
    }
    0
}

/// The walk along a name.
#[repr(C)]
struct Letters {
    at: u64,
    number: u64,
    length: u32,
    lost: u32,
}

/// The number of an entry's name (`place::hash`); 0: it cannot be read, or is longer than names are.
///
/// VERIFIER: as `rules::rules_on_address`: the walk is verified once for both loops; and a helper's loop for its words, because
/// unrolled they were half of what the verifier did for a program that judges another.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hash_of_name(entry: u64) -> u64 {
    let Ok((at, length)) = Dentry(entry).name() else { return 0 };
    if length == 0 || length > place::NAME {
        return 0;
    }
    let mut walk = Letters { at, number: unknown(place::first(length)), length, lost: 0 };
    let context = core::ptr::from_mut(&mut walk).cast::<c_void>();
    // SAFETY: the callback takes what it is given here, and the walk outlives the call. VERIFIER: as in `by_directories`.
    unsafe { bpf_loop(place::NAME.div_ceil(8), add_word as *mut c_void, context, 0) };
    if walk.lost == 0 { place::last(walk.number) } else { 0 }
}

/// One word of a name. 0: go on, 1: stop.
#[inline(never)]
extern "C" fn add_word(step: u32, context: *mut c_void) -> i64 {
    // SAFETY: `hash_of_name` passes its `Letters`, which nothing else holds meanwhile.
    let walk = unsafe { &mut *context.cast::<Letters>() };
    let done = step * 8;
    if done >= walk.length {
        return 1;
    }
    // names begin at a word's place, so that none of these words lies on two pages
    let Ok(word) = kernel::word_at(walk.at + u64::from(done)) else {
        walk.lost = 1;
        return 1;
    };
    let left = walk.length - done;
    let kept = if left >= 8 { u64::MAX } else { (1 << (8 * left)) - 1 };
    walk.number = place::next(walk.number, word & kept);
    0
}
