//! Records in the rings. Each starts with a [`Header`]; the agent copies the bytes out before it decodes them.

use crate::{
    limits::{ARG_BYTES, PATH_BYTES, UNIX_NAME},
    pod,
    rule::{ALLOW, FileId},
};

/// Version of the records' layout.
pub const VERSION: u16 = 1;

/// A member made a task: [`Fork`].
pub const KIND_FORK: u16 = 1;
/// A member started a program, or tried to: [`Exec`].
pub const KIND_EXEC: u16 = 2;
/// A labelled thread ended: [`Exit`].
pub const KIND_EXIT: u16 = 3;
/// A member connected, or sent without connecting, or tried to: [`Connect`].
pub const KIND_CONNECT: u16 = 4;
/// A task was labelled on first sight, or a member was moved to another cgroup: [`Move`].
pub const KIND_MOVE: u16 = 5;

/// A member made a socket that its policy does not let it make, used one that is not its session's, or set an option that
/// it may not set: [`Socket`].
pub const KIND_SOCKET: u16 = 6;
/// A member connected or sent to a unix socket, or tried to: [`Unix`].
pub const KIND_UNIX: u16 = 7;
/// A member tried what takes a privilege that its policy does not let it use: [`Privilege`].
pub const KIND_PRIVILEGE: u16 = 8;
/// One more than the highest `KIND_*`: what counts by kind has so many places.
pub const KINDS: usize = 9;

/// Whether a record goes by the ring of what members do all the time: what was refused, and what is rare, has a ring of its
/// own, that the other never fills.
#[inline(always)]
#[must_use]
pub const fn is_activity(kind: u16, verdict: u32) -> bool {
    // of a privilege that is used as it may be there is no record
    kind != KIND_MOVE && kind != KIND_PRIVILEGE && verdict == ALLOW
}

/// What every record begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// `VERSION`
    pub version: u16,
    /// `KIND_*`
    pub kind: u16,
    /// Bytes of the whole record.
    pub length: u32,
    /// `CLOCK_BOOTTIME` nanoseconds.
    pub time: u64,
    /// From 1, without a gap but for records that were lost and counted.
    pub sequence: u64,
    /// The session.
    pub slot: u32,
    /// The session's generation.
    pub generation: u32,
    /// Process id in the root pid namespace.
    pub tgid: u32,
    /// Thread id in the root pid namespace.
    pub tid: u32,
    /// User id in the root user namespace.
    pub uid: u32,
    /// `rule::ALLOW` and its kin.
    pub verdict: u32,
    /// Index of the rule, or `rule::REASON_*`.
    pub rule: u32,
    /// Always 0.
    pub pad: u32,
}
const _: () = assert!(size_of::<Header>() == 56);

/// `KIND_FORK`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fork {
    /// The parent is the header's task.
    pub header: Header,
    /// The child's process id (the parent's own where the child is a thread).
    pub child_tgid: u32,
    /// The child's thread id.
    pub child_tid: u32,
    /// `CLONE_*` flags as the kernel passes them to `task_newtask`.
    pub flags: u64,
}
const _: () = assert!(size_of::<Fork>() == 72);

/// `KIND_EXEC`
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exec {
    /// The verdict is on this exec.
    pub header: Header,
    /// The program that was judged.
    pub file: FileId,
    /// Bytes of `path` in use, without the terminating 0; `PATH_BYTES - 1` may mean that it was cut.
    pub path_length: u32,
    /// Bytes of `args` in use; arguments are separated by 0 bytes.
    pub args_length: u32,
    /// Bytes of the whole argument vector in the new program's memory.
    pub args_total: u32,
    /// 1: the start was not seen; the program was judged when it did something, and of `path` the last part is known.
    pub late: u32,
    /// `linux_binprm.filename`: what was asked for. For display; it decides nothing.
    pub path: [u8; PATH_BYTES],
    /// The first arguments, from the new program's memory. For display. Empty where the exec was refused before that
    /// memory was in place.
    pub args: [u8; ARG_BYTES],
}
const _: () = assert!(size_of::<Exec>() == 56 + 16 + 16 + PATH_BYTES + ARG_BYTES);

/// `KIND_EXIT`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// The thread that ended.
    pub header: Header,
    /// As wait(2) would report it: status in bits 8–15, or the signal in bits 0–6.
    pub code: u32,
    /// Always 0.
    pub pad: u32,
    /// Its name; unused bytes are 0.
    pub name: [u8; 16],
}
const _: () = assert!(size_of::<Exit>() == 80);

/// The address came from connect(2).
pub const VIA_CONNECT: u8 = 0;
/// The address came with a message.
pub const VIA_SEND: u8 = 1;
/// A local address, by bind(2).
pub const VIA_BIND: u8 = 2;
/// A local address, by listen(2), or found when somebody came to a port that may not be listened on.
pub const VIA_LISTEN: u8 = 3;
/// A peer that came in; the port is the local one.
pub const VIA_ACCEPT: u8 = 4;
/// The destination of a packet that no hook before had judged; the first that was dropped for it.
pub const VIA_PACKET: u8 = 5;

/// `KIND_CONNECT`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connect {
    /// The verdict is on this connect or send.
    pub header: Header,
    /// Network order; IPv4 as `::ffff:a.b.c.d`.
    pub address: [u8; 16],
    /// Host order.
    pub port: u16,
    /// `IPPROTO_*`
    pub protocol: u8,
    /// `VIA_*`
    pub via: u8,
    /// Always 0.
    pub pad: u32,
    /// The socket's cookie.
    pub cookie: u64,
}
const _: () = assert!(size_of::<Connect>() == 88);

/// `KIND_MOVE`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Move {
    /// The task that was moved (the header's task ids are the moved task's, not the mover's).
    pub header: Header,
    /// Id of the cgroup it is in now.
    pub cgroup: u64,
    /// 1: it was labelled by this; 0: it was a member already.
    pub joined: u32,
    /// Always 0.
    pub pad: u32,
}
const _: () = assert!(size_of::<Move>() == 72);

/// socket(2).
pub const ACT_CREATE: u16 = 0;
/// A descriptor was passed.
pub const ACT_RECEIVE: u16 = 1;
/// Connect, send, receive, bind, listen or accept on a socket that crossed.
pub const ACT_USE: u16 = 2;
/// setsockopt(2).
pub const ACT_OPTION: u16 = 3;

/// `KIND_SOCKET`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// The verdict is on this act.
    pub header: Header,
    /// `ACT_*`
    pub act: u16,
    /// `AF_*`
    pub family: u16,
    /// `SOCK_*`, without flags.
    pub kind: u16,
    /// `IPPROTO_*` and the like.
    pub protocol: u16,
    /// `SOL_*` of an option, else 0.
    pub level: u32,
    /// The option's name, else 0.
    pub option: u32,
}
const _: () = assert!(size_of::<Socket>() == 72);

/// `KIND_UNIX`
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unix {
    /// The verdict is on this connect or send.
    pub header: Header,
    /// The socket's file; all zero where it has none.
    pub file: FileId,
    /// `VIA_CONNECT`, `VIA_SEND` or `VIA_BIND`
    pub via: u32,
    /// Bytes of `name` in use.
    pub length: u32,
    /// What the socket is bound to; an abstract name begins with a 0 byte. For display.
    pub name: [u8; UNIX_NAME],
}
const _: () = assert!(size_of::<Unix>() == 56 + 16 + 8 + UNIX_NAME);

/// `KIND_PRIVILEGE`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Privilege {
    /// The verdict is on this attempt.
    pub header: Header,
    /// `privilege::PRIVILEGE_*`: what it takes.
    pub class: u32,
    /// The signal, the command of bpf(2); of `PRIVILEGE_DELEGATION` the agent's number for the place; else 0.
    pub detail: u32,
    /// Process id of whom it was tried on, in the root pid namespace; 0: not on a process.
    pub target: u32,
    /// Always 0.
    pub pad: u32,
}
const _: () = assert!(size_of::<Privilege>() == 72);

pod!(Header, Fork, Exec, Exit, Connect, Move, Socket, Unix, Privilege);
