//! What somebody outside passes to whoever asks, in a message: descriptors that members may not make or open themselves; and
//! the use that a member makes of one, which shows that it has it.

use std::{
    io::{Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
};

use anyhow::{Result, bail};
use nix::{
    errno::Errno,
    unistd::{read, write},
};

use super::acts::{answer, io};
use crate::{harness::descriptors, work};

/// A setting of the network namespace that the attempts are made in, and what it is there.
pub(super) const SETTING: (&str, &str) = ("ipv4/tcp_fastopen", "519");

/// Answers each that comes and names a kind with a descriptor of it.
pub(super) fn give(listener: UnixListener) {
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut word = [0; 16];
            let Ok(length) = stream.read(&mut word) else { continue };
            // who asks for what this kernel has not is told nothing
            let Ok(gift) = made(&String::from_utf8_lossy(&word[..length])) else { continue };
            // who went away gets none
            let _ = descriptors::pass(&stream, b"x", &[gift.as_raw_fd()]);
        }
    });
}

fn made(kind: &str) -> Result<OwnedFd> {
    Ok(match kind {
        "setting" => descriptors::opened(&format!("/proc/sys/net/{}", SETTING.0), true, 0)?,
        "device" => descriptors::opened("/dev/loop0", true, 0)?,
        "event" => descriptors::perf_event()?,
        "faults" => descriptors::user_fault()?,
        _ => bail!("nobody gives {kind:?}"),
    })
}

/// `use-passed SOCKET KIND`: has a descriptor of that kind passed, and uses it; `none` where it did not arrive, `lacking`
/// where there is none.
pub(super) fn use_passed(words: &[&str]) -> Result<u8> {
    let [name, kind] = words else { bail!("use-passed takes a socket and a kind") };
    let mut stream = match io(UnixStream::connect(name)) {
        Ok(stream) => stream,
        Err(errno) => return Ok(work::say(Err(errno))),
    };
    stream.write_all(kind.as_bytes())?;
    let mut passed = descriptors::receive(&stream)?;
    match passed.files.pop() {
        Some(gift) => Ok(work::say(used(kind, &gift))),
        None => {
            println!("{}", if passed.bytes.is_empty() { "lacking" } else { "none" });
            Ok(0)
        }
    }
}

/// As little as shows that it is good for what it is for: the setting stays what it is, nothing is written to the device, the
/// event is read, and the userfaultfd, which is of the giver's memory, is asked what it can do.
fn used(kind: &str, gift: &OwnedFd) -> Result<(), Errno> {
    // include/uapi/linux/fs.h and userfaultfd.h
    const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;
    const UFFDIO_API: libc::Ioctl = 0xc018_aa3f;
    const UFFD_API: u64 = 0xaa;
    match kind {
        "setting" => write(gift, SETTING.1.as_bytes()).map(drop),
        "event" => read(gift, &mut [0; 8]).map(drop),
        "device" => {
            let mut size = 0u64;
            // SAFETY: the kernel writes a number of eight bytes, which outlives the call; the descriptor is open.
            answer(unsafe { libc::ioctl(gift.as_raw_fd(), BLKGETSIZE64, &raw mut size) }.into())
        }
        _ => {
            let mut api = [UFFD_API, 0, 0];
            // SAFETY: as long as `struct uffdio_api`, and outlives the call; the descriptor is open.
            answer(unsafe { libc::ioctl(gift.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) }.into())
        }
    }
}
