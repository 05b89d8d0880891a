//! What each kind of session means where a policy says nothing: one row a kind, as the code has it and as the reference
//! documents it.

use tipstaff_common::{
    privilege::{self, PRIVILEGE_ALL},
    socket::{SOCKET_ALL, SOCKET_NETLINK, SOCKET_UNIX},
};

use super::policy;
use crate::policy::{
    Budgets, Effect, Inherited, Kind, Limits, Mode, Resolved, UnixSocket, decide_inbound, decide_listen, decide_net,
    decide_unix, parse, scope::PRIVILEGE_CLASSES,
};

const REFERENCE: &str = include_str!("../../../../docs/policy.md");

struct Row {
    word: &'static str,
    kind: Kind,
    /// Programs, destinations, listening and unix sockets that no rule names.
    rest: Effect,
    /// Programs of the classes.
    classes: Effect,
    sockets: u32,
    privileges: u32,
}

const ROWS: [Row; 5] = [
    Row {
        word: "service",
        kind: Kind::Service,
        rest: Effect::Deny,
        classes: Effect::Allow,
        sockets: SOCKET_UNIX | SOCKET_NETLINK,
        privileges: privilege::PRIVILEGE_KEYRING | privilege::PRIVILEGE_IO_URING,
    },
    Row {
        word: "ci",
        kind: Kind::Ci,
        rest: Effect::Deny,
        classes: Effect::Deny,
        sockets: SOCKET_UNIX | SOCKET_NETLINK,
        privileges: 0,
    },
    Row {
        word: "agent",
        kind: Kind::Agent,
        rest: Effect::Deny,
        classes: Effect::Deny,
        sockets: SOCKET_UNIX | SOCKET_NETLINK,
        privileges: 0,
    },
    Row {
        word: "operator",
        kind: Kind::Operator,
        rest: Effect::Allow,
        classes: Effect::Allow,
        sockets: SOCKET_ALL,
        privileges: PRIVILEGE_ALL
            & !(privilege::PRIVILEGE_PTRACE
                | privilege::PRIVILEGE_BPF
                | privilege::PRIVILEGE_MODULES
                | privilege::PRIVILEGE_KEXEC
                | privilege::PRIVILEGE_KERNEL_SETTINGS
                | privilege::PRIVILEGE_RAW_DEVICES),
    },
    Row {
        word: "breakglass",
        kind: Kind::Breakglass,
        rest: Effect::Allow,
        classes: Effect::Allow,
        sockets: SOCKET_ALL,
        privileges: PRIVILEGE_ALL,
    },
];

#[test]
fn each_kind_has_its_defaults() {
    let host = Resolved::default();
    for Row { word, kind, rest, classes, sockets, privileges } in ROWS {
        let policy = policy(word, "{}");
        assert_eq!(policy.kind, kind);
        assert_eq!((policy.mode, policy.strict, &policy.limits), (Mode::Enforce, false, &Limits::default()), "{word}");
        assert_eq!((&policy.budgets, &policy.attach), (&Budgets::default(), &Inherited::default()), "{word}");
        assert_eq!((kind.exec_default(), kind.class_default()), (rest, classes), "{word}");
        for to in ["192.0.2.1", "2001:db8::1", "127.0.0.1", "::1"] {
            let to = to.parse().expect(to);
            assert_eq!(decide_net(&policy, &host, to, 443, 6).verdict, rest, "{word} to {to}");
            assert_eq!(decide_listen(&policy, &host, to, 8080, 6).verdict, rest, "{word} on {to}");
            // who may listen may be reached
            assert_eq!(decide_inbound(&policy, &host, to, 8080, 6).verdict, Effect::Allow, "{word} from {to}");
        }
        let metadata = "169.254.169.254".parse().expect("an address");
        assert_eq!(decide_net(&policy, &host, metadata, 80, 6).verdict, Effect::Deny, "{word}");
        assert_eq!(decide_unix(&policy, &host, &UnixSocket::Abstract(b"bus")).verdict, rest, "{word}");
        assert_eq!(policy.socket_classes(), sockets, "{word}");
        assert_eq!(policy.privilege_classes(), privileges, "{word}");
    }
}

/// The time to live has none: a policy without it is refused, whatever its kind.
#[test]
fn no_kind_has_a_time_to_live_of_its_own() {
    for Row { word, .. } in ROWS {
        let text = super::document(&format!("{{kind: {word}}}"));
        let problems = parse("p", text.as_bytes()).expect_err(word);
        assert!(problems.iter().any(|problem| problem.to_string().contains("limits")), "{word}: {problems:?}");
    }
}

#[test]
fn the_reference_documents_them() {
    let said = |effect| if effect == Effect::Allow { "allowed" } else { "denied" };
    for Row { word, rest, classes, sockets, .. } in ROWS {
        let name = format!("`{word}`");
        let row = REFERENCE.lines().find(|line| {
            line.starts_with('|')
                && line.split('|').nth(1).is_some_and(|kinds| kinds.contains(&name))
                && line.matches('|').count() == 7
        });
        let columns: Vec<&str> = row.expect(word).split('|').map(str::trim).collect();
        assert!(columns[2..6].iter().all(|column| column.starts_with(said(rest))), "{word}: {columns:?}");
        assert_eq!(columns[6] == "all", sockets == SOCKET_ALL, "{word}: {columns:?}");
        let denies =
            REFERENCE.contains("Kinds `agent` and `ci` deny every class below") && ["agent", "ci"].contains(&word);
        assert_eq!(denies, classes == Effect::Deny, "{word}");
    }
}

/// The reference has one row a class, and a column for each kind.
#[test]
fn the_reference_documents_privileges() {
    for (word, class) in PRIVILEGE_CLASSES {
        let name = format!("| `{word}` |");
        let row = REFERENCE.lines().find(|line| line.starts_with(&name) && line.matches('|').count() == 8);
        let columns: Vec<&str> = row.expect(word).split('|').map(str::trim).collect();
        for (Row { word: kind, privileges, .. }, said) in ROWS.iter().zip(&columns[3..]) {
            assert_eq!(*said == "yes", privileges & class != 0, "{word} in kind {kind}: {said}");
        }
    }
}

/// A list takes the place of what the kind allows; what is denied is denied, whatever allows it.
#[test]
fn a_list_of_privileges_is_all_that_there_is() {
    let of = |kind: &str, said: &str| policy(kind, &format!("{{privileges: {said}}}")).privilege_classes();
    assert_eq!(of("ci", "{allow: [mount, chroot]}"), privilege::PRIVILEGE_MOUNT | privilege::PRIVILEGE_CHROOT);
    assert_eq!(of("breakglass", "{allow: []}"), 0);
    assert_eq!(of("breakglass", "{deny: [setuid]}"), PRIVILEGE_ALL & !privilege::PRIVILEGE_SETUID);
    assert_eq!(of("agent", "{allow: [bpf], deny: [bpf]}"), 0);
    assert_eq!(of("service", "{}"), privilege::PRIVILEGE_KEYRING | privilege::PRIVILEGE_IO_URING);
}

/// What a kind allows is for processes outside; towards other sessions a policy lists it, or is for breaking glass.
#[test]
fn other_sessions_are_reached_by_what_is_listed() {
    let (signal, ptrace) = (privilege::PRIVILEGE_SIGNAL, privilege::PRIVILEGE_PTRACE);
    let of = |kind: &str, scope: &str| policy(kind, scope).classes_on_neighbours();
    for kind in ["service", "ci", "agent", "operator"] {
        assert_eq!(of(kind, "{}"), 0, "{kind}");
        assert_eq!(of(kind, "{privileges: {deny: [setuid]}}"), 0, "{kind}");
        assert_eq!(of(kind, "{privileges: {allow: [signal, mount]}}"), signal, "{kind}");
    }
    assert_eq!(of("operator", "{privileges: {allow: [signal, ptrace], deny: [signal]}}"), ptrace);
    assert_eq!(of("breakglass", "{}"), signal | ptrace);
    assert_eq!(of("breakglass", "{privileges: {deny: [ptrace]}}"), signal);
    assert_eq!(of("breakglass", "{privileges: {allow: [mount]}}"), 0);
}
