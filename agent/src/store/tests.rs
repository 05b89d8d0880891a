//! The store after what disks and people do to it: each record comes back as it was written, or is reported.

use std::{collections::BTreeSet, fs, path::Path};

use tempfile::TempDir;

use super::*;
use crate::{
    evidence::{Context, PolicyRef, Principal, SessionStart, Text},
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
        attached: None,
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
        policy: format!("text of a policy {n}\n").repeat(40),
        start_policy: "text of a policy".into(),
        narrowed: None,
        winner: "policy".into(),
        started: 3,
        first: First { pid: 7, started: 99 },
    }
}

/// A store with three sessions that was closed properly, or by a kill.
fn filled(folder: &Path, killed: bool) -> BTreeSet<String> {
    let (store, spoiled) = Store::open(folder, "b".into()).expect("opens");
    assert_eq!(spoiled, None);
    let mut ever = BTreeSet::new();
    for n in 1..=4 {
        let mut kept = sample(n);
        for step in [None, Some(Input::Labelled)] {
            if let Some(input) = step {
                let _ = kept.machine.step(input);
            }
            store.keep(&kept).expect("is kept");
            ever.insert(format!("{kept:?}"));
        }
    }
    store.forget(id(4)).expect("is forgotten");
    if killed {
        // as SIGKILL leaves it: nothing is written on the way out
        std::mem::forget(store);
    }
    ever
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

/// One damage: what was there afterwards must be what was once written, or be reported.
fn survives(damage: impl Fn(&mut Vec<u8>), killed: bool, what: &str) -> bool {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("store.redb");
    // after a kill the lock goes with the process; here it is this process's, so the copy is opened
    let origin = TempDir::new().expect("a folder");
    let ever = filled(origin.path(), killed);
    let mut bytes = fs::read(origin.path().join("store.redb")).expect("is there");
    damage(&mut bytes);
    fs::write(&path, &bytes).expect("is written");
    let (store, spoiled) = Store::open(folder.path(), "b".into()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let (kept, unreadable) = store.kept().unwrap_or_else(|e| panic!("{what}: {e}"));
    for session in &kept {
        assert!(ever.contains(&format!("{session:?}")), "{what}: a session came back as it never was");
    }
    if spoiled.is_some() {
        assert!(kept.is_empty(), "{what}: a spoiled store has sessions");
        let aside = fs::read(folder.path().join("store.unreadable-1")).expect("it was set aside");
        assert_eq!(aside.len(), bytes.len(), "{what}: what was set aside is not what was found");
    }
    // whatever it was, it can be written again
    store.keep(&sample(9)).unwrap_or_else(|e| panic!("{what}: {e}"));
    spoiled.is_some() || !unreadable.is_empty() || kept.len() < 3
}

#[test]
fn a_cut_store_is_reported_or_whole() {
    let origin = TempDir::new().expect("a folder");
    filled(origin.path(), false);
    let length = fs::metadata(origin.path().join("store.redb")).expect("is there").len();
    let mut noticed = 0;
    for killed in [false, true] {
        for step in 0..24 {
            let at = usize::try_from(length * step / 24).expect("fits");
            noticed += u32::from(survives(|b| b.truncate(at), killed, &format!("cut at {at}, killed {killed}")));
        }
    }
    assert!(noticed > 0, "no cut was noticed");
}

#[test]
fn a_changed_store_is_reported_or_whole() {
    let origin = TempDir::new().expect("a folder");
    filled(origin.path(), false);
    let length = fs::metadata(origin.path().join("store.redb")).expect("is there").len();
    let mut noticed = 0;
    for killed in [false, true] {
        // the header's every field, then places all over the file
        let places = (0..320u64).step_by(5).chain((0..64).map(|n| 320 + (length - 320) * n / 64));
        for at in places {
            let at = usize::try_from(at).expect("fits");
            let change = |b: &mut Vec<u8>| b[at..].iter_mut().take(8).for_each(|byte| *byte ^= 0x5a);
            noticed += u32::from(survives(change, killed, &format!("changed at {at}, killed {killed}")));
        }
    }
    assert!(noticed > 0, "no change was noticed");
}
