//! Which programs a member may start.
//!
//! Tier full: `bprm_check_security` refuses with `EPERM` before the image is mapped, for the script and for its
//! interpreter. In both tiers `sched_process_exec` judges what is about to run and kills it before its first
//! instruction; in tier full there is normally nothing left for it but to record.

use aya_ebpf::{
    helpers::bpf_probe_read_kernel_str_bytes,
    macros::{btf_tracepoint, lsm},
    programs::{BtfTracePointContext, LsmContext},
};
use tipstaff_common::{
    event::{Exec, KIND_EXEC},
    label::DOOMED,
    limits::PATH_BYTES,
    rule::{FileId, KILL, REASON_ENDED, REASON_EXPIRED, WOULD_DENY},
};

use crate::{
    emit,
    kernel::{self, Binprm, Task},
    maps::TASK_LABELS,
    program::{self, Stage},
    session::{self, Phase, Session},
    verdict::{Decision, Fault, of_fault, settle},
};

/// HOOK: `bprm_check_security(struct linux_binprm *bprm)`, LSM since 5.7; runs once for the script and once for each
/// interpreter. Not sleepable here. Not called for a mere check (`AT_EXECVE_CHECK`, 6.14).
#[lsm(hook = "bprm_check_security")]
pub fn bprm_check_security(context: LsmContext) -> i32 {
    // VERIFIER: two exits with constants; 6.12 refuses a value that it cannot bound to [-4095, 0].
    if refuse_exec(Binprm(context.arg::<*const u8>(0) as u64)) { -1 } else { 0 }
}

#[inline(always)]
fn refuse_exec(bprm: Binprm) -> bool {
    let Some(session) = session::of_current() else { return false };
    let (file, decision) = judge(&session, bprm, Stage::Before);
    let decision = settle(decision, &session);
    // a script that is only observed is not seen again: the tracepoint sees its interpreter
    if decision.refuses() {
        emit::produce::<Exec>(&session, KIND_EXEC, decision, |place| fill(place, bprm, file, false));
    } else if decision.verdict == WOULD_DENY && bprm.is_script() {
        emit::record::<Exec>(&session, KIND_EXEC, decision, |place| fill(place, bprm, file, false));
    }
    decision.refuses()
}

/// HOOK: `sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`, tp_btf since 5.5; after
/// the point of no return, before the new program's first instruction.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn exec(context: BtfTracePointContext) -> i32 {
    judge_new_image(Binprm(context.arg::<*const u8>(2) as u64));
    0
}

/// HOOK: as [`exec`], the same once more: on 7.2 a tp_btf program is skipped when a run of the same program was
/// preempted on that CPU (measured). Whichever copy runs first judges; the other sees that by the exec's number. Where both
/// are skipped, what the task does next does (`unseen.rs`).
#[btf_tracepoint(function = "sched_process_exec")]
pub fn exec_again(context: BtfTracePointContext) -> i32 {
    judge_new_image(Binprm(context.arg::<*const u8>(2) as u64));
    0
}

#[inline(always)]
fn judge_new_image(bprm: Binprm) {
    let Some(session) = session::of_current() else { return };
    let task = Task::current();
    let label = TASK_LABELS.get(kernel::current_pointer(), false);
    // the load that does not speak judges, and leaves the claim and the record to the one that does
    let speaks = kernel::speaks();
    if let (true, false, Ok(number)) = (speaks, label.is_null(), task.exec_id()) {
        // SAFETY: points into the task's storage, which only this task's hooks write.
        let label = unsafe { &mut *label };
        if label.exec_id == number && label.flags & DOOMED == 0 {
            return;
        }
        label.exec_id = number;
        // an exec from another thread than the first changes the thread's number, which the mirror's entry names
        if session::mirror(task, *label).is_err() {
            session.count_fault();
        }
    }
    let (file, decision) = judge(&session, bprm, Stage::After);
    let mut decision = settle(decision, &session);
    if decision.refuses() {
        decision.verdict = KILL;
        if !kernel::kill_current() {
            session::doom_current();
            session.count_failed_signal();
        }
    }
    if speaks {
        emit::produce::<Exec>(&session, KIND_EXEC, decision, |place| fill(place, bprm, file, true));
    }
}

/// Decides on the program that `bprm` holds now.
#[inline(always)]
fn judge(session: &Session, bprm: Binprm, stage: Stage) -> (FileId, Decision) {
    let file = bprm.file();
    let identity = match file {
        Ok(file) => file.identity(),
        Err(fault) => Err(fault),
    };
    match session.phase {
        Phase::Ended => return (identity.unwrap_or_default(), Decision::deny(REASON_ENDED)),
        Phase::Expired => return (identity.unwrap_or_default(), Decision::deny(REASON_EXPIRED)),
        Phase::Live => {}
    }
    let (Ok(file), Ok(identity)) = (file, identity) else {
        return (FileId::default(), of_fault(Fault::Unreadable, session));
    };
    let decision = match program::judge(session, bprm, file, stage) {
        Ok(decision) => decision,
        Err(fault) => of_fault(fault, session),
    };
    (identity, decision)
}

/// Fills a record of an exec in. The arguments are read from the new program's own memory, which is in place only `after`
/// the point of no return.
#[inline(always)]
fn fill(place: *mut Exec, bprm: Binprm, file: FileId, after: bool) {
    // SAFETY: `place` has room for an `Exec`; the buffers lie inside it.
    unsafe {
        (&raw mut (*place).file).write(file);
        (&raw mut (*place).late).write(0);
        let path = &mut (*place).path;
        let length = match bprm.filename() {
            Ok(name) => bpf_probe_read_kernel_str_bytes(name as *const u8, path).map_or(0, <[u8]>::len),
            Err(_) => 0,
        };
        (&raw mut (*place).path_length).write((length & (PATH_BYTES - 1)) as u32);
        let (length, total) = if after { Task::current().copy_arguments(&mut (*place).args) } else { (0, 0) };
        (&raw mut (*place).args_length).write(length);
        (&raw mut (*place).args_total).write(total);
    }
}
