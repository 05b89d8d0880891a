//! The time in which the machine sleeps counts.

use std::{fs, time::Duration};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::signal::Signal,
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

use super::{
    clocks::Step,
    limits::{clock, now},
    scene::{Fifo, only, refused_exec, settled, stamps},
    time::deadline,
};
use crate::harness::{
    prelude::*,
    server::Server,
    wait::{all_gone, boot_ns, gone, pass, slack},
};

pub(super) const TESTS: &[Test] =
    &[Test::new("suspend::time-asleep-counts", WHEREVER, counts).guests_only("puts the machine to sleep").alone()];

/// Seconds from now on in which everything is made ready before the machine sleeps.
const READY: u64 = 30;

/// Sleeps (ACPI S3) until `wake`, by `CLOCK_BOOTTIME`, is over. The alarm clock counts whole seconds.
fn sleep_until(wake: u64) -> Result<()> {
    let alarm = "/sys/class/rtc/rtc0/wakealarm";
    let ahead = || -> Result<Duration> {
        let awake = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        Ok(Duration::from_nanos(boot_ns()?) - awake)
    };
    let (before, left) = (ahead()?, wake.saturating_sub(boot_ns()?));
    fs::write(alarm, "0").context(alarm)?;
    fs::write(alarm, format!("+{}", left.div_ceil(1_000_000_000) + 2)).context(alarm)?;
    fs::write("/sys/power/state", "mem").context("/sys/power/state")?;
    ensure!(boot_ns()? > wake, "the machine woke before its time");
    let asleep = ahead()? - before;
    ensure!(asleep > Duration::from_secs(1), "the machine slept for {asleep:?} of {left} ns only");
    Ok(())
}

/// A machine sleeps over a session's deadline and another's window, its agent stopped before: on waking the kernel refuses at
/// once, the packet hook within a tick, and the agent ends both. Thereafter the clock runs on every processor again.
fn counts(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, server) = (s.program("member")?, s.program("good")?, Server::tcp("127.0.0.1")?);
    let _step = Step::to(i64::try_from(now()?.div_ceil(60) * 60 + 60 - READY)?)?;
    let close = now()?.div_ceil(60) * 60;
    let window = only(&member).limit(format!("windows: [\"{}-{} UTC\"]", clock(close - 3_600), clock(close)));
    let open = s.run(&s.policy(&window)?, &member, "idle")?;
    let policy = only(&member).allow("good", &good).to("server", "127.0.0.1/32", server.port());
    let (mut exec, mut connect) = (Fifo::new(s)?, Fifo::new(s)?);
    let [said, told, waits, sends] = [s.file("answers"), s.file("answers"), s.file("pid"), s.file("pid")];
    let (early, late, words) = (s.file("mark"), s.file("mark"), server.words());
    let line = format!(
        "spawn {good} --work mark {early} + background pid {sends} flow {words} \
         + background report {told} fifo {} connect tcp {words} \
         + pid {waits} report {said} fifo {} spawn {good} --work mark {late}",
        connect.path, exec.path
    );
    let short = s.launch(&s.policy(&policy)?, &member, &line).ttl(&format!("{READY}s")).start()?;
    // while it lives the clock is never taken off
    let lasting = s.run(&s.policy(&only(&member))?, &member, "idle")?;
    let sessions = [(short.session(s)?, "ttl"), (open.session(s)?, "window")];
    let pids = [s.pid_in(&waits)?, s.pid_in(&sends)?];
    until("the flow to flow", patience(), || Ok((stamps(&server.received()).len() > 5).then_some(())))?;
    s.signal_agent(Signal::SIGSTOP)?;
    ensure!(short.said().starts_with("exit 0\n") && fs::exists(&early)?, "the twin did not run before the deadline");
    let over = deadline(s, &sessions[0].0)?;
    ensure!(pids.iter().all(|pid| !gone(*pid)) && boot_ns()? < over, "the session was over before the machine slept");
    let seconds = close.saturating_sub(now()?) * 1_000_000_000;
    sleep_until(over.max(boot_ns()? + seconds))?;
    let woke = boot_ns()?;
    exec.wake()?;
    connect.wake()?;
    for (answers, expected) in [(&said, refused_exec(s)), (&told, "errno 1")] {
        // a member that wakes may be killed by the clock before it has said anything
        let answer = until("a woken member to fail", patience(), || {
            let text = fs::read_to_string(answers).unwrap_or_default();
            Ok((!text.is_empty() || gone(pids[0])).then(|| text.trim_end().to_owned()))
        })?;
        ensure!(answer.is_empty() || answer == expected, "after the deadline a member was answered {answer:?}");
    }
    pass(woke, slack())?;
    let flowed = settled(&server)?;
    pass(woke, 3 * slack())?;
    ensure!(stamps(&server.received()).len() == flowed, "a flow went on after the machine woke");
    ensure!(!fs::exists(&late)?, "a program ran after the deadline");
    s.signal_agent(Signal::SIGCONT)?;
    all_gone(&pids)?;
    for (session, reason) in &sessions {
        s.session_ended(session, reason)?;
    }
    server.accepted(1)?;
    clock_runs(s, &member)?;
    s.cli(&["end", &lasting.session(s)?])?.ended(0)?;
    lasting.wait()?.ended(137).map(drop)
}

/// On each processor what computes there dies at its deadline, with the agent stopped.
fn clock_runs(s: &mut Sandbox, member: &str) -> Result<()> {
    let files = [s.file("pid"), s.file("pid")];
    let line = format!("background pid {} spin + background pid {} spin + idle", files[0], files[1]);
    let running = s.launch(&s.policy(&only(member))?, member, &line).ttl("15s").start()?;
    let session = running.session(s)?;
    let spinners = [s.pid_in(&files[0])?, s.pid_in(&files[1])?];
    for (cpu, pid) in spinners.iter().enumerate() {
        let mut cpus = CpuSet::new();
        cpus.set(cpu)?;
        sched_setaffinity(Pid::from_raw(i32::try_from(*pid)?), &cpus)?;
    }
    s.signal_agent(Signal::SIGSTOP)?;
    let over = deadline(s, &session)?;
    ensure!(boot_ns()? < over && spinners.iter().all(|pid| !gone(*pid)), "they were gone before their deadline");
    pass(over, slack())?;
    let died = all_gone(&spinners);
    s.signal_agent(Signal::SIGCONT)?;
    died?;
    s.session_ended(&session, "ttl")?;
    running.wait()?.ended(137).map(drop)
}
