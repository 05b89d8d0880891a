//! How the use of a socket is recorded by the programs that judge its user.

use core::ffi::c_void;

use tipstaff_common::event::{Connect, KIND_CONNECT, KIND_SOCKET, Socket};

use super::connect::{write, write_act};
use crate::{
    emit,
    kernel::{self, Sock},
    rules::Target,
    session::Session,
    verdict::Decision,
};

/// Records a connect, send, bind or listen.
#[inline(always)]
pub fn report(session: &Session, target: &Target, via: u8, decision: Decision, sock: *mut c_void) {
    let cookie = kernel::cookie(sock);
    let answer = u64::from(decision.verdict) << 32 | u64::from(decision.rule);
    report_address(core::ptr::from_ref(session), core::ptr::from_ref(target), via.into(), cookie, answer);
}

/// As [`report`]; `answer` is verdict and rule, 32 bits each. Always 0.
///
/// VERIFIER: as [`report_socket`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn report_address(
    session: *const Session,
    target: *const Target,
    via: u32,
    cookie: u64,
    answer: u64,
) -> u32 {
    if session.is_null() || target.is_null() {
        return 0;
    }
    // SAFETY: not null; the caller passes its own.
    let (session, target) = unsafe { (*session, *target) };
    let decision = Decision { verdict: (answer >> 32) as u32, rule: answer as u32 };
    emit::answer::<Connect>(&session, KIND_CONNECT, decision, |place| write(place, &target, via as u8, cookie));
    0
}

/// Records what was tried with a socket of such a family, type and protocol; `option` is level and name.
#[inline(always)]
pub fn report_act(session: &Session, act: u16, socket: (u32, u32, u32), option: (u32, u32), decision: Decision) {
    let (family, kind, protocol) = (socket.0 as u16, socket.1 as u16, socket.2 as u16);
    let what = u64::from(act) << 48 | u64::from(family) << 32 | u64::from(kind) << 16 | u64::from(protocol);
    let option = u64::from(option.0) << 32 | u64::from(option.1);
    report_socket(core::ptr::from_ref(session), what, option, decision.verdict, decision.rule);
}

/// As [`report_act`]; `what` is act, family, type and protocol, 16 bits each, `option` level and name. Always 0.
///
/// VERIFIER: as `session::session_of_current`; and it has a stack of its own, which is not there while rules are asked: 6.1
/// counts 512 bytes for all that call each other.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn report_socket(session: *const Session, what: u64, option: u64, verdict: u32, rule: u32) -> u32 {
    if session.is_null() {
        return 0;
    }
    // SAFETY: not null; the caller passes its own.
    let session = unsafe { *session };
    let socket = ((what >> 32) as u32 & 0xffff, (what >> 16) as u32 & 0xffff, what as u32 & 0xffff);
    emit::answer::<Socket>(&session, KIND_SOCKET, Decision { verdict, rule }, |place| {
        write_act(place, (what >> 48) as u16, socket, ((option >> 32) as u32, option as u32));
    });
    0
}

/// Family, type and protocol, for a record.
#[inline(always)]
pub fn describe(sock: *mut c_void) -> (u32, u32, u32) {
    let sock = Sock(sock as u64);
    let (family, kind) = (sock.family().unwrap_or(0), sock.kind().unwrap_or(0));
    (u32::from(family), u32::from(kind), u32::from(sock.protocol().unwrap_or(0)))
}
