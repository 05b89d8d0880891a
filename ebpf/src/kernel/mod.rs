//! Thin safe wrappers around helpers and kernel memory. The only files that read kernel structures.

use core::{ffi::c_void, mem::offset_of};

use aya_ebpf::helpers::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_comm, bpf_get_current_task_btf, bpf_get_current_uid_gid,
    bpf_ktime_get_boot_ns, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_probe_read_kernel, bpf_send_signal,
};
use aya_ebpf::programs::PerfEventContext;
use tipstaff_common::offsets::Offsets;

use crate::{
    maps::{CLOCK, GENERATION, OFFSETS, SETTINGS},
    verdict::Fault,
};

mod file;
mod sock;
mod task;

pub use file::{Dentry, File, Inode, Mode, entry_of_path, root_of_mount, setattr_says_ids};
pub use sock::{Address, INET, INET6, Sock, UnixSock, cookie, mapped, sock_of, words};
pub use task::{Binprm, Cgroup, Task};

/// One constant of this load: a field of [`SETTINGS`].
#[inline(always)]
fn setting<T: Copy>(field: &'static T) -> T {
    // SAFETY: a reference. VERIFIER: volatile, because the compiler would otherwise fold in the zeros of the source, which
    // the agent replaces.
    unsafe { core::ptr::read_volatile(field) }
}

/// Whether this agent may only touch what lies below a cgroup (`Settings::confine_cgroup`).
#[inline(always)]
pub fn is_confined() -> bool {
    setting(&SETTINGS.confine_cgroup) != 0
}

/// Depth in the cgroup tree at which session cgroups stand.
#[inline(always)]
pub fn session_level() -> u32 {
    setting(&SETTINGS.session_level)
}

/// Whether the programs on cgroups see sockets and tasks that are in no session (`Settings::sessions_cgroup`).
#[inline(always)]
pub fn sees_others() -> bool {
    setting(&SETTINGS.sessions_cgroup) != 0
}

/// Whether a cgroup lies below Tipstaff's own, told by `ancestor`, which gives the id of the cgroup above it at a depth; where
/// no other is seen, it does.
#[inline(always)]
pub fn is_beneath(ancestor: impl FnOnce(i32) -> u64) -> bool {
    let own = setting(&SETTINGS.sessions_cgroup);
    own == 0 || ancestor(session_level().cast_signed() - 1) == own
}

/// The agent's process id.
#[inline(always)]
pub fn agent() -> u32 {
    setting(&SETTINGS.agent)
}

/// Whether a process is the agent. Whoever moves it to a session's cgroup makes no member of it.
#[inline(always)]
pub fn is_agent(process: u32) -> bool {
    process != 0 && process == agent()
}

/// One of the random numbers that only this load knows; `at` is below `SECRETS`.
#[inline(always)]
pub fn secret(at: usize) -> u64 {
    setting(&SETTINGS.secrets[at])
}

/// Whether this is the load that reports, counts and claims. While an agent replaces another, the programs of both are
/// attached; what only one may do, the one does that `GENERATION` names.
#[inline(always)]
pub fn speaks() -> bool {
    GENERATION.get(0).copied() == Some(setting(&SETTINGS.generation))
}

/// What an LSM program returns: `-EPERM`, or 0 to go on.
///
/// VERIFIER: two exits with constants, as in `bprm_check_security`. The empty instruction keeps the compiler from computing
/// the answer, which kernels from 6.12 on then take for any number.
#[inline(always)]
pub fn answer(refused: bool) -> i32 {
    if refused {
        // SAFETY: nothing happens.
        unsafe { core::arch::asm!("", options(nostack, nomem)) };
        return -1;
    }
    0
}

/// Reads one offset; see [`setting`] for why it is volatile. `field` is the `offset_of!` of a field of [`Offsets`].
#[inline(always)]
fn offset(field: usize) -> u64 {
    // SAFETY: every field is a `u32`, and this is one.
    let place = unsafe { (&raw const OFFSETS).cast::<u8>().add(field).cast::<u32>() };
    // SAFETY: as above.
    u64::from(unsafe { core::ptr::read_volatile(place) })
}

/// Reads a `T` at `base` + the offset of a field. A page that is not there is a fault, never zeros.
#[inline(always)]
fn read<T>(base: u64, field: usize) -> Result<T, Fault> {
    if base == 0 {
        return Err(Fault::Unreadable);
    }
    // SAFETY: the helper checks the address and copies; it never faults.
    let value = unsafe { bpf_probe_read_kernel((base + offset(field)) as *const T) };
    value.map_err(|_errno| Fault::Unreadable)
}

/// Nanoseconds of `CLOCK_BOOTTIME`.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Nanoseconds of `CLOCK_BOOTTIME` as of the last timer tick: the coarse monotonic clock and what the `clock` program last
/// saw of the difference. After a suspend it lags until the first tick.
#[inline(always)]
pub fn coarse_now() -> u64 {
    let ahead = CLOCK.get(0).copied().unwrap_or(0);
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_coarse_ns() }.wrapping_add(ahead)
}

/// Notes how far `CLOCK_BOOTTIME` is ahead of the monotonic clock.
#[inline(always)]
pub fn set_coarse_clock() {
    // SAFETY: no arguments; the map's entry is one aligned word.
    unsafe {
        let ahead = now().wrapping_sub(bpf_ktime_get_ns());
        if let Some(place) = CLOCK.get_ptr_mut(0) {
            // the two clocks are read one after the other: what a suspend adds is more than a millisecond
            if ahead.abs_diff(*place) > 1_000_000 {
                *place = ahead;
            }
        }
    }
}

/// The caller's user id in the root user namespace.
#[inline(always)]
pub fn uid() -> u32 {
    bpf_get_current_uid_gid() as u32
}

/// Sends `SIGKILL` to the current process. False: the kernel did not take it (it has one slot a CPU, and refuses the
/// global init and kernel threads).
#[inline(always)]
pub fn kill_current() -> bool {
    // SAFETY: no pointers.
    unsafe { bpf_send_signal(9) == 0 }
}

/// The current task's name; empty where it cannot be read.
#[inline(always)]
pub fn name() -> [u8; 16] {
    bpf_get_current_comm().unwrap_or_default()
}

/// The current task as the verifier's trusted pointer, for task storage.
#[inline(always)]
pub fn current_pointer() -> *mut c_void {
    // SAFETY: no arguments.
    unsafe { bpf_get_current_task_btf() }.cast()
}

/// Process and thread id of the current task, in the root pid namespace. Read through the verifier's pointer, which costs a
/// load each and not a helper that checks the address; `bpf_get_current_pid_tgid` is for cgroup programs since 6.10 only.
#[inline(always)]
pub fn current_ids() -> (u32, u32) {
    let task = current_pointer();
    // SAFETY: the verifier knows the task and the field's offset, and checks that an `int` is read there.
    let field = |at: usize| unsafe { *task.byte_add(offset(at) as usize).cast::<u32>() };
    (field(offset_of!(Offsets, task_tgid)), field(offset_of!(Offsets, task_pid)))
}

/// How many execs the current task has made, read as [`current_ids`].
#[inline(always)]
pub fn current_exec_id() -> u32 {
    // SAFETY: the verifier knows the task and the field's offset, and checks that an `int` is read there.
    unsafe { *current_pointer().byte_add(offset(offset_of!(Offsets, task_exec_id)) as usize).cast::<u32>() }
}

/// Whether a tick of the clock came while the task was in its own code, and not in the kernel's.
#[inline(always)]
pub fn was_in_user_mode(context: &PerfEventContext) -> bool {
    // SAFETY: the context is valid for the program's run. VERIFIER: volatile, one word of the registers.
    unsafe {
        #[cfg(bpf_target_arch = "x86_64")]
        let user = core::ptr::read_volatile(&raw const (*context.ctx).regs.cs) & 3 == 3;
        #[cfg(bpf_target_arch = "aarch64")]
        let user = core::ptr::read_volatile(&raw const (*context.ctx).regs.pstate) & 0xf == 0;
        user
    }
}

/// The current process's first thread.
#[inline(always)]
pub fn current_leader() -> Task {
    Task::current().leader().unwrap_or(Task(0))
}

/// Id of the current task's cgroup, or of the one above it, at the level at which session cgroups stand; 0: it stands
/// higher.
#[inline(always)]
pub fn current_ancestor() -> u64 {
    current_ancestor_at(session_level().cast_signed())
}

/// As [`current_ancestor`], at any depth.
#[inline(always)]
pub fn current_ancestor_at(level: i32) -> u64 {
    // SAFETY: no pointers.
    unsafe { bpf_get_current_ancestor_cgroup_id(level) }
}

/// What the kernel calls the reading of a module's file, and of one to be started in its own place.
#[inline(always)]
pub fn reading() -> (u32, u32) {
    (offset(offset_of!(Offsets, reading_module)) as u32, offset(offset_of!(Offsets, reading_kexec)) as u32)
}

/// As [`reading`], of what comes from a caller's memory.
#[inline(always)]
pub fn loading() -> (u32, u32) {
    (offset(offset_of!(Offsets, loading_module)) as u32, offset(offset_of!(Offsets, loading_kexec)) as u32)
}

/// Whether something can be read at an address.
#[inline(always)]
pub fn is_there(place: *const c_void) -> bool {
    // SAFETY: the helper checks the address and copies; it never faults.
    unsafe { bpf_probe_read_kernel(place.cast::<u32>()) }.is_ok()
}

/// The first eight bytes of a `struct qstr`, the first of them lowest.
#[inline(always)]
pub fn string_start(string: u64) -> Result<u64, Fault> {
    word_at(read(string, offset_of!(Offsets, string_name))?)
}

/// Eight bytes of kernel memory, the first of them lowest.
#[inline(always)]
pub fn word_at(place: u64) -> Result<u64, Fault> {
    // SAFETY: the helper checks the address and copies; it never faults.
    let word = unsafe { bpf_probe_read_kernel(place as *const u64) };
    word.map(u64::to_le).map_err(|_errno| Fault::Unreadable)
}
