//! Attempts on unix sockets: by other paths to them, by other kinds of sockets, and on the agent's own.

use std::{
    io::{Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use anyhow::{Result, bail};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket},
};

use super::acts::{answer, io};
use crate::work;

/// `ask SOCKET METHOD`: asks the agent. `errno 1` where it refuses to answer.
pub(super) fn ask(words: &[&str]) -> Result<u8> {
    let [path, method] = words else { bail!("ask takes a socket and a method") };
    let said = io((|| {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(Duration::from_secs(25)))?;
        stream.write_all(format!("{{\"method\":\"{method}\",\"parameters\":{{}}}}\0").as_bytes())?;
        let mut bytes = Vec::new();
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 && byte != [0] {
            bytes.extend(byte);
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    })());
    // who may ask is told more, be it that the question is no good
    let denied = |said: &str| ["dev.tipstaff.Member", "dev.tipstaff.Denied"].iter().any(|name| said.contains(name));
    Ok(work::say(match said {
        Ok(said) if said.is_empty() || denied(&said) => Err(Errno::EPERM),
        Ok(_) | Err(Errno::EAGAIN) => Ok(()),
        Err(errno) => Err(errno),
    }))
}

/// `unix-by KIND PATH TEXT`: sends the text to a unix socket: as a `packet` (`SOCK_SEQPACKET`), by a `link` to its file,
/// made at a fourth word, or by a descriptor that is its `place`.
pub(super) fn by(words: &[&str]) -> Result<u8> {
    let [kind, path, text, link @ ..] = words else { bail!("unix-by takes a kind, a path and a text") };
    let mut held = None;
    let path = match *kind {
        "link" => {
            let link = super::acts::argument(link)?;
            std::os::unix::fs::symlink(path, link)?;
            link.to_owned()
        }
        "place" => {
            let place = std::ffi::CString::new(*path)?;
            // SAFETY: a string that outlives the call.
            let fd = unsafe { libc::open(place.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
            answer(fd.into())?;
            // SAFETY: the kernel just made it, and nobody else has it.
            held = Some(unsafe { OwnedFd::from_raw_fd(fd) });
            format!("/proc/self/fd/{fd}")
        }
        _ => (*path).to_owned(),
    };
    let kind = if *kind == "packet" { SockType::SeqPacket } else { SockType::Stream };
    let socket = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
    let address = match path.strip_prefix('@') {
        Some(name) => UnixAddr::new_abstract(name.as_bytes())?,
        None => UnixAddr::new(path.as_str())?,
    };
    let fd = socket.as_raw_fd();
    let sent = connect(fd, &address).and_then(|()| send(fd, text.as_bytes(), MsgFlags::MSG_NOSIGNAL)).map(drop);
    drop(held);
    Ok(work::say(sent))
}
