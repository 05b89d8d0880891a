//! The machine: processors, and what the kernel says of a process.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use crate::harness::wait::{patience, until};

/// The processor of everything that is not measured: driver and agent.
pub(crate) const AGENT: usize = 0;
/// The processor of what is measured.
pub(crate) const WORKER: usize = 1;

/// How long is looked at what else runs.
const MOMENT: std::time::Duration = std::time::Duration::from_secs(1);

/// Keeps this process, and what it starts, on one processor, where there are two.
pub(crate) fn pin(processor: usize) -> Result<()> {
    if !two() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    set.set(processor)?;
    sched_setaffinity(Pid::from_raw(0), &set).context("the processor cannot be chosen")
}

/// Puts this process before everything ordinary on its processor (`SCHED_FIFO`), so that what others do there is not
/// measured with it; its children too, or not. A host may refuse that; then it is measured with it.
pub(crate) fn hurry(children_too: bool) {
    // SAFETY: integers only.
    let is_first = unsafe { libc::sched_getscheduler(0) } == libc::SCHED_FIFO;
    // a session takes the right to say so, and leaves what was said before
    if children_too && is_first {
        return;
    }
    if let Err(errno) = first(children_too) {
        eprintln!("bench: real-time scheduling is refused: {errno}");
    }
}

/// The same between fork and exec: one system call and nothing else.
pub(super) fn first(children_too: bool) -> nix::Result<()> {
    let first = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_FIFO | if children_too { 0 } else { libc::SCHED_RESET_ON_FORK };
    // SAFETY: the kernel reads one sched_param, which outlives the call.
    Errno::result(unsafe { libc::sched_setscheduler(0, policy, &raw const first) }).map(drop)
}

/// The other way: on every processor, and as everything ordinary is scheduled. Whoever computes for ever must.
pub(crate) fn ordinary() -> Result<()> {
    let last = libc::sched_param { sched_priority: 0 };
    // SAFETY: as in `hurry`.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const last) };
    Errno::result(done).context("ordinary scheduling is refused")?;
    unpin()
}

/// Lets this process run everywhere again.
pub(crate) fn unpin() -> Result<()> {
    let mut all = CpuSet::new();
    (0..CpuSet::count()).try_for_each(|processor| all.set(processor))?;
    sched_setaffinity(Pid::from_raw(0), &all).context("the processors cannot be chosen")
}

/// A field of `/proc/PID/status` as a number: kB, or a count.
pub(crate) fn status(pid: u32, field: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let number = line.and_then(|rest| rest.split_whitespace().next()).and_then(|word| word.parse().ok());
    number.with_context(|| format!("/proc/{pid}/status has no {field}"))
}

fn two() -> bool {
    let all = sched_getaffinity(Pid::from_raw(1));
    all.is_ok_and(|set| set.is_set(AGENT).unwrap_or(false) && set.is_set(WORKER).unwrap_or(false))
}

/// Nanoseconds that the process's main thread has run.
pub(crate) fn ran_ns(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/schedstat");
    let text = fs::read_to_string(&path).with_context(|| format!("{path} cannot be read"))?;
    text.split(' ').next().and_then(|word| word.parse().ok()).with_context(|| format!("{path} says {text:?}"))
}

/// Waits until the process has had nothing to do for a few looks in a row.
pub(crate) fn quiet(pid: u32) -> Result<()> {
    let mut seen = (ran_ns(pid)?, 0);
    until(&format!("process {pid} to rest"), patience(), || {
        let now = ran_ns(pid)?;
        seen = if now == seen.0 { (now, seen.1 + 1) } else { (now, 0) };
        Ok((seen.1 >= 2).then_some(()))
    })
}

/// The share of all processors that are busy without us, over a moment.
pub(super) fn others() -> Result<f64> {
    let now = || fs::read_to_string("/proc/stat").map(|text| times(&text));
    let before = now()?;
    std::thread::sleep(MOMENT);
    let after = now()?;
    let ((idle, all), (idle_before, all_before)) =
        after.zip(before).context("/proc/stat does not begin with the times of all processors")?;
    Ok(1.0 - (idle - idle_before) as f64 / (all - all_before).max(1) as f64)
}

/// How long all processors were idle, and how long there were: the first line of `/proc/stat`.
fn times(text: &str) -> Option<(u64, u64)> {
    let words = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    // user, nice, system, idle, waiting for devices, interrupts, soft ones, stolen; guests are in the first two
    let times: Vec<u64> = words.take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    Some((times.get(3)? + times.get(4)?, times.iter().sum()))
}

/// What is measured on, for the head of a report: nothing that names the machine.
pub(super) fn machine() -> Result<serde_json::Value> {
    let kernel = nix::sys::utsname::uname()?;
    let release = kernel.release().to_string_lossy().into_owned();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(": ")).map(|(_, value)| value.to_owned())
    };
    let guest = field("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"));
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    Ok(serde_json::json!({
        "kernel": release.split('-').next(),
        "architecture": kernel.machine().to_string_lossy(),
        "processors": processors,
        "virtual": guest,
        "load": load.split(' ').next().and_then(|word| word.parse::<f64>().ok()),
        "cgroup": if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "unified" } else { "hybrid" },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_all_processors() {
        let text = "cpu  10 1 5 100 20 2 1 3 7 0\ncpu0 5 0 2 50 10 1 0 1 3 0\n";
        assert_eq!(times(text), Some((120, 142)));
        assert_eq!(times("intr 1 2 3\n"), None);
        assert_eq!(times("cpu  1 2 x\n"), None);
    }
}
