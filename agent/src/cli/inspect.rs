//! `tipstaff inspect`: one session in full.

use std::collections::BTreeMap;

use super::{
    Exit, Failure, Print, ask,
    print::{self, printable, span},
    ps,
    status::attached_to,
};
use crate::{
    api::wire::{Inspect, LimitsInfo, PolicyInfo, Request, SessionId, Verdict},
    config::Config,
};

#[derive(Debug, clap::Args)]
pub(super) struct Flags {
    /// The session's id, or the beginning of it
    id: String,
    #[command(flatten)]
    print: Print,
}

pub(super) fn execute(config: &Config, flags: &Flags) -> Result<Exit, Failure> {
    let inspect: Inspect = ask(config)?.call(&Request::Inspect(SessionId { id: flags.id.clone() }))?;
    print::show(flags.print.output, &inspect, text)?;
    Ok(Exit::Ok)
}

fn text(inspect: &Inspect) -> String {
    let mut text = print::fields(&overview(inspect));
    text.push_str("\nscope\n");
    for line in &inspect.policy.summary {
        text.push_str(&format!("  {}\n", printable(line)));
    }
    text.push_str("\ncontrols\n");
    text.push_str(&indent(&print::controls(&inspect.controls)));
    text.push_str("\nlast denials\n");
    text.push_str(&indent(&denials(&inspect.verdicts)));
    text
}

fn overview(inspect: &Inspect) -> Vec<(&'static str, String)> {
    let Inspect { session, policy, limits, principal, context, counters, members, .. } = inspect;
    let login = principal.login_uid.map_or_else(|| "none".to_owned(), |uid| uid.to_string());
    let ending = inspect.ending.map_or_else(
        || if session.state == "ending" { "in its grace".to_owned() } else { "no".to_owned() },
        |ending| format!("due {} ago, everything refused {} after that", span(ending.since_ms), span(ending.mark_ms)),
    );
    vec![
        ("session", printable(&session.id)),
        ("state", format!("{}, {}", printable(&session.state), printable(&session.mode))),
        ("verdict", ps::verdict(session)),
        ("ending", ending),
        (
            "policy",
            format!("{} ({}) from {}", printable(&policy.name), printable(&session.kind), printable(&policy.source)),
        ),
        ("digest", printable(&policy.digest)),
        ("revision", policy.revision.to_string()),
        ("phase", phase(policy)),
        ("ends first by", printable(&limits.winner)),
        ("limits", limit_list(limits)),
        ("age", span(session.age_ms)),
        ("left", span(session.left_ms)),
        ("idle", span(session.idle_ms)),
        ("stale", if session.stale.is_empty() { "no".to_owned() } else { printable(&session.stale.join(", ")) }),
        ("principal", format!("uid {}, gid {}, login uid {login}", principal.uid, principal.gid)),
        ("command", print::command(&context.command, None)),
        (
            "attached",
            context.attached.as_deref().map_or_else(
                || "no".to_owned(),
                |what| format!("{}, {} ago; what it did before is unknown", printable(what), span(session.age_ms)),
            ),
        ),
        ("programs", attached_to(&inspect.attach)),
        ("first pid", context.pid.to_string()),
        ("directory", printable(&context.cwd)),
        ("terminal", context.tty.as_deref().map_or_else(|| "none".to_owned(), printable)),
        ("labels", labels(&context.labels)),
        ("credential", context.credential.as_deref().map_or_else(|| "none named".to_owned(), printable)),
        ("cgroup", printable(&context.cgroup)),
        ("namespaces", counts(&context.namespaces)),
        ("members", member_list(members, session.members)),
        ("denied", session.denied.to_string()),
        ("records", counts(&counters.produced)),
        ("lost", counts(&counters.lost)),
        ("packets dropped", counters.packets_dropped.to_string()),
    ]
}

/// `sign, of build, sign`
fn phase(policy: &PolicyInfo) -> String {
    let own = policy.phase.as_deref().map_or_else(|| "none".to_owned(), printable);
    let all = printable(&policy.phases.join(", "));
    if all.is_empty() { own } else { format!("{own}, of {all}") }
}

/// Every limit: `ttl 15m, idle 2m without exec, connect; renewable`.
fn limit_list(limits: &LimitsInfo) -> String {
    let mut parts = vec![format!("ttl {}", span(limits.ttl_ms))];
    if let Some(idle) = limits.idle_ms {
        parts.push(format!("idle {} without {}", span(idle), printable(&limits.activity.join(" or "))));
    }
    for window in &limits.windows {
        parts.push(format!("window {}", printable(window)));
    }
    if let Some(closes) = &limits.window_closes {
        parts.push(format!("closes {}", printable(closes)));
    }
    if let Some(expires) = &limits.credential_expires {
        parts.push(format!("credential expires {}", printable(expires)));
    }
    if !limits.renew {
        parts.push("not to be renewed".to_owned());
    }
    parts.join(", ")
}

/// Processes with their threads: `4242, 4250 (2 threads)`.
fn member_list(members: &[crate::api::wire::Member], all: u64) -> String {
    let mut threads: BTreeMap<u32, usize> = BTreeMap::new();
    for member in members {
        *threads.entry(member.pid).or_default() += 1;
    }
    let one =
        |(pid, count): (&u32, &usize)| if *count == 1 { pid.to_string() } else { format!("{pid} ({count} threads)") };
    let mut list = threads.iter().map(one).collect::<Vec<_>>().join(", ");
    let shown = u64::try_from(members.len()).unwrap_or(u64::MAX);
    if shown < all {
        list.push_str(&format!(" and {} more", all - shown));
    }
    list
}

fn labels(labels: &BTreeMap<String, String>) -> String {
    let shown: Vec<String> = labels.iter().map(|(key, value)| printable(&format!("{key}={value}"))).collect();
    if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
}

fn counts(counts: &BTreeMap<String, u64>) -> String {
    counts.iter().map(|(name, count)| format!("{} {count}", printable(name))).collect::<Vec<_>>().join(", ")
}

fn denials(verdicts: &[Verdict]) -> String {
    let row = |verdict: &Verdict| {
        let remedy = verdict.remedy.as_ref().map(|remedy| format!(" ({})", printable(remedy))).unwrap_or_default();
        [
            printable(&verdict.time),
            verdict.pid.to_string(),
            printable(&verdict.kind),
            printable(&verdict.verdict),
            printable(&verdict.rule),
            printable(&verdict.what) + &remedy,
        ]
    };
    print::table(["TIME", "PID", "KIND", "VERDICT", "RULE", "WHAT"], &[1], verdicts.iter().map(row).collect())
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wire::Member;

    #[test]
    fn members_are_counted_by_process_and_a_cut_list_says_so() {
        let members = [(7, 7), (9, 9), (9, 10)].map(|(pid, tid)| Member { pid, tid });
        assert_eq!(member_list(&members, 3), "7, 9 (2 threads)");
        assert_eq!(member_list(&members, 5), "7, 9 (2 threads) and 2 more");
    }
}
