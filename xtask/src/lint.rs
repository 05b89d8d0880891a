//! Formatting, lints for both targets, and what the dependencies may be.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, bail};

use crate::{
    build,
    cargo::{self, Host},
    exec::{output, run, say, step, which},
    packages,
    setup::{self, Kit},
    workspace::Workspace,
};

const CARGO_DENY: &str = "0.20.2";

/// The verb. Every check runs, whatever the others say.
pub(crate) fn lint(workspace: &Workspace) -> Result<()> {
    let kit = setup::kit(workspace)?;
    let host = build::kernel_programs(workspace, &kit)?;
    let checks: [(&str, &dyn Fn() -> Result<()>); 5] = [
        ("formatting", &|| format(workspace, &host)),
        ("lints of the host's crates", &|| clippy_host(workspace, &host)),
        ("lints of the kernel programs", &|| clippy_kernel(workspace, &kit)),
        ("licences, bans and sources of dependencies", &|| deny(workspace, &host)),
        ("advisories against dependencies", &|| advisories(workspace, &host)),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        if let Err(error) = step(name, check) {
            say(&format!("{error:#}"));
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn format(workspace: &Workspace, host: &Host) -> Result<()> {
    component(which("cargo-fmt"), "rustfmt", "rustfmt-web")?;
    run(host.cargo(workspace).args(["fmt", "--all", "--check"]))
}

fn clippy_host(workspace: &Workspace, host: &Host) -> Result<()> {
    component(which("cargo-clippy"), "clippy", "rust-web-clippy")?;
    let mut cargo = host.compile(workspace, "clippy");
    run(cargo.args(["--workspace", "--exclude", "tipstaff-ebpf", "--all-targets", "--", "-Dwarnings"]))
}

/// The clippy beside the compiler that has `core` for BPF: `cargo clippy` would take the first on the PATH.
fn clippy_kernel(workspace: &Workspace, kit: &Kit) -> Result<()> {
    let clippy = kit.toolchain.rustc.with_file_name("cargo-clippy");
    component(clippy.is_file().then(|| clippy.clone()), "clippy", "rust-web-clippy")?;
    let mut cargo = cargo::kernel(workspace, kit, &clippy, "clippy");
    cargo.env("CARGO", &kit.toolchain.cargo);
    run(cargo.args(["--profile", "bpf", "-p", "tipstaff-ebpf", "--", "-Dwarnings"]))
}

/// A part of the toolchain that is there, or comes from Debian.
fn component(found: Option<PathBuf>, component: &str, package: &str) -> Result<()> {
    if found.is_some() {
        return Ok(());
    }
    if packages::is_debian() && packages::known(&[package])? {
        return packages::install(&[package]);
    }
    bail!("{component} is missing; install it (`rustup component add {component}`, or your system's package)")
}

fn deny(workspace: &Workspace, host: &Host) -> Result<()> {
    run(cargo_deny(workspace, host)?.args(["check", "bans", "licenses", "sources"]))
}

/// The database of advisories is on another host than the crates; where it cannot be had, that is said, not failed.
fn advisories(workspace: &Workspace, host: &Host) -> Result<()> {
    if let Err(error) = output(cargo_deny(workspace, host)?.args(["fetch", "db"])) {
        say(&format!("advisories are NOT checked: their database cannot be fetched: {error:#}"));
        return Ok(());
    }
    run(cargo_deny(workspace, host)?.args(["check", "--disable-fetch", "advisories"]))
}

/// cargo-deny, compiled when it is not there yet.
fn cargo_deny(workspace: &Workspace, host: &Host) -> Result<Command> {
    let tools = workspace.tools();
    let program = tools.join("bin/cargo-deny");
    if !output(Command::new(&program).arg("--version")).is_ok_and(|text| text.trim().ends_with(CARGO_DENY)) {
        step("compiling cargo-deny (once; one to three minutes)", || {
            cargo::install(host.cargo(workspace), "cargo-deny", CARGO_DENY, &[], &tools)
        })?;
    }
    let mut command = cargo::clean(&program);
    command.current_dir(&workspace.root).env("CARGO", &host.cargo);
    Ok(command)
}
