//! Counting and reporting. A decision is made before anything here runs, and nothing here can change it: a record that
//! finds no room is counted, by session and kind and by CPU.

use core::arch::asm;

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use tipstaff_common::{
    event::{self, Header},
    rule::{DENY, KILL, is_violation},
};

use crate::{
    kernel::{self, Task},
    maps::{ACTIVITY, LOST, READER_AWAKE, VERDICTS},
    session::Session,
    verdict::Decision,
};

/// Adds atomically to a counter in a map; the value before.
#[inline(always)]
pub fn add(counter: *mut u64, by: u64) -> u64 {
    let before;
    // SAFETY: the pointer came from a map look-up that the verifier checked; counters are 8-byte aligned. The target has
    // no `AtomicU64::fetch_add` (rustc: no compare-and-swap), the instruction set has had it since 5.12.
    unsafe {
        asm!("{value} = atomic_fetch_add((u64 *)({place} + 0), {value})",
            place = in(reg) counter, value = inout(reg) by => before, options(nostack));
    }
    before
}

/// Whom a record is about.
#[derive(Clone, Copy)]
pub struct Who {
    tgid: u32,
    tid: u32,
    uid: u32,
}

impl Who {
    /// Nobody: a packet goes when the kernel sends it, whoever runs then.
    pub const NOBODY: Self = Self { tgid: 0, tid: 0, uid: 0 };

    /// The task that runs.
    #[inline(always)]
    fn current() -> Self {
        let (tgid, tid) = kernel::current_ids();
        Self { tgid, tid, uid: kernel::uid() }
    }

    /// Another task; the user is that of the task that runs.
    #[inline(always)]
    pub fn task(task: Task) -> Self {
        Self { tgid: task.tgid().unwrap_or(0), tid: task.tid().unwrap_or(0), uid: kernel::uid() }
    }
}

/// Produces one record of `T`, as [`produce`], if this is the load that speaks.
#[inline(always)]
pub fn record<T: 'static>(session: &Session, kind: u16, decision: Decision, fill: impl FnOnce(*mut T)) {
    if kernel::speaks() {
        produce(session, kind, decision, fill);
    }
}

/// For LSM programs: as [`record`], but who refuses says so whichever load speaks. The kernel asks no other program after
/// one that refused.
#[inline(always)]
pub fn answer<T: 'static>(session: &Session, kind: u16, decision: Decision, fill: impl FnOnce(*mut T)) {
    if decision.refuses() || kernel::speaks() {
        produce(session, kind, decision, fill);
    }
}

/// Produces one record of `T` (whose first field is the header) about the task that runs, and lets `fill` write the rest. For
/// programs that asked for themselves whether they speak: who claims an operation must also record it, whatever the word
/// is by then.
///
/// Every byte of `T` but the header is `fill`'s to write: ring memory is not cleared.
#[inline(always)]
pub fn produce<T: 'static>(session: &Session, kind: u16, decision: Decision, fill: impl FnOnce(*mut T)) {
    produce_of(session, kind, Who::current(), decision, fill);
}

/// As [`produce`], about another task, or where none is known.
#[inline(always)]
pub fn produce_of<T: 'static>(session: &Session, kind: u16, who: Who, decision: Decision, fill: impl FnOnce(*mut T)) {
    let Some(counters) = session.counters() else { return };
    // SAFETY: `counters` points into a map; `kind` is a constant below 8 at every call.
    let (produced, lost, sequence) = unsafe {
        (
            &raw mut (*counters).produced[kind as usize],
            &raw mut (*counters).lost[kind as usize],
            &raw mut (*counters).sequence,
        )
    };
    add(produced, 1);
    // what a packet is refused is nobody's deed: it came from a stranger, or was on its way when the scope was narrowed
    if who.tgid != 0 && matches!(decision.verdict, DENY | KILL) && is_violation(decision.rule) {
        // SAFETY: as above.
        add(unsafe { &raw mut (*counters).violations[kind as usize] }, 1);
    }
    let sequence = add(sequence, 1) + 1;
    let header = Header {
        version: event::VERSION,
        kind,
        length: size_of::<T>() as u32,
        time: if session.seen == 0 { kernel::now() } else { session.seen },
        sequence,
        slot: session.slot,
        generation: session.generation,
        tgid: who.tgid,
        tid: who.tid,
        uid: who.uid,
        verdict: decision.verdict,
        rule: decision.rule,
        pad: 0,
    };
    let activity = event::is_activity(kind, decision.verdict);
    let entry = if activity { ACTIVITY.reserve_untyped::<T>(0) } else { VERDICTS.reserve_untyped::<T>(0) };
    let Some(mut entry) = entry else {
        add(lost, 1);
        if let Some(all) = LOST.get_ptr_mut(u32::from(kind)) {
            add(all, 1);
        }
        return;
    };
    let place = entry.as_mut_ptr();
    // SAFETY: the header is the first field of every record type, and the reservation has room for all of `T`.
    unsafe { place.cast::<Header>().write(header) };
    fill(place);
    entry.submit(wake_up());
}

/// Whether the reader must be woken: not while it is awake and looks by itself. It clears the word before it sleeps, and
/// then asks once more whether anything was reserved.
///
/// The word is read after the reservation, and by an atomic addition, which is a full barrier: whoever still finds it set
/// made a reservation that the reader's last question sees.
#[inline(always)]
fn wake_up() -> u64 {
    match READER_AWAKE.get_ptr_mut(0) {
        Some(awake) if add(awake, 0) != 0 => u64::from(BPF_RB_NO_WAKEUP),
        // the kernel wakes for the first record that the reader has not come to
        _ => 0,
    }
}
