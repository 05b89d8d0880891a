//! The store after what disks and people do to it: each record comes back as it was written, or is reported.

mod power;

use std::{collections::BTreeSet, fs, path::Path};

use tempfile::TempDir;

use super::*;
use crate::{
    evidence::{Context, PolicyRef, Principal, SessionStart, Text, User},
    session::{Input, Limits, Mode, Session},
};

fn id(n: u8) -> SessionId {
    SessionId::from_random([n; 16])
}

fn sample(n: u8) -> Kept {
    let start = SessionStart {
        session: id(n),
        kind: "ci".into(),
        policy: PolicyRef { name: "p".into(), digest: "d".into(), source: "p.yaml".into() },
        mode: Mode::Enforce,
        principal: Principal { uid: 0, gid: 0, login_uid: None },
        context: Context {
            pid: 7,
            command: vec![Text::from("true".as_bytes())],
            command_cut: false,
            cwd: "/".into(),
            tty: None,
            cgroup: "/sys/fs/cgroup/x".into(),
            namespaces: std::collections::BTreeMap::new(),
        },
        labels: std::collections::BTreeMap::new(),
        credential: Some("0a".repeat(32)),
        users: vec![User { uid: 0, name: "root".into() }],
        within: None,
        attached: None,
        inherited: Vec::new(),
        taken: None,
        ttl_ms: 1000,
        deadline_boot_ns: 5,
        limits: Box::default(),
    };
    Kept {
        boot: "b".into(),
        slot: u32::from(n),
        generation: 9,
        policy_slot: 1,
        cgroup: "/sys/fs/cgroup/x".into(),
        over: false,
        machine: Session::new(id(n), Mode::Enforce, Limits::ttl(5), 1),
        start,
        policy: format!("text of a policy {n}\n").repeat(40).into(),
        start_policy: "text of a policy".into(),
        narrowed: None,
        named: Named::default(),
        winner: "policy".into(),
        started: 3,
        first: First { pid: 7, started: 99 },
        policy_revision: 11,
        ending: None,
        before: None,
    }
}

/// The sessions that are kept.
type State = BTreeSet<String>;

fn state(kept: &[Kept]) -> State {
    kept.iter().map(|session| format!("{session:?}")).collect()
}

/// A store with three sessions that was closed properly, or by a kill. Every state that was ever committed.
fn filled(folder: &Path, killed: bool) -> Vec<State> {
    let (store, spoiled) = Store::open(folder, "b".into()).expect("opens");
    assert_eq!(spoiled, None);
    let committed = || state(&store.kept().expect("reads").0);
    let mut states = vec![committed()];
    for n in 1..=4 {
        let mut kept = sample(n);
        for step in [None, Some(Input::Labelled)] {
            if let Some(input) = step {
                let _ = kept.machine.step(input);
            }
            store.keep(&kept).expect("is kept");
            states.push(committed());
        }
    }
    store.forget(id(4)).expect("is forgotten");
    states.push(committed());
    if killed {
        // as SIGKILL leaves it: nothing is written on the way out
        std::mem::forget(store);
    }
    states
}

#[test]
fn what_is_kept_comes_back() {
    let folder = TempDir::new().expect("a folder");
    filled(folder.path(), false);
    let (store, spoiled) = Store::open(folder.path(), "b".into()).expect("opens again");
    assert_eq!(spoiled, None);
    let (kept, unreadable) = store.kept().expect("reads");
    assert_eq!((kept.len(), unreadable.len()), (3, 0));
    let mut first = sample(1);
    let _ = first.machine.step(Input::Labelled);
    assert_eq!(kept[0], first);
}

/// What was kept by a version that did not know a field yet is read.
#[test]
fn a_session_of_an_earlier_version_is_read() {
    let mut kept = serde_json::to_value(sample(1)).expect("it is kept");
    for key in ["credential", "users"] {
        kept["start"].as_object_mut().and_then(|start| start.remove(key)).expect("it has one");
    }
    let read: Kept = serde_json::from_value(kept).expect("it is read");
    let start = SessionStart { credential: None, users: Vec::new(), ..sample(1).start };
    assert_eq!(read, Kept { start, ..sample(1) });
}

/// A session under policy 1, revision 11, that is being narrowed to policy 2, revision 12.
fn begun() -> Kept {
    let before = sample(1);
    Kept { policy_slot: 2, policy_revision: 12, policy: "less".into(), ..before.clone() }.begun(before)
}

#[test]
fn a_text_is_kept_once_and_known_whole() {
    // the texts of the policy before, of the one that it began with, and of the one after; what of them is not written again
    for ([before, start, after], empty) in [
        (["p", "p", "p"], [true, true]),
        (["p", "p", "q"], [false, true]),
        (["q", "p", "q"], [true, true]),
        (["q", "p", "p"], [false, false]),
    ] {
        let of = |policy: &str, start: &str| {
            let [policy, start] = [policy, start].map(PolicyText::from);
            Kept { start_policy: Kept::beside(&policy, &start), policy, ..sample(1) }
        };
        let was = of(before, start);
        assert_eq!((&**was.start_text(), was.start_policy.is_empty()), (start, before == start));
        let begun = Kept { policy_slot: 2, policy_revision: 12, ..of(after, start) }.begun(was);
        let kept = begun.before.as_ref().expect("what it was");
        assert_eq!([kept.policy.is_empty(), kept.start_policy.is_empty()], empty, "{before} {start} {after}");
        let read: Kept = decode(&encode(&begun).expect("bytes")).expect("read");
        // the new policy is not in the kernel: the session is as it was
        let (back, _) = read.settled(1, |slot| Ok::<_, ()>(if slot == 1 { 11 } else { 0 })).expect("it is read");
        assert_eq!((&*back.policy, &**back.start_text()), (before, start));
        // and where it is: it goes on from there
        let read: Kept = decode(&encode(&begun).expect("bytes")).expect("read");
        let (on, _) = read.settled(2, |slot| Ok::<_, ()>(if slot == 2 { 12 } else { 0 })).expect("it is read");
        assert_eq!((&*on.policy, &**on.start_text()), (after, start));
    }
}

#[test]
fn a_narrowing_is_finished_only_where_the_kernel_stands_as_it_was_left() {
    let (narrowed, before) = (Kept { before: None, ..begun() }, sample(1));
    let settled = |in_force: u32, there: &[(u32, u32)]| {
        let revision = |slot: u32| Ok::<_, ()>(there.iter().find(|(own, _)| *own == slot).map_or(0, |(_, r)| *r));
        begun().settled(in_force, revision).expect("it is read")
    };
    assert_eq!(settled(1, &[(1, 11), (2, 12)]), (narrowed.clone(), true), "begun and not finished");
    assert_eq!(settled(2, &[(1, 11), (2, 12)]), (narrowed.clone(), false), "finished");
    // its number is free, or is another policy's by now: it was refused, and what is kept of it says nothing
    assert_eq!(settled(1, &[(1, 11)]), (before.clone(), false));
    assert_eq!(settled(1, &[(1, 11), (2, 13)]), (before.clone(), false), "somebody else's policy");
    // the kernel went on since: it is never moved back, and the less of the two is what the session is taken to have
    assert_eq!(settled(3, &[(1, 11), (2, 12), (3, 14)]), (narrowed.clone(), false));
    assert_eq!(settled(1, &[(1, 15), (2, 12)]), (narrowed, false), "the number of before is another policy's");
    assert_eq!(before.clone().settled(7, |_| Ok::<_, ()>(11)), Ok((before, false)), "no narrowing");
}

#[test]
fn two_agents_on_one_store_are_told() {
    let folder = TempDir::new().expect("a folder");
    let (_held, _) = Store::open(folder.path(), "b".into()).expect("opens");
    let error = Store::open(folder.path(), "b".into()).expect_err("is held").to_string();
    assert!(error.starts_with("another agent has ") && error.contains("store.redb open: "), "{error}");
}

#[test]
fn a_newer_store_is_refused_and_left_alone() {
    let folder = TempDir::new().expect("a folder");
    filled(folder.path(), false);
    let path = folder.path().join("store.redb");
    {
        let database = builder().open(&path).expect("opens");
        let transaction = database.begin_write().expect("writes");
        transaction.open_table(META).expect("a table").insert("version", VERSION + 1).expect("a version");
        transaction.commit().expect("commits");
    }
    for _ in 0..2 {
        let error = Store::open(folder.path(), "b".into()).expect_err("is newer").to_string();
        assert!(error.contains("is of version 2, this program reads 1"), "{error}");
    }
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing was set aside or made");
}

/// A store and what it was when it was whole.
struct Origin {
    bytes: Vec<u8>,
    states: Vec<State>,
    what: &'static str,
}

impl Origin {
    fn new(killed: bool) -> Self {
        let folder = TempDir::new().expect("a folder");
        let states = filled(folder.path(), killed);
        let bytes = fs::read(folder.path().join("store.redb")).expect("is there");
        Self { bytes, states, what: if killed { "killed" } else { "closed" } }
    }

    /// One damage: what is there afterwards must be a state that was once committed, or what is missing is reported.
    /// True: it is reported.
    fn survives(&self, damage: impl Fn(&mut Vec<u8>), what: &str) -> bool {
        let what = format!("{what}, {}", self.what);
        let folder = TempDir::new().expect("a folder");
        let mut bytes = self.bytes.clone();
        damage(&mut bytes);
        fs::write(folder.path().join("store.redb"), &bytes).expect("is written");
        let (store, spoiled) = Store::open(folder.path(), "b".into()).unwrap_or_else(|e| panic!("{what}: {e}"));
        let (kept, unreadable) = store.kept().unwrap_or_else(|e| panic!("{what}: {e}"));
        let found = state(&kept);
        if spoiled.is_some() {
            assert!(kept.is_empty(), "{what}: a spoiled store has sessions");
            let aside = fs::read(folder.path().join("store.unreadable-1")).expect("it was set aside");
            assert_eq!(aside.len(), bytes.len(), "{what}: what was set aside is not what was found");
        } else if unreadable.is_empty() {
            assert!(self.states.contains(&found), "{what}: nothing is reported, and this was never so: {found:?}");
        } else {
            let ever = |session| self.states.iter().any(|state| state.contains(session));
            assert!(found.iter().all(ever), "{what}: a session came back as it never was");
        }
        // whatever it was, it can be written again
        store.keep(&sample(9)).unwrap_or_else(|e| panic!("{what}: {e}"));
        spoiled.is_some() || !unreadable.is_empty()
    }
}

#[test]
fn a_cut_store_is_reported_or_whole() {
    for origin in [false, true].map(Origin::new) {
        let length = origin.bytes.len();
        let cuts = (0..24).map(|step| length * step / 24);
        let noticed = cuts.filter(|at| origin.survives(|b| b.truncate(*at), &format!("cut at {at}"))).count();
        assert!(noticed > 0, "no cut was noticed");
    }
}

#[test]
fn a_changed_store_is_reported_or_whole() {
    for origin in [false, true].map(Origin::new) {
        // the header's every field, then places all over the file
        let rest = origin.bytes.len() - 320;
        let places = (0..320).step_by(5).chain((0..64).map(|n| 320 + rest * n / 64));
        let change = |at: usize| move |b: &mut Vec<u8>| b[at..].iter_mut().take(8).for_each(|byte| *byte ^= 0x5a);
        let noticed = places.filter(|at| origin.survives(change(*at), &format!("changed at {at}"))).count();
        assert!(noticed > 0, "no change was noticed");
    }
}
