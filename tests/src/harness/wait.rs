//! Waiting: always for something, never for a while.

use std::{
    os::fd::AsFd as _,
    process::{Child, ExitStatus},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::bpf::pidfd;

/// Set by the guest's init for all its children.
pub(crate) const GUEST: &str = "TIPSTAFF_TESTS_GUEST";

/// Whether this runs in a guest of its own, where it may do what it likes to the host.
pub(crate) fn in_guest() -> bool {
    static GUEST_SET: OnceLock<bool> = OnceLock::new();
    *GUEST_SET.get_or_init(|| std::env::var_os(GUEST).is_some())
}

/// How long a thing may take that is expected at once. Guests are emulated.
pub(crate) fn patience() -> Duration {
    Duration::from_secs(if in_guest() { 60 } else { 15 })
}

/// The allowance for clocks and scheduling where a test compares times.
pub(crate) fn slack() -> Duration {
    Duration::from_millis(if in_guest() { 1000 } else { 150 })
}

/// The longest pause between two looks. In a guest, looking costs what is looked for its time.
fn longest_pause() -> Duration {
    Duration::from_millis(if in_guest() { 40 } else { 5 })
}

/// How much of the time between two looks counts, at most: a machine that stands still does nothing that is waited for.
const COUNTED: Duration = Duration::from_secs(2);

/// Asks `probe` until it answers, at most for `limit`; the longer it takes, the less often.
pub(crate) fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let (mut waited, mut last) = (Duration::ZERO, Instant::now());
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(answer) = probe()? {
            return Ok(answer);
        }
        waited += last.elapsed().min(COUNTED);
        last = Instant::now();
        if waited > limit {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(longest_pause());
    }
}

/// Waits until the child has ended, at most for `limit`. Nobody asks meanwhile: in a guest each look of a waiting process
/// costs those that work a full turn of translations.
pub(crate) fn ended(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    if let Some(status) = child.try_wait()? {
        return Ok(status);
    }
    let (process, start) = (pidfd(child.id())?, Instant::now());
    loop {
        let left = limit.saturating_sub(start.elapsed());
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(1..) => return Ok(child.wait()?),
            Err(errno) if errno != Errno::EINTR => return Err(errno.into()),
            _ if left.is_zero() => bail!("waited {} s for process {} to end", limit.as_secs(), child.id()),
            _ => {}
        }
    }
}

/// Nanoseconds of `CLOCK_BOOTTIME`, which sessions' deadlines are in.
pub(crate) fn boot_ns() -> Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)?;
    Ok(u64::try_from(now.tv_sec())? * 1_000_000_000 + u64::try_from(now.tv_nsec())?)
}

/// Waits until `CLOCK_BOOTTIME` has passed `deadline` by `over`.
pub(crate) fn pass(deadline_boot_ns: u64, over: Duration) -> Result<()> {
    let goal = deadline_boot_ns + u64::try_from(over.as_nanos())?;
    let limit = Duration::from_nanos(goal.saturating_sub(boot_ns()?)) + patience();
    until("the deadline to pass", limit, || Ok((boot_ns()? > goal).then_some(())))
}

/// What the kernel says that a process does, by its letter; none: there is no such process.
pub(crate) fn state_of(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the name before it is in parentheses and may have any character
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Whether the process is no more; one that only waits to be reaped is.
pub(crate) fn gone(pid: u32) -> bool {
    state_of(pid).is_none_or(|state| matches!(state, 'Z' | 'X'))
}

/// Waits until every one of the processes is gone.
pub(crate) fn all_gone(pids: &[u32]) -> Result<()> {
    let what = format!("processes {pids:?} to be gone");
    until(&what, patience(), || Ok(pids.iter().all(|pid| gone(*pid)).then_some(())))
}
