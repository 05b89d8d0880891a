//! `tipstaff verify`: whether evidence is complete and unchanged. Needs no agent.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Exit, Failure, Host, Print, print};
use crate::config::Config;

/// What verification found, for either form of output.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    /// Nothing is missing or changed.
    pub intact: bool,
    /// For people, with the last line's end.
    pub text: String,
    /// For programs.
    pub json: Value,
}

#[derive(Debug, clap::Args)]
pub(super) struct Flags {
    /// Evidence file or directory [default: this host's]
    #[arg(value_name = "FILE|DIR")]
    target: Option<PathBuf>,
    #[command(flatten)]
    print: Print,
}

pub(super) fn execute(config: &Config, flags: &Flags, host: &Host) -> Result<Exit, Failure> {
    let own = config.paths.evidence_file();
    let file = match &flags.target {
        None => own.clone(),
        Some(target) if target.is_dir() => target.join("evidence.jsonl"),
        Some(target) => target.clone(),
    };
    // the head file speaks of this host's evidence only, not of a copy or of another host's
    let head = config.paths.evidence_head();
    let head = is_same(&file, &own).then_some(head.as_path());
    let verified = (host.verify)(&file, head)?;
    print::show(flags.print.output, &verified.json, |_| verified.text.clone())?;
    Ok(if verified.intact { Exit::Ok } else { Exit::Failed })
}

fn is_same(file: &Path, own: &Path) -> bool {
    match (file.canonicalize(), own.canonicalize()) {
        (Ok(file), Ok(own)) => file == own,
        _ => file == own,
    }
}
