//! Packages of the system, by its own package manager. Only Debian's is driven; elsewhere the user is told what to
//! install.

use std::process::Command;

use anyhow::Result;

use crate::exec::{as_root, output, run, say, which};

/// Whether this is Debian with an `apt-get` to call.
pub(crate) fn is_debian() -> bool {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    release.lines().any(|line| line == "ID=debian") && which("apt-get").is_some()
}

/// Whether apt could install all of these; the lists are fetched first when it knows none of them.
pub(crate) fn known(packages: &[&str]) -> Result<bool> {
    if all_known(packages) {
        return Ok(true);
    }
    say("fetching Debian's package lists");
    run(apt_get().args(["update", "-q"]))?;
    Ok(all_known(packages))
}

/// Installs packages. Nothing that is installed is removed for them.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    say(&format!("installing from Debian: {}", packages.join(" ")));
    let result = run(apt_get().args(INSTALL).args(packages));
    if result.is_ok() {
        return Ok(());
    }
    // the lists may name versions that the mirror has replaced since
    run(apt_get().args(["update", "-q"]))?;
    run(apt_get().args(INSTALL).args(packages))
}

const INSTALL: [&str; 5] = ["install", "-q", "-y", "--no-install-recommends", "--no-remove"];

/// As root, asking nothing.
fn apt_get() -> Command {
    let mut command = as_root("env");
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).stdout(std::io::stderr());
    command
}

fn all_known(packages: &[&str]) -> bool {
    packages.iter().all(|package| {
        let policy = output(Command::new("apt-cache").args(["policy", package])).unwrap_or_default();
        policy.lines().any(|line| line.trim().starts_with("Candidate: ") && !line.contains("(none)"))
    })
}
