//! `tipstaff status`: how the agent is.

use super::{
    Exit, Failure, ask,
    print::{self, Output, printable, span},
};
use crate::{
    api::wire::{Ends, Request, Spread, Status},
    config::Config,
};

pub(super) fn execute(config: &Config, output: Output) -> Result<Exit, Failure> {
    let status: Status = ask(config)?.call(&Request::Status {})?;
    print::show(output, &status, text)?;
    Ok(if status.degraded { Exit::Degraded } else { Exit::Ok })
}

fn text(status: &Status) -> String {
    let lost: u64 = status.lost.values().sum();
    let (evidence, store) = (&status.evidence, &status.store);
    let mut text = print::fields(&[
        ("state", if status.degraded { "degraded".to_owned() } else { "ok".to_owned() }),
        ("agent", format!("pid {}, version {}, up {}", status.pid, printable(&status.version), span(status.uptime_ms))),
        ("kernel", format!("{}, tier {}", printable(&status.kernel), printable(&status.tier))),
        ("attached to", attached_to(&status.attach)),
        ("sessions", sessions(status)),
        ("records lost", lost.to_string()),
        ("runs skipped", status.skipped.values().sum::<u64>().to_string()),
        (
            "evidence",
            format!("{}, {} records, {} unwritten", printable(&evidence.path), evidence.n, evidence.unwritten),
        ),
        ("store", format!("{}, {} writes refused", printable(&store.path), store.refused)),
    ]);
    for why in &status.why {
        text.push_str(&format!("degraded: {}\n", printable(why)));
    }
    text.push('\n');
    text.push_str(&ends(&status.ends));
    text.push('\n');
    text.push_str(&print::controls(&status.controls));
    text
}

/// Where the programs on cgroups are, in words.
pub(super) fn attached_to(attach: &str) -> String {
    match attach {
        "root" => "the root: every socket that a member uses".to_owned(),
        "sessions" => "the sessions' cgroup: sockets that were made in it".to_owned(),
        other => printable(other),
    }
}

/// How many there are, and what is to become of them.
fn sessions(status: &Status) -> String {
    let judged = status.verdicts.iter().filter(|(_, count)| **count > 0);
    let judged: Vec<String> = judged.map(|(verdict, count)| format!("{count} {}", printable(verdict))).collect();
    match judged.is_empty() {
        true => status.sessions.to_string(),
        false => format!("{}: {}", status.sessions, judged.join(", ")),
    }
}

/// How long the ends of sessions took: how many of each bound, without those that there are none of.
fn ends(ends: &Ends) -> String {
    let row = |(what, spread): (&str, &Spread)| {
        let last = ends.bounds_ms.last().map(|bound| format!("more than {}", span(*bound)));
        let names = ends.bounds_ms.iter().map(|bound| format!("≤{}", span(*bound))).chain(last);
        let counted = names.zip(&spread.counts).filter(|(_, count)| **count > 0);
        let list: Vec<String> = counted.map(|(name, count)| format!("{count} {name}")).collect();
        let all: u64 = spread.counts.iter().sum();
        let longest = if all == 0 { "-".to_owned() } else { span(spread.max_ms) };
        [what.to_owned(), all.to_string(), longest, list.join(", ")]
    };
    let rows = [("to the mark", &ends.mark), ("to the last member", &ends.members), ("to the last flow", &ends.flows)];
    print::table(["ENDS", "COUNT", "LONGEST", "HOW MANY"], &[1], rows.into_iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_listed_by_their_bounds() {
        let spread = |counts: [u64; 3], max_ms| Spread { counts: counts.to_vec(), max_ms };
        let (mark, members) = (spread([2, 0, 0], 1), spread([1, 0, 1], 61_000));
        let text = ends(&Ends { bounds_ms: vec![1, 1_000], mark, members, flows: spread([0; 3], 0) });
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        assert!(lines[1].starts_with("to the mark") && lines[1].ends_with("1ms      2 ≤1ms"), "{text}");
        assert!(lines[2].ends_with("1m1s     1 ≤1ms, 1 more than 1s"), "{text}");
        assert!(lines[3].ends_with("0  -"), "{text}");
    }
}
