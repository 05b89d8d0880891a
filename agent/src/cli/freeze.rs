//! `tipstaff freeze` and `thaw`: stop a session's members, and let them go on.

use std::time::Duration;

use super::{
    Exit, Failure, Print, operate,
    print::{self, printable},
};
use crate::{
    api::wire::{Frozen, Request, SessionId},
    config::Config,
};

const LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct Flags {
    /// The session's id, or the beginning of it
    id: String,
    #[command(flatten)]
    print: Print,
}

/// Exits with 1 where a member does not stand still yet.
pub(super) fn freeze(config: &Config, flags: &Flags) -> Result<Exit, Failure> {
    let frozen = call(config, Request::Freeze(SessionId { id: flags.id.clone() }))?;
    print::show(flags.print.output, &frozen, text)?;
    Ok(if frozen.still { Exit::Ok } else { Exit::Failed })
}

pub(super) fn thaw(config: &Config, flags: &Flags) -> Result<Exit, Failure> {
    let thawed = call(config, Request::Thaw(SessionId { id: flags.id.clone() }))?;
    print::show(flags.print.output, &thawed, text)?;
    Ok(Exit::Ok)
}

fn call(config: &Config, request: Request) -> Result<Frozen, Failure> {
    Ok(operate(config, LIMIT)?.call(&request)?)
}

fn text(frozen: &Frozen) -> String {
    let mut text =
        format!("session {} is {}: {} processes", printable(&frozen.session), printable(&frozen.state), frozen.members);
    if frozen.state != "frozen" && frozen.still {
        text.push_str(", which stand still");
    }
    if frozen.state == "frozen" && !frozen.still {
        text.push_str(", some of them asleep in the kernel: they stop when they wake");
    }
    if !frozen.outside.is_empty() {
        let pids: Vec<String> = frozen.outside.iter().map(u32::to_string).collect();
        text.push_str(&format!(", outside its cgroup: {}", pids.join(", ")));
        if frozen.state == "frozen" {
            text.push_str(" (stopped by SIGSTOP: whoever may signal them can let them go on)");
        }
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_outside_is_said() {
        let frozen = |outside: &[u32], still| Frozen {
            session: "ab".into(),
            state: "frozen".into(),
            members: 3,
            outside: outside.to_vec(),
            still,
        };
        assert_eq!(text(&frozen(&[], true)), "session ab is frozen: 3 processes\n");
        let in_grace = Frozen { state: "ending".into(), ..frozen(&[], true) };
        assert_eq!(text(&in_grace), "session ab is ending: 3 processes, which stand still\n");
        let told = text(&frozen(&[7, 9], false));
        assert!(
            told.contains("asleep in the kernel") && told.contains("outside its cgroup: 7, 9 (stopped by"),
            "{told}"
        );
    }
}
