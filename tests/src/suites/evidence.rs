//! The evidence: complete, in order, and noticed when it is tampered with.

use std::{collections::BTreeSet, fs, path::Path};

use nix::unistd::getuid;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::scene::only;
use crate::harness::prelude::*;

pub(super) const TESTS: &[Test] = &[
    Test::sharing("evidence::session-start-says-who-and-what", WHEREVER, session_start).agents_own(),
    Test::sharing("evidence::thousand-execs", WHEREVER, thousand),
    Test::sharing("evidence::chain-can-be-recomputed", WHEREVER, chain).agents_own(),
    Test::new("evidence::goes-on-after-a-restart", WHEREVER, restart).agents_own(),
    Test::new("evidence::tampering-is-found", WHEREVER, tampering).agents_own(),
];

fn session_start(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    let running = s.launch(&policy, &member, "say hello").ttl("90s").start()?;
    let session = running.session(s)?;
    let start = s.records(&session, "session-start")?.remove(0);
    let digest = sha256(&fs::read(&policy)?);
    ensure!(start["policy"]["digest"] == digest, "the digest of {policy} is {digest}: {start}");
    ensure!(start["policy"]["name"] == "test" && start["kind"] == "ci" && start["mode"] == "enforce", "{start}");
    ensure!(start["principal"]["uid"] == getuid().as_raw(), "the user is not in {start}");
    let login = fs::read_to_string("/proc/self/loginuid").ok().and_then(|text| text.trim().parse::<u32>().ok());
    let login = login.filter(|uid| *uid != u32::MAX);
    ensure!(start["principal"]["login_uid"] == Value::from(login), "the login user is not {login:?} in {start}");
    ensure!(start["context"]["command"][0] == member && start["ttl_ms"] == 90_000, "{start}");
    ensure!(session.len() == 32 && session.bytes().all(|b| b.is_ascii_hexdigit()), "session {session}");
    running.wait()?.ended(0)?;
    let end = s.session_ended(&session, "completed")?;
    ensure!(end["n"].as_u64() > start["n"].as_u64(), "the end is before the start");
    let first = s.saw_exec(&session, &member, "allow", "member")?;
    ensure!(first["args"][2] == "say" && first["args"][3] == "hello", "the arguments are not in {first}");
    s.wait_evidence("the exit", |r| r["type"] == "exit" && r["session"] == session && r["status"] == 0).map(drop)
}

/// Every exec is a record, or counted as lost.
fn thousand(s: &mut Sandbox) -> Result<()> {
    let many: u64 = 1000;
    s.start()?;
    let (member, tiny) = (s.program("member")?, s.program("tiny")?);
    let policy = s.policy(&only(&member).allow("tiny", &tiny))?;
    let running = s.run(&policy, &member, &format!("many {many} {tiny} --work nothing"))?;
    let session = running.session(s)?;
    running.wait_for(4 * patience())?.ended(0)?.said(&format!("{many} of {many}"))?;
    let end = s.session_ended(&session, "completed")?;
    let count = |part: &str, kind: &str| end[part][kind].as_u64().unwrap_or(0);
    // the session's own command is one more
    ensure!(count("produced", "exec") == many + 1, "{} execs were produced", count("produced", "exec"));
    ensure!(count("produced", "fork") == many, "{} births were produced", count("produced", "fork"));
    for kind in ["exec", "fork", "exit"] {
        let written = u64::try_from(s.records(&session, kind)?.len())?;
        ensure!(
            written == count("consumed", kind),
            "{written} records {kind}, but {} consumed",
            count("consumed", kind)
        );
    }
    let unique: BTreeSet<u64> = s.records(&session, "exec")?.iter().filter_map(|r| r["seq"].as_u64()).collect();
    ensure!(u64::try_from(unique.len())? == count("consumed", "exec"), "sequence numbers occur twice");
    Ok(())
}

/// What anybody can do who has the file: hash each record up to its own hash, and follow the links.
fn chain(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    s.run(&s.policy(&only(&member))?, &member, "say hello")?.wait()?.ended(0)?;
    s.wait_evidence("the session's end", |r| r["type"] == "session-end")?;
    let text = fs::read_to_string(s.evidence_file())?;
    let mut before = "0".repeat(64);
    for line in text.lines() {
        let record: Value = serde_json::from_str(line)?;
        let (hashed, _) = line.rsplit_once(",\"hash\":\"").with_context(|| format!("no hash in {line}"))?;
        ensure!(record["prev"] == before, "the link to the record before is wrong in {line}");
        before = sha256(hashed.as_bytes());
        ensure!(record["hash"] == before, "the hash is not {before} in {line}");
    }
    // what cannot be verified is not damaged, and nothing is waited for
    let (evidence, missing, fifo) = (s.evidence_file().display().to_string(), s.file("missing"), s.file("fifo"));
    nix::unistd::mkfifo(Path::new(&fifo), nix::sys::stat::Mode::S_IRWXU)?;
    s.cli(&["verify", &evidence])?.ended(0)?;
    s.cli_as(Some((1000, 1000)), &["verify", &evidence])?.ended(6)?.complained(&[&evidence, "permission denied"])?;
    s.cli(&["verify", &missing])?.ended(2)?.complained(&[&missing, "no such file"])?;
    for path in [&fifo, "/dev/zero"] {
        s.cli(&["verify", path])?.ended(2)?.complained(&[path, "not a plain file"])?;
    }
    Ok(())
}

fn restart(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    for _ in 0..2 {
        let running = s.run(&policy, &member, "say hello")?;
        let session = running.session(s)?;
        running.wait()?.ended(0)?;
        s.session_ended(&session, "completed")?;
        s.stop_agent()?;
        s.start()?;
    }
    s.cli(&["verify"])?.ended(0)?;
    let tier = s.tier.name();
    let starts = s.evidence()?.iter().filter(|r| r["type"] == "agent-start" && r["tier"] == tier).count();
    ensure!(starts == 3, "{starts} starts of the agent in the evidence of three");
    Ok(())
}

fn tampering(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let running = s.run(&s.policy(&only(&member))?, &member, "say hello")?;
    let session = running.session(s)?;
    running.wait()?.ended(0)?;
    s.session_ended(&session, "completed")?;
    s.stop_agent()?;
    s.cli(&["verify"])?.ended(0)?;
    s.will_damage_evidence();
    let path = s.evidence_file();
    let whole = fs::read_to_string(&path)?;
    let lines: Vec<&str> = whole.lines().collect();
    ensure!(lines.len() > 4, "only {} records", lines.len());
    let changed = lines[2].replacen("\"boot_ns\":", "\"boot_ns\":1", 1);
    let join = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    let damaged = [
        ("a changed record", join(&[&lines[..2], &[changed.as_str()], &lines[3..]].concat()), "3"),
        ("a missing record", join(&[&lines[..2], &lines[3..]].concat()), "3"),
        ("two records swapped", join(&[&lines[..2], &[lines[3], lines[2]], &lines[4..]].concat()), "3"),
        ("a missing end", join(&lines[..lines.len() - 1]), ""),
        ("half a record at the end", whole[..whole.len() - 20].to_owned(), ""),
    ];
    for (what, text, place) in damaged {
        fs::write(&path, text)?;
        s.cli(&["verify"])?
            .ended(1)
            .and_then(|finished| {
                let said = format!("{}\n{}", finished.stdout, finished.stderr);
                ensure!(said.contains(place), "verify does not say where: {said:?}");
                Ok(())
            })
            .with_context(|| what.to_owned())?;
    }
    fs::write(&path, &whole)?;
    s.cli(&["verify"])?.ended(0).map(drop)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
