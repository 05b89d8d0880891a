//! The `tipstaff` binary: hands the command line what it needs of the library.

use std::{path::Path, process::ExitCode};

use tipstaff::{
    api::wire::{Disarmed, Probe, Problem},
    cli::{self, Exit, Failure, Host, policy::Checked, verify::Verified},
    config::Config,
};

fn main() -> ExitCode {
    cli::main(&Host { daemon, probe, disarm, verify, check_policy })
}

fn absent(what: &str) -> Failure {
    Failure::new(Exit::Unable, format!("this build has no {what}"))
}

fn daemon(_: &Config, _: Option<&Path>) -> Result<(), Failure> {
    Err(absent("agent"))
}

fn probe(_: &Config) -> Result<Probe, Failure> {
    Err(absent("probe"))
}

fn disarm(_: &Config) -> Result<Disarmed, Failure> {
    Err(absent("disarm"))
}

fn verify(_: &Path, _: Option<&Path>) -> Result<Verified, Failure> {
    Err(absent("verifier"))
}

fn check_policy(file: &str, _: &[u8]) -> Result<Checked, Vec<Problem>> {
    let message = "this build reads no policies".to_owned();
    Err(vec![Problem { file: file.to_owned(), line: 1, column: 1, key: String::new(), message }])
}
