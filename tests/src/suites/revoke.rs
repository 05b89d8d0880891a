//! What operators revoke, and the stay that follows.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{control::ids, scene::only};
use crate::harness::{
    bpf::Map,
    prelude::*,
    sandbox::OPERATORS,
    wait::{gone, in_guest},
};

pub(super) const TESTS: &[Test] = &[
    Test::new("control::revoked-by-label-policy-and-principal", WHEREVER, revoke).agents_own(),
    Test::new("control::stay-outlives-the-agent", WHEREVER, stay).agents_own(),
    Test::new("control::revoked-though-the-agent-dies", WHEREVER, revoked_halfway).agents_own(),
    Test::new("control::credential-is-known-by-its-fingerprint", WHEREVER, credential).agents_own(),
];

/// A slot that no session of a test gets, and the state of one that is over (`tipstaff_common::session::STATE_ENDED`).
const SLOT: u32 = 1_000;
const ENDED: u64 = 2;

/// A credential, its SHA-256, and that of another.
const SECRET: &str = "a-secret-of-a-test";
const FINGERPRINT: &str = "cd4e57bc33d9c976fa33a2c9a2aea3a57a829b84a68a1f99d3002c18893d976a";
const OTHER: &str = "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a";

/// More connections than the agent serves, of one user, every other with half a call.
fn silent(s: &Sandbox, uid: u32) -> Result<Vec<UnixStream>> {
    let socket = s.runtime().join("operate.sock");
    let connect = move || -> Result<Vec<UnixStream>> {
        // SAFETY: the raw calls change this thread's ids alone, and it ends here.
        let set = unsafe {
            libc::syscall(libc::SYS_setresgid, OPERATORS, OPERATORS, OPERATORS) == 0
                && libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0
        };
        ensure!(set, "a thread cannot be user {uid}");
        let mut streams = Vec::new();
        for n in 0..80 {
            let mut stream = UnixStream::connect(&socket)?;
            if n % 2 == 0 {
                // one that was turned away meanwhile does not take it
                let _ = stream.write_all(b"{\"method\":");
            }
            streams.push(stream);
        }
        Ok(streams)
    };
    std::thread::spawn(connect).join().map_err(|_panic| anyhow::anyhow!("the thread that connects failed"))?
}

fn revoke(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let red = only(&member).name("red").spec("on: { expiry: { term: 1m } }");
    let (red, blue) = (s.policy(&red)?, s.policy(&only(&member).name("blue"))?);
    let start_as = |policy: &str, label: &str, uid: u32, line: &str| -> Result<(Running, String)> {
        let launch = s.launch(policy, &member, line).flag("--label", label).user(uid, OPERATORS);
        let running = launch.start()?;
        let session = running.session(s)?;
        Ok((running, session))
    };
    let start = |policy: &str, label: &str, uid: u32| start_as(policy, label, uid, "idle");
    // many, and deaf to SIGTERM
    let many: usize = if in_guest() { 40 } else { 200 };
    let (first, by_label) = start_as(&red, "team=a", 4_001, &format!("deaf tree {many} + idle"))?;
    until("all to be there", patience(), || Ok((first.said() == format!("{many} made\n")).then_some(())))?;
    let (second, by_policy) = start(&red, "team=b", 4_001)?;
    let (third, by_principal) = start(&blue, "team=b", 4_002)?;
    let (last, spared) = start(&blue, "team=c", 4_003)?;

    let dry = s.json(&["revoke", "--policy", "red", "--dry-run"])?;
    let mut both = vec![by_label.clone(), by_policy.clone()];
    both.sort();
    ensure!(ids(&dry) == both && dry["dry_run"] == true, "the dry run says {dry}");
    ensure!([&first, &second, &third, &last].iter().all(|r| !gone(r.pid())), "a dry run ended somebody");
    ensure!(s.json(&["revoke", "--list"])?["stays"] == serde_json::json!([]), "a dry run left a stay");

    // whoever holds connections and asks nothing, or half of something, is in nobody's way
    let held = [silent(s, 4_003)?, silent(s, 0)?];
    let started = Instant::now();
    let hit = s.json(&["revoke", "--label", "team=a"])?;
    ensure!(started.elapsed() < patience(), "revoke took {:?}", started.elapsed());
    ensure!(ids(&hit) == [by_label.clone()], "revoked: {hit}");
    let end = s.session_ended(&by_label, "revoked")?;
    first.wait()?.ended(137)?;
    caused(s, &by_label, &end, many + 1)?;
    ensure!(ids(&s.json(&["revoke", "--policy", "red", "--no-stay"])?) == [by_policy.clone()], "another was hit");
    s.session_ended(&by_policy, "revoked")?;
    second.wait()?.ended(137)?;
    drop(held);
    let hit = s.json(&["revoke", "--principal", "4002", "--stay", "30m"])?;
    ensure!(ids(&hit) == [by_principal.clone()] && hit["stay"]["value"] == "4002", "revoked: {hit}");
    s.session_ended(&by_principal, "revoked")?;
    third.wait()?.ended(137)?;
    ensure!(!gone(last.pid()), "a session that was not meant is gone");

    // no stay for the policy, one for the principal, none for others
    for (uid, policy, code) in [(4_001, &red, 0), (4_002, &blue, 125), (4_003, &blue, 0)] {
        let again = s.launch(policy, &member, "say in").user(uid, OPERATORS).start()?.wait()?;
        again.ended(code).with_context(|| format!("user {uid}"))?;
    }
    s.cli(&["revoke", "--session", &spared, "--stay", "5m"])?.ended(2)?.complained(&["never starts again"])?;
    s.cli(&["revoke", "--session", &spared])?.ended(0)?;
    last.wait()?.ended(137)?;
    s.cli(&["revoke", "--session", &spared])?.ended(5)?;
    s.cli(&["revoke", "--label", "team"])?.ended(2)?.complained(&["is no label: write key=value"])?;
    s.cli(&["revoke", "--principal", "no-such-user"])?.ended(2)?.complained(&["no-such-user", "give the user id"])?;
    let record = s.wait_evidence("the revocation", |r| r["type"] == "revoke" && r["by"] == "principal")?;
    ensure!(record["principal"]["uid"] == 0 && record["stay"]["until"].is_string(), "recorded: {record}");

    // of seventeen ids two have their first digit in common
    let (mut begun, mut digits) = (Vec::new(), BTreeSet::new());
    let digit = loop {
        let (running, session) = start(&blue, "team=d", 4_003)?;
        begun.push(running);
        let digit = session[..1].to_owned();
        if !digits.insert(digit.clone()) {
            break digit;
        }
    };
    let many = "more than one live session has an id that begins with";
    s.cli(&["inspect", &digit])?.ended(5)?.complained(&[many, "give more digits"])?;
    s.cli(&["end", &digit])?.ended(5)?.complained(&[many, "give more digits"])?;
    ensure!(begun.iter().all(|r| !gone(r.pid())), "a session was ended that was not named");
    ensure!(ids(&s.json(&["revoke", "--label", "team=d"])?).len() == begun.len(), "not all are revoked");
    begun.into_iter().try_for_each(|running| running.wait()?.ended(137).map(drop))
}

/// The evidence leads from the revocation to what was done for it, and from there to a receipt for each process.
fn caused(s: &Sandbox, session: &str, end: &Value, processes: usize) -> Result<()> {
    let revoke = s.wait_evidence("the revocation", |r| r["type"] == "revoke" && r["by"] == "label")?;
    ensure!(revoke["sessions"] == serde_json::json!([session]) && revoke["principal"]["uid"] == 0, "{revoke}");
    let states = s.records(session, "state")?;
    let ending = states.iter().find(|r| r["to"] == "ending").context("it was never ending")?;
    ensure!(ending["cause"] == "revoked", "it was ending because of {}", ending["cause"]);
    let order = [&revoke, ending, end].map(|r| r["n"].as_u64());
    ensure!(order.is_sorted() && order[0] < order[2], "revoke, state and end are records {order:?}");
    let receipts = end["receipts"].as_array().context("session-end without receipts")?;
    let pids: BTreeSet<u64> = receipts.iter().filter(|r| r["gone"] == true).filter_map(|r| r["pid"].as_u64()).collect();
    ensure!(pids.len() == processes, "{} receipts for {processes} processes", pids.len());
    Ok(())
}

/// What is revoked cannot start, whichever agent is asked, until its time or until it is lifted.
fn stay(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member).name("red"))?;
    let starts = |s: &Sandbox| s.run(&policy, &member, "say in")?.wait();
    starts(s)?.ended(0)?;
    let stay = s.json(&["revoke", "--policy", "red"])?["stay"]["id"].as_str().context("no stay")?.to_owned();
    let named = format!("(stay {})", &stay[..8]);
    let refused = |s: &Sandbox| {
        starts(s)?.ended(125)?.said("")?.complained(&["policy red is revoked until", &named, "revoke --lift"]).map(drop)
    };
    refused(s)?;
    let told = |r: &Value| r["type"] == "refused" && r["message"].to_string().contains(&named);
    s.wait_evidence("the refusal, with the stay that it is for", told)?;
    s.kill_agent()?;
    s.start()?;
    refused(s).context("with another agent")?;
    ensure!(s.json(&["revoke", "--list"])?["stays"][0]["id"] == stay.as_str(), "the list has no stay {stay}");
    s.cli(&["revoke", "--lift", "ffff"])?.ended(5)?.complained(&["no stay has an id", "revoke --list"])?;
    s.cli(&["revoke", "--lift", &stay[..8]])?.ended(0)?;
    starts(s)?.ended(0)?.said("in")?;
    s.wait_evidence("the lift", |r| r["type"] == "lift" && r["stay"] == stay.as_str())?;
    // one that is over holds nothing
    s.cli(&["revoke", "--policy", "red", "--stay", "50ms"])?.ended(0)?;
    until("the stay to be over", patience(), || Ok((starts(s)?.code == 0).then_some(())))?;
    // one that cannot be read is reported, and the agent starts all the same
    s.cli(&["revoke", "--policy", "red"])?.ended(0)?;
    s.stop_agent()?;
    fs::write(s.folder().join("state/store.redb"), "{")?;
    s.start()?;
    s.wait_evidence("the gap", |r| r["type"] == "gap" && r["detail"].to_string().contains("every stay in it is lost"))?;
    starts(s)?.ended(0)?;
    Ok(())
}

/// The agent dies at some moment of a revocation. Either nothing of it holds, or all: the next agent ends what the stay is
/// over.
fn revoked_halfway(s: &mut Sandbox) -> Result<()> {
    let (rounds, step) = if in_guest() { (2, 60) } else { (4, 6) };
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member).name("red"))?;
    let mut held = 0;
    for round in 1..=rounds {
        let running = (0..6).map(|_| s.run(&policy, &member, "idle")).collect::<Result<Vec<_>>>()?;
        let sessions = running.iter().map(|r| r.session(s)).collect::<Result<Vec<_>>>()?;
        let mut revoke = s.tipstaff();
        revoke.args(["revoke", "--policy", "red"]);
        let revoke = Running::spawn(s, revoke, None)?;
        std::thread::sleep(Duration::from_millis(step * round));
        s.kill_agent()?;
        revoke.wait()?;
        s.start()?;
        let stays = s.json(&["revoke", "--list"])?["stays"].clone();
        if let Some(stay) = stays[0]["id"].as_str() {
            held += 1;
            s.cli(&["revoke", "--lift", stay])?.ended(0)?;
        } else {
            let ps = s.json(&["ps"])?;
            let living = ps["sessions"].as_array().into_iter().flatten().filter(|row| row["verdict"] == "continue");
            ensure!(living.count() == sessions.len(), "no stay, and not all sessions: {ps}");
            s.cli(&["revoke", "--policy", "red", "--no-stay"])?.ended(0)?;
        }
        for session in sessions {
            s.session_ended(&session, "revoked").with_context(|| format!("the stays were {stays}"))?;
        }
        running.into_iter().try_for_each(|running| running.wait()?.ended(137).map(drop))?;
    }
    eprintln!("{held} of {rounds} revocations held");
    // or between two steps of letting a session's slot go: nothing knows of it but its state
    let states = Map::of(s, "SESSION_STATE")?;
    s.kill_agent()?;
    states.set_word(SLOT, u64::from(SLOT) << 32 | ENDED)?;
    s.start()?;
    ensure!(states.word(SLOT)? & ENDED == 0, "the slot is not free: {:x}", states.word(SLOT)?);
    Ok(())
}

/// Of three sessions two act with one credential: that is told once, with another agent too, and exactly those two end
/// when it is revoked. The credential itself is nowhere.
fn credential(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let (policy, token) = (s.policy(&only(&member))?, s.file("token"));
    fs::write(&token, SECRET)?;
    let start = |s: &Sandbox, flag: &str, value: &str| -> Result<(Running, String)> {
        let running = s.launch(&policy, &member, "idle").flag(flag, value).start()?;
        let session = running.session(s)?;
        Ok((running, session))
    };
    let (first, one) = start(s, "--credential", &token)?;
    let (last, spared) = start(s, "--credential-fingerprint", OTHER)?;
    let reuse = |r: &Value| r["type"] == "credential-reuse";
    ensure!(!s.evidence()?.iter().any(reuse), "one session of each was told as two of one");
    let (second, two) = start(s, "--credential-fingerprint", &FINGERPRINT.to_uppercase())?;
    let told = s.wait_evidence("the second session of the credential", reuse)?;
    ensure!(
        told["session"] == two && told["others"] == serde_json::json!([one]) && told["credential"] == FINGERPRINT,
        "{told}"
    );
    ensure!(
        s.records(&one, "session-start")?[0]["credential"] == FINGERPRINT,
        "the start does not name the credential"
    );

    s.kill_agent()?;
    s.start()?;
    for (session, fingerprint) in [(&one, FINGERPRINT), (&two, FINGERPRINT), (&spared, OTHER)] {
        let shown = s.json(&["inspect", session])?;
        ensure!(shown["context"]["credential"] == fingerprint, "inspect shows {}", shown["context"]);
    }
    s.cli(&["inspect", &one])?.ended(0)?.told(&[FINGERPRINT])?;
    ensure!(s.evidence()?.into_iter().filter(|r| reuse(r)).count() == 1, "it was told again by the next agent");

    let mut both = vec![one.clone(), two.clone()];
    both.sort();
    let dry = s.json(&["revoke", "--credential", &token, "--dry-run"])?;
    ensure!(ids(&dry) == both && !gone(first.pid()) && !gone(second.pid()), "the dry run says {dry}");
    ensure!(s.json(&["revoke", "--list"])?["stays"] == serde_json::json!([]), "a dry run left a stay");
    let hit = s.json(&["revoke", "--credential", FINGERPRINT])?;
    ensure!(
        ids(&hit) == both && hit["stay"]["by"] == "credential" && hit["stay"]["value"] == FINGERPRINT,
        "revoked: {hit}"
    );
    for (running, session) in [(first, one), (second, two)] {
        s.session_ended(&session, "revoked")?;
        running.wait()?.ended(137)?;
    }
    ensure!(!gone(last.pid()), "a session of another credential was ended");
    let again = |s: &Sandbox, value: &str| {
        s.launch(&policy, &member, "say in").flag("--credential-fingerprint", value).start()?.wait()
    };
    let refused =
        |s: &Sandbox| again(s, FINGERPRINT)?.ended(125)?.complained(&["credential cd4e57bc33d9 is revoked"]).map(drop);
    refused(s)?;
    s.kill_agent()?;
    s.start()?;
    refused(s).context("with another agent")?;
    again(s, OTHER)?.ended(0)?.said("in")?;
    // who runs already is not taken in with it either
    let mut idle = std::process::Command::new(&member);
    idle.args(["--work", "idle"]);
    let outside = Running::spawn(s, idle, None)?;
    let attach = |flag: [&str; 2]| {
        let pid = outside.pid().to_string();
        s.cli(&[&["attach", "--policy", &policy, "--pid", &pid][..], &flag].concat())
    };
    attach(["--credential", &token])?.ended(3)?.complained(&["credential cd4e57bc33d9 is revoked"])?;
    attach(["--credential-fingerprint", OTHER])?.ended(0)?;
    ensure!(ids(&s.json(&["revoke", "--credential", OTHER, "--no-stay"])?).len() == 2, "not both were revoked");
    last.wait()?.ended(137)?;
    outside.wait()?.ended(137)?;
    again(s, OTHER)?.ended(0)?.said("in")?;

    for (value, part) in [("abc", "64 hexadecimal digits"), (&FINGERPRINT[..63], "64 hexadecimal digits")] {
        again(s, value)?.ended(125)?.complained(&[part])?;
    }
    let empty = s.file("empty");
    fs::write(&empty, "")?;
    for (words, part) in [
        (["revoke", "--credential", "/no/such/file"], "cannot read the credential /no/such/file: No such file"),
        (["revoke", "--credential", &empty], "it is empty"),
    ] {
        s.cli(&words)?.ended(2)?.complained(&[part])?;
    }
    let kept = [s.evidence_file(), s.log(), s.folder().join("state/store.redb")];
    let holds = |path: &std::path::PathBuf| {
        fs::read(path).is_ok_and(|bytes| bytes.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()))
    };
    ensure!(!kept.iter().any(holds), "the credential itself was written down");
    Ok(())
}
