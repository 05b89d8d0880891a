//! Tipstaff's set-up, build, tests, guests and benchmarks: what `./x VERB` and `cargo xtask VERB` do.
//!
//! Everything is made below the workspace's `target/`. The system is changed by `setup` alone, and only by installing
//! packages with its own package manager.
#![forbid(unsafe_code)]

mod bench;
mod build;
mod cargo;
mod demo;
mod escapes;
mod exec;
mod faults;
mod initramfs;
mod kernels;
mod lint;
mod matrix;
mod modules;
mod packages;
mod passed;
mod probe;
mod report;
mod setup;
mod test;
mod toolchain;
mod verifier;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use workspace::Workspace;

/// Sets up, builds and tests Tipstaff
#[derive(Debug, Parser)]
#[command(name = "x", bin_name = "./x", disable_help_subcommand = true)]
enum Task {
    /// Install what the build needs: a compiler for kernel programs, and their linker
    Setup(setup::Options),
    /// Build the kernel programs and the agent: target/release/tipstaff
    Build,
    /// Run the main job on real programs, and print its timeline
    Demo,
    /// Run the black-box tests in a guest with another kernel
    Vm(vm::Options),
    /// Run every test: unit, on this kernel, and in guests
    Test(test::Options),
    /// Measure what it costs, and how fast it is; see docs/performance.md
    Bench(bench::Options),
    /// Try to get out of sessions, on this kernel and in guests; see docs/escapes.md
    Escapes(escapes::Options),
    /// Break what is around the agent, on this kernel and in guests; see docs/faults.md
    Faults(faults::Options),
    /// Try what can be enforced on this kernel and in guests; see docs/probed.md
    Probe(probe::Options),
    /// Count what the kernels' verifier walks through for each program; see docs/verifier.md
    Verifier(verifier::Options),
    /// Check formatting, lints, and what the dependencies may be
    Lint,
}

fn main() -> ExitCode {
    match run(Task::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("x: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    match task {
        Task::Setup(options) => setup::setup(&workspace, &options).map(|()| ExitCode::SUCCESS),
        Task::Build => build::build(&workspace).map(|_| ExitCode::SUCCESS),
        Task::Demo => demo::demo(&workspace),
        Task::Vm(options) => vm::vm(&workspace, &options),
        Task::Test(options) => test::test(&workspace, &options),
        Task::Probe(options) => probe::probe(&workspace, &options),
        Task::Verifier(options) => verifier::verifier(&workspace, &options),
        Task::Bench(options) => bench::bench(&workspace, &options),
        Task::Escapes(options) => escapes::escapes(&workspace, &options),
        Task::Faults(options) => faults::faults(&workspace, &options),
        Task::Lint => lint::lint(&workspace).map(|()| ExitCode::SUCCESS),
    }
}
