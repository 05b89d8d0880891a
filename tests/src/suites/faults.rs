//! The agent goes away and comes back: what it built holds without it.

use std::{fs, os::unix::process::CommandExt as _};

use serde_json::Value;

use super::scene::{SmallDisk, Wall, only};
use crate::harness::{launch::Finished, prelude::*, sandbox::files_below};

/// `BPF_RAW_TRACEPOINT_OPEN` and `BPF_LINK_CREATE` (`enum bpf_cmd`, `include/uapi/linux/bpf.h`, 6.18).
const ATTACH: [u32; 2] = [17, 28];

pub(super) const TESTS: &[Test] = &[
    Test::new("faults::killed-twice", WHEREVER, killed_twice).agents_own(),
    Test::new("faults::programs-cannot-be-loaded", WHEREVER, not_loaded).agents_own(),
    Test::new("faults::pins-are-gone", WHEREVER, no_pins).agents_own(),
    Test::new("faults::killed-while-a-session-starts", WHEREVER, killed_in_start).agents_own(),
    Test::new("faults::killed-at-the-end", WHEREVER, killed_at_the_end).agents_own(),
    Test::new("faults::disarm-ends-all", WHEREVER, disarm).agents_own(),
];

fn killed_twice(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let mut wall = Wall::new(s, 2)?;
    s.kill_agent()?;
    // the second agent may be anywhere in its start when it dies
    let second = s.start_unready()?;
    second.kill()?;
    wall.holds(s)?;
    s.start()?;
    wall.holds(s)?;
    wall.is_ended(s)
}

/// Has the kernel refuse to attach programs, and nothing else: `EPERM`, as where a security module does.
fn refuses_links() -> [libc::sock_filter; 7] {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let code = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    // the number of the call, then the low half of its first argument (`struct seccomp_data`)
    [
        code(LOAD, 0, 0, 0),
        code(EQUAL, libc::SYS_bpf as u32, 0, 4),
        code(LOAD, 16, 0, 0),
        code(EQUAL, ATTACH[0], 1, 0),
        code(EQUAL, ATTACH[1], 0, 1),
        code(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned(), 0, 0),
        code(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
    ]
}

/// An agent that cannot put its own programs in the place of those that decide leaves them as they are.
fn not_loaded(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let mut wall = Wall::new(s, 3)?;
    wall.holds(s)?;
    s.kill_agent()?;
    let pins = files_below(s.pins());
    let mut daemon = s.daemon();
    let refuse = || {
        let filter = refuses_links();
        let program = libc::sock_fprog { len: 7, filter: filter.as_ptr().cast_mut() };
        // SAFETY: the program outlives the call, which only reads it, and is as long as is said.
        let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
        Ok(nix::errno::Errno::result(done).map(drop)?)
    };
    // SAFETY: between fork and exec only a system call is made.
    unsafe { daemon.pre_exec(refuse) };
    let failed = Running::spawn(s, daemon, None)?.wait_for(4 * patience())?;
    failed.ended(6)?.complained(&["tipstaff: the kernel refused program ", "Operation not permitted"])?;
    let now = files_below(s.pins());
    ensure!(now == pins, "{pins:?} became {now:?}; the agent said {:?}", failed.stderr);
    wall.holds(s)?;
    s.start()?;
    wall.holds(s)?;
    wall.is_ended(s)
}

/// Without what was pinned nobody holds a session: the next agent ends it, and says what it does not know. It does not
/// start where it could not write that down.
fn no_pins(s: &mut Sandbox) -> Result<()> {
    let disk = SmallDisk::over(s, "evidence", 4096)?;
    s.start()?;
    let member = s.program("member")?;
    // as many as have more to be told of than the rest of a page holds, which is there on a disk that is full
    let policy = s.policy(&only(&member))?;
    let held = (0..4).map(|_| s.run(&policy, &member, "idle")).collect::<Result<Vec<_>>>()?;
    let sessions = held.iter().map(|running| running.session(s)).collect::<Result<Vec<_>>>()?;
    s.kill_agent()?;
    for pin in files_below(s.pins()) {
        fs::remove_file(&pin).with_context(|| format!("{} cannot be removed", pin.display()))?;
    }
    disk.fill()?;
    let full = Running::spawn(s, s.daemon(), None)?.wait_for(4 * patience())?;
    full.ended(1)?.complained(&["evidence.jsonl", "No space left"])?;
    disk.make_room()?;
    s.start()?;
    for (session, running) in sessions.iter().zip(held) {
        let end = s.session_ended(session, "agent-loss")?;
        ensure!(end["members_left"] == 0, "members are left: {end}");
        running.wait()?.ended(137)?;
        let gaps = s.records(session, "gap")?;
        let told = |gap: &Value| gap["detail"].as_str().is_some_and(|detail| detail.contains("counts of session"));
        ensure!(gaps.iter().any(told), "no gap tells that nothing was counted: {gaps:?}");
    }
    s.run(&policy, &member, "say again")?.wait()?.ended(0)?.said("again")?;
    Ok(())
}

/// Wherever between the first record of a session and its first instruction the agent dies: the session goes on whole, or
/// it has an end and its command never ran or is gone.
fn killed_in_start(s: &mut Sandbox) -> Result<()> {
    const ROUNDS: usize = 3;
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    for _ in 0..ROUNDS {
        let running = s.run(&policy, &member, "idle")?;
        let session = s.session_of(running.pid())?;
        s.kill_agent()?;
        s.start()?;
        let answer = s.cli(&["end", &session])?.code;
        ensure!(matches!(answer, 0 | 5), "end answered {answer}");
        let end = |r: &Value| r["type"] == "session-end" && r["session"] == session;
        let end = s.wait_evidence("the end of a session whose start was cut short", end)?;
        ensure!(end["members_left"] == 0, "the session ended with members left: {end}");
        let code = running.wait()?.code;
        ensure!(matches!(code, 125 | 137), "the command ended with {code}");
    }
    s.run(&policy, &member, "say again")?.wait()?.ended(0)?.said("again")?;
    Ok(())
}

/// What was asked for and written down is done by the next agent; what was said to be over is over once.
fn killed_at_the_end(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    let killed_when = |s: &mut Sandbox, session: &str, seen: fn(&Value) -> bool| -> Result<()> {
        s.wait_evidence("the moment to kill the agent", |r| r["session"] == session && seen(r))?;
        s.kill_agent()?;
        s.start()
    };
    let asked = s.run(&policy, &member, "idle")?;
    let session = asked.session(s)?;
    let mut end = s.tipstaff();
    end.args(["end", &session, "--reason", "locked"]);
    let end = Running::spawn(s, end, None)?;
    killed_when(s, &session, |r| r["type"] == "command" && r["verb"] == "end")?;
    end.wait()?;
    s.session_ended(&session, "locked")?;
    asked.wait()?.ended(137)?;

    let over = s.run(&policy, &member, "say done")?;
    let session = s.session_of(over.pid())?;
    killed_when(s, &session, |r| r["type"] == "state" && r["to"] == "ended")?;
    over.wait()?.ended(0)?.said("done")?;
    s.session_ended(&session, "completed")?;
    let states = s.records(&session, "state")?;
    let ways: Vec<(&str, &str)> =
        states.iter().filter_map(|r| Some((r["from"].as_str()?, r["to"].as_str()?))).collect();
    let life = [("starting", "active"), ("active", "ending"), ("ending", "ended")];
    ensure!(ways == life, "its states were {ways:?}");
    let ends = s.records(&session, "session-end")?.len();
    ensure!(ends == 1, "{ends} ends are recorded");
    Ok(())
}

/// On a terminal it asks, and without one it wants to be told; whatever is no `yes` changes nothing.
fn disarm(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let mut wall = Wall::new(s, 3)?;
    wall.holds(s)?;
    let answering = |s: &Sandbox, answer: &[u8]| -> Result<Finished> {
        let pty = nix::pty::openpty(None, None).context("openpty")?;
        let mut disarm = s.tipstaff();
        disarm.arg("disarm").stdin(pty.slave);
        let running = Running::spawn(s, disarm, None)?;
        nix::unistd::write(&pty.master, answer).context("answering")?;
        running.wait_for(2 * patience())
    };
    answering(s, b"no\n")?.ended(1)?.complained(&["type yes to go on", "nothing was changed"])?;
    wall.holds(s)?;
    s.cli(&["disarm"])?.ended(2)?.complained(&["give --yes"])?;
    wall.holds(s)?;
    ensure!(s.nothing_of_sessions_is_left().is_err(), "there is no cgroup while the session lives");
    answering(s, b"yes\n")?.ended(0)?.told(&["disarmed: 1 sessions ended", "removed "])?;
    s.agent_ends()?;
    wall.running.wait()?.ended(137)?;
    s.nothing_is_left()?;
    s.session_ended(&wall.session, "operator")?;
    let disarmed = s.wait_evidence("the disarming", |r| r["type"] == "disarm")?;
    let ended = serde_json::json!([wall.session]);
    ensure!(disarmed["sessions"] == ended && disarmed["principal"]["uid"] == 0, "recorded: {disarmed}");
    wall.bad.untouched()
}
