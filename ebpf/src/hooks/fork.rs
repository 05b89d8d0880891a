//! Membership: every new task of a member is a member, and a task that enters a session's cgroup becomes one.

use core::ffi::c_void;

use aya_ebpf::{
    macros::{btf_tracepoint, lsm},
    programs::{BtfTracePointContext, LsmContext},
};
use tipstaff_common::{
    event::{Exit, Fork, KIND_EXIT, KIND_FORK, KIND_MOVE, Move},
    label::{CONFINED, DOOMED, JOINED, Label, SessionRef},
    rule::{ALLOW, KILL, REASON_DEFAULT, REASON_ENDED, REASON_EXPIRED, REASON_LEAVES},
};

use crate::{
    emit::{self, Who},
    kernel::{self, Cgroup, Task},
    maps::{MIRROR, TASK_LABELS},
    session::{self, NEVER_JUDGED, Phase, Session},
    unseen,
    verdict::{Decision, Fault, of_fault, settle},
};

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// HOOK: `task_alloc(struct task_struct *task, unsigned long clone_flags)`, LSM since 5.7. Sees every new task, io_uring
/// workers too, and can refuse it; the fork can still fail afterwards, so the mirror is written later.
#[lsm(hook = "task_alloc")]
pub fn task_alloc(context: LsmContext) -> i32 {
    // VERIFIER: two exits with constants, as in `bprm_check_security`.
    if refuse_fork(context.arg(0), context.arg(1)) { -1 } else { 0 }
}

#[inline(always)]
fn refuse_fork(child: *mut c_void, flags: u64) -> bool {
    let Some(session) = session::of_current() else { return false };
    let decision = match may_fork(&session) {
        // only here can it be refused without killing somebody: in tier no-lsm the child is a member wherever it is born
        Decision { verdict: ALLOW, .. } if flags & CLONE_INTO_CGROUP != 0 => Decision::deny(REASON_LEAVES),
        Decision { verdict: ALLOW, .. } => match copy_label(&session, child) {
            Ok(_) => return false,
            Err(fault) => of_fault(fault, &session),
        },
        denied => denied,
    };
    let decision = settle(decision, &session);
    let refuses = decision.refuses();
    if !refuses {
        // observed only: the child is a member all the same
        if copy_label(&session, child).is_err() {
            session.count_fault();
        }
        if decision.is_allow() || decision.rule != REASON_LEAVES {
            // `task_newtask` comes to the same and records it
            return false;
        }
    }
    emit::answer::<Fork>(&session, KIND_FORK, decision, |place| fill_fork(place, Task(0), flags));
    refuses
}

/// A session that is over starts nothing.
#[inline(always)]
fn may_fork(session: &Session) -> Decision {
    match session.phase {
        Phase::Ended => Decision::deny(REASON_ENDED),
        Phase::Expired => Decision::deny(REASON_EXPIRED),
        Phase::Live => Decision::allow(REASON_DEFAULT),
    }
}

/// The label that a child of the current task gets.
#[inline(always)]
fn inherited(session: &Session) -> Label {
    let own = TASK_LABELS.get(kernel::current_pointer(), false);
    let exec_id = if own.is_null() {
        NEVER_JUDGED
    } else {
        // SAFETY: points into the current task's storage.
        unsafe { (*own).exec_id }
    };
    Label { slot: session.slot, generation: session.generation, flags: session.flags, exec_id }
}

/// Writes the child's label in its storage.
#[inline(always)]
fn copy_label(session: &Session, child: *mut c_void) -> Result<Label, Fault> {
    let label = inherited(session);
    let place = TASK_LABELS.get(child, true);
    if place.is_null() {
        return Err(Fault::Unlabelled);
    }
    // SAFETY: points into the child's storage; the child does not run yet.
    unsafe { *place = label };
    Ok(label)
}

/// HOOK: `task_newtask(struct task_struct *task, unsigned long clone_flags)`, tp_btf since 5.5; the child exists and has
/// not run. Sees io_uring workers (`sched_process_fork` does not).
#[btf_tracepoint(function = "task_newtask")]
pub fn newtask(context: BtfTracePointContext) -> i32 {
    on_newtask(context.arg(0), context.arg(1), unseen::end_current);
    0
}

/// HOOK: as [`newtask`], the same once more; see `exec_again` for why. Who makes the task is not looked at again.
#[btf_tracepoint(function = "task_newtask")]
pub fn newtask_again(context: BtfTracePointContext) -> i32 {
    on_newtask(context.arg(0), context.arg(1), |_| false);
    0
}

#[inline(always)]
fn on_newtask(child: *mut c_void, flags: u64, trespasses: impl Fn(&Session) -> bool) {
    if !kernel::speaks() {
        // who writes the mirror's entry reports the birth; the load that speaks runs here too
        return;
    }
    let task = Task(child as u64);
    let Some(session) = session::of_current() else {
        // where nobody said otherwise it is born where its parent is, which is in no session
        if flags & CLONE_INTO_CGROUP == 0 || !adopt_newborn(child, task) {
            forget_before(child, task);
        }
        return;
    };
    let trespasses = trespasses(&session);
    let labelled = match copy_label(&session, child) {
        Ok(label) => session::mirror(task, label),
        Err(fault) => Err(fault),
    };
    let decision = match labelled {
        Ok(false) => return, // the other copy was here
        Ok(true) if trespasses => unseen::refusal(),
        Ok(true) => may_fork(&session),
        Err(fault) => of_fault(fault, &session),
    };
    let mut decision = settle(decision, &session);
    let refused = decision.refuses();
    if refused {
        // the fork cannot be refused any more: the forker dies, and the child at its first hook or by the agent
        decision.verdict = KILL;
        doom(child);
        if !kernel::kill_current() {
            session::doom_current();
            session.count_failed_signal();
        }
    }
    report_fork(&session, task, flags, decision);
    if !refused && flags & CLONE_INTO_CGROUP != 0 {
        see_birthplace(&session, task);
    }
}

/// A member's child that was born in another cgroup than the session's has moved: no move of it is ever told.
#[inline(always)]
fn see_birthplace(session: &Session, child: Task) {
    let Ok(cgroup) = child.cgroup() else { return };
    if !session::of_cgroup(cgroup).is_some_and(|s| s.slot == session.slot && s.generation == session.generation) {
        report_move(session, child, cgroup, false);
    }
}

/// A child of a task outside any session that was born into a session's cgroup (`CLONE_INTO_CGROUP`). False: it was not.
#[inline(always)]
fn adopt_newborn(child: *mut c_void, task: Task) -> bool {
    let Ok(cgroup) = task.cgroup() else { return false };
    let Some(found) = session::of_cgroup(cgroup) else { return false };
    adopt(child, task, cgroup, found, CONFINED);
    true
}

/// Takes the entry out of the mirror that a member left whose exit was not seen, and in whose place in memory a task of
/// nobody is born: were it given that member's number too, it would be taken for it.
#[inline(always)]
fn forget_before(child: *mut c_void, task: Task) {
    // who has a label by now was attached since
    if session::has_entry(task) && TASK_LABELS.get(child, false).is_null() {
        // one that is not there any more is as good as one that was deleted
        let _ = MIRROR.remove(task.0);
    }
}

#[inline(always)]
fn doom(task: *mut c_void) {
    let label = TASK_LABELS.get(task, false);
    if !label.is_null() {
        // SAFETY: points into the child's storage; the child does not run yet.
        unsafe { (*label).flags |= DOOMED };
    }
}

#[inline(always)]
fn report_fork(session: &Session, child: Task, flags: u64, decision: Decision) {
    emit::produce::<Fork>(session, KIND_FORK, decision, |place| fill_fork(place, child, flags));
}

#[inline(always)]
fn fill_fork(place: *mut Fork, child: Task, flags: u64) {
    let (child_tgid, child_tid) = (child.tgid().unwrap_or(0), child.tid().unwrap_or(0));
    // SAFETY: `place` has room for a `Fork`.
    unsafe {
        (&raw mut (*place).child_tgid).write(child_tgid);
        (&raw mut (*place).child_tid).write(child_tid);
        (&raw mut (*place).flags).write(flags);
    }
}

/// HOOK: `cgroup_attach_task(struct cgroup *dst_cgrp, const char *path, struct task_struct *task, bool threadgroup)`,
/// tp_btf since 5.5; fires once for a whole process, not for its other threads (measured), not for
/// `CLONE_INTO_CGROUP`, and for hierarchies of version 1 too.
#[btf_tracepoint(function = "cgroup_attach_task")]
pub fn cgroup_attach(context: BtfTracePointContext) -> i32 {
    on_attach(Cgroup(context.arg::<*const u8>(0) as u64), context.arg(2));
    0
}

#[inline(always)]
fn on_attach(to: Cgroup, moved: *mut c_void) {
    if !kernel::speaks() || !to.is_of_version_2() {
        return;
    }
    let task = Task(moved as u64);
    let there = session::of_cgroup(to);
    let pointer = TASK_LABELS.get(moved, false);
    if pointer.is_null() {
        match there {
            Some(found) if task.tgid().is_ok_and(kernel::is_agent) => {
                let label = Label { slot: found.slot, generation: found.generation, flags: 0, exec_id: NEVER_JUDGED };
                report_move(&session::of_label(label), task, to, false);
            }
            Some(found) => adopt(moved, task, to, found, CONFINED | JOINED),
            None => {}
        }
        return;
    }
    // SAFETY: points into the task's storage.
    let label = unsafe { *pointer };
    if session::is_undone(label) {
        // on its way back
        return;
    }
    let joined = session::mirror(task, label);
    // SAFETY: as above. VERIFIER: volatile, because the task may be in execve(2) on another processor.
    let number = unsafe { core::ptr::read_volatile(&raw const (*pointer).exec_id) };
    if number != label.exec_id {
        // it wrote its number there before this did, and the mirror has the one before; what cannot be written now the
        // clock writes
        let _ = session::mirror(task, Label { exec_id: number, ..label });
    }
    let stays = there.is_some_and(|s| s.slot == label.slot && s.generation == label.generation);
    let joined = match joined {
        Ok(false) if stays => return,
        Ok(fresh) => fresh && stays,
        Err(_) => false,
    };
    report_move(&session::of_label(label), task, to, joined);
}

#[inline(always)]
fn adopt(pointer: *mut c_void, task: Task, cgroup: Cgroup, found: SessionRef, flags: u32) {
    let label = Label { slot: found.slot, generation: found.generation, flags, exec_id: NEVER_JUDGED };
    match session::give(pointer, task, label) {
        Ok(_) => report_move(&session::of_label(label), task, cgroup, true),
        Err(_) => session::of_label(label).count_fault(),
    }
}

#[inline(always)]
fn report_move(session: &Session, task: Task, to: Cgroup, joined: bool) {
    let cgroup = to.id().unwrap_or(0);
    if !joined && let Some(counters) = session.counters() {
        // SAFETY: points into a map; the kind is below the number of kinds.
        emit::add(unsafe { &raw mut (*counters).violations[KIND_MOVE as usize] }, 1);
    }
    emit::produce_of::<Move>(session, KIND_MOVE, Who::task(task), Decision::allow(REASON_DEFAULT), |place| {
        // SAFETY: `place` has room for a `Move`.
        unsafe {
            (&raw mut (*place).cgroup).write(cgroup);
            (&raw mut (*place).joined).write(u32::from(joined));
            (&raw mut (*place).pad).write(0);
        }
    });
}

/// HOOK: `sched_process_exit(struct task_struct *p)` (7.x: and `bool group_dead`), tp_btf since 5.5; each thread.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn exit(_context: BtfTracePointContext) -> i32 {
    on_exit();
    0
}

#[inline(always)]
fn on_exit() {
    if !kernel::speaks() {
        return;
    }
    let task = Task::current();
    let Some(session) = session::of_label_of_current() else { return };
    // an entry that is not there is as good as one that was deleted
    let _ = MIRROR.remove(task.0);
    let (code, name) = (task.exit_code().unwrap_or(0), kernel::name());
    emit::produce::<Exit>(&session, KIND_EXIT, Decision::allow(REASON_DEFAULT), |place| {
        // SAFETY: `place` has room for an `Exit`.
        unsafe {
            (&raw mut (*place).code).write(code);
            (&raw mut (*place).pad).write(0);
            (&raw mut (*place).name).write(name);
        }
    });
}
