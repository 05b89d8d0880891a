//! What runs the attempts: one process in the session, or outside, that makes a child for each, one after the other, and
//! says what became of it. A child that does not end is ended, and that is said.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{Signal, killpg},
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, dup2_stdout, setpgid},
};

use crate::{
    harness::{bpf::pidfd, wait::boot_ns},
    work,
};

/// The highest number of a capability that any kernel here has, and some more.
const CAPABILITIES: libc::c_ulong = 64;

/// What became of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub(super) begun: u64,
    pub(super) ended: u64,
    /// `exit N`, `signal N`, `hung`.
    pub(super) status: String,
    /// The last line that it wrote.
    pub(super) answer: String,
}

/// `attempts FILE SECONDS [bare]`: a line of the file is the words of an attempt, which may take so many seconds. Prints a
/// line for each. `bare`: lays down every capability first, for ever.
pub(crate) fn attempts(words: &[&str]) -> Result<u8> {
    let [file, seconds, how @ ..] = words else { anyhow::bail!("attempts takes a file and seconds") };
    let limit = Duration::from_secs(seconds.parse()?);
    if how == ["bare"] {
        lay_down()?;
    }
    for line in fs::read_to_string(file).with_context(|| (*file).to_owned())?.lines() {
        let Outcome { begun, ended, status, answer } = attempt(line, limit)?;
        println!("{begun}\t{ended}\t{status}\t{answer}");
    }
    Ok(0)
}

/// Reads a line that [`attempts`] printed.
pub(super) fn parse(line: &str) -> Option<Outcome> {
    let mut parts = line.splitn(4, '\t');
    let mut next = || parts.next();
    Some(Outcome {
        begun: next()?.parse().ok()?,
        ended: next()?.parse().ok()?,
        status: next()?.to_owned(),
        answer: next()?.to_owned(),
    })
}

fn attempt(line: &str, limit: Duration) -> Result<Outcome> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut said = File::from(memfd_create("said", MFdFlags::MFD_CLOEXEC)?);
    let begun = boot_ns()?;
    let child = work::in_child(|| {
        // whatever it leaves behind goes with it
        let ready = setpgid(Pid::from_raw(0), Pid::from_raw(0)).and_then(|()| dup2_stdout(&said));
        if ready.is_ok() { work::run(&words) } else { work::MISUSE }
    })?;
    let status = match status_of(child, limit)? {
        Some(WaitStatus::Exited(_, status)) => format!("exit {status}"),
        Some(WaitStatus::Signaled(_, signal, _)) => format!("signal {}", signal as i32),
        _ => "hung".to_owned(),
    };
    // none may be left
    let _ = killpg(child, Signal::SIGKILL);
    let ended = boot_ns()?;
    said.rewind()?;
    let mut text = Vec::new();
    said.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let answer = decisive(&text).replace('\t', " ");
    Ok(Outcome { begun, ended, status, answer })
}

/// The last line that says how something was refused; where none does, the last.
fn decisive(text: &str) -> &str {
    let refused = |line: &&str| line.starts_with("errno ") || line.starts_with("signal ");
    text.lines().rfind(refused).or_else(|| text.lines().last()).unwrap_or_default()
}

/// How the child ended; one that takes too long is killed.
fn status_of(child: Pid, limit: Duration) -> Result<Option<WaitStatus>> {
    let process = pidfd(child.as_raw().cast_unsigned())?;
    let start = Instant::now();
    loop {
        let left = limit.saturating_sub(start.elapsed());
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(1..) => return Ok(Some(waitpid(child, None)?)),
            Err(errno) if errno != Errno::EINTR => return Err(errno.into()),
            _ if left.is_zero() => break,
            _ => {}
        }
    }
    let _ = killpg(child, Signal::SIGKILL);
    waitpid(child, None)?;
    Ok(None)
}

/// Every capability, and every way to one, is gone: what root's programs start with too.
fn lay_down() -> Result<()> {
    for capability in 0..CAPABILITIES {
        // SAFETY: integers only. A number that the kernel does not know is refused.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    let header = [0x2008_0522_u32, 0];
    // SAFETY: a header of version 3 and its data, all 0, which outlive the call.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), [0u32; 6].as_ptr()) };
    Errno::result(done).context("capset")?;
    let status = fs::read_to_string("/proc/self/status")?;
    let none = |name: &str| status.lines().any(|line| line == format!("{name}\t0000000000000000"));
    ensure!(none("CapEff:") && none("CapBnd:"), "capabilities are left");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_read_as_it_was_printed() {
        let expected = Outcome { begun: 1, ended: 22, status: "signal 9".to_owned(), answer: "errno 1".to_owned() };
        assert_eq!(parse("1\t22\tsignal 9\terrno 1"), Some(expected));
        assert_eq!(parse("1\t22\texit 0\t").map(|outcome| outcome.answer), Some(String::new()));
        assert_eq!(parse("work: something else"), None);
    }

    #[test]
    fn a_refusal_counts_before_what_comes_after_it() {
        assert_eq!(decisive("errno 1\nexit 0\n"), "errno 1");
        assert_eq!(decisive("exit 0\nok\n"), "ok");
        assert_eq!(decisive(""), "");
    }
}
