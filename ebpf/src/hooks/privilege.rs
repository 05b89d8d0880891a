//! What a member does beyond its own session (tier full): each hook names a class, and the policy's mask says whether the
//! class may be used. And what no policy allows: to reach the agent.

use core::ffi::c_void;

use aya_ebpf::{macros::lsm, programs::LsmContext};
use tipstaff_common::{
    event::{KIND_PRIVILEGE, Privilege},
    label::SessionRef,
    limits::WITHIN,
    privilege::{
        PRIVILEGE_BPF, PRIVILEGE_CAPABILITIES, PRIVILEGE_CHROOT, PRIVILEGE_IO_URING, PRIVILEGE_KEXEC,
        PRIVILEGE_KEYRING, PRIVILEGE_MODULES, PRIVILEGE_NAMESPACES, PRIVILEGE_PERF_EVENT, PRIVILEGE_PTRACE,
        PRIVILEGE_SETUID, PRIVILEGE_SIGNAL, PRIVILEGE_USERFAULTFD,
    },
    rule::{REASON_DEFAULT, REASON_LOOK, REASON_PRIVILEGE, REASON_PROTECTED},
    session::{MODE_ENFORCE, PolicyEntry},
};

use crate::{
    emit,
    kernel::{self, Binprm, Task},
    maps::{SESSION_CONFIG, SESSION_STATE, TASK_LABELS},
    rules,
    session::{self, Session},
    verdict::{Decision, of_fault, settle, settled},
};

/// `PTRACE_MODE_*` (`include/linux/ptrace.h`): a look that is not to be audited, such as ps(1) takes at every process.
const NO_AUDIT: u32 = 4;
/// To control, read or write the process; also /proc/PID/mem, process_vm_readv(2) and pidfd_getfd(2).
const ATTACH: u32 = 2;
/// A look by a system call that names the process, and not by its files in /proc: setns(2) by its pidfd, kcmp(2),
/// move_pages(2), get_robust_list(2), a perf event on it.
const BY_CALL: u32 = 16;

/// `enum bpf_cmd`: what could give a member the agent's links and maps, by their pins or their numbers.
const OBJ_GET: u32 = 7;
const MAP_GET_FD_BY_ID: u32 = 14;
const LINK_GET_FD_BY_ID: u32 = 30;

/// How the names of files without a name begin, of the kinds that are judged.
const USERFAULTFD: u64 = u64::from_le_bytes(*b"[userfau");
const IO_URING: u64 = u64::from_le_bytes(*b"[io_urin");

/// HOOK: `bprm_creds_from_file(struct linux_binprm *bprm, struct file *file)`, LSM since 5.8; once an exec, after the
/// capability module has said what the new program will have, and before the point of no return.
#[lsm(hook = "bprm_creds_from_file")]
pub fn bprm_creds_from_file(context: LsmContext) -> i32 {
    kernel::answer(refuse_gain(Binprm(context.arg::<*const u8>(0) as u64)))
}

/// HOOK: `ptrace_access_check(struct task_struct *child, unsigned int mode)`, LSM since 5.7. Not asked by
/// `PTRACE_TRACEME`, which gives a right away and takes none.
#[lsm(hook = "ptrace_access_check")]
pub fn ptrace_access_check(context: LsmContext) -> i32 {
    kernel::answer(refuse_trace(context.arg(0), context.arg::<u64>(1) as u32))
}

/// HOOK: `task_kill(struct task_struct *p, struct kernel_siginfo *info, int sig, const struct cred *cred)`, LSM since 5.7.
/// Not called for what the kernel sends by itself: a terminal's signals, `SIGCHLD`, `SIGPIPE`.
#[lsm(hook = "task_kill")]
pub fn task_kill(context: LsmContext) -> i32 {
    kernel::answer(refuse_signal(context.arg(0), context.arg::<u64>(2) as u32, context.arg(3)))
}

/// HOOK: `bpf(int cmd, union bpf_attr *attr, unsigned int size)`, LSM since 5.7, with a fourth argument since 6.16.
#[lsm(hook = "bpf")]
pub fn bpf(context: LsmContext) -> i32 {
    kernel::answer(refuse_bpf(context.arg::<u64>(0) as u32))
}

/// HOOK: `kernel_read_file(struct file *file, enum kernel_read_file_id id, bool contents)`, LSM since 5.7;
/// finit_module(2), kexec_file_load(2), and what the kernel reads for itself.
#[lsm(hook = "kernel_read_file")]
pub fn kernel_read_file(context: LsmContext) -> i32 {
    kernel::answer(refuse_code(context.arg::<u64>(1) as u32, kernel::reading()))
}

/// HOOK: `kernel_load_data(enum kernel_load_data_id id, bool contents)`, LSM since 5.7; init_module(2), kexec_load(2).
#[lsm(hook = "kernel_load_data")]
pub fn kernel_load_data(context: LsmContext) -> i32 {
    kernel::answer(refuse_code(context.arg::<u64>(0) as u32, kernel::loading()))
}

/// HOOK: `path_chroot(const struct path *path)`, LSM since 5.7, in kernels with `CONFIG_SECURITY_PATH`.
#[lsm(hook = "path_chroot")]
pub fn path_chroot(_context: LsmContext) -> i32 {
    kernel::answer(refuse(PRIVILEGE_CHROOT))
}

/// HOOK: `userns_create(const struct cred *cred)`, LSM since 6.1; unshare(2), clone(2), clone3(2). Namespaces of other
/// kinds, made by who has the capability already, are not seen.
#[lsm(hook = "userns_create")]
pub fn userns_create(_context: LsmContext) -> i32 {
    kernel::answer(refuse(PRIVILEGE_NAMESPACES))
}

/// HOOK: `key_alloc(struct key *key, const struct cred *cred, unsigned long flags)`, LSM since 5.7.
#[lsm(hook = "key_alloc")]
pub fn key_alloc(_context: LsmContext) -> i32 {
    kernel::answer(refuse_key())
}

/// HOOK: `key_permission(key_ref_t key_ref, const struct cred *cred, enum key_need_perm need_perm)`, LSM since 5.7.
#[lsm(hook = "key_permission")]
pub fn key_permission(_context: LsmContext) -> i32 {
    kernel::answer(refuse_key())
}

/// HOOK: `perf_event_open(struct perf_event_attr *attr, int type)`, LSM since 5.7; the first argument is gone since 6.17.
#[lsm(hook = "perf_event_open")]
pub fn perf_event_open(_context: LsmContext) -> i32 {
    kernel::answer(refuse(PRIVILEGE_PERF_EVENT))
}

/// HOOK: `inode_init_security_anon(struct inode *inode, const struct qstr *name, const struct inode *context_inode)`, LSM
/// since 5.12; a file without a name of the few kinds that ask: userfaultfd(2), io_uring_setup(2).
#[lsm(hook = "inode_init_security_anon")]
pub fn inode_init_security_anon(context: LsmContext) -> i32 {
    kernel::answer(refuse_anonymous(context.arg::<*const u8>(1) as u64))
}

/// Whether the task that runs is a member that may not use the class.
#[inline(always)]
pub fn refuse(class: u32) -> bool {
    match session::of_current_often() {
        Some(session) => refuse_in(&session, class, (0, 0)),
        None => false,
    }
}

/// As [`refuse`]; `on` is the process that it is tried on, and the signal or command.
#[inline(always)]
pub fn refuse_in(session: &Session, class: u32, on: (u32, u32)) -> bool {
    refuse_on(session, class, on, NOBODYS)
}

/// As [`refuse`], of what is tried on whom the kernel does not tell: it could be a member of another session.
#[inline(always)]
pub fn refuse_on_anybody(class: u32) -> bool {
    match session::of_current_often() {
        Some(session) => refuse_on(&session, class, (0, 0), ANOTHERS),
        None => false,
    }
}

/// As [`refuse_in`]; `whose` the process is, as [`whose`] has it.
#[inline(always)]
pub fn refuse_on(session: &Session, class: u32, on: (u32, u32), whose: u32) -> bool {
    let decision = judge(session, class, whose);
    if decision.is_allow() {
        return false;
    }
    let decision = settle(decision, session);
    report(session, class, on, decision);
    decision.refuses()
}

/// What no policy and no mode allows.
#[inline(always)]
pub fn protect(session: &Session, class: u32, on: (u32, u32), quiet: bool) -> bool {
    let denied = Decision::deny(REASON_PROTECTED);
    let verdict = settled(denied.verdict, MODE_ENFORCE, session.slot, session.flags);
    let decision = Decision { verdict, rule: REASON_PROTECTED };
    if !quiet {
        report(session, class, on, decision);
    }
    decision.refuses()
}

/// What the session's policy says of a class, used on what is `whose`.
#[inline(always)]
fn judge(session: &Session, class: u32, whose: u32) -> Decision {
    if let Some(over) = rules::over(session) {
        return over;
    }
    let open = |policy: &PolicyEntry| if whose == ANOTHERS { policy.neighbours } else { policy.privileges };
    match rules::policy(session) {
        Ok(policy) if open(policy) & class != 0 => Decision::allow(REASON_DEFAULT),
        Ok(_) => Decision::deny(REASON_PRIVILEGE),
        Err(fault) => of_fault(fault, session),
    }
}

#[inline(always)]
fn report(session: &Session, class: u32, (target, detail): (u32, u32), decision: Decision) {
    let what = u64::from(class) << 32 | u64::from(detail);
    let answer = u64::from(decision.verdict) << 32 | u64::from(decision.rule);
    report_privilege(core::ptr::from_ref(session), what, target, answer);
}

/// As [`report`]; `what` is class and detail, `answer` verdict and rule, 32 bits each. Always 0.
///
/// VERIFIER: as `record::report_socket`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn report_privilege(session: *const Session, what: u64, target: u32, answer: u64) -> u32 {
    if session.is_null() {
        return 0;
    }
    // SAFETY: not null; the caller passes its own.
    let session = unsafe { *session };
    let decision = Decision { verdict: (answer >> 32) as u32, rule: answer as u32 };
    emit::answer::<Privilege>(&session, KIND_PRIVILEGE, decision, |place| {
        // SAFETY: `place` has room for a `Privilege`.
        unsafe {
            (&raw mut (*place).class).write((what >> 32) as u32);
            (&raw mut (*place).detail).write(what as u32);
            (&raw mut (*place).target).write(target);
            (&raw mut (*place).pad).write(0);
        }
    });
    0
}

/// A program that would run with more than its caller has: as another user or group, or with capabilities besides.
#[inline(always)]
fn refuse_gain(bprm: Binprm) -> bool {
    let Some(session) = session::of_current_often() else { return false };
    let class = match (bprm.rights(), Task::current().rights()) {
        (Ok(new), Ok(old)) if (new.user, new.group) != (old.user, old.group) => PRIVILEGE_SETUID,
        (Ok(new), Ok(old)) if new.permitted & !old.permitted != 0 => PRIVILEGE_CAPABILITIES,
        (Ok(_), Ok(_)) => return false,
        (Err(fault), _) | (_, Err(fault)) => {
            let decision = settle(of_fault(fault, &session), &session);
            report(&session, PRIVILEGE_SETUID, (0, 0), decision);
            return decision.refuses();
        }
    };
    refuse_in(&session, class, (0, 0))
}

/// The session that a task is a member of.
#[inline(always)]
fn session_of(target: *mut c_void) -> Option<SessionRef> {
    let label = TASK_LABELS.get(target, false);
    if !label.is_null() {
        // SAFETY: points into the task's storage, which lives while the program runs.
        let label = unsafe { *label };
        return Some(SessionRef { slot: label.slot, generation: label.generation });
    }
    let task = Task(target as u64);
    // a thread older than its leader's label has none of its own
    let entry = session::mirrored(task).or_else(|| session::mirrored(task.leader().ok()?))?;
    Some(SessionRef { slot: entry.slot, generation: entry.generation })
}

/// The session's own.
pub const OWN: u32 = 0;
/// Of a session within it.
const INNER: u32 = 1;
/// Of another session, also of one that it is within itself.
pub const ANOTHERS: u32 = 2;
/// Of no session.
pub const NOBODYS: u32 = 3;

/// Whose a task is, for a member of the session.
#[inline(always)]
pub fn whose_task(session: &Session, target: *mut c_void) -> u32 {
    whose_in(session, session_of(target))
}

/// Whose is what belongs to the session that was found, for a member of `session`.
#[inline(always)]
pub fn whose_in(session: &Session, found: Option<SessionRef>) -> u32 {
    let word = |slot: u32, generation: u32| u64::from(generation) << 32 | u64::from(slot);
    match found {
        Some(found) => whose(word(found.slot, found.generation), word(session.slot, session.generation)),
        None => NOBODYS,
    }
}

/// Whether members of the session signal it freely: their own, and what is within.
#[inline(always)]
pub const fn is_own_or_within(whose: u32) -> bool {
    whose == OWN || whose == INNER
}

/// As [`whose_in`]; each session is its generation, and below it its slot, 32 bits each.
///
/// VERIFIER: as `session::session_of_current`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn whose(found: u64, session: u64) -> u32 {
    if found == session {
        return OWN;
    }
    let mut at = found;
    for _ in 0..WITHIN {
        let slot = at as u32;
        let word = SESSION_STATE.get(slot).copied().unwrap_or(0);
        let Some(config) = SESSION_CONFIG.get(slot) else { return ANOTHERS };
        // what stands there is of another session by now, or it is within none
        if word >> 32 != at >> 32 || config.outer_generation == 0 {
            return ANOTHERS;
        }
        at = u64::from(config.outer_generation) << 32 | u64::from(config.outer_slot);
        if at == session {
            return INNER;
        }
    }
    ANOTHERS
}

#[inline(always)]
fn refuse_trace(target: *mut c_void, mode: u32) -> bool {
    let Some(session) = session::of_current_often() else { return false };
    let process = Task(target as u64).tgid().unwrap_or(0);
    if process == kernel::agent() {
        return protect(&session, PRIVILEGE_PTRACE, (process, 0), mode & NO_AUDIT != 0);
    }
    let whose = whose_task(&session, target);
    if mode & (ATTACH | BY_CALL) == 0 {
        return whose == ANOTHERS && refuse_look(&session, process, mode & NO_AUDIT != 0);
    }
    whose != OWN && refuse_on(&session, PRIVILEGE_PTRACE, (process, 0), whose)
}

/// A mere look is what ps(1) and pidof(1) take at every process: its owner and its capabilities decide on that. Only what is
/// in another session is nobody's to see.
#[inline(always)]
fn refuse_look(session: &Session, process: u32, quiet: bool) -> bool {
    let mut decision = judge(session, PRIVILEGE_PTRACE, ANOTHERS);
    if decision.is_allow() {
        return false;
    }
    if decision.rule == REASON_PRIVILEGE {
        decision.rule = REASON_LOOK;
    }
    let decision = settle(decision, session);
    if !quiet {
        report(session, PRIVILEGE_PTRACE, (process, 0), decision);
    }
    decision.refuses()
}

/// `sender`: not null where the kernel sends it in somebody's name, whoever runs.
#[inline(always)]
fn refuse_signal(target: *mut c_void, signal: u32, sender: *const c_void) -> bool {
    // signal 0 only asks whether the process is there
    if signal == 0 {
        return false;
    }
    let Some(session) = session::of_current_often() else { return false };
    // VERIFIER: by a look, because it takes a hook's argument for a pointer that is never null and removes the question.
    if kernel::is_there(sender) {
        return false;
    }
    let process = Task(target as u64).tgid().unwrap_or(0);
    if process == kernel::agent() {
        return protect(&session, PRIVILEGE_SIGNAL, (process, signal), false);
    }
    let whose = whose_task(&session, target);
    !is_own_or_within(whose) && refuse_on(&session, PRIVILEGE_SIGNAL, (process, signal), whose)
}

#[inline(always)]
fn refuse_bpf(command: u32) -> bool {
    let Some(session) = session::of_current_often() else { return false };
    if refuse_in(&session, PRIVILEGE_BPF, (0, command)) {
        return true;
    }
    let reaches = command == OBJ_GET || command == MAP_GET_FD_BY_ID || command == LINK_GET_FD_BY_ID;
    reaches && protect(&session, PRIVILEGE_BPF, (0, command), false)
}

/// `id`: what is read; the numbers by which this kernel names a module, and what it is to be replaced by.
#[inline(always)]
fn refuse_code(id: u32, (module, image): (u32, u32)) -> bool {
    if id == module {
        refuse(PRIVILEGE_MODULES)
    } else if id == image {
        refuse(PRIVILEGE_KEXEC)
    } else {
        false
    }
}

/// While the kernel looks for a key of its own, for a network file system's names or credentials, it acts in another name
/// than the task's: that is not the member's.
#[inline(always)]
fn refuse_key() -> bool {
    let Some(session) = session::of_current_often() else { return false };
    if Task::current().acts_for_another() == Ok(true) {
        return false;
    }
    refuse_in(&session, PRIVILEGE_KEYRING, (0, 0))
}

#[inline(always)]
fn refuse_anonymous(name: u64) -> bool {
    let Some(session) = session::of_current_often() else { return false };
    let class = match kernel::string_start(name) {
        Ok(USERFAULTFD) => PRIVILEGE_USERFAULTFD,
        Ok(IO_URING) => PRIVILEGE_IO_URING,
        Ok(_) => return false,
        Err(fault) => {
            let decision = settle(of_fault(fault, &session), &session);
            report(&session, PRIVILEGE_USERFAULTFD, (0, 0), decision);
            return decision.refuses();
        }
    };
    refuse_in(&session, class, (0, 0))
}
