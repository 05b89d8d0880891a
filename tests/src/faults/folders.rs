//! The agent's folders: their file system can only be read, is torn at a byte, or lets go of the pins.

use std::{fs, os::unix::process::CommandExt as _, path::PathBuf, time::Instant};

use nix::{errno::Errno, mount::MntFlags};
use serde_json::Value;

use super::{Asked, By, Fault, Form};
use crate::{
    harness::{mounts, prelude::*, wait::all_gone},
    suites::scene::{SmallDisk, Wall, only},
};

const fn row(
    promise: &'static str,
    name: &'static str,
    what: &'static str,
    holds: &'static str,
    run: fn(&mut Sandbox, Asked) -> Result<Vec<String>>,
    lasts: u64,
) -> Fault {
    Fault { promise, name, what, holds, by: By::Row { run, lasts, guests: None, long: false } }
}

#[rustfmt::skip]
pub(super) const ROWS: &[Fault] = &[
    row("recorded", "read-only", "the file system of the evidence, then of the store, can only be read as an agent starts",
        "it does not start, and says why; what is in force stays", read_only, 60),
    row("recorded", "evidence-torn", "the last records of the evidence are cut at a byte (at every byte: unit tests)",
        "the agent goes on behind the last whole one, and a gap tells of it", torn_evidence, 600),
    row("restart", "store-torn", "the store is cut or overwritten at a byte (at every byte and write: unit tests)",
        "a session is held as before or ends, never wider", torn_store, 600),
    row("restart", "bpffs-unmounted", "the file system of the pins is unmounted lazily while the agent runs",
        "what is in force holds as long as it runs; the next one ends what nobody held", unmounted, 60),
    row("shown", "capability-missing", "each capability in turn is not there as an agent takes over",
        "it does not start and changes nothing, or the session is held as before", capabilities, 600),
];

fn read_only(s: &mut Sandbox, _asked: Asked) -> Result<Vec<String>> {
    let disks = [("evidence", SmallDisk::over(s, "evidence", 8192)?), ("state", SmallDisk::over(s, "state", 8192)?)];
    s.start()?;
    let mut wall = Wall::new(s, 5)?;
    wall.holds(s)?;
    for (name, disk) in disks {
        s.kill_agent()?;
        disk.read_only(true)?;
        let finished = Running::spawn(s, s.daemon(), None)?.wait()?;
        finished.ended(1)?.complained(&["tipstaff: ", name, "Read-only"])?;
        wall.holds(s)?;
        disk.read_only(false)?;
        s.start()?;
        wall.holds(s)?;
    }
    wall.is_ended(s)?;
    Ok(Vec::new())
}

/// So many places between the first byte and the last, both among them.
fn places(from: usize, to: usize, count: usize) -> Vec<usize> {
    let span = to.saturating_sub(from);
    let mut places: Vec<usize> = (0..count).map(|n| from + span * n / (count - 1).max(1)).collect();
    places.dedup();
    places
}

fn torn_evidence(s: &mut Sandbox, asked: Asked) -> Result<Vec<String>> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    let (path, count) = (s.evidence_file(), if asked.form == Form::Long { 24 } else { 4 });
    let head = s.folder().join("state/evidence.head");
    s.was_counted();
    let mut cuts = 0;
    for n in 0..count {
        let running = s.run(&policy, &member, "say in")?;
        let session = running.session(s)?;
        running.wait()?.ended(0)?;
        s.session_ended(&session, "completed")?;
        // a record that the head does not name yet can be gone without a trace: with the power as well
        until("the head to name the last record", patience(), || {
            let named: Value = serde_json::from_str(&fs::read_to_string(&head)?)?;
            Ok(s.evidence()?.last().is_some_and(|last| last["n"] == named["n"]).then_some(()))
        })?;
        s.kill_agent()?;
        let whole = fs::read(&path)?;
        let last = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let at = places(last, whole.len(), count)[n.min(places(last, whole.len(), count).len() - 1)];
        fs::write(&path, &whole[..at])?;
        let torn = at != whole.len();
        s.start()?;
        let now = fs::read(&path)?;
        ensure!(
            now.starts_with(&whole[..last]),
            "cut at byte {at} of {}: what stood before it was changed",
            whole.len()
        );
        let told = |r: &&Value| r["type"] == "gap" && (r["cause"] != "agent-absent" || r["lost"].as_u64() > Some(0));
        let gaps = |all: &[Value]| all.iter().filter(told).count();
        let all = s.evidence()?;
        cuts += usize::from(torn);
        ensure!(gaps(&all) >= cuts, "cut at byte {at}, and no gap tells of it: {cuts} cuts, {} gaps", gaps(&all));
        s.cli(&["verify"])?.ended(0)?;
    }
    Ok(vec![format!("{cuts} cuts")])
}

fn torn_store(s: &mut Sandbox, asked: Asked) -> Result<Vec<String>> {
    s.start()?;
    let (store, count) = (s.folder().join("state/store.redb"), if asked.form == Form::Long { 24 } else { 3 });
    let (mut ended, mut held) = (0, 0);
    for n in 0..count {
        let mut wall = Wall::new(s, 2)?;
        wall.holds(s)?;
        s.kill_agent()?;
        let mut bytes = fs::read(&store)?;
        let at = places(0, bytes.len() - 1, count)[n];
        if n % 2 == 0 {
            bytes.truncate(at)
        } else {
            bytes[at..].fill(0x5a)
        }
        fs::write(&store, &bytes)?;
        s.start()?;
        let listed = s.json(&["ps"])?;
        let live = listed["sessions"].as_array().is_some_and(|all| all.iter().any(|row| row["id"] == wall.session));
        if live {
            wall.holds(s)?;
            wall.is_ended(s)?;
            held += 1;
        } else {
            // a state from before it was active may be the last that is whole
            let end = s.wait_evidence(&format!("the end of a session, whose store was torn at byte {at}"), |r| {
                r["type"] == "session-end" && r["session"] == wall.session
            })?;
            ensure!(end["members_left"] == 0, "torn at byte {at}: {end}");
            all_gone(&[wall.running.pid()])?;
            ended += 1;
        }
        wall.bad.untouched()?;
    }
    Ok(vec![format!("{held} held, {ended} ended")])
}

/// The sandbox's own file system where it has one; elsewhere one is mounted for it first.
fn unmounted(s: &mut Sandbox, _asked: Asked) -> Result<Vec<String>> {
    let folder: PathBuf = s.folder().join("bpf");
    if !mounts::is(&folder, "bpf")? {
        nix::mount::mount(Some("none"), &folder, Some("bpf"), nix::mount::MsFlags::empty(), None::<&str>)?;
    }
    let pins = folder.join("tipstaff");
    let daemon = |s: &Sandbox| {
        let mut daemon = s.daemon();
        daemon.env("TIPSTAFF_PIN_DIR", &pins);
        daemon
    };
    s.start_as(daemon(s))?;
    let mut wall = Wall::new(s, 2)?;
    wall.holds(s)?;
    nix::mount::umount2(&folder, MntFlags::MNT_DETACH).context("the pins cannot be unmounted")?;
    wall.holds(s)?;
    s.kill_agent()?;
    nix::mount::mount(Some("none"), &folder, Some("bpf"), nix::mount::MsFlags::empty(), None::<&str>)?;
    s.start_as(daemon(s))?;
    let end = s.session_ended(&wall.session, "agent-loss")?;
    all_gone(&[wall.running.pid()])?;
    wall.bad.untouched()?;
    s.stop_agent()?;
    let mut disarm = s.tipstaff();
    disarm.args(["disarm", "--yes"]).env("TIPSTAFF_PIN_DIR", &pins);
    Running::spawn(s, disarm, None)?.wait()?.ended(0)?;
    Ok(vec![format!("{} members were left", end["members_left"])])
}

fn capabilities(s: &mut Sandbox, asked: Asked) -> Result<Vec<String>> {
    let last: u64 = fs::read_to_string("/proc/sys/kernel/cap_last_cap")?.trim().parse()?;
    // in the short form those that the agent uses, and one that it does not
    let some: &[u64] = &[1, 5, 12, 21, 30, 39];
    let all: Vec<u64> = (0..=last).filter(|n| asked.form == Form::Long || some.contains(n)).collect();
    s.start()?;
    let mut wall = Wall::new(s, 2 * all.len())?;
    let mut refused = Vec::new();
    for capability in all {
        s.kill_agent()?;
        let mut daemon = s.daemon();
        let without = move || {
            // SAFETY: integers only; the capability is gone after the exec.
            Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) })?;
            Ok(())
        };
        // SAFETY: between fork and exec only a system call is made.
        unsafe { daemon.pre_exec(without) };
        let since = Instant::now();
        match s.start_as(daemon) {
            Ok(()) => wall.holds(s).with_context(|| format!("without capability {capability}"))?,
            Err(error) => {
                let text = format!("{error:#}");
                ensure!(text.contains("the agent is gone: exit status: 6"), "without capability {capability}: {text}");
                ensure!(since.elapsed() < patience(), "without capability {capability} it takes long to say so");
                refused.push(capability.to_string());
                wall.holds(s).with_context(|| format!("without capability {capability}"))?;
                s.start()?;
            }
        }
        wall.holds(s).with_context(|| format!("after capability {capability}"))?;
    }
    wall.is_ended(s)?;
    Ok(vec![format!("it does not start without {}", refused.join(", "))])
}
