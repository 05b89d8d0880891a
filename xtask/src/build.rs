//! Builds the kernel programs, then the agent with them inside, and the black-box tests.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::{
    cargo::{self, Host},
    exec::{run, step},
    setup::{self, Kit},
    toolchain::BPF,
    workspace::Workspace,
};

/// Builds everything, and leaves the programs in `target/release`.
pub(crate) fn build(workspace: &Workspace) -> Result<Host> {
    let kit = setup::kit(workspace)?;
    let host = kernel_programs(workspace, &kit)?;
    step("building the agent", || {
        run(host.compile(workspace, "build").args(["-p", "tipstaff", "-p", "tipstaff-tests"]))?;
        let built = workspace.target.join(&host.triple).join("release");
        place(&built.join("tipstaff"), &workspace.agent())?;
        place(&built.join("tipstaff-tests"), &workspace.tests())
    })?;
    Ok(host)
}

/// Builds the kernel programs; what is returned compiles the agent with them inside.
pub(crate) fn kernel_programs(workspace: &Workspace, kit: &Kit) -> Result<Host> {
    step("building the kernel programs", || {
        let mut cargo = cargo::kernel(workspace, kit, &kit.toolchain.cargo, "build");
        run(cargo.args(["--profile", "bpf", "-p", "tipstaff-ebpf"]))
    })?;
    Host::find(workspace.bpf_target().join(BPF).join("bpf/tipstaff-ebpf"))
}

/// Puts a program where it is expected, without a moment in which it is half there.
fn place(from: &Path, to: &Path) -> Result<()> {
    // two builds may end together
    let near = to.with_extension(format!("new{}", std::process::id()));
    let copy = || -> std::io::Result<()> {
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::copy(from, &near)?;
        fs::rename(&near, to)
    };
    copy().with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}
