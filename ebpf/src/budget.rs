//! Budgets: what all members of a session may use up together. Counted where an operation is recorded as allowed, in the
//! kernel alone; a refused operation uses nothing up.

use core::arch::asm;

use tipstaff_common::{
    rule::{
        REASON_BUDGET_CONNECT_RATE, REASON_BUDGET_CONNECTS, REASON_BUDGET_DESTINATIONS, REASON_BUDGET_EGRESS,
        REASON_BUDGET_EGRESS_RATE,
    },
    session::{Budgets, SessionCounters, WINDOW_COUNT_BITS},
    socket::Destination,
};

use crate::{
    emit::add,
    headers::TCP,
    kernel,
    maps::{DESTINATIONS, SESSION_CONFIG},
    rules::Target,
    session::Session,
    verdict::{Decision, Fault, of_fault, settle},
};

const SECOND: u64 = 1_000_000_000;
const COUNT: u64 = (1 << WINDOW_COUNT_BITS) - 1;
/// Bytes of the segment that opens a connection of TCP, at most: by IPv6, with the options that the kernel sends.
const OPENING: u64 = 80;
/// `BPF_NOEXIST`
const NEW: u64 = 1;
/// `-EEXIST`
const EXISTS: i32 = -17;
/// Processors that can reset a window at the same moment before one of them gives up, which is a fault.
const TRIES: u32 = 8;
/// Bits of a second that a window keeps.
const SECONDS: u64 = u64::MAX >> WINDOW_COUNT_BITS;
/// Seconds by which a program can be behind the window: it was held up after it looked at its clock, or has the coarse one.
const BEHIND: u64 = 8;

/// Replaces the word where it still is `expected`; what it was.
#[inline(always)]
fn swap(word: *mut u64, expected: u64, new: u64) -> u64 {
    let before;
    // SAFETY: as `emit::add`; `cmpxchg` compares with r0 and leaves there what it found.
    unsafe {
        asm!("r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word, new = in(reg) new, inout("r0") expected => before, options(nostack));
    }
    before
}

/// Counts `by` in the second that runs: the second that it was counted in, and whether there is no more than `limit` in it.
#[inline(always)]
fn within_second(word: *mut u64, by: u64, limit: u64, now: u64) -> Result<(u64, bool), Fault> {
    let second = (now / SECOND) & SECONDS;
    for _ in 0..TRIES {
        let before = add(word, by);
        let counted = before >> WINDOW_COUNT_BITS;
        // another processor is in the next second already: its count is not thrown away for the one before
        if counted.wrapping_sub(second) & SECONDS <= BEHIND {
            return Ok((counted, (before & COUNT) + by <= limit));
        }
        let stale = before.wrapping_add(by);
        if swap(word, stale, second << WINDOW_COUNT_BITS | by) == stale {
            return Ok((second, by <= limit));
        }
    }
    Err(Fault::Contended)
}

/// Takes back what was counted in a second and does not happen.
#[inline(always)]
fn take_back(word: *mut u64, by: u64, second: u64) {
    for _ in 0..TRIES {
        // SAFETY: points into the map. VERIFIER: volatile, because other processors change the word meanwhile.
        let before = unsafe { core::ptr::read_volatile(word) };
        // the next second has begun, and began without it
        if before >> WINDOW_COUNT_BITS != second || before & COUNT < by {
            return;
        }
        if swap(word, before, before - by) == before {
            return;
        }
    }
}

/// Whether a session has any budget at all.
#[inline(always)]
pub fn of(session: &Session) -> Option<&'static Budgets> {
    SESSION_CONFIG.get(session.slot).map(|config| &config.budgets)
}

/// Where what a budget refused is counted. The agent ends a session by this count (`on.budget`), whatever becomes of the
/// record.
#[inline(always)]
fn refusals(counters: *mut SessionCounters, reason: u32) -> *mut u64 {
    // SAFETY: points into the map; each budget has its place.
    unsafe { (&raw mut (*counters).used_up).cast::<u64>().add((reason - REASON_BUDGET_CONNECTS) as usize) }
}

/// A refusal because a budget is used up, counted where the session's mode carries it out.
#[inline(always)]
fn used_up(session: &Session, counters: *mut SessionCounters, reason: u32) -> Decision {
    let decision = Decision::deny(reason);
    if settle(decision, session).refuses() {
        add(refusals(counters, reason), 1);
    }
    decision
}

/// Counts a connect, or a send to a new address, that the rules allow; the budget can still refuse it.
#[inline(always)]
pub fn charge_connect(session: &Session, target: &Target, allowed: Decision) -> Decision {
    let (Some(budgets), Some(counters)) = (of(session), session.counters()) else {
        return of_fault(Fault::NoEntry, session);
    };
    // whose first segment is dropped waits for minutes
    let would_wait = target.protocol == TCP && is_beyond(budgets, counters, OPENING);
    if would_wait && settle(Decision::deny(REASON_BUDGET_EGRESS), session).refuses() {
        return used_up(session, counters, REASON_BUDGET_EGRESS);
    }
    // SAFETY: points into the map.
    let connects = unsafe { &raw mut (*counters).connects };
    let before = add(connects, 1);
    let refused = if budgets.connects != 0 && before >= budgets.connects {
        used_up(session, counters, REASON_BUDGET_CONNECTS)
    } else {
        rate_and_destinations(session, budgets, counters, target, allowed)
    };
    if !refused.is_allow() {
        add(connects, u64::MAX);
    }
    refused
}

#[inline(always)]
fn rate_and_destinations(
    session: &Session,
    budgets: &Budgets,
    counters: *mut SessionCounters,
    target: &Target,
    allowed: Decision,
) -> Decision {
    // SAFETY: points into the map.
    let window = unsafe { &raw mut (*counters).connect_window };
    let mut second = 0;
    if budgets.connects_per_second != 0 {
        // a packet's session bears no time
        let now = if session.seen != 0 { session.seen } else { kernel::now() };
        match within_second(window, 1, budgets.connects_per_second, now) {
            Ok((counted, true)) => second = counted,
            Ok((_, false)) => return used_up(session, counters, REASON_BUDGET_CONNECT_RATE),
            Err(fault) => return of_fault(fault, session),
        }
    }
    if budgets.destinations == 0 {
        return allowed;
    }
    let refused = match visit(session, budgets.destinations, counters, target) {
        Ok(true) => return allowed,
        Ok(false) => used_up(session, counters, REASON_BUDGET_DESTINATIONS),
        Err(fault) => of_fault(fault, session),
    };
    if budgets.connects_per_second != 0 {
        take_back(window, 1, second);
    }
    refused
}

/// True: the session has been there, or may go to one more place.
#[inline(always)]
fn visit(session: &Session, limit: u64, counters: *mut SessionCounters, target: &Target) -> Result<bool, Fault> {
    let key = Destination { slot: session.slot, generation: session.generation, address: target.address };
    // SAFETY: only asked whether it is there.
    if unsafe { DESTINATIONS.get(key) }.is_some() {
        return Ok(true);
    }
    // SAFETY: points into the map.
    let places = unsafe { &raw mut (*counters).destinations };
    if add(places, 1) >= limit {
        add(places, u64::MAX);
        return Ok(false);
    }
    match DESTINATIONS.insert(key, 1, NEW) {
        Ok(()) => Ok(true),
        Err(error) => {
            add(places, u64::MAX);
            // another member was there in the same moment; any other error means that the map is full
            if error == EXISTS { Ok(true) } else { Err(Fault::Full) }
        }
    }
}

/// Counts the bytes of a packet out. `Err`: what the session's mode makes of the budget's refusal, and whether it is the
/// first; what is refused uses nothing up, and a larger packet than fits leaves room for smaller ones. `now` is asked where it
/// counts: nanoseconds of `CLOCK_BOOTTIME`.
#[inline(always)]
pub fn charge_bytes(
    session: &Session,
    counters: *mut SessionCounters,
    bytes: u64,
    now: impl FnOnce() -> u64,
) -> Result<(), (Decision, bool)> {
    // SAFETY: points into the map.
    let (total, window) = unsafe { (&raw mut (*counters).egress_bytes, &raw mut (*counters).egress_window) };
    let before = add(total, bytes);
    let Some(budgets) = of(session) else { return Ok(()) };
    let (mut in_window, mut second) = (false, 0);
    let refused = if budgets.egress_bytes != 0 && before + bytes > budgets.egress_bytes {
        REASON_BUDGET_EGRESS
    } else if budgets.egress_bytes_per_second != 0 {
        match within_second(window, bytes, budgets.egress_bytes_per_second, now()) {
            Ok((_, true)) => return Ok(()),
            Ok((counted, false)) => (in_window, second) = (true, counted),
            Err(_) => {}
        }
        REASON_BUDGET_EGRESS_RATE
    } else {
        return Ok(());
    };
    let decision = settle(Decision::deny(refused), session);
    if !decision.refuses() {
        // SAFETY: points into the map.
        return Err((decision, add(unsafe { &raw mut (*counters).over_budget }, 1) == 0));
    }
    add(total, bytes.wrapping_neg());
    if in_window {
        take_back(window, bytes, second);
    }
    Err((decision, add(refusals(counters, refused), 1) == 0))
}

/// Whether a session's bytes out may have a bound.
#[inline(always)]
pub fn bounds_bytes(session: &Session) -> bool {
    of(session).is_none_or(|budgets| budgets.egress_bytes | budgets.egress_bytes_per_second != 0)
}

/// Counts the bytes of a message of a socket whose packets no program sees.
#[inline(always)]
pub fn charge_message(session: &Session, bytes: u64) -> Decision {
    let (Some(_), Some(counters)) = (of(session), session.counters()) else {
        return settle(of_fault(Fault::NoEntry, session), session);
    };
    match charge_bytes(session, counters, bytes, kernel::now) {
        Ok(()) => Decision::allow(0),
        Err((decision, _)) => decision,
    }
}

/// Whether so many bytes more are over the total of bytes out.
#[inline(always)]
fn is_beyond(budgets: &Budgets, counters: *mut SessionCounters, bytes: u64) -> bool {
    // SAFETY: points into the map.
    let sent = unsafe { core::ptr::read_volatile(&raw const (*counters).egress_bytes) };
    budgets.egress_bytes != 0 && sent.saturating_add(bytes) > budgets.egress_bytes
}

/// What becomes of a message of so many bytes by the total of bytes out: a stream's sender is told before its packets are
/// dropped; where one was (the kernel joins what is sent to packets that are larger than a message), once it is `spent`.
#[inline(always)]
pub fn judge_message(session: &Session, bytes: u64, spent: bool) -> Decision {
    let (Some(budgets), Some(counters)) = (of(session), session.counters()) else { return Decision::allow(0) };
    if budgets.egress_bytes == 0 || !(spent || is_beyond(budgets, counters, bytes)) {
        return Decision::allow(0);
    }
    settle(used_up(session, counters, REASON_BUDGET_EGRESS), session)
}
