//! Which unix sockets a member may connect or send to (tier full), whatever path or name it used to get there: the socket
//! at the other end is judged by its own file, by its place, by the directories above it, or by its abstract name. Before the
//! rules the class `delegation` is asked, by the name that the socket was bound to.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{bpf_loop, bpf_probe_read_kernel, bpf_probe_read_kernel_buf, bpf_probe_read_kernel_str_bytes},
    macros::lsm,
    programs::LsmContext,
};
use tipstaff_common::{
    event::{KIND_UNIX, Unix, VIA_CONNECT, VIA_SEND},
    limits::{DEPTH, UNIX_NAME},
    rule::{ALLOW, ExecEntry, FileId, REASON_DEFAULT, UNIX_ABSTRACT, UNIX_DIRECTORY, UNIX_FILE, UNIX_PLACE, UnixKey},
    session::{HAS_UNIX_DIRECTORIES, HAS_UNIX_RULES},
};

use super::delegation::refuse_delegate;
use crate::{
    emit,
    kernel::{self, Dentry, UnixSock, sock_of},
    maps::{UNIX_RULES, UnixRules},
    rules,
    session::{self, Session},
    socket,
    verdict::{Decision, Fault, of_fault, settle},
};

/// HOOK: `unix_stream_connect(struct sock *sock, struct sock *other, struct sock *newsk)`, LSM since 5.7.
#[lsm(hook = "unix_stream_connect")]
pub fn unix_stream_connect(context: LsmContext) -> i32 {
    kernel::answer(refuse(context.arg(1), VIA_CONNECT))
}

/// HOOK: `unix_may_send(struct socket *sock, struct socket *other)`, LSM since 5.7; connect and each message of datagrams.
#[lsm(hook = "unix_may_send")]
pub fn unix_may_send(context: LsmContext) -> i32 {
    let other = sock_of(context.arg(1));
    kernel::answer(!other.is_null() && refuse(other, VIA_SEND))
}

/// Copies a name out of kernel memory; how many bytes.
#[inline(always)]
pub fn copy(place: u64, length: u32, to: &mut [u8; UNIX_NAME]) -> Result<u32, Fault> {
    let length = (length as usize).min(UNIX_NAME);
    // VERIFIER: the bound again, on the value that is used.
    let Some(part) = to.get_mut(..length) else { return Err(Fault::Unreadable) };
    // SAFETY: the helper checks the address and copies; it never faults.
    unsafe { bpf_probe_read_kernel_buf(place as *const u8, part) }.map_err(|_errno| Fault::Unreadable)?;
    Ok(length as u32)
}

/// Copies a string out of kernel memory into a place that is all 0; how many bytes, without the last 0.
#[inline(always)]
fn text(place: u64, to: &mut [u8; UNIX_NAME]) -> Result<u32, Fault> {
    // SAFETY: the helper checks the address and copies; it never faults.
    let read = unsafe { bpf_probe_read_kernel_str_bytes(place as *const u8, to) };
    read.map(|text| text.len() as u32).map_err(|_errno| Fault::Unreadable)
}

#[inline(always)]
fn refuse(other: *mut c_void, via: u8) -> bool {
    // every process passes here with each datagram
    let session = if via == VIA_SEND { session::of_current_often() } else { session::of_current() };
    let Some(session) = session else { return false };
    let (place, length) = match UnixSock(other as u64).name() {
        // a pair, or a client that answers nobody by name
        Ok(None) => return false,
        Ok(Some(name)) => name,
        // judged below, which cannot read it either
        Err(_) => (0, 0),
    };
    let own = socket::is_own(socket::label(other), &session);
    if !own && refuse_delegate(&session, (place, length)) {
        return true;
    }
    let mut file = FileId::default();
    let decision = match rules::over(&session) {
        Some(over) => over,
        None => match judge(&session, other, (place, length), &mut file, own) {
            Ok(decision) => decision,
            Err(fault) => of_fault(fault, &session),
        },
    };
    // each message of a conversation is judged; what goes on is recorded where it begins
    if decision.is_allow() && (via == VIA_SEND || own) {
        return false;
    }
    let decision = settle(decision, &session);
    report(&session, (place, length), file, via, decision);
    decision.refuses()
}

/// Deny beats allow, whichever key it stands under; the session's own sockets need no rule.
#[inline(always)]
fn judge(
    session: &Session,
    other: *mut c_void,
    (place, length): (u64, u32),
    file: &mut FileId,
    own: bool,
) -> Result<Decision, Fault> {
    let policy = rules::policy(session)?;
    let mut query = Query {
        sock: other as u64,
        place,
        length,
        flags: policy.flags,
        revision: policy.revision,
        verdict: if own { ALLOW } else { policy.unix_default },
        rule: REASON_DEFAULT,
        pad: 0,
        file: *file,
    };
    let outcome = rules_on_unix_socket(&raw mut query);
    *file = query.file;
    match outcome {
        FOUND => Ok(Decision { verdict: query.verdict, rule: query.rule }),
        TOO_DEEP => Err(Fault::TooDeep),
        NO_ENTRY => Err(Fault::NoEntry),
        _ => Err(Fault::Unreadable),
    }
}

/// What the rules of a revision are asked about the socket at the other end.
#[repr(C)]
pub struct Query {
    /// Its `struct unix_sock`.
    sock: u64,
    /// Where its name is.
    place: u64,
    length: u32,
    /// Of the policy.
    flags: u32,
    revision: u32,
    /// Before: what holds where no rule speaks of it. After: what holds.
    verdict: u32,
    /// As `verdict`.
    rule: u32,
    pad: u32,
    /// After: its file, where it has one.
    file: FileId,
}

const FOUND: u32 = 0;
const UNREADABLE: u32 = 1;
const TOO_DEEP: u32 = 2;
const NO_ENTRY: u32 = 3;

/// VERIFIER: as `rules::rules_on_address`: verified by itself, once for each program.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn rules_on_unix_socket(query: *mut Query) -> u32 {
    if query.is_null() {
        return UNREADABLE;
    }
    // SAFETY: not null; the caller passes its own.
    let query = unsafe { &mut *query };
    match search(query) {
        Ok(best) => {
            (query.verdict, query.rule) = (best.verdict, best.rule);
            FOUND
        }
        Err(Fault::TooDeep) => TOO_DEEP,
        Err(Fault::NoEntry) => NO_ENTRY,
        Err(_) => UNREADABLE,
    }
}

#[inline(always)]
fn search(query: &mut Query) -> Result<Decision, Fault> {
    let default = Decision { verdict: query.verdict, rule: query.rule };
    // SAFETY: the helper checks the address and copies; it never faults.
    let first = unsafe { bpf_probe_read_kernel(query.place as *const u8) }.map_err(|_errno| Fault::Unreadable)?;
    let is_abstract = first == 0;
    let mut entry = Dentry(0);
    if !is_abstract {
        entry = UnixSock(query.sock).dentry()?;
        query.file = entry.identity()?;
    }
    if query.flags & HAS_UNIX_RULES == 0 {
        return Ok(default);
    }
    // SAFETY: the query is valid. VERIFIER: volatile, so that the key is on the stack: 6.1 takes none out of an argument.
    let revision = unsafe { core::ptr::read_volatile(&raw const query.revision) };
    // SAFETY: the inner map lives at least until the program ends (RCU).
    let rules: &UnixRules = unsafe { UNIX_RULES.get(&revision) }.ok_or(Fault::NoEntry)?;
    // VERIFIER: by arithmetic, so that it follows the loop for one number that it does not know, not for each that it does.
    let mut steps = FIRST_DIRECTORY + DEPTH * (query.flags / HAS_UNIX_DIRECTORIES % 2);
    let mut abstract_name = NO_NAME;
    if is_abstract {
        abstract_name = query.length.saturating_sub(1);
        steps = 1;
    }
    let name = query.place + 1;
    let mut walk = Walk { rules, entry, file: query.file, name, abstract_name, best: default, end: ON_THE_WAY };
    let context = core::ptr::from_mut(&mut walk).cast::<c_void>();
    // SAFETY: the callback takes what it is given here, and the walk outlives the call. VERIFIER: every look-up is in the
    // loop's body, which is verified once; one after the other before the loop, they are too much for 6.1.
    unsafe { bpf_loop(steps, step as *mut c_void, context, 0) };
    match walk.end {
        LOST => Err(Fault::Unreadable),
        ON_THE_WAY if steps > FIRST_DIRECTORY => Err(Fault::TooDeep),
        _ => Ok(walk.best),
    }
}

/// The search by the socket's file or abstract name, by its place, and by the directories above, in this order.
#[repr(C)]
struct Walk<'a> {
    rules: &'a UnixRules,
    entry: Dentry,
    /// The socket's own.
    file: FileId,
    /// Where an abstract name begins.
    name: u64,
    /// Its length, or `NO_NAME`.
    abstract_name: u32,
    end: u32,
    best: Decision,
}

const PLACE: u32 = 1;
const FIRST_DIRECTORY: u32 = 2;
/// A socket with a file.
const NO_NAME: u32 = u32::MAX;
/// The walk goes on.
const ON_THE_WAY: u32 = 0;
/// `best` is the decision.
const ARRIVED: u32 = 1;
/// Something could not be read.
const LOST: u32 = 2;

/// One step. 0: go on, 1: stop.
#[inline(never)]
extern "C" fn step(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `search` passes its `Walk`, which nothing else holds meanwhile.
    let walk = unsafe { &mut *context.cast::<Walk<'_>>() };
    // VERIFIER: made anew in each step: in the walk, every step would be verified for every key of the one before.
    let mut key = UnixKey { file: walk.file, kind: UNIX_FILE, length: 0, name: [0; UNIX_NAME] };
    let found = if index >= PLACE { above(walk, index, &mut key) } else { own(walk, &mut key) };
    match found {
        Ok(true) => {}
        Ok(false) => {
            walk.end = ARRIVED;
            return 1;
        }
        Err(_) => {
            walk.end = LOST;
            return 1;
        }
    }
    if let Some(decision) = rule_for(walk.rules, &key) {
        walk.best = decision;
        if !decision.is_allow() {
            walk.end = ARRIVED;
            return 1;
        }
    }
    0
}

/// The key of the socket itself.
#[inline(always)]
fn own(walk: &Walk<'_>, key: &mut UnixKey) -> Result<bool, Fault> {
    if walk.abstract_name != NO_NAME {
        key.kind = UNIX_ABSTRACT;
        key.length = copy(walk.name, walk.abstract_name, &mut key.name)?;
    }
    Ok(true)
}

/// The key of its place, or of the next directory. False: there is none above.
#[inline(always)]
fn above(walk: &mut Walk<'_>, index: u32, key: &mut UnixKey) -> Result<bool, Fault> {
    let above = walk.entry.parent()?;
    if above == walk.entry {
        return Ok(false);
    }
    key.file = above.identity()?;
    if index == PLACE {
        key.kind = UNIX_PLACE;
        key.length = text(walk.entry.name()?.0, &mut key.name)?;
    } else {
        key.kind = UNIX_DIRECTORY;
        walk.entry = above;
    }
    Ok(true)
}

/// What the rules say under one key.
#[inline(always)]
pub fn rule_for(rules: &UnixRules, key: &UnixKey) -> Option<Decision> {
    // SAFETY: copied out at once; the inner map is never written after its revision is in force.
    let found = *unsafe { rules.get(key) }?;
    // SAFETY: eight bytes that the agent wrote as an `ExecEntry`, two integers.
    let found = unsafe { core::mem::transmute::<u64, ExecEntry>(found) };
    Some(Decision { verdict: found.verdict, rule: found.rule })
}

#[inline(always)]
fn report(session: &Session, (at, length): (u64, u32), file: FileId, via: u8, decision: Decision) {
    emit::answer::<Unix>(session, KIND_UNIX, decision, |place| {
        // SAFETY: `place` has room for a `Unix`.
        unsafe {
            (&raw mut (*place).file).write(file);
            (&raw mut (*place).via).write(u32::from(via));
            (&raw mut (*place).name).write([0; UNIX_NAME]);
            let length = copy(at, length, &mut (*place).name).unwrap_or(0);
            (&raw mut (*place).length).write(length);
        }
    });
}
