//! The kernel's audit with a rule on execve and connect, and a reader that throws the records away: the least that auditd
//! does, which writes them to a file. In guests only: it is a setting of the whole kernel.

use std::{
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Result, anyhow, ensure};
use nix::errno::Errno;

/// `NETLINK_AUDIT`; `AUDIT_SET`, `AUDIT_ADD_RULE`, `AUDIT_DEL_RULE` (`include/uapi/linux/audit.h`, 6.18).
const NETLINK_AUDIT: libc::c_int = 9;
const SET: u16 = 1001;
const ADD_RULE: u16 = 1011;
const DEL_RULE: u16 = 1012;
/// `AUDIT_FILTER_EXIT`, `AUDIT_ALWAYS`.
const EXIT: u32 = 4;
const ALWAYS: u32 = 2;
/// `AUDIT_STATUS_ENABLED`, `AUDIT_STATUS_PID`, `AUDIT_STATUS_BACKLOG_LIMIT`.
const STATUS: u32 = 0x1 | 0x4 | 0x10;
/// Records that may wait to be read: more than a round makes.
const BACKLOG: u32 = 262_144;
/// `NLM_F_REQUEST`, `NLM_F_ACK`.
const REQUEST: u16 = 1 | 4;
/// Words of `struct audit_rule_data`: flags, action, count, 64 words of calls, three times 64 of fields, a length.
const RULE: usize = 3 + 64 + 3 * 64 + 1;

/// The audit, switched on.
#[derive(Debug)]
pub(super) struct Audit {
    over: Arc<AtomicBool>,
    reader: JoinHandle<()>,
}

impl Audit {
    pub(super) fn start() -> Result<Self> {
        let socket = open()?;
        ask(&socket, SET, &[STATUS, 1, 0, std::process::id(), 0, BACKLOG, 0, 0])?;
        ask(&socket, ADD_RULE, &rule())?;
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let reader = thread::spawn(move || {
            let mut record = [0_u8; 16384];
            // a second without a record is a look at whether it is over
            while !seen.load(Ordering::Relaxed) {
                receive(&socket, &mut record);
            }
        });
        Ok(Self { over, reader })
    }

    /// Takes the rule out, and switches audit off.
    pub(super) fn stop(self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        self.reader.join().map_err(|_panic| anyhow!("the reader of audit broke down"))?;
        let socket = open()?;
        ask(&socket, DEL_RULE, &rule())?;
        ask(&socket, SET, &[STATUS, 0, 0, 0, 0, BACKLOG, 0, 0])
    }
}

/// Each execve and connect, whoever makes it.
fn rule() -> Vec<u32> {
    let mut rule = vec![0; RULE];
    (rule[0], rule[1]) = (EXIT, ALWAYS);
    for call in [libc::SYS_execve, libc::SYS_connect].map(libc::c_long::cast_unsigned) {
        rule[3 + call as usize / 32] |= 1 << (call % 32);
    }
    rule
}

fn open() -> Result<OwnedFd> {
    // SAFETY: integers only.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, NETLINK_AUDIT) };
    ensure!(fd >= 0, "no socket of audit: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let limit = libc::timeval { tv_sec: 1, tv_usec: 0 };
    let length = libc::socklen_t::try_from(size_of_val(&limit))?;
    // SAFETY: the kernel reads one timeval, which outlives the call.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const limit).cast(), length)
    };
    Errno::result(done)?;
    Ok(socket)
}

/// Sends a request, and reads until the kernel answers it.
fn ask(socket: &OwnedFd, what: u16, words: &[u32]) -> Result<()> {
    let mut message = Vec::new();
    // length, type, flags, a number, nobody's port
    message.extend(u32::try_from(16 + 4 * words.len())?.to_ne_bytes());
    message.extend(what.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    words.iter().for_each(|word| message.extend(word.to_ne_bytes()));
    // SAFETY: the kernel reads `message`, which outlives the call.
    let sent = unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    Errno::result(sent)?;
    let mut answer = [0_u8; 16384];
    for _ in 0..1000 {
        receive(socket, &mut answer);
        if answer[4..6] == (libc::NLMSG_ERROR as u16).to_ne_bytes() {
            let code = i32::from_ne_bytes(answer[16..20].try_into()?);
            ensure!(code == 0, "audit refused request {what}: {}", Errno::from_raw(-code));
            return Ok(());
        }
    }
    Err(anyhow!("audit does not answer request {what}"))
}

/// One record; none within the socket's time leaves the bytes as they are.
fn receive(socket: &OwnedFd, bytes: &mut [u8]) {
    // SAFETY: the kernel writes at most so many bytes into `bytes`.
    let _ = unsafe { libc::recv(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
}
