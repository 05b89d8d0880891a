//! A program whose start no program here saw: the kernel skipped both copies of the tracepoint program. The label bears the
//! number of the last exec that was judged; a task of another number is judged by the next of these: a child that it makes, a
//! socket, a unix socket that it connects to, the clock. A connect, send or bind of another socket is refused until then: who
//! has made none has an inherited one, which is rare enough to be told so. (Rules on programs are 5,000 instructions to
//! verify in each program that asks them, as many as the programs on addresses have; an agent's start waits for that.)
//!
//! Which file it is, the task's memory says. A script is not seen any more, nor whether the program was named by a
//! descriptor; and the arguments are as the program left them.

use tipstaff_common::{
    event::{Exec, KIND_EXEC},
    label::{DOOMED, Label},
    limits::PATH_BYTES,
    rule::{FileId, KILL, REASON_UNSEEN},
};

use crate::{
    emit,
    kernel::{self, Dentry, File, Task},
    maps::{MIRROR, TASK_LABELS},
    program,
    session::{self, NEVER_JUDGED, Phase, Session},
    verdict::{Decision, of_fault, settle},
};

/// For tracing programs: ends the task that runs where nobody saw its program start and the rules are against it. True: it
/// was one.
#[inline(always)]
pub fn end_current(session: &Session) -> bool {
    let place = TASK_LABELS.get(kernel::current_pointer(), false);
    if place.is_null() {
        return false;
    }
    let number = kernel::current_exec_id();
    // SAFETY: points into the task's storage, which only this task's hooks write.
    let label: &mut Label = unsafe { &mut *place };
    if label.flags & DOOMED != 0 || session.phase != Phase::Live || !kernel::speaks() {
        return false;
    }
    if label.exec_id == number {
        // the mirror can have an earlier number: programs on addresses would refuse what was judged
        if mirrored_number() != number {
            mirror_number(number);
        }
        return false;
    }
    // where it was labelled while it ran, what it ran is not judged; and a cgroup program may have judged it
    let known = label.exec_id == NEVER_JUDGED || mirrored_number() == number;
    if !known {
        let mut decision = judge_current(session);
        let refuses = decision.refuses();
        if refuses {
            decision.verdict = KILL;
        }
        report(session, decision);
        if refuses {
            label.flags |= DOOMED;
            if !kernel::kill_current() {
                session.count_failed_signal();
            }
            return true;
        }
    }
    label.exec_id = number;
    mirror_number(number);
    false
}

/// For cgroup programs, which can kill nobody: whether the task that runs is such a one, whatever it runs. `judged` is the
/// number that the mirror has of it.
#[inline(always)]
pub fn is_unseen(session: &Session, judged: u32) -> bool {
    let number = kernel::current_exec_id();
    if judged == number || session.phase != Phase::Live || !kernel::speaks() {
        return false;
    }
    if judged == NEVER_JUDGED {
        mirror_number(number);
    }
    judged != NEVER_JUDGED
}

/// As [`is_unseen`], where the rules are against what it runs.
#[inline(always)]
pub fn refuse_current(session: &Session, judged: u32) -> bool {
    if !is_unseen(session, judged) {
        return false;
    }
    let decision = judge_current(session);
    // what kills records it
    if decision.refuses() {
        return true;
    }
    report(session, decision);
    mirror_number(kernel::current_exec_id());
    false
}

/// What a program says that refuses because of it.
#[inline(always)]
pub fn refusal() -> Decision {
    Decision::deny(REASON_UNSEEN)
}

/// The number of the last exec that was judged, as the mirror has it.
#[inline(always)]
fn mirrored_number() -> u32 {
    session::own_mirrored(Task::current()).map_or(NEVER_JUDGED, |entry| entry.exec_id)
}

#[inline(always)]
fn mirror_number(number: u32) {
    if let Some(place) = MIRROR.get_ptr_mut(Task::current().0) {
        // SAFETY: points into the map, which is preallocated. An entry of a task that is gone is nobody's.
        unsafe {
            if (*place).tid == kernel::current_ids().1 {
                (*place).exec_id = number;
            }
        }
    }
}

/// What the rules say of the program that runs, and the session's mode of that.
///
/// VERIFIER: inlined, with the record in a function of its own: the frames of one function that did both, of the rules that it
/// asks and of a program on addresses are more than 512 bytes.
#[inline(always)]
fn judge_current(session: &Session) -> Decision {
    let found = Task::current().program().and_then(|file| program::judge_running(session, file));
    settle(found.unwrap_or_else(|fault| of_fault(fault, session)), session)
}

#[inline(always)]
fn report(session: &Session, decision: Decision) {
    let answer = u64::from(decision.verdict) << 32 | u64::from(decision.rule);
    report_late(core::ptr::from_ref(session), answer);
}

/// Records what was decided on the program that runs; `answer` is verdict and rule, 32 bits each. Always 0.
///
/// VERIFIER: as `record::report_socket`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn report_late(session: *const Session, answer: u64) -> u32 {
    if session.is_null() {
        return 0;
    }
    // SAFETY: not null; the caller passes its own.
    let session = unsafe { *session };
    let decision = Decision { verdict: (answer >> 32) as u32, rule: answer as u32 };
    let file = Task::current().program();
    let identity = file.and_then(File::identity).unwrap_or_default();
    let entry = file.and_then(File::dentry).unwrap_or(Dentry(0));
    emit::produce::<Exec>(&session, KIND_EXEC, decision, |place| fill(place, identity, entry));
    0
}

/// Fills in the record of an exec that is found later: of its path the last part is known.
#[inline(always)]
fn fill(place: *mut Exec, file: FileId, entry: Dentry) {
    // SAFETY: `place` has room for an `Exec`; the buffers lie inside it.
    unsafe {
        (&raw mut (*place).file).write(file);
        (&raw mut (*place).late).write(1);
        let length = entry.copy_name(&mut (*place).path).unwrap_or(0);
        (&raw mut (*place).path_length).write((length & (PATH_BYTES - 1)) as u32);
        let (length, total) = Task::current().copy_arguments(&mut (*place).args);
        (&raw mut (*place).args_length).write(length);
        (&raw mut (*place).args_total).write(total);
    }
}
