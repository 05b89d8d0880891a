//! `tipstaff events`: the evidence as it is in the file (`-o json`), or one readable line a record.

use serde_json::{Map, Value};

use super::{
    Exit, Failure, Print, ask,
    print::{self, Output, printable, short_id, span},
};
use crate::{
    api::wire::{Follow, Request},
    config::Config,
    evidence::Moment,
};

#[derive(Debug, clap::Args)]
pub(super) struct Flags {
    /// Go on with what happens from now on
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    print: Print,
}

pub(super) fn execute(config: &Config, flags: &Flags) -> Result<Exit, Failure> {
    let request = Request::Events(Follow { follow: flags.follow });
    for event in ask(config)?.events(&request)? {
        let event = event?;
        let line = match flags.print.output {
            Output::Json => event.record.get().to_owned(),
            Output::Table => readable(event.record.get()),
        };
        if print::out(&(line + "\n"))?.is_break() {
            break;
        }
    }
    Ok(Exit::Ok)
}

/// One line for a record: time, session, type, and what there is to say of that type.
fn readable(record: &str) -> String {
    let Ok(Value::Object(record)) = serde_json::from_str(record) else {
        return printable(record);
    };
    let kind = text(&record, "type");
    let session = record.get("session").map_or_else(|| "-".to_owned(), |_| short_id(&text(&record, "session")));
    let line = format!("{}  {session:12}  {kind:13}  {}", time(&record), details(&kind, &record));
    line.trim_end().to_owned()
}

fn details(kind: &str, record: &Map<String, Value>) -> String {
    let get = |key: &str| text(record, key);
    match kind {
        "agent-start" => format!("version {}, kernel {}, tier {}", get("version"), get("kernel"), get("tier")),
        "session-start" => session_start(record),
        "session-narrowed" => {
            let policy = |key: &str| shown(record.get(key).and_then(|policy| policy.get("digest")));
            let phase = record.get("phase").map(|_| format!("phase {}, ", get("phase"))).unwrap_or_default();
            format!("{phase}revision {}, policy {:.12} -> {:.12}", get("revision"), policy("from"), policy("to"))
        }
        "state" => format!("{} -> {} ({})", get("from"), get("to"), get("cause")),
        "exec" => {
            let arguments = command(record.get("args"));
            let what = if arguments.is_empty() { get("path") } else { format!("{} ({arguments})", get("path")) };
            verdict(record, &what)
        }
        "connect" => {
            let remedy = record.get("remedy").map(|_| format!(": {}", get("remedy"))).unwrap_or_default();
            verdict(record, &format!("{} {}", get("protocol"), get("to"))) + &remedy
        }
        "fork" => format!("pid {} -> {}", get("pid"), get("child")),
        "exit" => format!("pid {}, {}", get("pid"), wait_status(record)),
        "refused" => format!("{}: {}", command(record.get("command")), get("message")),
        "calls-refused" => {
            let (count, socket, reason) = (get("count"), get("socket"), get("reason"));
            format!("{count} on {socket}.sock, {reason}, pid {}, uid {}", get("pid"), get("uid"))
        }
        "flows-cut" => flows_cut(record),
        "session-end" => session_end(record),
        _ => others(record),
    }
}

fn verdict(record: &Map<String, Value>, what: &str) -> String {
    let rule = text(record, "rule");
    format!("{:10}  {what}  rule {rule}, pid {}", text(record, "verdict"), text(record, "pid"))
}

fn session_start(record: &Map<String, Value>) -> String {
    let part = |outer: &str, inner: &str| record.get(outer).and_then(|value| value.get(inner));
    format!(
        "policy {}, {}, uid {}, ttl {}, {}",
        shown(part("policy", "name")),
        text(record, "mode"),
        shown(part("principal", "uid")),
        span(number(record, "ttl_ms")),
        command(part("context", "command")),
    )
}

fn session_end(record: &Map<String, Value>) -> String {
    let rounds = record.get("rounds").and_then(Value::as_array);
    let killed: u64 = rounds.into_iter().flatten().filter_map(|round| round.get("killed")?.as_u64()).sum();
    let lost = record.get("lost").and_then(Value::as_object);
    let lost: u64 = lost.into_iter().flat_map(Map::values).filter_map(Value::as_u64).sum();
    format!(
        "{}: {killed} killed, {} left, {lost} records lost, {} packets dropped",
        text(record, "reason"),
        number(record, "members_left"),
        number(record, "packets_dropped")
    )
}

fn flows_cut(record: &Map<String, Value>) -> String {
    let sockets: Vec<&Value> = record.get("sockets").and_then(Value::as_array).into_iter().flatten().collect();
    let count = |outcome: &str| sockets.iter().filter(|s| s.get("outcome").is_some_and(|o| o == outcome)).count();
    let gone = sockets.iter().filter(|s| s.get("gone").is_some_and(|g| g == true)).count();
    let (destroyed, silenced) = (count("destroyed"), count("silenced"));
    let cause = text(record, "cause");
    format!("{cause}: {} sockets, {destroyed} destroyed, {silenced} silenced, {gone} gone", sockets.len())
}

/// As wait(2) has it.
fn wait_status(record: &Map<String, Value>) -> String {
    match number(record, "status") {
        status if status & 0x7f != 0 => format!("signal {}", status & 0x7f),
        status => format!("status {}", (status >> 8) & 0xff),
    }
}

/// The fields of a record that has no line of its own, but for those that every record has.
fn others(record: &Map<String, Value>) -> String {
    const COMMON: [&str; 11] =
        ["v", "n", "time", "boot_ns", "at_boot_ns", "host", "boot", "type", "session", "prev", "hash"];
    let own = record.iter().filter(|(key, _)| !COMMON.contains(&key.as_str()));
    own.map(|(key, value)| format!("{} {}", printable(key), shown(Some(value)))).collect::<Vec<_>>().join(", ")
}

/// When it happened, which may be before it was written: UTC, to the millisecond.
fn time(record: &Map<String, Value>) -> String {
    let time = text(record, "time");
    let Ok(written) = time.parse() else { return time };
    let written = Moment { time: written, boot_ns: number(record, "boot_ns") };
    let happened = record.get("at_boot_ns").and_then(Value::as_u64).map_or(written, |at| written.back_to(at));
    format!("{:.3}", happened.time)
}

fn command(argv: Option<&Value>) -> String {
    let words = argv.and_then(Value::as_array).into_iter().flatten();
    print::command(&words.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>(), print::command_limit())
}

fn number(record: &Map<String, Value>, key: &str) -> u64 {
    record.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn text(record: &Map<String, Value>, key: &str) -> String {
    shown(record.get(key))
}

fn shown(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => printable(text),
        Some(value) => printable(&value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMON: &str = r#""v":1,"n":7,"time":"2026-11-21T22:07:04.123456789Z","boot_ns":1,"host":"h","boot":"b""#;

    fn line(fields: &str) -> String {
        readable(&format!(r#"{{{COMMON},{fields},"prev":"00","hash":"00"}}"#))
    }

    #[test]
    fn every_type_has_a_readable_line() {
        let id = r#""session":"0123456789abcdef0123456789abcdef""#;
        let start = "2026-11-21T22:07:04.123Z  0123456789ab  ";
        let exec = r#""pid":9,"path":"/usr/bin/curl","args":["curl","a b"],"verdict":"deny","rule":"no-curl""#;
        assert_eq!(
            line(&format!(r#""type":"exec",{id},{exec}"#)),
            format!("{start}exec           deny        /usr/bin/curl (curl 'a b')  rule no-curl, pid 9")
        );
        assert_eq!(
            line(&format!(
                r#""type":"connect",{id},"pid":9,"to":"[::1]:80","protocol":"tcp","verdict":"allow","rule":"r""#
            )),
            format!("{start}connect        allow       tcp [::1]:80  rule r, pid 9")
        );
        let query =
            r#""pid":9,"to":"10.0.0.2:53","protocol":"udp","verdict":"deny","rule":"dns-denied","remedy":"add it""#;
        assert_eq!(
            line(&format!(r#""type":"connect",{id},{query}"#)),
            format!("{start}connect        deny        udp 10.0.0.2:53  rule dns-denied, pid 9: add it")
        );
        let late = line(r#""type":"fork","boot_ns":2000000001,"at_boot_ns":1000000001,"pid":9,"child":10"#);
        assert_eq!(late, "2026-11-21T22:07:03.123Z  -             fork           pid 9 -> 10", "when it happened");
        assert_eq!(
            line(&format!(r#""type":"exit",{id},"pid":9,"status":9"#)),
            format!("{start}exit           pid 9, signal 9")
        );
        assert_eq!(
            line(&format!(r#""type":"state",{id},"from":"active","to":"ending","cause":"ttl""#)),
            format!("{start}state          active -> ending (ttl)")
        );
        let calls = r#""count":3,"pid":9,"uid":0,"socket":"read","reason":"member","message":"no""#;
        assert_eq!(
            line(&format!(r#""type":"calls-refused",{id},{calls}"#)),
            format!("{start}calls-refused  3 on read.sock, member, pid 9, uid 0")
        );
        let end = r#""reason":"ttl","rounds":[{"killed":2,"left":0,"ms":1}],"members_left":0,"lost":{"exec":1},"packets_dropped":4"#;
        assert_eq!(
            line(&format!(r#""type":"session-end",{id},{end}"#)),
            format!("{start}session-end    ttl: 2 killed, 0 left, 1 records lost, 4 packets dropped")
        );
        let sockets = r#"[{"outcome":"destroyed","gone":true},{"outcome":"silenced","gone":false}]"#;
        assert_eq!(
            line(&format!(r#""type":"flows-cut",{id},"cause":"end","sockets":{sockets}"#)),
            format!("{start}flows-cut      end: 2 sockets, 1 destroyed, 1 silenced, 1 gone")
        );
        assert_eq!(
            line(r#""type":"agent-stop","reason":"signal""#),
            "2026-11-21T22:07:04.123Z  -             agent-stop     reason signal"
        );
    }

    #[test]
    fn what_is_no_record_is_shown_harmlessly() {
        assert_eq!(readable("[1,\"\u{1b}\"]"), r#"[1,"\u{1b}"]"#);
        assert!(readable(r#"{"type":"exec","path":"\u001b[2J"}"#).contains(r"\u{1b}[2J"));
    }
}
