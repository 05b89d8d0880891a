//! Whose socket it is. A label is written where the socket is made, or at its first use by a member of the session whose
//! cgroup it was made in, or at its first packet, where the kernel made it (MPTCP); it is never written over, so a socket that
//! changes hands stays the session's that made it.

use core::ffi::c_void;

use tipstaff_common::{
    fingerprint,
    label::CONFINED,
    socket::{SOCKET_CONFINED, SOCKET_CROSSED, SOCKET_PASSIVE, SOCKET_SERVES, SocketLabel},
};

use crate::{
    kernel::{self, Sock},
    maps::SOCKET_LABELS,
    rules::Target,
    session::{self, Session},
};

/// `TCP_LISTEN` (`include/net/tcp_states.h`)
pub const LISTEN: u8 = 10;
/// `TCP_CLOSE`, as above: neither connected nor about to be, and not listening.
pub const CLOSED: u8 = 7;

/// The label of a socket; null: it has none.
#[inline(always)]
pub fn label(socket: *mut c_void) -> *mut SocketLabel {
    SOCKET_LABELS.get(socket, false)
}

/// The label of a socket that a session made, written if there is none; null: no room. A socket with a label has a cookie too:
/// who lists labels may not be able to give it one. `asked` is what the helper for cookies takes for the socket here.
#[inline(always)]
pub fn give(socket: *mut c_void, asked: *mut c_void, session: &Session, flags: u32) -> *mut SocketLabel {
    let place = SOCKET_LABELS.get(socket, true);
    if !place.is_null() {
        kernel::cookie(asked);
        let confined = if session.flags & CONFINED != 0 { SOCKET_CONFINED } else { 0 };
        // SAFETY: points into the socket's storage. What is not written was zeroed by the kernel; a label that was there
        // keeps its session.
        unsafe {
            if (*place).generation == 0 {
                (*place).slot = session.slot;
                (*place).flags |= confined;
                (*place).generation = session.generation;
            }
            (*place).flags |= flags;
        }
    }
    place
}

/// Whether the label is the session's own.
#[inline(always)]
pub fn is_own(label: *const SocketLabel, session: &Session) -> bool {
    // SAFETY: points into a socket's storage.
    !label.is_null() && unsafe { (*label).slot == session.slot && (*label).generation == session.generation }
}

/// Whether the label says that no member may use the socket.
#[inline(always)]
pub fn has_crossed(label: *const SocketLabel) -> bool {
    // SAFETY: points into a socket's storage.
    !label.is_null() && unsafe { (*label).flags } & SOCKET_CROSSED != 0
}

/// Notes that a socket listens: who comes by it is judged as such.
#[inline(always)]
pub fn lets_in(label: *mut SocketLabel) {
    if !label.is_null() {
        // SAFETY: points into a socket's storage.
        unsafe { (*label).flags |= SOCKET_PASSIVE };
    }
}

/// Notes that a socket was bound where others can come to it.
#[inline(always)]
pub fn serves(label: *mut SocketLabel) {
    if !label.is_null() {
        // SAFETY: points into a socket's storage.
        unsafe { (*label).flags |= SOCKET_SERVES };
    }
}

/// Notes that a socket connects: from here on its peer is one that it went to, whatever it did before.
#[inline(always)]
pub fn goes_out(label: *mut SocketLabel) {
    // SAFETY: points into a socket's storage. Written only where it says otherwise: others may write there meanwhile.
    if !label.is_null() && unsafe { (*label).flags } & SOCKET_PASSIVE != 0 {
        // SAFETY: as above.
        unsafe { (*label).flags &= !SOCKET_PASSIVE };
    }
}

/// Where a socket without a label comes from that a member uses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The session's cgroup; or the kernel made it and connects it for the member (the sockets under one of MPTCP).
    Session,
    /// The kernel has it for itself: a network file system's, one that a disk is behind.
    Kernel,
    /// Anywhere else: what a member makes has a label.
    Elsewhere,
}

/// Where a socket comes from; `connects`: it is about to be connected. For programs that see others' sockets too.
#[inline(always)]
pub fn origin(sock: Sock, session: &Session, connects: bool) -> Origin {
    if let Ok(cgroup) = sock.cgroup()
        && let Some(found) = session::of_cgroup(cgroup)
        && (found.slot, found.generation) == (session.slot, session.generation)
    {
        return Origin::Session;
    }
    if sock.is_for_storage() == Ok(true) {
        return Origin::Kernel;
    }
    match sock.is_kernels() {
        Ok(true) if connects => Origin::Session,
        Ok(true) => Origin::Kernel,
        _ => Origin::Elsewhere,
    }
}

/// The session that a label names, by the coarse clock: for packets.
#[inline(always)]
pub fn session_of(label: *const SocketLabel) -> Session {
    // SAFETY: points into a socket's storage.
    let (slot, generation, flags) = unsafe { ((*label).slot, (*label).generation, (*label).flags) };
    session::of_socket(slot, generation, if flags & SOCKET_CONFINED != 0 { CONFINED } else { 0 })
}

/// One word for an address and the revision it was judged under; never 0.
#[inline(always)]
pub fn fingerprint(target: &Target, revision: u32) -> u64 {
    // SAFETY: as many bytes, integers only; a `Target` is aligned, and its address lies at its beginning.
    let [a, b, c, d] = unsafe { *core::ptr::from_ref(target).cast::<[u32; 4]>() };
    let rest = u32::from(target.protocol) << 16 | u32::from(target.port);
    fingerprint::fingerprint(kernel::secret, [a, b, c, d, revision, rest])
}
