//! Black-box tests of Tipstaff: they start the real agent, do the system call, and look at the errno, at the effect and
//! at the evidence.
//!
//! One binary is everything, because a guest has nothing else: the runner, the tests, the workloads that tests start
//! (`--work`), the benchmarks (`--bench`), which are no tests, and, as process 1, the guest's init.

mod bench;
mod escapes;
mod faults;
mod harness;
mod suites;
mod work;

use std::process::ExitCode;

use harness::{guest, options::Options, runner};

fn main() -> ExitCode {
    // a workload that needs an argument's own bytes looks for itself
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    match words.first().map(String::as_str) {
        Some("--work") => work::main(&words[1..]),
        Some("--script") => work::script(&words[1..]),
        Some("--bench") => bench::main(&words[1..]).unwrap_or_else(|error| complain(&error, 2)),
        _ if std::process::id() == 1 => guest::init(),
        _ => match Options::parse(&words) {
            Ok(options) => runner::main(&options).unwrap_or_else(|error| complain(&error, 1)),
            Err(error) => complain(&error, 2),
        },
    }
}

fn complain(error: &anyhow::Error, status: u8) -> ExitCode {
    eprintln!("tipstaff-tests: {error:#}");
    ExitCode::from(status)
}
