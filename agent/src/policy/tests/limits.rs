//! `spec.limits` and `spec.on`: what they mean, and every problem that they can have.

use std::time::Duration;

use nix::sys::signal::Signal;
use tipstaff_common::{
    event::{Header, KIND_CONNECT, KIND_EXEC, KIND_PRIVILEGE, KIND_SOCKET, KIND_UNIX},
    rule::{REASON_BUDGET_CONNECTS, REASON_BUDGET_EGRESS, REASON_DEFAULT, REASON_UNRESOLVED},
};

use super::document;
use crate::policy::{Activity, Limits, parse};

fn read(limits: &str, more: &str) -> Result<Limits, String> {
    let text = document(&format!("{{kind: ci, limits: {{ttl: 10m{limits}}}{more}}}"));
    parse("p.yaml", text.as_bytes())
        .map(|policy| policy.limits)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

#[test]
fn what_limits_mean() {
    assert_eq!(read("", ""), Ok(Limits::default()));
    let limits = read(
        ", idle: 2m, windows: [\"Mon..Fri 09:00-17:00 Europe/Berlin\"], renew: false, warn: USR1, leftovers: 10s",
        ", on: {expiry: {term: 5s}}",
    )
    .expect("a policy");
    let idle = limits.idle.as_ref().expect("an idle limit");
    assert_eq!((idle.after, idle.activity.as_slice()), (Duration::from_secs(120), Activity::ALL.as_slice()));
    assert_eq!((limits.renew, limits.warn, limits.windows.len()), (false, Some(Signal::SIGUSR1), 1));
    assert_eq!((limits.leftovers, limits.term), (Duration::from_secs(10), Duration::from_secs(5)));
    let listed = read(", idle: {after: 30s, activity: [connect, exec, exec]}, warn: SIGHUP", ", on: {expiry: end}");
    let listed = listed.expect("a policy");
    assert_eq!(listed.idle.map(|idle| idle.activity), Some(vec![Activity::Exec, Activity::Connect]));
    let gone =
        |word: &str| read("", &format!(", on: {{principalGone: {word}}}")).map(|limits| limits.principal_gone_ends);
    assert_eq!((gone("end"), gone("continue")), (Ok(true), Ok(false)));
    assert!(
        gone("stop").is_err_and(|why| why.contains("on.principalGone: unknown value \"stop\": write continue, end"))
    );
    assert_eq!((listed.warn, listed.term), (Some(Signal::SIGHUP), Duration::ZERO));
}

#[test]
fn budgets_end_a_session_where_that_is_asked_of_them() {
    let ends = |on: &str| {
        let more = format!(", budgets: {{connects: 5, egressBytes: 1KiB}}, on: {{budget: {on}}}");
        read("", &more).map(|limits| limits.used_up_ends)
    };
    assert_eq!(ends("deny"), Ok(vec![]));
    assert_eq!(ends("end"), Ok(vec![REASON_BUDGET_CONNECTS, REASON_BUDGET_EGRESS]));
    assert_eq!(ends("{egressBytes: end, connects: deny}"), Ok(vec![REASON_BUDGET_EGRESS]));
    let limits = read("", ", budgets: {connects: 5}, on: {budget: end}").expect("a policy");
    assert_eq!(limits.lines(), ["ends at the refusal budget-connects"]);
}

#[test]
fn violations_end_a_session_where_that_is_asked_of_them() {
    let ends = |on: &str| read("", &format!(", on: {{violation: {on}}}")).map(|limits| limits.violation_ends);
    assert_eq!(ends("record"), Ok(vec![]));
    assert_eq!(ends("end"), Ok(vec![KIND_EXEC, KIND_CONNECT, KIND_SOCKET, KIND_UNIX, KIND_PRIVILEGE]));
    assert_eq!(ends("{net: end, exec: record}"), Ok(vec![KIND_CONNECT, KIND_SOCKET]));
    assert!(ends("{forks: end}").is_err() && ends("kill").is_err());
    let limits = read("", ", on: {violation: {exec: end, unix: end}}").expect("a policy");
    assert_eq!(limits.lines(), ["ends at the first refusal of exec or unix"]);
    let by = |tgid, kind, rule| limits.ends_at(&Header { tgid, kind, rule, ..Header::default() });
    let at = |kind, rule| by(1, kind, rule);
    assert!(at(KIND_EXEC, REASON_DEFAULT) && at(KIND_EXEC, 0) && at(KIND_UNIX, 7));
    assert!(!at(KIND_CONNECT, REASON_DEFAULT) && !at(KIND_EXEC, REASON_UNRESOLVED));
    assert!(!by(0, KIND_EXEC, REASON_DEFAULT), "nobody's");
}

#[test]
fn so_many_violations_end_a_session() {
    let limits = read("", ", budgets: {denials: 5}").expect("a policy");
    assert_eq!(
        (limits.denials, limits.lines()),
        (Some(5), vec!["ends at the refusal after 5 that are against it".to_owned()])
    );
    let at = |tgid, rule| limits.ends_at(&Header { tgid, kind: KIND_CONNECT, rule, ..Header::default() });
    assert!(at(1, REASON_DEFAULT) && !at(0, REASON_DEFAULT) && !at(1, REASON_BUDGET_CONNECTS));
    assert!(read("", ", budgets: {denials: 5, connects: 1}, on: {budget: {denials: end}}").is_err());
    assert!(read("", ", budgets: {denials: 5}, on: {budget: end}").is_err());
}

#[test]
fn what_is_no_limit_says_where_and_what_to_do() {
    for (limits, more, parts) in [
        (", idle: 0s", "", &["limits.idle: \"0s\" must be longer than zero"][..]),
        (", idle: 500ms", "", &["limits.idle: 500ms is too short: an idle limit is at least 1s"]),
        (", idle: {activity: [exec]}", "", &["limits.idle.after: is missing: add after: 2m"]),
        (", idle: {after: 1m, activity: []}", "", &["limits.idle.activity: is empty"]),
        (", idle: {after: 1m, activity: [fork]}", "", &["activity[0]: unknown value \"fork\": write exec, connect"]),
        (", windows: []", "", &["limits.windows: is empty, and no session could ever start"]),
        (", windows: 9to5", "", &["limits.windows: must be a list"]),
        (", windows: [\"Mon 09:00-09:00 UTC\"]", "", &["windows[0]: \"Mon 09:00-09:00 UTC\" never opens"]),
        (", windows: [\"Mon 09:00-17:00 Mars/Olympus\"]", "", &["unknown time zone \"Mars/Olympus\"", "Europe/Berlin"]),
        (
            ", windows: [\"Mon..Fri 09:00-17:00 UTC\", \"Fri 16:00-18:00 UTC\"]",
            "",
            &["windows[1]: \"Fri 16:00-18:00 UTC\" overlaps \"Mon..Fri 09:00-17:00 UTC\": write one window"],
        ),
        (", renew: never", "", &["limits.renew: must be true or false"]),
        (", warn: KILL", "", &["limits.warn: \"KILL\" is no signal to warn with: write USR1"]),
        (", warn: usr1", "", &["\"usr1\" is no signal"]),
        (", leftovers: -1s", "", &["limits.leftovers: \"-1s\" is no length of time"]),
        ("", ", on: {expiry: kill}", &["on.expiry: unknown value \"kill\": write end"]),
        ("", ", on: {expiry: {}}", &["on.expiry.term: is missing: add term: 5s"]),
        ("", ", on: {expiry: {term: 10m}}", &["on.expiry.term: the time to end in is not shorter than limits.ttl"]),
        (
            "",
            ", on: {budget: end}",
            &["on.budget: the policy has no budget that refuses something: add one to spec.budgets, or remove this"],
        ),
        (
            "",
            ", budgets: {connects: 5}, on: {budget: {destinations: end}}",
            &["on.budget.destinations: the policy has no such budget: add spec.budgets.destinations, or remove this"],
        ),
        ("", ", budgets: {connects: 5}, on: {budget: kill}", &["on.budget: unknown value \"kill\": write deny, end"]),
        (", wibble: 1", "", &["limits.wibble: unknown key \"wibble\""]),
    ] {
        let told = read(limits, more).expect_err(limits);
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(parts.iter().all(|part| told.contains(part)), "{told} does not have {parts:?}");
    }
}
