//! Trying one thing again and again, across a deadline, and noting each time that it worked.

use std::{
    ffi::CString,
    fs::File,
    io::{Read, Write},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::{
        socket::{MsgFlags, SockType},
        wait::waitpid,
    },
    unistd::execv,
};

use super::{network, one, process, say};
use crate::harness::wait::boot_ns;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);

/// `strive exec FILE PROGRAM`, `strive fork FILE`, `strive connect FILE ADDRESS PORT`, `strive send ADDRESS PORT`: for ever
/// becomes the program, which goes on with it, makes a child, connects by TCP, or sends a datagram. A time (`CLOCK_BOOTTIME`,
/// 8 bytes) from before each try that worked is added to FILE; the datagrams are such times.
pub(super) fn strive(words: &[&str]) -> Result<u8> {
    let (how, rest) = one(words)?;
    match how {
        "exec" => exec(rest),
        "fork" => fork(one(rest)?.0),
        "connect" => connect(rest),
        "send" => datagrams(rest),
        _ => bail!("there is no way {how:?} to strive"),
    }
}

fn note(file: &str, begun: u64) -> Result<()> {
    let mut file = File::options().create(true).append(true).open(file).with_context(|| file.to_owned())?;
    Ok(file.write_all(&begun.to_be_bytes())?)
}

fn exec(words: &[&str]) -> Result<u8> {
    let (file, rest) = one(words)?;
    let (program, begun) = one(rest)?;
    if let Some(begun) = begun.first() {
        note(file, begun.parse()?)?;
    }
    loop {
        std::thread::sleep(PAUSE);
        let begun = boot_ns()?.to_string();
        let words = [program, "--work", "strive", "exec", file, program, &begun];
        let argv = words.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>()?;
        // one that is refused is tried again
        let _ = execv(&argv[0], &argv);
    }
}

fn fork(file: &str) -> Result<u8> {
    loop {
        std::thread::sleep(PAUSE);
        let begun = boot_ns()?;
        if let Ok(child) = process::in_child(|| u8::from(note(file, begun).is_err())) {
            waitpid(child, None)?;
        }
    }
}

fn connect(words: &[&str]) -> Result<u8> {
    let (file, rest) = one(words)?;
    let (address, _) = network::address(rest)?;
    let mut socket = None;
    loop {
        // made before the pause: a session that is over makes none
        socket = socket.or_else(|| network::open(SockType::Stream, &address).ok());
        std::thread::sleep(PAUSE);
        let begun = boot_ns()?;
        if socket.as_ref().is_some_and(|socket| network::connect_to(socket, &address).is_ok()) {
            note(file, begun)?;
            socket = None;
        }
    }
}

fn datagrams(words: &[&str]) -> Result<u8> {
    let (address, _) = network::address(words)?;
    let socket = network::open(SockType::Datagram, &address)?;
    loop {
        std::thread::sleep(PAUSE);
        // whatever comes of it is seen where it arrives
        let _ = network::send_bytes(&socket, &address, &boot_ns()?.to_be_bytes(), MsgFlags::empty());
    }
}

/// `late connect|send FIFO ADDRESS PORT`: makes a socket; when the FIFO can be read, connects by TCP or sends a datagram.
pub(super) fn late(words: &[&str]) -> Result<u8> {
    let (how, rest) = one(words)?;
    let (fifo, rest) = one(rest)?;
    let (address, _) = network::address(rest)?;
    let socket = network::open(if how == "send" { SockType::Datagram } else { SockType::Stream }, &address)?;
    File::open(fifo)?.read_exact(&mut [0])?;
    Ok(say(match how {
        "send" => network::send_bytes(&socket, &address, b"x", MsgFlags::empty()),
        _ => network::connect_to(&socket, &address),
    }))
}
