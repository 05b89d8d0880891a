//! Addresses of SCTP that no call of sockets names: a list of them is an option, and the kernel connects and binds by it. Of a
//! list the first address is judged here, so that whoever asks is told; the packets to and from each are judged where they
//! pass.

use core::ffi::c_void;

use aya_ebpf::{macros::lsm, programs::LsmContext};
use tipstaff_common::event::{ACT_USE, VIA_BIND, VIA_CONNECT};

use super::{crossed::crossed, sockets::refuse_target};
use crate::{
    kernel::{self, Address},
    session, socket,
};

/// `SCTP_SOCKOPT_BINDX_ADD` and `SCTP_SOCKOPT_CONNECTX` (`include/uapi/linux/sctp.h`): the kernel names by the last also what came
/// by its other two numbers (`net/sctp/socket.c`, 6.18).
const BIND_SEVERAL: u32 = 100;
const CONNECT_SEVERAL: u32 = 110;

/// HOOK: `sctp_bind_connect(struct sock *sk, int optname, struct sockaddr *address, int addrlen)`, LSM since 5.7. For a message
/// with an address `socket_sendmsg` was called before; an address that a peer adds is said to whatever task runs.
#[lsm(hook = "sctp_bind_connect")]
pub fn sctp_bind_connect(context: LsmContext) -> i32 {
    let address = Address::at(context.arg::<*const u8>(2) as u64, context.arg::<u64>(3) as u32);
    kernel::answer(refuse_list(context.arg(0), context.arg::<u64>(1) as u32, address))
}

#[inline(always)]
fn refuse_list(sock: *mut c_void, option: u32, first: Address) -> bool {
    let via = match option {
        BIND_SEVERAL => VIA_BIND,
        CONNECT_SEVERAL => VIA_CONNECT,
        _ => return false,
    };
    let Some(session) = session::of_current() else { return false };
    let label = socket::label(sock);
    if let Some(refused) = crossed(&session, sock, label, ACT_USE) {
        return refused;
    }
    refuse_target(&session, sock, label, first, via)
}
