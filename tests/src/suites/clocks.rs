//! Windows and credentials when the clock is set, and where it is another time of day.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime, clock_settime},
};

use super::{
    limits::{clock, inspect, now, rfc3339},
    scene::{Fifo, only, refusal, refused_exec},
};
use crate::harness::{
    prelude::*,
    wait::{boot_ns, gone, in_guest, pass},
};

pub(super) const TESTS: &[Test] = &[
    Test::new("limits::stepped-clock-moves-windows-and-credentials", WHEREVER, stepped)
        .guests_only("sets the clock")
        .alone(),
    Test::new("limits::window-ends-what-runs-by-the-policys-zone", WHEREVER, window_closes)
        .agents_own()
        .lasting(65)
        .waiting(),
    Test::sharing("limits::window-over-a-change-of-the-clocks", WHEREVER, summer).guests_only("sets the clock").alone(),
];

/// Sets the wall clock back to what it would be when dropped. Files and sessions of that time are of another than those
/// beside them: who steps it runs alone.
pub(super) struct Step {
    by: i64,
}

impl Step {
    pub(super) fn to(seconds: i64) -> Result<Self> {
        let by = seconds - i64::try_from(now()?)?;
        set(by)?;
        Ok(Self { by })
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        let _ = set(-self.by);
    }
}

fn set(by: i64) -> Result<()> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME)?;
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(now.tv_sec() + by, now.tv_nsec()))?;
    Ok(())
}

/// The host's zone until it is dropped.
struct Zone {
    before: Option<Vec<u8>>,
}

impl Zone {
    const FILE: &str = "/etc/localtime";

    /// Fourteen hours ahead of UTC: the shortest file that says so, as tzfile(5) has it.
    fn kiritimati() -> Result<Self> {
        let mut file = b"TZif\0".to_vec();
        file.extend([0; 15]);
        // no leap seconds, no transitions, one type of local time whose name has four bytes
        file.extend([0_u32, 0, 0, 0, 1, 4].into_iter().flat_map(u32::to_be_bytes));
        file.extend(50_400_i32.to_be_bytes());
        file.extend(*b"\0\0+14\0");
        let before = std::fs::read(Self::FILE).ok();
        std::fs::create_dir_all("/etc")?;
        std::fs::write(Self::FILE, file).context(Self::FILE)?;
        Ok(Self { before })
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        let _ = match &self.before {
            Some(before) => std::fs::write(Self::FILE, before),
            None => std::fs::remove_file(Self::FILE),
        };
    }
}

/// The clock is stepped to just before a window's end: the session ends at it, and not when it would have. A credential
/// has more time when the clock is set back, and what is written then is known for it.
fn stepped(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let mut writer = Writer::new(s)?;
    let member = s.program("member")?;
    let close = now()?.div_ceil(60) * 60 + 300;
    let window = only(&member).limit(format!("windows: [\"{}-{} UTC\"]", clock(close - 3_600), clock(close)));
    let running = s.run(&s.policy(&window)?, &member, "idle")?;
    let session = running.session(s)?;
    let held =
        s.launch(&s.policy(&only(&member))?, &member, "idle").flag("--credential-expires", &rfc3339(close + 60)?);
    let held = held.start()?;
    let credential = held.session(s)?;
    let before = inspect(s, &session)?["left_ms"].as_u64().unwrap_or(0);
    ensure!(before > 200_000, "{before} ms are left before the clock is stepped");
    // the host's own zone is nobody's business
    let elsewhere = Zone::kiritimati()?;
    let after = inspect(s, &session)?["left_ms"].as_u64().unwrap_or(0);
    ensure!(
        (before - patience().as_secs() * 1000..=before).contains(&after),
        "{before} ms became {after} ms in another zone"
    );
    drop(elsewhere);
    let step = Step::to(i64::try_from(close)? - 20)?;
    let near = until("the window's end to come near", patience(), || {
        let left = inspect(s, &session)?["left_ms"].as_u64().unwrap_or(0);
        Ok((left < 21_000).then_some(left))
    })?;
    ensure!(near > 0, "the session ended at once");
    writer.start(s)?;
    let start = Instant::now();
    s.session_ended(&session, "window")?;
    ensure!(start.elapsed() < Duration::from_millis(near) + patience() / 2, "it took {:?}", start.elapsed());
    running.wait()?.ended(137)?;
    let left = |s: &Sandbox| Ok::<_, anyhow::Error>(inspect(s, &credential)?["left_ms"].as_u64().unwrap_or(0));
    ensure!(left(s)? < 81_000, "the credential has {} ms", left(s)?);
    drop(step);
    until("the credential to have more time again", patience(), || Ok((left(s)? > 150_000).then_some(())))?;
    s.cli(&["end", &credential])?.ended(0)?;
    writer.writes_and_is_seen(s)?;
    s.kill_agent()?;
    let further = Step::to(i64::try_from(now()?)? - 3_600)?;
    s.start()?;
    writer.writes_and_is_seen(s).context("with the clock set back while no agent was there")?;
    drop(further);
    writer.stop(s)
}

/// A member that copies a program and starts the copy, which its session's kind forbids, each time it is told. Then it
/// starts the one that was there before its session, the first time.
struct Writer {
    policy: String,
    member: String,
    good: String,
    runs: Option<(Running, String)>,
    fifos: [Fifo; 2],
    told: usize,
    mark: String,
}

impl Writer {
    fn new(s: &Sandbox) -> Result<Self> {
        let (member, good) = (s.program("member")?, s.program("good")?);
        let policy = s.policy(&Policy::new().kind("agent").allow_dir("all", s.folder().display()))?;
        let fifos = [Fifo::new(s)?, Fifo::new(s)?];
        Ok(Self { policy, member, good, runs: None, fifos, told: 0, mark: s.file("mark") })
    }

    fn start(&mut self, s: &Sandbox) -> Result<()> {
        let (good, mark, [first, second]) = (&self.good, &self.mark, &self.fifos);
        let writes = || format!("made copy {good} {} --work mark {mark}", s.file("made"));
        let line = format!(
            "fifo {} {} + spawn {good} --work nothing + fifo {} {} + idle",
            first.path,
            writes(),
            second.path,
            writes()
        );
        let running = s.run(&self.policy, &self.member, &line)?;
        let session = running.session(s)?;
        self.runs = Some((running, session));
        Ok(())
    }

    fn writes_and_is_seen(&mut self, s: &Sandbox) -> Result<()> {
        let (running, session) = self.runs.as_ref().context("it was not started")?;
        let refused = refused_exec(s);
        let expected = [format!("{refused}\nexit 0\n"), format!("{refused}\nexit 0\n{refused}\n")];
        self.fifos[self.told].wake()?;
        let lines = expected[self.told].lines().count();
        let said = until("the member to have tried", patience(), || {
            let said = running.said();
            Ok((said.lines().count() == lines).then_some(said))
        })?;
        ensure!(said == expected[self.told], "it was answered {said:?}");
        self.told += 1;
        ensure!(!Path::new(&self.mark).exists(), "a program ran that the session had written");
        s.wait_evidence("its refusal", |r| {
            r["session"] == *session && r["type"] == "exec" && r["rule"] == "written" && r["verdict"] == refusal(s)
        })?;
        let refusals = s.records(session, "exec")?.into_iter().filter(|r| r["rule"] == "written").count();
        ensure!(refusals == self.told, "{refusals} of {} refusals are recorded", self.told);
        Ok(())
    }

    fn stop(self, s: &Sandbox) -> Result<()> {
        let (_running, session) = self.runs.context("it was not started")?;
        s.cli(&["end", &session])?.ended(0)?;
        s.session_ended(&session, "operator").map(drop)
    }
}

/// What runs when a window closes is ended, and it closes by the policy's zone, not by the agent's own.
fn window_closes(s: &mut Sandbox) -> Result<()> {
    /// `Asia/Kolkata`, which has no daylight saving time, is so far ahead of UTC, in seconds.
    const AHEAD: u64 = 5 * 3_600 + 1_800;
    let mut daemon = s.daemon();
    daemon.env("TZ", "Pacific/Kiritimati");
    s.start_as(daemon)?;
    let member = s.program("member")?;
    // it comes within a minute and a half
    let close = (now()? + if in_guest() { 30 } else { 5 }).div_ceil(60) * 60;
    let (from, to) = (clock(close - 3_600 + AHEAD), clock(close + AHEAD));
    let policy = s.policy(&only(&member).limit(format!("windows: [\"{from}-{to} Asia/Kolkata\"]")))?;
    let (running, twin) = (s.run(&policy, &member, "idle")?, s.run(&s.policy(&only(&member))?, &member, "idle")?);
    let (session, other) = (running.session(s)?, twin.session(s)?);
    ensure!(inspect(s, &session)?["winner"] == "window", "inspect says {}", inspect(s, &session)?);
    let start = s.records(&session, "session-start")?;
    let deadline = start[0]["deadline_boot_ns"].as_u64().context("session-start without a deadline")?;
    // where it lies on the wall clock: whoever looks late sees the same
    let (early, boot, late) = (now()?.cast_signed(), boot_ns()?, now()?.cast_signed());
    let left = (deadline.cast_signed() - boot.cast_signed()).div_euclid(1_000_000_000);
    let fits = (early + left..=late + left + 2).contains(&close.cast_signed());
    ensure!(fits, "at {early} the window was to close at {close}, and would {left} s later");
    pass(deadline, Duration::ZERO)?;
    s.session_ended(&session, "window")?;
    running.wait()?.ended(137)?;
    let late = s.run(&policy, &member, "say in")?.wait()?;
    late.ended(125)?.said("")?.complained(&["lets sessions run only at"])?;
    ensure!(!gone(twin.pid()), "a session without a window ended with it");
    s.cli(&["end", &other])?.ended(0)?;
    Ok(())
}

/// In the night in which the clocks of Berlin are put on, four hours by the clock are three.
fn summer(s: &mut Sandbox) -> Result<()> {
    /// 28 March 2027, 01:00 UTC: two o'clock is three o'clock there.
    const CHANGE: i64 = 1_806_195_600;
    s.start()?;
    let member = s.program("member")?;
    let policy = only(&member).ttl("6h").limit("windows: [\"Sun 00:00-04:00 Europe/Berlin\"]");
    let policy = s.policy(&policy)?;
    let before = Step::to(CHANGE - 5_400)?;
    let running = s.run(&policy, &member, "idle")?;
    let session = running.session(s)?;
    let limits = inspect(s, &session)?;
    let left = limits["left_ms"].as_u64().unwrap_or(0) / 1000;
    ensure!(limits["winner"] == "window" && (8_700..=9_000).contains(&left), "of 9000 s are left {left}: {limits}");
    let near = Step::to(CHANGE + 3_600 - 20)?;
    s.session_ended(&session, "window")?;
    let over = i64::try_from(now()?)?;
    ensure!(over >= CHANGE + 3_600, "it ended {} s before the window's end", CHANGE + 3_600 - over);
    running.wait()?.ended(137)?;
    s.run(&policy, &member, "say in")?.wait()?.ended(125)?.said("")?.complained(&["lets sessions run only at"])?;
    drop(near);
    drop(before);
    Ok(())
}
