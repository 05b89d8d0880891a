//! Which unix sockets a member may connect or send to where no LSM program decides (tier no-lsm, since 6.7). The programs
//! on Tipstaff's cgroup are asked before the kernel looks for the socket: they see the name that was given, not the socket.
//!
//! An abstract name is the socket's own. A path is not: where it leads is up to links, mounts and the caller's root. So a
//! path is let through where no rule could speak against it, or where a rule allows just this path, nobody but root can
//! change what stands there, and the caller's paths begin where the agent's do. Any other is refused.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_probe_read_kernel, bpf_probe_read_kernel_str_bytes},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use tipstaff_common::{
    event::{KIND_UNIX, Unix, VIA_CONNECT, VIA_SEND},
    limits::UNIX_NAME,
    rule::{DENY, FileId, REASON_DEFAULT, REASON_UNRESOLVED, UNIX_ABSTRACT, UNIX_SPELLED, UnixKey},
    session::{HAS_UNIX_DENIALS, HAS_UNIX_RULES, PolicyEntry},
};

use super::{
    delegation::refuse_delegate,
    unix::{copy, rule_for},
};
use crate::{
    emit,
    kernel::{self, Address, Task},
    maps::{UNIX_RULES, UnixRules},
    rules,
    session::{self, Session},
    unseen,
    verdict::{Decision, Fault, of_fault, settle},
};

/// Verdicts of cgroup programs.
const REFUSE: i32 = 0;
const PASS: i32 = 1;

/// HOOK: `cgroup/connect_unix(struct bpf_sock_addr *)`, since 6.7. The section is another's: the agent loads it for its own
/// attach type, which the loader does not know. Does not see who takes a connection, nor a pair.
#[cgroup_sock_addr(connect4)]
pub fn connect_unix(context: SockAddrContext) -> i32 {
    if refuse(&context, VIA_CONNECT, unseen::refuse_current) { REFUSE } else { PASS }
}

/// HOOK: `cgroup/sendmsg_unix(struct bpf_sock_addr *)`, since 6.7; datagrams with an address in the message. As above.
#[cgroup_sock_addr(connect4)]
pub fn sendmsg_unix(context: SockAddrContext) -> i32 {
    // a message of a program that nobody saw start is judged as any: it is not worth the verifier's time
    if refuse(&context, VIA_SEND, |_, _| false) { REFUSE } else { PASS }
}

#[inline(always)]
fn refuse(context: &SockAddrContext, via: u8, unseen: impl Fn(&Session, u32) -> bool) -> bool {
    let (session, judged) = match session::of_current_in_cgroup_program() {
        Ok(Some(found)) => found,
        Ok(None) => return false,
        Err(_) => return !kernel::is_confined(),
    };
    let place = context.as_ptr() as u64;
    // VERIFIER: the name is read once more below: kept for both, 6.12 sees what was never written where it cannot be read.
    if let Ok(address) = Address::of_context(place)
        && refuse_delegate(&session, address.name())
    {
        return true;
    }
    let name = Address::of_context(place).map(Address::name);
    let decision = match (rules::over(&session), name) {
        (Some(over), _) => over,
        (None, _) if unseen(&session, judged) => unseen::refusal(),
        (None, Ok(name)) => match judge(&session, name) {
            Ok(decision) => decision,
            Err(fault) => of_fault(fault, &session),
        },
        (None, Err(fault)) => of_fault(fault, &session),
    };
    // as with LSM: of a conversation the beginning is recorded
    if decision.is_allow() && via == VIA_SEND {
        return false;
    }
    let decision = settle(decision, &session);
    report(&session, name.unwrap_or((0, 0)), via, decision);
    decision.refuses()
}

#[inline(always)]
fn judge(session: &Session, (place, length): (u64, u32)) -> Result<Decision, Fault> {
    let policy = rules::policy(session)?;
    let default = Decision { verdict: policy.unix_default, rule: REASON_DEFAULT };
    if policy.flags & HAS_UNIX_RULES == 0 {
        return Ok(default);
    }
    // SAFETY: the inner map lives at least until the program ends (RCU).
    let rules: &UnixRules = unsafe { UNIX_RULES.get(&policy.revision) }.ok_or(Fault::NoEntry)?;
    let mut key = UnixKey { file: FileId::default(), kind: UNIX_ABSTRACT, length: 0, name: [0; UNIX_NAME] };
    // SAFETY: the helper checks the address and copies; it never faults.
    let first = unsafe { bpf_probe_read_kernel(place as *const u8) }.map_err(|_errno| Fault::Unreadable)?;
    if first == 0 {
        key.length = copy(place + 1, length.saturating_sub(1), &mut key.name)?;
        return Ok(rule_for(rules, &key).unwrap_or(default));
    }
    key.kind = UNIX_SPELLED;
    key.length = spelled(place, length, &mut key.name)?;
    match rule_for(rules, &key) {
        Some(found) if !found.is_allow() || Task::current().has_roots_view()? => Ok(found),
        _ => Ok(of_path(policy, default)),
    }
}

/// A path that no rule is known to name, or to allow for this caller.
#[inline(always)]
const fn of_path(policy: &PolicyEntry, default: Decision) -> Decision {
    if policy.unix_default == DENY || policy.flags & HAS_UNIX_DENIALS == 0 {
        return default;
    }
    Decision::deny(REASON_UNRESOLVED)
}

/// Copies a path of at most so many bytes, up to a 0 in it, into a place that is all 0; how many bytes.
#[inline(always)]
fn spelled(place: u64, length: u32, to: &mut [u8; UNIX_NAME]) -> Result<u32, Fault> {
    // with the 0 that the helper adds
    let room = (length as usize + 1).min(UNIX_NAME);
    // VERIFIER: the bound again, on the value that is used.
    let Some(part) = to.get_mut(..room) else { return Err(Fault::Unreadable) };
    // SAFETY: the helper checks the address and copies; it never faults.
    let read = unsafe { bpf_probe_read_kernel_str_bytes(place as *const u8, part) };
    read.map(|text| text.len() as u32).map_err(|_errno| Fault::Unreadable)
}

#[inline(always)]
fn report(session: &Session, (at, length): (u64, u32), via: u8, decision: Decision) {
    emit::record::<Unix>(session, KIND_UNIX, decision, |place| {
        // SAFETY: `place` has room for a `Unix`.
        unsafe {
            (&raw mut (*place).file).write(FileId::default());
            (&raw mut (*place).via).write(u32::from(via));
            (&raw mut (*place).name).write([0; UNIX_NAME]);
            let length = copy(at, length, &mut (*place).name).unwrap_or(0);
            (&raw mut (*place).length).write(length);
        }
    });
}
