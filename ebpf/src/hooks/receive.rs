//! Files that come from another process (tier full). A member is given none that it could not have made or opened itself: a
//! file without a name by what it is, any other as if it were opened here. Ordinary ones arrive.
//!
//! What is refused is not put among the descriptors. recvmsg(2) then says that the message was cut (`MSG_CTRUNC`), and hands
//! over the descriptors before it in the same message and none after it; pidfd_getfd(2) answers `EPERM`.

use core::ffi::c_void;

use aya_ebpf::{helpers::bpf_sock_from_file, macros::lsm, programs::LsmContext};
use tipstaff_common::privilege::{
    AGENT_FILES, PRIVILEGE_BPF, PRIVILEGE_IO_URING, PRIVILEGE_MOUNT, PRIVILEGE_PERF_EVENT, PRIVILEGE_RAW_DEVICES,
    PRIVILEGE_USERFAULTFD,
};

use super::{
    crossed::refuse_passed,
    own_files::{class_of_file, refuse_class, refuse_written},
    privilege::protect,
};
use crate::{
    kernel::{self, Dentry, File, Inode},
    session,
};

/// `ANON_INODE_FS_MAGIC` (`include/uapi/linux/magic.h`): files that the kernel makes and names. Nothing has a path there and
/// no program can mount it (`fs/anon_inodes.c` registers no file system, 6.1 to 7.2), so no member chooses a name.
const UNNAMED: u64 = 0x0904_1934;
/// `BPF_FS_MAGIC`: what is pinned, and tokens, which give rights of bpf(2) away.
const BPF: u64 = 0xcafe_4a11;

/// HOOK: `file_receive(struct file *file)`, LSM since 5.7; in the process that receives, before the file is among its
/// descriptors: `SCM_RIGHTS`, pidfd_getfd(2), what a seccomp supervisor puts there, what io_uring holds (all by `receive_fd`,
/// `fs/file.c`). The kernel passes no io_uring by `SCM_RIGHTS` (6.1, 6.12 and 7.2, measured: `EINVAL`). Not called for a file
/// that one io_uring hands to another (`IORING_OP_MSG_RING`), which stays in the ring.
#[lsm(hook = "file_receive")]
pub fn file_receive(context: LsmContext) -> i32 {
    kernel::answer(refuse_file(context.arg(0)))
}

#[inline(always)]
fn refuse_file(file: *mut c_void) -> bool {
    let Some(session) = session::of_current() else { return false };
    // SAFETY: the helper takes a `struct file` that the verifier knows; null where it is no socket.
    let socket = unsafe { bpf_sock_from_file(file.cast()) }.cast::<c_void>();
    if !socket.is_null() {
        return refuse_passed(&session, socket);
    }
    let file = File(file as u64);
    // as in `file_open`
    let (Ok(inode), Ok(entry), Ok(mode)) = (file.inode(), file.dentry(), file.mode()) else {
        return protect(&session, AGENT_FILES, (0, 0), false);
    };
    // what only names a file is opened anew before it is good for anything, and judged then
    if !mode.only_names() && mode.writes() && refuse_written(&session, entry) {
        return true;
    }
    refuse_class(&session, class_of_received(inode.0, entry.0, mode.0), entry)
}

/// The class of privileges that having this file takes; 0: none.
///
/// VERIFIER: as `session::session_of_current`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn class_of_received(inode: u64, entry: u64, mode: u32) -> u32 {
    let mode = kernel::Mode(mode);
    if mode.is_mount() {
        return PRIVILEGE_MOUNT;
    }
    if mode.only_names() {
        return 0;
    }
    match Inode(inode).magic() {
        Ok(UNNAMED) => class_of_unnamed(entry),
        Ok(BPF) => PRIVILEGE_BPF,
        Ok(_) => class_of_file(inode, entry, u32::from(mode.writes())),
        Err(_) => PRIVILEGE_RAW_DEVICES,
    }
}

/// By the name that the kernel gave it: where each is made, `anon_inode_getfile` and its like (read on 6.1, 6.12 and 7.2).
#[inline(always)]
fn class_of_unnamed(entry: u64) -> u32 {
    // what cannot be read takes the first class that it could
    let Ok(name) = Dentry(entry).name_start() else { return PRIVILEGE_BPF };
    match &name {
        // bpf-map, bpf-prog, bpf_link, bpf_iter, bpf-stats; btf
        [b'b', b'p', b'f', ..] | [b'b', b't', b'f', 0, ..] => PRIVILEGE_BPF,
        b"[io_urin" => PRIVILEGE_IO_URING,
        b"[perf_ev" => PRIVILEGE_PERF_EVENT,
        b"[userfau" => PRIVILEGE_USERFAULTFD,
        // fsopen(2), fspick(2)
        b"[fsconte" => PRIVILEGE_MOUNT,
        _ => 0,
    }
}
