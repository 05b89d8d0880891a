//! Iterators that the agent reads: who is labelled, and which file each of its own descriptors is.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_seq_write, bpf_sock_from_file};
use tipstaff_common::{
    label::MemberRow,
    place::Way,
    rule::{Content, FileId},
    socket::{SocketLabel, SocketRow, UNREADABLE},
};

use crate::{
    kernel::{self, File, Inode, Sock, Task},
    maps::{SOCKET_LABELS, TASK_LABELS},
    place,
};

/// `struct bpf_iter__task`
#[repr(C)]
pub struct TaskContext {
    pub(super) meta: *const *mut c_void,
    pub(super) task: *mut c_void,
}

/// `struct bpf_iter__task_file`
#[repr(C)]
pub struct TaskFileContext {
    meta: *const *mut c_void,
    task: *mut c_void,
    descriptor: u64,
    file: *mut c_void,
}

/// One row that [`files`] writes.
#[repr(C)]
struct FileRow {
    descriptor: u64,
    file: FileId,
    content: Content,
    way: Way,
}

/// HOOK: `iter/task(struct bpf_iter__task *)`, since 5.8. Writes a `MemberRow` for each labelled thread that has not ended.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn members(context: *const TaskContext) -> i32 {
    // SAFETY: the kernel hands over a valid context; the task is null at the end.
    let (meta, pointer) = unsafe { ((*context).meta, (*context).task) };
    if pointer.is_null() {
        return 0;
    }
    let label = TASK_LABELS.get(pointer, false);
    if label.is_null() {
        return 0;
    }
    let task = Task(pointer as u64);
    if task.exit_state().is_ok_and(|state| state != 0) {
        return 0;
    }
    let mut row = MemberRow {
        // SAFETY: points into the task's storage.
        label: unsafe { *label },
        tgid: task.tgid().unwrap_or(0),
        tid: task.tid().unwrap_or(0),
    };
    write(meta, &mut row);
    0
}

/// HOOK: `iter/task_file(struct bpf_iter__task_file *)`, since 5.8. Writes a `FileRow` for each open file of the agent.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub extern "C" fn files(context: *const TaskFileContext) -> i32 {
    // SAFETY: the kernel hands over a valid context; task and file are null at the end.
    let (meta, task, descriptor, file) =
        unsafe { ((*context).meta, (*context).task, (*context).descriptor, (*context).file) };
    if task.is_null() || file.is_null() {
        return 0;
    }
    if Task(task as u64).tgid() != Ok(kernel::agent()) {
        return 0;
    }
    let Ok(inode) = File(file as u64).inode() else { return 0 };
    let (Ok(identity), Ok(content)) = (inode.identity(), inode.content()) else { return 0 };
    let way = File(file as u64).dentry().and_then(|entry| place::way(entry, identity.device));
    // the kernel's field is an `int`; what follows it up to the next field is not written
    let mut row =
        FileRow { descriptor: descriptor & 0xffff_ffff, file: identity, content, way: way.unwrap_or_default() };
    write(meta, &mut row);
    0
}

/// `struct bpf_iter__bpf_sk_storage_map`
#[repr(C)]
pub struct SocketContext {
    meta: *const *mut c_void,
    map: *mut c_void,
    socket: *mut c_void,
    label: *const SocketLabel,
}

/// HOOK: `iter/bpf_sk_storage_map(struct bpf_iter__bpf_sk_storage_map *)`, since 5.9. Writes a `SocketRow` for each socket
/// that carries a label, in whatever network namespace.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub extern "C" fn sockets(context: *const SocketContext) -> i32 {
    // SAFETY: the kernel hands over a valid context; socket and label are null at the end.
    let (meta, pointer, label) = unsafe { ((*context).meta, (*context).socket, (*context).label) };
    if pointer.is_null() || label.is_null() {
        return 0;
    }
    write_socket(meta, Sock(pointer as u64), label, (kernel::cookie(pointer), 0));
    0
}

/// HOOK: `iter/task_file(struct bpf_iter__task_file *)`, since 5.8; `bpf_sock_from_file` since 5.11. Writes a `SocketRow` for
/// each open file that is a socket with a label, for kernels that refuse [`sockets`]: one that is open in several processes
/// comes several times. Does not see a socket that nobody holds open: one that is closed and still sends, one that was not
/// accepted yet, one on its way to another process. Gives no socket a cookie: one that has none is written without.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub extern "C" fn sockets_held(context: *const TaskFileContext) -> i32 {
    // SAFETY: the kernel hands over a valid context; task and file are null at the end.
    let (meta, file) = unsafe { ((*context).meta, (*context).file) };
    if file.is_null() {
        return 0;
    }
    // SAFETY: the verifier knows the file as one.
    let socket: *mut c_void = unsafe { bpf_sock_from_file(file.cast()) }.cast();
    if socket.is_null() {
        return 0;
    }
    let Ok(Some(socket)) = Sock::of_socket(socket as u64) else { return 0 };
    let label = match socket.stored::<SocketLabel>((&raw const SOCKET_LABELS) as u64) {
        Ok(Some(label)) => label,
        Ok(None) => return 0,
        Err(_) => SocketLabel { slot: UNREADABLE, ..SocketLabel::default() },
    };
    let number = File(file as u64).inode().and_then(Inode::number);
    let (Ok(cookie), Ok(number)) = (socket.cookie(), number) else { return 0 };
    write_socket(meta, socket, &raw const label, (cookie, number as u32));
    0
}

#[inline(always)]
fn write_socket(meta: *const *mut c_void, socket: Sock, label: *const SocketLabel, (cookie, inode): (u64, u32)) {
    // SAFETY: the label lives while the program runs; VERIFIER: field by field, a read-only buffer.
    let mut row = unsafe {
        SocketRow {
            slot: (*label).slot,
            generation: (*label).generation,
            flags: (*label).flags,
            spent: (*label).spent,
            sent: (*label).sent,
            received: (*label).received,
            cookie,
            inode,
            ..SocketRow::default()
        }
    };
    if socket.describe(&mut row).is_ok() {
        write(meta, &mut row);
    }
}

#[inline(always)]
pub(super) fn write<T>(meta: *const *mut c_void, row: &mut T) {
    // SAFETY: the first field of `struct bpf_iter_meta` is the `seq_file`; a full buffer makes the kernel call again
    // with a larger one, so the helper's answer needs no look.
    unsafe { bpf_seq_write((*meta).cast(), core::ptr::from_mut(row).cast(), size_of::<T>() as u32) };
}
