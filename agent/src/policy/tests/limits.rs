//! `spec.limits` and `spec.on`: what they mean, and every problem that they can have.

use std::time::Duration;

use nix::sys::signal::Signal;

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
        (", wibble: 1", "", &["limits.wibble: unknown key \"wibble\""]),
    ] {
        let told = read(limits, more).expect_err(limits);
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(parts.iter().all(|part| told.contains(part)), "{told} does not have {parts:?}");
    }
}
