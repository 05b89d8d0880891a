//! The compiled tables of rules on programs and unix sockets, and of all rules together, in the cases that matter most,
//! each denial beside what stays allowed.

use tipstaff_common::{
    place::{Place, Way},
    rule::{
        ALLOW, Content, DENY, ExecKey, FileId, KIND_DIRECTORY, KIND_FILE, REASON_DEFAULT, REASON_UNRESOLVED,
        UNIX_SPELLED,
    },
    session::{HAS_DIRECTORIES, HAS_UNIX_DENIALS, HAS_UNIX_DIRECTORIES},
};

use super::{TCP, allowed, denied, policy};
use crate::policy::{
    Effect, Plan, Program, ProgramClass, Resolved, UnixFound, UnixSocket, compile, compile_less, decide_exec,
    decide_unix,
};

fn id(inode: u64) -> FileId {
    FileId { inode, device: 1, generation: 0 }
}

#[test]
fn what_is_removed_and_renumbered_keeps_its_names() {
    let scope = concat!(
        "{exec: {allow: [{path: /a, id: a}, {path: /b, id: b}]}, ",
        "net: {allow: [{to: 10.1.0.0/16, id: one}, {to: 10.2.0.0/16, id: two}], deny: [{to: 10.1.1.0/24, id: no}], ",
        "listen: [{ports: [80], id: web}]}, unix: {allow: [{name: '@n', id: n}]}}",
    );
    let policy = policy("ci", scope);
    let unix = vec![UnixFound::default()];
    let host = Resolved { files: vec![vec![id(1)], vec![id(2)]], unix, ..Resolved::default() };
    let plan = compile(&policy, &host).expect("a plan");
    let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    for (bad, there) in [("no", true), ("nobody", false)] {
        assert_eq!(policy.without(&host, &ids(&["one", bad])), Err((bad, there)));
    }
    let (less, less_host) = policy.without(&host, &ids(&["a", "one", "n"])).expect("allow rules");
    assert_ne!(less.digest, policy.digest);
    assert_eq!(less_host.files, [vec![id(2)]]);
    assert_eq!(less.rules().collect::<Vec<_>>(), ["b", "two", "no", "web"]);
    let after = compile(&less, &less_host).expect("a plan").renumbered(&plan.rules).expect("few rules");
    assert_eq!(after.rules, plan.rules);
    let quiet = compile_less(&less, &less_host).expect("a plan").renumbered(&plan.rules).expect("few rules");
    assert_eq!(Plan { notes: after.notes.clone(), ..quiet }, after, "the same but for what is told");
    let tcp = |plan: &Plan, to: &str| {
        let judged = plan.judge_net(to.parse().expect(to), 80, TCP);
        (judged.verdict, plan.rule_name(judged.rule).to_owned())
    };
    for (to, before, now) in [
        ("10.1.0.1", allowed("one"), denied("default")),
        ("10.1.1.1", denied("no"), denied("no")),
        ("10.2.0.1", allowed("two"), allowed("two")),
        ("169.254.169.254", denied("metadata"), denied("metadata")),
    ] {
        assert_eq!((tcp(&plan, to), tcp(&after, to)), (before, now), "{to}");
    }
    assert_eq!(after.judge_exec(&Program::of(id(1), &[])).rule, REASON_DEFAULT);
    assert_eq!(after.rule_name(after.judge_exec(&Program::of(id(2), &[])).rule), "b");
    let more = plan.clone().renumbered(&ids(&["x", "two"]).into()).expect("few rules");
    assert_eq!(more.rules[..], ids(&["x", "two", "a", "b", "one", "no", "web", "n"]));
    assert_eq!(tcp(&more, "10.2.0.1"), allowed("two"));
    assert_eq!(tcp(&more, "10.1.1.1"), denied("no"));
    // some in the order of the names, one out of it, and one that is new
    let mixed = plan.clone().renumbered(&ids(&["a", "x", "b", "two", "one", "no", "web"]).into()).expect("few rules");
    assert_eq!(mixed.rules[..], ids(&["a", "x", "b", "two", "one", "no", "web", "n"]));
    assert_eq!((tcp(&mixed, "10.1.0.1"), tcp(&mixed, "10.2.0.1")), (allowed("one"), allowed("two")));
    assert!(plan.renumbered(&vec!["x".to_owned(); 70_000].into()).is_none());
}

#[test]
fn rules_that_do_nothing_are_noted() {
    let scope = concat!(
        "{net: {allow: [{to: 10.1.0.0/16, ports: [22]}, {to: 10.1.0.0/16, ports: [22]}, {to: 10.2.0.0/16}, ",
        "{to: 10.3.0.0/16, id: gone}], deny: [{to: 10.0.0.0/8, ports: ['1-100'], id: low}, {to: 10.3.0.0/16}]}, ",
        "unix: {allow: [/run/gone/socket, '@name']}}",
    );
    let host = Resolved { unix: vec![UnixFound::default(); 2], ..Resolved::default() };
    let plan = compile(&policy("ci", scope), &host).expect("a plan");
    let notes: Vec<_> = plan.notes.iter().map(ToString::to_string).collect();
    let expected = [
        "rule net.allow[1] says what rule net.allow[0] says: keep one",
        "rule net.allow[0] has no effect: rule low denies what it allows",
        "rule net.allow[1] has no effect: rule low denies what it allows",
        "rule gone has no effect: rule net.deny[1] denies what it allows",
        "rule unix.allow[0] allows nothing: path /run/gone/socket does not exist here now",
    ];
    assert_eq!(notes, expected);
}

#[test]
fn unix_sockets_are_places_files_directories_and_names() {
    let scope = concat!(
        "{unix: {allow: [/run/a, /run/all/, '@good', {path: /run/all/not, id: x}], ",
        "deny: [{path: /run/all/not, id: no}, {name: '@bad', id: no-name}]}}",
    );
    let policy = policy("ci", scope);
    let path = |file: u64, directory: u64, name: &str| UnixFound {
        files: vec![id(file)],
        place: Some((id(directory), name.as_bytes().to_vec())),
        trusted: file == 1,
    };
    let all = UnixFound { files: vec![id(30)], place: None, trusted: false };
    let not = path(3, 30, "not");
    let unix = vec![path(1, 20, "a"), all, UnixFound::default(), not.clone(), not, UnixFound::default()];
    let host = Resolved { unix, ..Resolved::default() };
    let plan = compile(&policy, &host).expect("a plan");
    let judge = |socket: &UnixSocket<'_>| {
        let judged = plan.judge_unix(socket);
        assert_eq!(judged.verdict, decide_unix(&policy, &host, socket).verdict, "{socket:?}");
        format!("{} {}", judged.verdict, plan.rule_name(judged.rule))
    };
    let run = [id(20), id(2)];
    let below = [id(31), id(30), id(20)];
    let in_all = [id(30), id(20)];
    let file = |file: u64, name: &'static [u8], ancestors| judge(&UnixSocket::File { file: id(file), name, ancestors });
    assert_eq!(file(1, b"a", &run), "allow unix.allow[0]");
    assert_eq!(file(9, b"a", &run), "allow unix.allow[0]", "made again at its place");
    assert_eq!(file(1, b"link", &in_all[1..]), "allow unix.allow[0]", "another name of the same file");
    assert_eq!(file(9, b"b", &run), "deny default");
    assert_eq!(file(9, b"b", &below), "allow unix.allow[1]");
    assert_eq!(file(9, b"not", &in_all), "deny no");
    assert_eq!(file(3, b"other", &in_all), "deny no");
    assert_eq!(judge(&UnixSocket::Abstract(b"good")), "allow unix.allow[2]");
    assert_eq!(judge(&UnixSocket::Abstract(b"bad")), "deny no-name");
    assert_eq!(judge(&UnixSocket::Abstract(b"goo")), "deny default");
    // for programs that see names alone: a path that is trusted, and one that is denied
    let spelled = plan.unix.iter().filter(|(key, _)| key.kind == UNIX_SPELLED);
    let spelled: Vec<_> = spelled.map(|(key, entry)| (&key.name[..key.length as usize], entry.verdict)).collect();
    assert_eq!(spelled, [(&b"/run/a"[..], ALLOW), (&b"/run/all/not"[..], DENY)]);
    assert_eq!(plan.flags, HAS_UNIX_DIRECTORIES | HAS_UNIX_DENIALS);
}

#[test]
fn deny_beats_allow_for_programs() {
    let scope = concat!(
        "{exec: {allow: [{path: /a}, {dir: /bin}, {path: /gone}], ",
        "deny: [{path: /b, id: no-b}, {dir: /bin/sub, id: sub}]}}",
    );
    let policy = policy("ci", scope);
    let files = vec![vec![id(1)], vec![id(20), id(21), id(30)], vec![], vec![id(1), id(2)], vec![id(30)]];
    let files = Resolved { files, ..Resolved::default() };
    let plan = compile(&policy, &files).expect("a plan");
    let judge = |file: u64, above: &[u64]| {
        let above: Vec<_> = above.iter().copied().map(id).collect();
        let program = Program::of(id(file), &above);
        let judged = plan.judge_exec(&program);
        assert_eq!(judged.verdict, decide_exec(&policy, &files, &program).verdict);
        (judged.verdict, plan.rule_name(judged.rule).to_owned())
    };
    assert_eq!(judge(1, &[20]), denied("no-b"));
    assert_eq!(judge(5, &[20, 10]), allowed("exec.allow[1]"));
    assert_eq!(judge(5, &[21]), allowed("exec.allow[1]"));
    assert_eq!(judge(5, &[30, 20, 10]), denied("sub"));
    assert_eq!(judge(5, &[20, 30]), denied("sub"));
    assert_eq!(judge(5, &[10]), denied("default"));
    assert_eq!(judge(20, &[10]), denied("default"));
    let notes: Vec<_> = plan.notes.iter().map(ToString::to_string).collect();
    let missing = "rule exec.allow[2] allows nothing: path /gone does not exist here now";
    assert_eq!(notes, ["rule exec.allow[0] has no effect: rule no-b denies the same file as /a", missing]);
    assert_eq!(plan.exec[&ExecKey { file: id(1), kind: KIND_FILE, pad: 0 }].verdict, DENY);
    assert_eq!(plan.exec[&ExecKey { file: id(21), kind: KIND_DIRECTORY, pad: 0 }].verdict, ALLOW);
    let entry = plan.entry(7);
    assert_eq!((entry.revision, entry.exec_default, entry.flags), (7, DENY, HAS_DIRECTORIES));
}

#[test]
fn a_program_below_too_many_directories_is_denied() {
    let files = |dir: u64| Resolved { files: vec![vec![id(dir)]], ..Resolved::default() };
    let above: Vec<_> = (100..149).map(id).collect();
    let policy_of = |kind, rule| policy(kind, &format!("{{exec: {rule}}}"));
    let with = policy_of("operator", "{allow: [{dir: /d}]}");
    let plan = compile(&with, &files(7)).expect("a plan");
    assert_eq!(plan.judge_exec(&Program::of(id(1), &above)).rule, REASON_UNRESOLVED);
    assert_eq!(decide_exec(&with, &files(7), &Program::of(id(1), &above)).rule, REASON_UNRESOLVED);
    assert_eq!(plan.judge_exec(&Program::of(id(1), &above[..48])).rule, REASON_DEFAULT);
    let without = policy_of("operator", "{allow: [{path: /p}]}");
    let plan = compile(&without, &files(7)).expect("a plan");
    assert_eq!((plan.flags, plan.judge_exec(&Program::of(id(1), &above)).rule), (0, REASON_DEFAULT));
    assert_eq!(decide_exec(&without, &files(7), &Program::of(id(1), &above)).rule, REASON_DEFAULT);
}

/// What stands where a rule denies is denied, whichever file it is; a rule that asks for more lets no unknown file in.
#[test]
fn what_stands_in_a_denied_place_is_denied() {
    let policy = policy(
        "operator",
        "{exec: {deny: [{path: /a/bad, id: bad}, {dir: /a/closed, id: closed}, {path: /a/git, subcommands: [push]}]}}",
    );
    let folder = Way::root(1).below(b"a");
    let place = |name: &str| folder.below(name.as_bytes()).place;
    let known = Content { size: 1, changed: 1 };
    let host = Resolved {
        files: vec![vec![], vec![], vec![id(3)]],
        places: ["bad", "closed", "git"].map(|name| vec![place(name)]).into(),
        contents: [(id(3), known)].into(),
        ..Resolved::default()
    };
    let plan = compile(&policy, &host).expect("a plan");
    let judge = |file: u64, places: &[Place]| {
        let above = [id(20), id(21)];
        let program = Program { places, content: Some(known), ..Program::of(id(file), &above[..places.len().min(2)]) };
        let judged = plan.judge_exec(&program);
        assert_eq!(decide_exec(&policy, &host, &program), judged, "{places:?}");
        (judged.verdict, plan.rule_name(judged.rule).to_owned())
    };
    assert_eq!(judge(9, &[place("bad"), folder.place]), denied("bad"));
    assert_eq!(judge(9, &[place("good"), folder.place]), allowed("default"));
    let below = folder.below(b"closed").below(b"bad").place;
    assert_eq!(judge(9, &[below, place("closed"), folder.place]), denied("closed"));
    assert_eq!(judge(9, &[below, place("open"), folder.place]), allowed("default"));
    assert_eq!(judge(9, &[place("git"), folder.place]), denied("changed"));
    assert_eq!(judge(3, &[place("git"), folder.place]), allowed("default"));
    let notes: Vec<_> = plan.notes.iter().map(ToString::to_string).collect();
    assert!(
        notes.contains(&"rule bad denies nothing yet: path /a/bad does not exist here now".to_owned()),
        "{notes:?}"
    );
    // a host that shows nothing takes no place from a rule
    let mut silent = Resolved { files: vec![Vec::new(); 3], ..Resolved::default() };
    silent.as_pinned(&policy, &plan);
    assert_eq!(silent.places, host.places);
}

/// What the host's programs are by their names is in the table where no rule is.
#[test]
fn a_policy_without_rules_has_numbers_too() {
    let file = id(1);
    let host = Resolved { classes: [(file, ProgramClass::Loader.bit())].into(), ..Resolved::default() };
    let plan = compile(&policy("ci", "{}"), &host)
        .expect("it compiles")
        .renumbered(&["gone".to_owned()].into())
        .expect("it has numbers");
    assert_eq!(plan.rules[..], ["gone"]);
    assert_eq!(plan.judge_exec(&Program::of(file, &[])).verdict, Effect::Deny);
}

/// A host that cannot be asked takes nothing from a session: its rules name what the tables hold.
#[test]
fn what_the_host_does_not_show_is_named_by_the_tables() {
    let policy = policy("ci", "{exec: {allow: [{path: /a}, {path: /b}], deny: [{path: /d}]}}");
    let count = u64::try_from(policy.exec.len()).expect("a few");
    let content = |inode: u64| (id(inode), Content { size: inode, ..Content::default() });
    let host = Resolved {
        files: (1..=count).map(|inode| vec![id(inode)]).collect(),
        contents: (1..=count).map(content).collect(),
        ..Resolved::default()
    };
    let plan = compile(&policy, &host).expect("a plan");
    let mut silent = Resolved { files: vec![Vec::new(); policy.exec.len()], ..Resolved::default() };
    silent.as_pinned(&policy, &plan);
    assert_eq!(silent.files, host.files);
    assert_eq!(compile(&policy, &silent).expect("a plan").exec, plan.exec);
    // one that shows something else gives the rules nothing new
    let mut other = Resolved { files: vec![vec![id(9)]; policy.exec.len()], ..Resolved::default() };
    other.contents.extend([content(9)]);
    other.as_pinned(&policy, &plan);
    for (rule, (files, own)) in policy.exec.iter().zip(other.files.iter().zip(&host.files)) {
        assert!(own.iter().all(|file| files.contains(file)), "{}: {files:?}", rule.id);
        assert!(rule.effect == Effect::Deny || !files.contains(&id(9)), "{}: {files:?}", rule.id);
    }
}
