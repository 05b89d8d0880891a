//! The lines themselves: a public format.

use std::collections::BTreeMap;

use super::*;
use crate::session::{Mode, Round, Took};

fn principal() -> Principal {
    Principal { uid: 1000, gid: 1000, login_uid: None }
}

pub(super) fn session_start() -> Body {
    Body::SessionStart(Box::new(SessionStart {
        session: session(),
        kind: "ci".to_owned(),
        policy: PolicyRef { name: "p".to_owned(), digest: "sha256:00".to_owned(), source: "p.yaml".to_owned() },
        mode: Mode::Enforce,
        principal: Principal { login_uid: Some(1000), ..principal() },
        context: Context {
            pid: 42,
            command: vec![Text::from("make"), Text::from(&b"\xff\\"[..])],
            command_cut: false,
            cwd: Text::from("/src"),
            tty: Some(Text::from("/dev/pts/1")),
            cgroup: Text::from("/tipstaff/s1"),
            namespaces: BTreeMap::from([("net".to_owned(), 4_026_531_840)]),
        },
        ttl_ms: 20_000,
        deadline_boot_ns: u64::MAX,
        limits: Box::new(StartLimits {
            idle_ms: Some(2_000),
            windows: vec!["Mon 09:00-17:00 UTC".to_owned()],
            window_closes: Some(at(9).time),
            credential_expires: Some(at(8).time),
        }),
        labels: BTreeMap::from([("team".to_owned(), "blue".to_owned())]),
        users: vec![User { uid: 1000, name: "deploy".to_owned() }],
        credential: Some("0a".repeat(32)),
        within: Some(session()),
        attached: Some(Attachment { by: principal(), home: Text::from("/work"), cgroup: Some(Text::from("/work")) }),
        taken: None,
        inherited: vec![InheritedDescriptor {
            descriptor: 0,
            protocol: "tcp".to_owned(),
            from: Some("10.0.0.1:80".parse().expect("an address")),
            to: None,
            closed: true,
        }],
    }))
}

pub(super) fn session_end() -> Body {
    let counts = |exec, connect| BTreeMap::from([("exec".to_owned(), exec), ("connect".to_owned(), connect)]);
    Body::SessionEnd(SessionEnd {
        session: session(),
        reason: EndReason::CredentialExpired,
        took: Some(Took { mark_ms: 1, members_ms: Some(4), flows_ms: Some(2) }),
        rounds: vec![Round { killed: 2, left: 0, ms: 4 }],
        receipts: vec![Receipt { pid: 42, name: Text::from("make"), gone: true }],
        members_left: 0,
        flows_cut: 1,
        flows_left: 0,
        produced: counts(10, 5),
        consumed: counts(7, 3),
        lost: counts(3, 2),
        packets_dropped: 1,
        faults: 0,
        signals_failed: 0,
    })
}

fn flows_cut() -> Body {
    let socket = SocketReceipt {
        cookie: u64::MAX,
        protocol: "tcp".into(),
        netns: 4_026_531_840,
        from: "[::1]:50000".parse().expect("an address"),
        to: Some("[::1]:443".parse().expect("an address")),
        bytes_in: Some(5),
        bytes_out: Some(7),
        at_boot_ns: 1,
        outcome: CutOutcome::Destroyed,
        gone: true,
        why: None,
    };
    let silenced = SocketReceipt {
        to: None,
        bytes_in: None,
        bytes_out: None,
        outcome: CutOutcome::Silenced,
        gone: false,
        why: Some("this kernel cannot destroy sctp sockets".into()),
        ..socket.clone()
    };
    Body::FlowsCut(FlowsCut {
        session: session(),
        cause: CutCause::Narrow,
        revision: Some(2),
        sockets: vec![socket, silenced],
    })
}

fn attached() -> Body {
    let socket = InheritedSocket {
        pid: 42,
        protocol: "tcp".to_owned(),
        netns: 4_026_531_840,
        from: "127.0.0.1:40000".parse().expect("an address"),
        to: Some("10.0.0.1:443".parse().expect("an address")),
        destroyed: true,
    };
    Body::Attached(Box::new(Attached {
        session: session(),
        how: Attachment { by: principal(), home: Text::from("/work"), cgroup: None },
        history: "unknown".to_owned(),
        processes: 2,
        threads: 3,
        walks: 2,
        open: vec![socket.clone()],
        listening: vec![InheritedSocket { to: None, destroyed: false, ..socket }],
        unix: vec![InheritedUnix {
            pid: 42,
            kind: "stream".to_owned(),
            state: "listening".to_owned(),
            name: Text::from(&b"@a\xff"[..]),
        }],
        others: 1,
        unlisted: 0,
    }))
}

fn exec() -> Body {
    Body::Exec(Exec {
        session: session(),
        seq: 1,
        at_boot_ns: 5,
        pid: 42,
        tid: 42,
        uid: 1000,
        path: Text::from("/usr/bin/git"),
        args: vec![Text::from("git"), Text::from("status")],
        args_cut: false,
        file: FileRef { device: 8, inode: u64::MAX, generation: 1 },
        verdict: Verdict::WouldDeny,
        rule: "default".to_owned(),
        late: false,
    })
}

fn connect(to: &str) -> Body {
    Body::Connect(Connect {
        session: session(),
        seq: 2,
        at_boot_ns: 5,
        pid: 42,
        tid: 43,
        uid: 1000,
        to: to.parse().expect("an address"),
        protocol: "tcp".to_owned(),
        via: Via::Send,
        verdict: Verdict::Deny,
        rule: "no-web".to_owned(),
        remedy: None,
    })
}

fn one_of_each() -> Vec<Body> {
    let control = Control { control: "exec-deny".to_owned(), state: ControlState::BestEffort, why: None };
    let (session, seq, at_boot_ns, pid) = (session(), 3, 5, 42);
    vec![
        Body::AgentStart(AgentStart {
            version: "0.1.0".to_owned(),
            kernel: "6.1.0".to_owned(),
            tier: Tier::NoLsm,
            attach: Some("root".to_owned()),
            controls: vec![control],
        }),
        Body::AgentStop(AgentStop { reason: "SIGTERM".to_owned() }),
        Body::Gap(Gap::new(GapCause::AgentAbsent)),
        session_start(),
        attached(),
        state(1),
        exec(),
        connect("1.2.3.4:80"),
        connect("[::1]:80"),
        Body::Fork(Fork { session, seq, at_boot_ns, pid, child: 43, verdict: Verdict::Allow, rule: "default".into() }),
        Body::Exit(Exit { session, seq, at_boot_ns, pid, status: 9 }),
        Body::Move(Move { session, seq, at_boot_ns, pid, cgroup: 77, joined: true }),
        Body::Socket(Socket {
            session,
            seq,
            at_boot_ns,
            pid,
            tid: 43,
            uid: 0,
            act: Act::Create,
            family: 17,
            kind: 3,
            protocol: 768,
            level: 0,
            option: 0,
            verdict: Verdict::Deny,
            rule: "socket-class".into(),
        }),
        Body::Unix(Unix {
            session,
            seq,
            at_boot_ns,
            pid,
            tid: 43,
            uid: 0,
            to: Text::from("/run/docker.sock"),
            file: FileRef { device: 24, inode: 7, generation: 1 },
            via: Via::Connect,
            verdict: Verdict::Deny,
            rule: "default".into(),
        }),
        Body::Privilege(Privilege {
            session,
            seq,
            at_boot_ns,
            pid,
            tid: 43,
            uid: 0,
            class: "signal".into(),
            target: Some(1),
            place: Some("/run/docker*".into()),
            detail: 15,
            verdict: Verdict::Deny,
            rule: "privilege".into(),
        }),
        Body::SessionNarrowed(SessionNarrowed {
            phase: Some("sign".to_owned()),
            session,
            principal: principal(),
            from: PolicyRef { name: "a".into(), digest: "00".into(), source: "/a.yaml".into() },
            to: PolicyRef { name: "b".into(), digest: "11".into(), source: "/b.yaml".into() },
            removed: vec!["net.allow[0]".into()],
            revision: 2,
        }),
        Body::Refused(Refused {
            principal: principal(),
            command: vec![Text::from("curl")],
            policy: "p.yaml".to_owned(),
            rule: Some("no-curl".to_owned()),
            message: "denied".to_owned(),
        }),
        Body::CallsRefused(CallsRefused {
            session: Some(session),
            count: 7,
            since_boot_ns: at_boot_ns,
            at_boot_ns,
            pid,
            uid: 1000,
            socket: ControlSocket::Operate,
            reason: CallRefusal::Member,
            message: "no".to_owned(),
        }),
        Body::CallsRefused(CallsRefused {
            session: None,
            count: 1,
            since_boot_ns: at_boot_ns,
            at_boot_ns,
            pid,
            uid: 0,
            socket: ControlSocket::Read,
            reason: CallRefusal::Unknown,
            message: "cannot tell".to_owned(),
        }),
        Body::Warning(Warning {
            session,
            limit: EndReason::Ttl,
            left_ms: 10_000,
            signal: Some("SIGUSR1".to_owned()),
            delivered: Some(true),
        }),
        Body::Terminate(Terminate { session, signalled: 3, grace_ms: 5_000 }),
        Body::Stuck(Stuck {
            session,
            tasks: vec![StuckTask { pid, name: Text::from("tar"), state: "D (disk sleep)".to_owned() }],
        }),
        Body::Command(Command {
            session,
            verb: "renew".to_owned(),
            principal: principal(),
            detail: "20000 ms from its start".to_owned(),
        }),
        Body::Revoke(Revoke {
            principal: principal(),
            by: "policy".to_owned(),
            value: "p".to_owned(),
            sessions: vec![session],
            stay: Some(StayRef { id: session.to_string(), until: at(9).time }),
        }),
        Body::PrincipalGone(PrincipalGone { session, user: User { uid: 1000, name: "deploy".to_owned() }, ends: true }),
        Body::CredentialReuse(CredentialReuse {
            session,
            policy: "p".to_owned(),
            credential: "0a".repeat(32),
            others: vec![session],
        }),
        Body::Lift(Lift { principal: principal(), stay: session.to_string() }),
        Body::Receipts(Receipts { session, receipts: Vec::new() }),
        flows_cut(),
        session_end(),
        Body::Disarm(Disarm { principal: principal(), sessions: vec![session] }),
    ]
}

#[test]
fn every_record_reads_back_as_it_was_and_writes_the_same_line() {
    let mut head = Head::START;
    for body in one_of_each() {
        let (line, next) = chain::seal(head, &origin(), &body, at(5)).expect("a record has a form");
        let record: Record = serde_json::from_str(&line).expect("a record");
        assert_eq!((record.v, record.n, record.prev, record.hash), (1, next.n, head.hash, next.hash));
        assert_eq!((record.time, record.boot_ns), (at(5).time, at(5).boot_ns));
        assert_eq!((record.host.as_str(), record.boot.as_str()), ("host-1", "b7f0"));
        assert_eq!(serde_json::to_string(&record).expect("serialises"), line);
        assert!(line.contains(&format!(r#""type":"{}""#, body.kind())), "{line}");
        let names_session = line.contains(r#""session":"#);
        assert_eq!(body.session().is_some(), names_session, "{line}");
        assert_eq!(record.body, body);
        head = next;
    }
}

/// The format is public: a change of this line is a change of the format.
#[test]
fn a_line_is_written_like_this() {
    let (line, _) = chain::seal(Head::START, &origin(), &connect("[::1]:80"), at(4)).expect("a record has a form");
    let expected = concat!(
        r#"{"v":1,"n":1,"time":"2026-11-21T22:00:04.000000001Z","boot_ns":4000000007,"host":"host-1","boot":"b7f0","#,
        r#""type":"connect","session":"abababababababababababababababab","seq":2,"at_boot_ns":5,"#,
        r#""pid":42,"tid":43,"uid":1000,"to":"[::1]:80","protocol":"tcp","via":"send","verdict":"deny","rule":"no-web","#,
        r#""prev":"0000000000000000000000000000000000000000000000000000000000000000","#,
        r#""hash":"2104a0960fee8c0bf39fafb2021ce817f14d83642095c33f3f7656f2d29c229b"}"#,
    );
    assert_eq!(line, expected);
}

/// A log that was written before the kernel's time was in it still reads.
#[test]
fn a_record_of_the_kernel_happened_before_it_was_written() {
    let (line, _) = chain::seal(Head::START, &origin(), &connect("[::1]:80"), at(4)).expect("a record has a form");
    let happened = |line: &str| serde_json::from_str::<Record>(line).expect("a record").happened();
    let begin = Moment { time: "2026-11-21T21:59:59.999999999Z".parse().expect("a time"), boot_ns: 5 };
    assert_eq!(happened(&line), begin);
    assert_eq!(happened(&line.replace(r#""at_boot_ns":5,"#, "")), at(4));
    let (line, _) = chain::seal(Head::START, &origin(), &state(0), at(4)).expect("a record has a form");
    assert_eq!(happened(&line), at(4));
}

#[test]
fn times_always_have_nine_decimals() {
    let when = Moment { time: "2026-11-21T22:00:00Z".parse().expect("a time"), boot_ns: 0 };
    let (line, _) = chain::seal(Head::START, &origin(), &state(0), when).expect("a record has a form");
    assert!(line.contains(r#""time":"2026-11-21T22:00:00.000000000Z""#), "{line}");
}

#[test]
fn a_record_that_is_too_large_is_counted_and_named() {
    let place = Place::new();
    let (mut log, _) = place.open().expect("the log opens");
    let message = "x".repeat(LINE_MAX);
    let error = log.append(&Body::AgentStop(AgentStop { reason: message }), at(0)).map_err(|error| error.to_string());
    assert!(error.is_err_and(|error| error.contains("over the limit of 1048576")));
    assert_eq!(log.missed(), 1);
    let written = log.append(&state(0), at(1)).expect("a record is written");
    assert!(written.gap.is_some_and(|gap| gap.contains(r#""cause":"not-written","lost":1"#)));
    assert_eq!((written.n, log.missed()), (2, 0));
}

/// As it was written before ends were timed.
#[test]
fn an_end_without_times_is_read_and_written_as_it_was() {
    let Body::SessionEnd(end) = session_end() else { return };
    let (line, _) = chain::seal(Head::START, &origin(), &Body::SessionEnd(SessionEnd { took: None, ..end }), at(0))
        .expect("a record has a form");
    assert!(line.contains(r#""reason":"credential-expired","rounds":["#) && !line.contains("took"), "{line}");
    let record: Record = serde_json::from_str(&line).expect("a record");
    assert!(matches!(&record.body, Body::SessionEnd(end) if end.took.is_none()));
    assert_eq!(serde_json::to_string(&record).expect("serialises"), line);
}

#[test]
fn the_largest_end_of_a_session_fits() {
    let Body::SessionEnd(mut end) = session_end() else { return };
    let receipt = Receipt { pid: u32::MAX, name: Text::from(&[0xff; 15][..]), gone: false };
    end.receipts = vec![receipt; RECEIPTS_MAX];
    end.rounds = vec![Round { killed: u64::MAX, left: u64::MAX, ms: u64::MAX }; crate::session::ROUNDS_MAX];
    let (line, _) = chain::seal(Head::START, &origin(), &Body::SessionEnd(end), at(0)).expect("a form");
    assert!(line.len() < LINE_MAX, "{}", line.len());
}
