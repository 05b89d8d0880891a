//! The evidence as people read it: one line for each thing that happened, with the time since the session began.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use nix::libc;
use serde_json::Value;

/// Prints the records of every session in the file.
pub(super) fn print(path: &Path) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    for line in lines(&text).with_context(|| format!("{} holds no JSON", path.display()))? {
        println!("  {line}");
    }
    Ok(())
}

/// What happened, in order of time.
fn lines(text: &str) -> Result<Vec<String>> {
    let mut start = None;
    let mut lines = Vec::new();
    for line in text.lines() {
        let record: Value = serde_json::from_str(line)?;
        // when the kernel saw it, where the record says so; it may be written long after
        let at = record["at_boot_ns"].as_u64().or_else(|| record["boot_ns"].as_u64()).unwrap_or_default();
        if record["type"] == "session-start" {
            start = Some(at);
        }
        if let (Some(start), Some(what)) = (start, describe(&record)) {
            lines.push((at.saturating_sub(start), what));
        }
    }
    lines.sort_by_key(|(at, _)| *at);
    let seconds = |at: u64| format!("{:>2}.{:03} s", at / 1_000_000_000, at / 1_000_000 % 1000);
    Ok(lines.into_iter().map(|(at, what)| format!("{}  {what}", seconds(at))).collect())
}

/// When the session is over, by the clock that counts from boot on, and how long it lives; `None` before it began.
pub(super) fn deadline(path: &Path) -> Result<Option<(Duration, Duration)>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    // the last line may be half written
    let mut records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(records.find(|record| record["type"] == "session-start").and_then(|record| {
        let deadline = Duration::from_nanos(record["deadline_boot_ns"].as_u64()?);
        Some((deadline, Duration::from_millis(record["ttl_ms"].as_u64()?)))
    }))
}

/// Every record of the file.
pub(super) fn records(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let records: serde_json::Result<Vec<Value>> = text.lines().map(serde_json::from_str).collect();
    records.with_context(|| format!("{} holds no JSON", path.display()))
}

/// Whether a receipt says that the connection to a port of this host was destroyed and is gone.
pub(super) fn destroyed(path: &Path, port: u16) -> Result<bool> {
    let to = format!("127.0.0.1:{port}");
    let cuts = records(path)?.into_iter().filter(|record| record["type"] == "flows-cut");
    let mut sockets = cuts.flat_map(|record| record["sockets"].as_array().cloned().unwrap_or_default());
    Ok(sockets.any(|socket| socket["to"] == to && socket["outcome"] == "destroyed" && socket["gone"] == true))
}

/// One line for a record; `None` for those that say nothing to a first reader.
fn describe(record: &Value) -> Option<String> {
    let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
    let pid = record["pid"].as_u64().unwrap_or_default();
    Some(match record["type"].as_str()? {
        "session-start" => format!(
            "session {:.8} begins: policy {}, kind {}, uid {}, {} ms to live",
            text("session"),
            record["policy"]["name"].as_str().unwrap_or_default(),
            text("kind"),
            record["principal"]["uid"],
            record["ttl_ms"]
        ),
        "exec" => {
            let arguments = record["args"].as_array().map(|a| a.iter().filter_map(Value::as_str).collect::<Vec<_>>());
            let arguments = arguments.filter(|a| !a.is_empty()).map_or_else(|| text("path"), |a| a.join(" "));
            verdict(record, "exec", pid, &shorten(&arguments, 60))
        }
        "connect" => verdict(record, "connect", pid, &format!("{} {}", text("protocol"), text("to"))),
        "socket" => verdict(record, "socket", pid, &format!("{} {}", text("act"), family(record))),
        "agent-start" => "an agent is in force".into(),
        "gap" => format!("gap: {}, {} records lost; {}", text("cause"), record["lost"], text("detail")),
        "state" => format!("{} -> {} ({})", text("from"), text("to"), text("cause")),
        "flows-cut" => format!("{} open connections cut", record["sockets"].as_array().map_or(0, Vec::len)),
        "session-end" => format!(
            "ended: {}; {} killed, {} left; {} records, {} lost; {} packets dropped",
            text("reason"),
            record["receipts"].as_array().map_or(0, Vec::len),
            record["members_left"],
            sum(&record["produced"]),
            sum(&record["lost"]),
            record["packets_dropped"]
        ),
        _ => return None,
    })
}

/// Family and type of a socket, as programs ask for them.
fn family(record: &Value) -> String {
    let number = |key: &str| record[key].as_u64().and_then(|number| i32::try_from(number).ok()).unwrap_or_default();
    let family = match number("family") {
        libc::AF_INET => "AF_INET".into(),
        libc::AF_INET6 => "AF_INET6".into(),
        libc::AF_UNIX => "AF_UNIX".into(),
        libc::AF_NETLINK => "AF_NETLINK".into(),
        libc::AF_PACKET => "AF_PACKET".into(),
        other => format!("family {other}"),
    };
    match number("kind") {
        libc::SOCK_STREAM => format!("{family}, SOCK_STREAM"),
        libc::SOCK_DGRAM => format!("{family}, SOCK_DGRAM"),
        libc::SOCK_RAW => format!("{family}, SOCK_RAW"),
        other => format!("{family}, type {other}"),
    }
}

fn verdict(record: &Value, kind: &str, pid: u64, what: &str) -> String {
    let verdict = record["verdict"].as_str().unwrap_or_default();
    let rule = record["rule"].as_str().unwrap_or_default();
    format!("{:<6} {kind:<8} {what:<62} pid {pid}, rule {rule}", verdict.to_uppercase())
}

fn shorten(text: &str, most: usize) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().count() <= most {
        return text;
    }
    text.chars().take(most - 3).chain("...".chars()).collect()
}

fn sum(counts: &Value) -> u64 {
    counts.as_object().map_or(0, |o| o.values().filter_map(Value::as_u64).sum())
}

#[cfg(test)]
mod tests {
    use super::lines;

    #[test]
    fn what_was_written_late_stands_where_it_happened() -> anyhow::Result<()> {
        let text = r#"{"type":"session-start","boot_ns":5000000000,"session":"abcdef0123","ttl_ms":20000}
{"type":"agent-start","boot_ns":27000000000}
{"type":"socket","boot_ns":27100000000,"at_boot_ns":25300000000,"pid":7,"act":"create","family":2,"kind":1,"verdict":"deny","rule":"expired"}
{"type":"exec","boot_ns":27200000000,"pid":8,"args":["git","--version"],"verdict":"kill","rule":"expired"}"#;
        let lines = lines(text)?;
        let begins = [
            "0.000 s  session abcdef01",
            "20.300 s  DENY   socket   create AF_INET, SOCK_STREAM ",
            "22.000 s  an agent",
            "22.200 s  KILL   exec     git",
        ];
        assert_eq!(lines.len(), begins.len());
        for (line, begin) in lines.iter().zip(begins) {
            assert!(line.trim_start().starts_with(begin), "{line}");
        }
        Ok(())
    }
}
