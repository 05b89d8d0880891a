//! What a policy's rules say of a program: by which file it is, by the directories above it, by where it stands, by its classes
//! and, once it is in place, by its first argument.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_loop, bpf_probe_read_user_str_bytes};
use tipstaff_common::{
    limits::DEPTH,
    rule::{
        ALLOW, CLASS_BY_DESCRIPTOR, CLASS_DELETED, CLASS_LOADER, CLASS_MEMFD, CLASS_MULTI_CALL, CLASS_WRITTEN, CLASSES,
        DENY, ExecKey, KIND_DIRECTORY, KIND_FILE, NO_RULE, PINNED, ProgramEntry, REASON_CHANGED, REASON_DEFAULT,
        REASON_FAULT, REASON_UNRESOLVED, STRICT, WORD_BYTES, WORDS, WORDS_ONLY, class_key, word_key,
    },
    session::{HAS_DIRECTORIES, PolicyEntry, ROOT_WRITES},
};

use crate::{
    kernel::{Binprm, Dentry, File, Inode, Task},
    maps::{EXEC_RULES, ExecRules, POLICIES, SESSION_CONFIG},
    place::rules_on_place,
    session::Session,
    verdict::{Decision, Fault},
};

/// When a program is judged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Before the point of no return: it can be refused; its arguments are not in place.
    Before,
    /// After it: the arguments are in the new program's own memory, which nobody else can write.
    After,
}

/// What a session's policy says of the program `file` that `bprm` holds now.
#[inline(always)]
pub fn judge(session: &Session, bprm: Binprm, file: File, stage: Stage) -> Result<Decision, Fault> {
    // VERIFIER: the functions take no pointer to a kernel's structure, so what only that tells is told as bits.
    let mut asked = if stage == Stage::Before { BEFORE } else { 0 };
    if bprm.is_script() {
        asked |= SCRIPT;
    }
    asked |= match bprm.is_by_descriptor() {
        Ok(true) => BY_DESCRIPTOR,
        Ok(false) => 0,
        Err(_) => UNKNOWN,
    };
    whole(session, file, asked)
}

/// As [`judge`], of a program that runs already.
#[inline(always)]
pub fn judge_running(session: &Session, file: File) -> Result<Decision, Fault> {
    whole(session, file, 0)
}

/// By which file it is, and what is allowed so by where it stands.
///
/// VERIFIER: one after the other: one within the other, their frames and those of whoever asks are more than 512 bytes.
#[inline(always)]
fn whole(session: &Session, file: File, asked: u32) -> Result<Decision, Fault> {
    let found = rules_on_program(session.policy, session.slot, file.0, asked);
    // a fault's word has all these bits
    let own = (found >> 32) as u32 == ALLOW | OWN;
    let decision = if own { Decision::allow(found as u32) } else { decided(found)? };
    if decision.verdict != ALLOW {
        return Ok(decision);
    }
    let denied = rules_on_place(session.policy, file.0, u32::from(own));
    if denied == 0 { Ok(decision) } else { decided(denied) }
}

/// What [`rules_on_program`] or [`rules_on_place`] found.
#[inline(always)]
fn decided(found: u64) -> Result<Decision, Fault> {
    match (found >> 32) as u32 {
        verdict @ (ALLOW | DENY) => Ok(Decision { verdict, rule: found as u32 }),
        UNREADABLE => Err(Fault::Unreadable),
        _ => Err(Fault::NoEntry),
    }
}

/// [`Stage::Before`].
const BEFORE: u32 = 1;
/// It is a script: another program will be judged after it.
const SCRIPT: u32 = 2;
/// It was started by a descriptor and no name.
const BY_DESCRIPTOR: u32 = 4;
/// It cannot be told whether it was.
const UNKNOWN: u32 = 8;

/// In the place of a verdict: the program could not be looked at.
pub const UNREADABLE: u32 = u32::MAX;
/// In the place of a verdict: a map has no entry.
pub const NO_ENTRY: u32 = u32::MAX - 1;

/// Beside [`ALLOW`]: it is of a rule on the file itself, and nothing else would allow it.
const OWN: u32 = 1 << 16;

/// Verdict and rule in one word.
pub const fn word(decision: Decision) -> u64 {
    (decision.verdict as u64) << 32 | decision.rule as u64
}

/// What the rules say, as [`word`] has it, with [`OWN`], or a fault in the place of the verdict.
///
/// VERIFIER: as `rules::rules_on_address`, and the same for the two functions below. Inlined, each of three programs is
/// verified along every path that leads to it, and took 160 ms instead of 5 (6.18, measured).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn rules_on_program(policy: u32, slot: u32, file: u64, asked: u32) -> u64 {
    match by_rules(policy, slot, File(file), asked) {
        Ok((decision, own)) => word(decision) | if own { u64::from(OWN) << 32 } else { 0 },
        Err(Fault::Unreadable | Fault::TooDeep) => u64::from(UNREADABLE) << 32,
        Err(_) => u64::from(NO_ENTRY) << 32,
    }
}

/// Deny beats allow, whether the rule names the program or a directory above it; no rule means the policy's default. What
/// is allowed so can still be of a class that is denied. With it, whether it is for what [`OWN`] says.
#[inline(always)]
fn by_rules(policy: u32, slot: u32, file: File, asked: u32) -> Result<(Decision, bool), Fault> {
    let refused = |decision: Decision| Ok((decision, false));
    let identity = file.identity()?;
    let policy: &PolicyEntry = POLICIES.get(policy).ok_or(Fault::NoEntry)?;
    // SAFETY: the inner map lives at least until the program ends (RCU).
    let rules: &ExecRules = unsafe { EXEC_RULES.get(&policy.revision) }.ok_or(Fault::NoEntry)?;
    let default = Decision { verdict: policy.exec_default, rule: REASON_DEFAULT };
    let inode = file.inode()?;
    if inode.is_nowhere()? {
        // no rule but one on its class can name it
        let class = entry(rules, class_key(CLASS_MEMFD));
        return refused(class.map_or(default, of_entry));
    }
    let mut named = ProgramEntry { flags: NO_RULE, ..ProgramEntry::default() };
    if let Some(found) = entry(rules, ExecKey { file: identity, kind: KIND_FILE, pad: 0 }) {
        named = found;
    }
    let mut stale = false;
    if named.flags & PINNED != 0 && !stands(inode, &named)? {
        if named.flags & STRICT != 0 {
            return refused(Decision::deny(REASON_CHANGED));
        }
        stale = true;
        named.flags |= NO_RULE;
    }
    let (mut best, mut own) = (default, false);
    if named.flags & NO_RULE == 0 {
        if named.verdict != ALLOW {
            return refused(of_entry(named));
        }
        if named.flags & WORDS_ONLY == 0 {
            best = of_entry(named);
            own = true;
        }
    }
    if policy.flags & HAS_DIRECTORIES != 0 {
        let before = best.rule;
        best = by_directories(rules, file, best)?;
        if best.verdict != ALLOW && best.rule != REASON_DEFAULT {
            return refused(best);
        }
        own = own && best.rule == before;
    }
    if named.flags & (WORDS | NO_RULE) == WORDS {
        // of a script the interpreter alone is seen later
        if asked & (BEFORE | SCRIPT) == BEFORE | SCRIPT {
            return refused(Decision::deny(REASON_UNRESOLVED));
        }
        if asked & BEFORE == 0 {
            if let Some(word) = by_word(rules, named.words)? {
                own = own || best.verdict != ALLOW;
                best = of_entry(word);
            }
        } else if named.rule != REASON_DEFAULT {
            // rules that only deny some first arguments allow nothing
            own = own || best.verdict != ALLOW;
            best = of_entry(named);
        }
    }
    if best.verdict != ALLOW {
        return refused(if stale && best.rule == REASON_DEFAULT { Decision::deny(REASON_CHANGED) } else { best });
    }
    let vetted = named.flags & (PINNED | NO_RULE) == PINNED;
    let descriptor = if asked & BY_DESCRIPTOR != 0 { 1 << CLASS_BY_DESCRIPTOR } else { 0 };
    let known = named.flags & ((1 << CLASSES) - 1) | descriptor | u32::from(vetted) << CLASSES;
    let classes = classes_of_program(slot, file.0, known);
    if classes == UNREADABLE || asked & UNKNOWN != 0 {
        return Err(Fault::Unreadable);
    }
    let denied = class_that_is_denied(policy.revision, classes);
    if denied != 0 {
        return refused(Decision { verdict: (denied >> 32) as u32, rule: denied as u32 });
    }
    Ok((best, own && named.place != 0 && default.verdict != ALLOW))
}

#[inline(always)]
pub fn of_entry(entry: ProgramEntry) -> Decision {
    Decision { verdict: entry.verdict, rule: entry.rule }
}

/// Whether the file is as it was when the agent looked at it.
#[inline(always)]
fn stands(inode: Inode, entry: &ProgramEntry) -> Result<bool, Fault> {
    if inode.content()? != entry.content {
        return Ok(false);
    }
    Ok(entry.flags & STRICT == 0 || !inode.has_writers()?)
}

/// The classes that a program is of, a bit each, or `UNREADABLE`. `known`: those that it is of already, and above them
/// whether the agent looked at this very content.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn classes_of_program(slot: u32, file: u64, known: u32) -> u32 {
    classes(slot, File(file), known).unwrap_or(UNREADABLE)
}

#[inline(always)]
fn classes(slot: u32, file: File, known: u32) -> Result<u32, Fault> {
    let inode = file.inode()?;
    let (mut classes, vetted) = (known & ((1 << CLASSES) - 1), known >> CLASSES != 0);
    if inode.links()? == 0 {
        classes |= 1 << CLASS_DELETED;
    }
    classes |= by_name(file.dentry()?.name_start()?);
    if !vetted {
        let config = SESSION_CONFIG.get(slot).ok_or(Fault::NoEntry)?;
        // a file of root's that got another name where others may write was linked or moved there by them
        let others = config.flags & ROOT_WRITES == 0
            && inode.is_roots_alone()?
            && file.dentry()?.parent()?.inode()?.is_roots_alone()?;
        if inode.content()?.changed >= config.written_since && !others {
            classes |= 1 << CLASS_WRITTEN;
        }
    }
    Ok(classes)
}

/// What loaders and multi-call programs are called, for those that the agent did not find.
#[inline(always)]
fn by_name(name: [u8; 8]) -> u32 {
    let name = u64::from_le_bytes(name);
    let starts = |with: &[u8; 8], length: u32| (name ^ u64::from_le_bytes(*with)) << (64 - 8 * length) == 0;
    let loaders = starts(b"ld-linux", 8) || starts(b"ld-musl-", 8) || starts(b"ld-2.\0\0\0", 5);
    if loaders || starts(b"ld.so\0\0\0", 5) || starts(b"ld64.so\0", 7) {
        return 1 << CLASS_LOADER;
    }
    if starts(b"busybox\0", 7) || starts(b"toybox\0\0", 6) {
        return 1 << CLASS_MULTI_CALL;
    }
    0
}

/// The denial of one of the classes, as [`word`] has it; 0: none of them is denied.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn class_that_is_denied(revision: u32, classes: u32) -> u64 {
    // SAFETY: the inner map lives at least until the program ends (RCU).
    let Some(rules) = (unsafe { EXEC_RULES.get(&revision) }) else { return word(Decision::deny(REASON_FAULT)) };
    for class in 0..CLASSES {
        if classes & (1 << class) == 0 {
            continue;
        }
        if let Some(found) = entry(rules, class_key(class))
            && found.verdict != ALLOW
        {
            return word(of_entry(found));
        }
    }
    0
}

/// The walk along the new program's arguments to the end of the first.
#[repr(C)]
struct Name {
    at: u64,
    done: u32,
    pad: u32,
}

/// Bytes of the program's own name that are read at once.
///
/// VERIFIER: no more, because the frames of a program on the names of unix sockets, of the rules and of this walk are 512 bytes.
const STEP: usize = 32;
/// Steps: more than `PATH_MAX` bytes of it.
const STEPS: u32 = 134;

/// What the rules say of the first argument after the program's name; `None`: nothing, or there is none.
#[inline(always)]
fn by_word(rules: &ExecRules, words: u32) -> Result<Option<ProgramEntry>, Fault> {
    let (start, end) = Task::current().arguments()?;
    let mut name = Name { at: start, done: 0, pad: 0 };
    let context = core::ptr::from_mut(&mut name).cast::<c_void>();
    // SAFETY: the callback takes what it is given here, and the name outlives the call. VERIFIER: as in `by_directories`.
    unsafe { bpf_loop(STEPS, skip_name as *mut c_void, context, 0) };
    if name.done != 1 {
        return Err(Fault::Unreadable);
    }
    if name.at >= end {
        return Ok(None);
    }
    // one byte more than a rule can name, and the 0
    let mut text = [0u8; WORD_BYTES + 2];
    // SAFETY: the helper copies from the current task's memory and never faults.
    let read = unsafe { bpf_probe_read_user_str_bytes(name.at as *const u8, &mut text) };
    let length = read.map_err(|_errno| Fault::Unreadable)?.len();
    if length > WORD_BYTES {
        return Ok(None);
    }
    let mut word = [0u8; WORD_BYTES];
    word.copy_from_slice(&text[..WORD_BYTES]);
    Ok(entry(rules, word_key(word, words)))
}

/// One step along the program's own name. 0: go on, 1: stop.
#[inline(never)]
extern "C" fn skip_name(_step: u32, context: *mut c_void) -> i64 {
    // SAFETY: `by_word` passes its `Name`, which nothing else holds meanwhile.
    let name = unsafe { &mut *context.cast::<Name>() };
    let mut part = [0u8; STEP];
    // SAFETY: the helper copies from the current task's memory and never faults.
    let Ok(read) = (unsafe { bpf_probe_read_user_str_bytes(name.at as *const u8, &mut part) }) else { return 1 };
    let length = read.len();
    name.at += length as u64;
    if length < STEP - 1 {
        name.at += 1;
        name.done = 1;
        return 1;
    }
    0
}

/// The walk up from a program to the root of its file system. Mounts are not crossed: what a member mounts somewhere
/// does not move a file into a directory, nor out of one.
#[repr(C)]
struct Walk<'a> {
    rules: &'a ExecRules,
    entry: Dentry,
    best: Decision,
    end: u32,
}

/// The walk goes on, and reached no root within `DEPTH` if it still does when it stops.
const ON_THE_WAY: u32 = 0;
/// `best` is the decision.
const ARRIVED: u32 = 1;
/// A directory could not be read.
const LOST: u32 = 2;

#[inline(always)]
fn by_directories(rules: &ExecRules, file: File, best: Decision) -> Result<Decision, Fault> {
    let mut walk = Walk { rules, entry: file.dentry()?, best, end: ON_THE_WAY };
    let context = core::ptr::from_mut(&mut walk).cast::<c_void>();
    // SAFETY: the callback takes what it is given here, and the walk outlives the call. VERIFIER: a helper's loop, whose
    // body is verified once; unrolled over `DEPTH` it is two thirds of all that the verifier does for this object.
    unsafe { bpf_loop(DEPTH + 1, climb as *mut c_void, context, 0) };
    match walk.end {
        ARRIVED => Ok(walk.best),
        LOST => Err(Fault::Unreadable),
        _ => Err(Fault::TooDeep),
    }
}

/// One step of the walk; the last only tells whether the root was reached. 0: go on, 1: stop.
#[inline(never)]
extern "C" fn climb(step: u32, context: *mut c_void) -> i64 {
    // SAFETY: `by_directories` passes its `Walk`, which nothing else holds meanwhile.
    let walk = unsafe { &mut *context.cast::<Walk<'_>>() };
    let Ok(above) = walk.entry.parent() else {
        walk.end = LOST;
        return 1;
    };
    if above == walk.entry {
        // a file that is its own root was opened by a handle and hangs in no directory that is known
        walk.end = if step == 0 { LOST } else { ARRIVED };
        return 1;
    }
    if step == DEPTH {
        return 1;
    }
    walk.entry = above;
    let Ok(identity) = above.identity() else {
        walk.end = LOST;
        return 1;
    };
    if let Some(found) = entry(walk.rules, ExecKey { file: identity, kind: KIND_DIRECTORY, pad: 0 }) {
        walk.best = of_entry(found);
        if found.verdict != ALLOW {
            walk.end = ARRIVED;
            return 1;
        }
    }
    0
}

#[inline(always)]
pub fn entry(rules: &ExecRules, key: ExecKey) -> Option<ProgramEntry> {
    // SAFETY: copied out at once; the inner map is never written after its revision is in force.
    let found = *unsafe { rules.get(key) }?;
    // SAFETY: 40 bytes that the agent wrote as a `ProgramEntry`, integers all of them.
    Some(unsafe { core::mem::transmute::<[u64; 5], ProgramEntry>(found) })
}
