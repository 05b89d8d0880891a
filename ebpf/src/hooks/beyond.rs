//! What reaches beyond the session by other calls than those that are meant for it (tier full): a limit or a priority of a
//! process outside, a signal as the news of a file, keys typed at a terminal, the processor's ports.
//!
//! fcntl(2) and ioctl(2) are everybody's: the number of the command is compared before anything is looked up.

use core::ffi::c_void;

use aya_ebpf::{macros::lsm, programs::LsmContext};
use tipstaff_common::privilege::{
    AGENT_FILES, PRIVILEGE_DELEGATION, PRIVILEGE_MOUNT, PRIVILEGE_RAW_DEVICES, PRIVILEGE_SIGNAL,
};

use super::{
    own_files::refuse_change,
    privilege::{is_own_or_within, protect, refuse, refuse_on, refuse_on_anybody, whose_task},
};
use crate::{
    kernel::{self, File, Task},
    session,
    verdict::Fault,
};

/// `F_SETOWN`, `F_SETOWN_EX` (`include/uapi/asm-generic/fcntl.h`): to whom the news of a file is signalled.
const SET_OWNER: u32 = 8;
const SET_OWNER_BY_KIND: u32 = 15;
/// `FIOSETOWN`, `SIOCSPGRP` (`include/uapi/asm-generic/sockios.h`): the same of a socket.
const SET_SOCKETS_OWNER: [u32; 2] = [0x8901, 0x8902];
/// `TIOCSTI`, `TIOCLINUX` (`include/uapi/asm-generic/ioctls.h`): a key that nobody pressed; what was selected, pasted.
const TYPE: [u32; 2] = [0x5412, 0x541c];
/// `FS_IOC_SETFLAGS` of 64 and of 32 bits, `FS_IOC_FSSETXATTR`, `FS_IOC_ENABLE_VERITY` (`include/uapi/linux/fs.h`,
/// `fsverity.h`): attributes of a file that need not be open to be written.
/// And `EXT4_IOC_SETVERSION`, `FS_IOC_SETVERSION` of 64 and of 32 bits (`fs/ext4/ext4.h`): the agent's folders are known by
/// their inode's generation too.
const SET_ATTRIBUTES: [u32; 8] =
    [0x4008_6602, 0x4004_6602, 0x401c_5820, 0x4080_6685, 0x4008_6604, 0x4004_6604, 0x4008_7602, 0x4004_7602];
/// `FIFREEZE` (`include/uapi/linux/fs.h`): nobody writes to the file system until it is thawed.
const FREEZE: u32 = 0xc004_5877;
/// `TIOCVHANGUP` (`include/uapi/asm-generic/ioctls.h`): ends whatever has the terminal, with a `SIGHUP` of the kernel's own.
const HANG_UP: u32 = 0x5437;
/// `LOCKDOWN_IOPORT`, `LOCKDOWN_MSR` (`enum lockdown_reason`, `include/linux/security.h`; the same numbers from 5.4 to 7.2):
/// ioperm(2) and iopl(2); the registers of the processor that say where the kernel begins.
const PORTS: u32 = 7;
const REGISTERS: u32 = 8;

/// HOOK: `task_setrlimit(struct task_struct *p, unsigned int resource, struct rlimit *new_rlim)`, LSM since 5.7;
/// setrlimit(2), prlimit(2).
#[lsm(hook = "task_setrlimit")]
pub fn task_setrlimit(context: LsmContext) -> i32 {
    kernel::answer(refuse_standing(context.arg(0)))
}

/// HOOK: `task_setscheduler(struct task_struct *p)`, LSM since 5.7; sched_setscheduler(2), sched_setaffinity(2) and their like,
/// and a move to a cgroup of the controller `cpuset`.
#[lsm(hook = "task_setscheduler")]
pub fn task_setscheduler(context: LsmContext) -> i32 {
    kernel::answer(refuse_standing(context.arg(0)))
}

/// HOOK: `task_setnice(struct task_struct *p, int nice)`, LSM since 5.7; setpriority(2).
#[lsm(hook = "task_setnice")]
pub fn task_setnice(context: LsmContext) -> i32 {
    kernel::answer(refuse_standing(context.arg(0)))
}

/// HOOK: `task_setioprio(struct task_struct *p, int ioprio)`, LSM since 5.7; ioprio_set(2).
#[lsm(hook = "task_setioprio")]
pub fn task_setioprio(context: LsmContext) -> i32 {
    kernel::answer(refuse_standing(context.arg(0)))
}

/// HOOK: `file_fcntl(struct file *file, unsigned int cmd, unsigned long arg)`, LSM since 5.7; every fcntl(2).
#[lsm(hook = "file_fcntl")]
pub fn file_fcntl(context: LsmContext) -> i32 {
    kernel::answer(refuse_owner(context.arg::<u64>(1) as u32, context.arg::<u64>(2) as u32))
}

/// HOOK: `file_ioctl(struct file *file, unsigned int cmd, unsigned long arg)`, LSM since 5.7; every ioctl(2), before 6.8
/// those of 32 bits too.
#[lsm(hook = "file_ioctl")]
pub fn file_ioctl(context: LsmContext) -> i32 {
    kernel::answer(refuse_command(File(context.arg::<*const u8>(0) as u64), context.arg::<u64>(1) as u32))
}

/// HOOK: `file_ioctl_compat(struct file *file, unsigned int cmd, unsigned long arg)`, LSM since 6.8; every ioctl(2) of 32 bits.
#[lsm(hook = "file_ioctl_compat")]
pub fn file_ioctl_compat(context: LsmContext) -> i32 {
    kernel::answer(refuse_command(File(context.arg::<*const u8>(0) as u64), context.arg::<u64>(1) as u32))
}

/// HOOK: `locked_down(enum lockdown_reason what)`, LSM since 5.7; whatever could change or show the kernel, of which the
/// processor's ports and registers are judged: others have hooks, or files, of their own.
#[lsm(hook = "locked_down")]
pub fn locked_down(context: LsmContext) -> i32 {
    kernel::answer(matches!(context.arg::<u64>(0) as u32, PORTS | REGISTERS) && refuse(PRIVILEGE_RAW_DEVICES))
}

/// HOOK: `inode_file_setattr(struct dentry *dentry, struct file_kattr *fa)`, LSM since 6.17; file_setattr(2), and what the
/// ioctls for attributes come to.
#[lsm(hook = "inode_file_setattr")]
pub fn inode_file_setattr(context: LsmContext) -> i32 {
    kernel::answer(refuse_change(context.arg::<*const u8>(0) as u64))
}

/// What the kernel ends, starves or slows a process by.
#[inline(always)]
fn refuse_standing(target: *mut c_void) -> bool {
    let Some(session) = session::of_current_often() else { return false };
    let process = Task(target as u64).tgid().unwrap_or(0);
    if process == kernel::agent() {
        return protect(&session, PRIVILEGE_SIGNAL, (process, 0), false);
    }
    let whose = whose_task(&session, target);
    !is_own_or_within(whose) && refuse_on(&session, PRIVILEGE_SIGNAL, (process, 0), whose)
}

/// A process may have the news of its files itself, by its number on the host or in its own pid namespace. Groups, and what is named in
/// the caller's memory, could be anybody.
#[inline(always)]
fn refuse_owner(command: u32, owner: u32) -> bool {
    if command != SET_OWNER && command != SET_OWNER_BY_KIND {
        return false;
    }
    let task = Task::current();
    let is = |number: Result<u32, Fault>| number == Ok(owner);
    if command == SET_OWNER
        && (owner == 0 || is(task.tgid()) || is(task.tid()) || is(task.number_inside()) || is(leader_inside(task)))
    {
        return false;
    }
    refuse_on_anybody(PRIVILEGE_SIGNAL)
}

/// The process's number in its own pid namespace.
#[inline(always)]
fn leader_inside(task: Task) -> Result<u32, Fault> {
    task.leader()?.number_inside()
}

#[inline(always)]
fn refuse_command(file: File, command: u32) -> bool {
    if command == HANG_UP || SET_SOCKETS_OWNER.contains(&command) {
        return refuse_on_anybody(PRIVILEGE_SIGNAL);
    }
    if TYPE.contains(&command) {
        return refuse(PRIVILEGE_DELEGATION);
    }
    if command == FREEZE {
        return refuse(PRIVILEGE_MOUNT);
    }
    // what cannot be read is taken for one of the agent's
    SET_ATTRIBUTES.contains(&command)
        && match file.dentry() {
            Ok(entry) => refuse_change(entry.0),
            Err(_) => session::of_current_often().is_some_and(|member| protect(&member, AGENT_FILES, (0, 0), false)),
        }
}
