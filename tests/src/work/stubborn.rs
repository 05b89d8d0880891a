//! Workloads that are hard to end, or that show whether they run.

use std::{fs::File, io::Write, time::Duration};

use anyhow::{Context, Result};
use nix::{
    sys::{
        ptrace,
        signal::{SigHandler, SigSet, SigmaskHow, Signal, raise, signal, sigprocmask},
        wait::waitpid,
    },
    unistd::{dup2_stdin, pause, setsid},
};

use super::{one, process, run};

/// `count FILE`: adds a byte to the file every few milliseconds, for ever.
pub(super) fn count(words: &[&str]) -> Result<u8> {
    let mut file = File::create(one(words)?.0)?;
    loop {
        file.write_all(b".")?;
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// `catch NUMBER FILE REST`: waits for the signal, writes its number to the file, and does the rest.
pub(super) fn catch(words: &[&str]) -> Result<u8> {
    let (number, rest) = one(words)?;
    let (file, rest) = one(rest)?;
    let mut set = SigSet::empty();
    set.add(Signal::try_from(number.parse::<i32>()?)?);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?;
    // now it can come
    std::fs::write(file, "ready")?;
    let caught = set.wait()?;
    let part = format!("{file}.part");
    std::fs::write(&part, (caught as i32).to_string())?;
    std::fs::rename(part, file)?;
    Ok(run(rest))
}

/// `deaf REST`: ignores `SIGTERM` from here on.
pub(super) fn deaf(rest: &[&str]) -> Result<u8> {
    // SAFETY: to ignore a signal runs no code of ours.
    unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) }?;
    Ok(run(rest))
}

/// `stop`: stops itself, and sleeps when it is let go on.
pub(super) fn stop() -> Result<u8> {
    loop {
        raise(Signal::SIGSTOP)?;
        pause();
    }
}

/// `traced REST`: a child that this process traces and that stops for it before it does the rest.
pub(super) fn traced(rest: &[&str]) -> Result<u8> {
    let child = process::in_child(|| match ptrace::traceme().and_then(|()| raise(Signal::SIGSTOP)) {
        Ok(()) => run(rest),
        Err(_) => super::MISUSE,
    })?;
    let stopped = waitpid(child, None)?;
    println!("traced {stopped:?}");
    process::idle()
}

/// `bomb FILE PROCESSES EACH`: so many processes, each of which makes a child every few milliseconds that makes one more and
/// stays. Bounded, for the sake of the machine's memory: each of them stops after so many.
pub(super) fn bomb(words: &[&str]) -> Result<u8> {
    let (file, rest) = one(words)?;
    let (processes, rest) = one(rest)?;
    let each = one(rest)?.0.parse::<u32>()?;
    for _ in 0..processes.parse::<u32>()? {
        process::in_child(|| {
            for _ in 0..each {
                let pair = || {
                    let _ = process::in_child(|| process::idle());
                    process::idle()
                };
                // a fork that is refused: the session is over
                if process::in_child(pair).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(4));
            }
            process::idle()
        })?;
    }
    std::fs::write(file, "lit")?;
    process::idle()
}

/// `append FILE REST`: writes one byte to the end of the file, and does the rest.
pub(super) fn append(words: &[&str]) -> Result<u8> {
    let (path, rest) = one(words)?;
    let mut file = File::options().append(true).open(path).with_context(|| format!("{path} cannot be opened"))?;
    file.write_all(b"x")?;
    Ok(run(rest))
}

/// `terminal FILE REST`: the terminal is its controlling terminal and its input, and it does the rest.
pub(super) fn terminal(words: &[&str]) -> Result<u8> {
    let (path, rest) = one(words)?;
    // the leader of a session without a terminal gets the first that it opens
    setsid()?;
    let file = File::options().read(true).write(true).open(path).with_context(|| format!("{path} cannot be opened"))?;
    dup2_stdin(&file)?;
    Ok(run(rest))
}
