//! Which session is this task, this cgroup, this packet; and is it over.
//!
//! "No label" is not "outside": storage look-ups also fail under the kernel's recursion guard. A task is outside only
//! when its label, its entry in the mirror, its group leader's entry and its cgroup all say so.

use core::ffi::c_void;

use tipstaff_common::{
    label::{CONFINED, DOOMED, Label, Mirrored, SessionRef},
    session::{MODE_ENFORCE, STATE_ACTIVE, STATE_UNDONE, SessionCounters, state_word},
};

use crate::{
    emit,
    kernel::{self, Cgroup, Task},
    maps::{CGROUP_SESSIONS, MIRROR, SESSION_CONFIG, SESSION_COUNTERS, SESSION_STATE, TASK_LABELS},
    verdict::Fault,
};

/// `Label::exec_id` of a task whose present program was never judged.
pub const NEVER_JUDGED: u32 = u32::MAX;

/// Whether a session still holds.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Members run in their scope.
    Live,
    /// The deadline has passed.
    Expired,
    /// The agent ended it, or the label is of an earlier session in this slot, or the task is doomed.
    Ended,
}

/// A session as a hook sees it, read once.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Session {
    /// Index into the session arrays.
    pub slot: u32,
    /// Generation of the label that led here.
    pub generation: u32,
    /// Flags of that label.
    pub flags: u32,
    /// `MODE_OBSERVE` or `MODE_ENFORCE`.
    pub mode: u32,
    /// Index into `POLICIES`.
    pub policy: u32,
    /// Whether it still holds.
    pub phase: Phase,
    /// `CLOCK_BOOTTIME` nanoseconds by which that was told, which its records bear; 0: by the coarse clock, or not by time.
    pub seen: u64,
}

impl Session {
    /// Nobody's, and over.
    const NONE: Self =
        Self { slot: 0, generation: 0, flags: 0, mode: MODE_ENFORCE, policy: 0, phase: Phase::Ended, seen: 0 };

    /// Reads the session that a label names.
    #[inline(always)]
    fn load(slot: u32, generation: u32, flags: u32) -> Self {
        let now = kernel::now();
        Self { seen: now, ..Self::load_at(slot, generation, flags, now) }
    }

    #[inline(always)]
    fn load_at(slot: u32, generation: u32, flags: u32, now: u64) -> Self {
        let word = SESSION_STATE.get(slot).copied().unwrap_or(0);
        let ended = Self { slot, generation, flags, ..Self::NONE };
        if (word >> 32) as u32 != generation {
            return ended;
        }
        let Some(config) = SESSION_CONFIG.get(slot) else { return ended };
        // a kill that could not be delivered: what is left of the task does nothing more, and the clock finds it
        let phase = if word as u32 != STATE_ACTIVE || flags & DOOMED != 0 {
            Phase::Ended
        } else if now > config.deadline {
            Phase::Expired
        } else {
            Phase::Live
        };
        // SAFETY: points into the map. VERIFIER: volatile, because the agent may change the word meanwhile: all of one
        // decision is made under the policy that is read here.
        let policy = unsafe { core::ptr::read_volatile(&raw const config.policy) };
        Self { slot, generation, flags, mode: config.mode, policy, phase, seen: 0 }
    }

    /// The session's counters.
    #[inline(always)]
    pub fn counters(&self) -> Option<*mut SessionCounters> {
        SESSION_COUNTERS.get_ptr_mut(self.slot)
    }

    /// Counts a decision that ended in a fault.
    #[inline(always)]
    pub fn count_fault(&self) {
        if let (true, Some(counters)) = (kernel::speaks(), self.counters()) {
            // SAFETY: points into the map.
            emit::add(unsafe { &raw mut (*counters).faults }, 1);
        }
    }

    /// Counts a signal that the kernel did not take.
    #[inline(always)]
    pub fn count_failed_signal(&self) {
        if let (true, Some(counters)) = (kernel::speaks(), self.counters()) {
            // SAFETY: points into the map.
            emit::add(unsafe { &raw mut (*counters).signals_failed }, 1);
        }
    }

    /// Counts a dropped packet.
    #[inline(always)]
    pub fn count_dropped_packet(&self) {
        if let (true, Some(counters)) = (kernel::speaks(), self.counters()) {
            // SAFETY: points into the map.
            emit::add(unsafe { &raw mut (*counters).packets_dropped }, 1);
        }
    }
}

/// The mirror's word on a task. An entry of a task that is gone (its exit was not seen) does not count.
#[inline(always)]
pub fn mirrored(task: Task) -> Option<Mirrored> {
    let entry = entry_of(task)?;
    (task.tid() == Ok(entry.tid)).then_some(entry)
}

#[inline(always)]
fn entry_of(task: Task) -> Option<Mirrored> {
    // SAFETY: copied out at once; a concurrent delete can at worst give a value that the thread id then refuses.
    unsafe { MIRROR.get(task.0) }.copied()
}

/// Whether the mirror has an entry at the task's place in memory, whosever it is.
#[inline(always)]
pub fn has_entry(task: Task) -> bool {
    entry_of(task).is_some()
}

/// The mirror's word on the task that runs.
#[inline(always)]
pub fn own_mirrored(task: Task) -> Option<Mirrored> {
    entry_of(task).filter(|entry| entry.tid == kernel::current_ids().1)
}

/// The current task's entry in the mirror, or its group leader's.
#[inline(always)]
fn current_mirrored() -> Option<Mirrored> {
    let task = Task::current();
    if let Some(entry) = own_mirrored(task) {
        return Some(entry);
    }
    let leader = kernel::current_leader();
    if leader.0 == task.0 { None } else { mirrored(leader) }
}

/// The current task's session by the mirror alone.
#[inline(always)]
fn current_by_mirror() -> Option<Session> {
    let entry = current_mirrored()?;
    Some(Session::load(entry.slot, entry.generation, entry.flags))
}

/// The session whose cgroup has this id.
#[inline(always)]
pub fn by_cgroup_id(id: u64) -> Option<SessionRef> {
    // SAFETY: copied out at once.
    unsafe { CGROUP_SESSIONS.get(id) }.copied()
}

/// The session whose cgroup this is, or lies above it.
#[inline(always)]
pub fn of_cgroup(cgroup: Cgroup) -> Option<SessionRef> {
    by_cgroup_id(cgroup.ancestor(kernel::session_level()).ok()??)
}

/// The current task's session, for LSM and tracing programs. A task that is only known by its leader or by its cgroup
/// is labelled.
#[inline(always)]
pub fn of_current() -> Option<Session> {
    read(|place| session_of_current(place))
}

/// Writes the current task's session. 0: it is in none.
///
/// VERIFIER: a function that other objects could call too, so that it is verified by itself: what a session can be is
/// followed once, and not once more for every way in which it is found.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn session_of_current(place: *mut Session) -> u32 {
    write(place, find_current())
}

/// What such a function writes.
#[inline(always)]
fn read(find: impl FnOnce(*mut Session) -> u32) -> Option<Session> {
    let mut session = Session::NONE;
    (find(&raw mut session) != 0).then_some(session)
}

/// Where it is found, and whether the verifier knows that there is a place.
#[inline(always)]
fn write(place: *mut Session, found: Option<Session>) -> u32 {
    let (false, Some(session)) = (place.is_null(), found) else { return 0 };
    // SAFETY: not null; the callers pass their own.
    unsafe { *place = session };
    1
}

#[inline(always)]
fn find_current() -> Option<Session> {
    let label = TASK_LABELS.get(kernel::current_pointer(), false);
    if !label.is_null() {
        // SAFETY: points into the task's storage, which lives while the program runs.
        let label = unsafe { *label };
        return Some(Session::load(label.slot, label.generation, label.flags));
    }
    let task = Task::current();
    let label = match current_mirrored() {
        // its own label could not be read, or it is a thread older than its leader's label
        Some(entry) => {
            Label { slot: entry.slot, generation: entry.generation, flags: entry.flags, exec_id: entry.exec_id }
        }
        None => {
            let found = by_cgroup_id(kernel::current_ancestor())?;
            if kernel::is_agent(kernel::current_ids().0) {
                return None;
            }
            Label { slot: found.slot, generation: found.generation, flags: CONFINED, exec_id: NEVER_JUDGED }
        }
    };
    if is_undone(label) {
        // what is taken off at this moment is not given back: nobody would take it off again
        return None;
    }
    let session = of_label(label);
    if give(kernel::current_pointer(), task, label).is_err() {
        session.count_fault();
    }
    Some(session)
}

/// The current task's session in a cgroup program, where task storage may not be read, and the number of its last exec that
/// was judged, or `NEVER_JUDGED`. `Err`: the task is in a cgroup below Tipstaff's own that no live session owns.
#[inline(always)]
pub fn of_current_in_cgroup_program() -> Result<Option<(Session, u32)>, Fault> {
    if let Some(entry) = current_mirrored() {
        return Ok(Some((Session::load(entry.slot, entry.generation, entry.flags), entry.exec_id)));
    }
    if !kernel::is_beneath(kernel::current_ancestor_at) || kernel::is_agent(kernel::current_ids().0) {
        return Ok(None);
    }
    Ok(of_subtree(kernel::current_ancestor())?.map(|session| (session, NEVER_JUDGED)))
}

/// The session that owns what lies below Tipstaff's cgroup under the cgroup `id` (0: directly in Tipstaff's cgroup,
/// which is nobody's).
#[inline(always)]
pub fn of_subtree(id: u64) -> Result<Option<Session>, Fault> {
    if id == 0 {
        return Ok(None);
    }
    let found = by_cgroup_id(id).ok_or(Fault::NoEntry)?;
    Ok(Some(Session::load(found.slot, found.generation, CONFINED)))
}

/// True while the labels of this session are to be taken off again.
#[inline(always)]
pub fn is_undone(label: Label) -> bool {
    let word = SESSION_STATE.get(label.slot).copied().unwrap_or(0);
    word == state_word(label.generation, STATE_UNDONE)
}

/// The session that a socket's label names, by the coarse clock.
#[inline(always)]
pub fn of_socket(slot: u32, generation: u32, flags: u32) -> Session {
    Session::load_at(slot, generation, flags, kernel::coarse_now())
}

/// The current task's session for hooks that every process passes at every message: its label, else its entry in the
/// mirror. What is only known by its cgroup is labelled at its first exec, connect or bind.
#[inline(always)]
pub fn of_current_often() -> Option<Session> {
    read(|place| session_of_current_often(place))
}

/// Writes the current task's session, as [`of_current_often`]. 0: it is in none.
///
/// VERIFIER: as [`session_of_current`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn session_of_current_often(place: *mut Session) -> u32 {
    write(place, find_current_often())
}

#[inline(always)]
fn find_current_often() -> Option<Session> {
    let label = TASK_LABELS.get(kernel::current_pointer(), false);
    if label.is_null() {
        let entry = own_mirrored(Task::current())?;
        return Some(Session::load(entry.slot, entry.generation, entry.flags));
    }
    // SAFETY: points into the task's storage, which lives while the program runs.
    let label = unsafe { *label };
    Some(of_label(label))
}

/// Gives a task its label, in storage and in the mirror. True: it had no entry in the mirror before.
#[inline(always)]
pub fn give(pointer: *mut c_void, task: Task, label: Label) -> Result<bool, Fault> {
    let place = TASK_LABELS.get(pointer, true);
    if place.is_null() {
        // by its entry in the mirror it is a member all the same, and whoever asks next tries again
        return mirror(task, label).and(Err(Fault::Unlabelled));
    }
    // SAFETY: points into the task's storage.
    unsafe { *place = label };
    mirror(task, label)
}

/// Writes the mirror's entry of a labelled task. True: it had none before.
#[inline(always)]
pub fn mirror(task: Task, label: Label) -> Result<bool, Fault> {
    let Label { slot, generation, flags, exec_id } = label;
    let entry = Mirrored { slot, generation, flags, exec_id, tid: task.tid()? };
    // SAFETY: only compared; a concurrent delete can at worst give a value that the thread id then refuses.
    let fresh = match unsafe { MIRROR.get(task.0) } {
        Some(before) if *before == entry => return Ok(false),
        // one of a task that is gone is as good as none
        Some(before) => before.tid != entry.tid,
        None => true,
    };
    MIRROR.insert(task.0, entry, 0).map_err(|_errno| Fault::Unlabelled)?;
    Ok(fresh)
}

/// Marks the current task for death, for when a signal was not taken.
#[inline(always)]
pub fn doom_current() {
    let label = TASK_LABELS.get(kernel::current_pointer(), false);
    if !label.is_null() {
        // SAFETY: points into the task's storage; only this task's own hooks write its flags.
        unsafe { (*label).flags |= DOOMED };
    }
}

/// The session that a label names.
#[inline(always)]
pub fn of_label(label: Label) -> Session {
    Session::load(label.slot, label.generation, label.flags)
}

/// The current task's session by what it already carries: nothing is adopted.
#[inline(always)]
pub fn of_label_of_current() -> Option<Session> {
    let label = TASK_LABELS.get(kernel::current_pointer(), false);
    if label.is_null() {
        return current_by_mirror();
    }
    // SAFETY: points into the task's storage.
    Some(of_label(unsafe { *label }))
}
