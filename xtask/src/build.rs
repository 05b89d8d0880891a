//! Builds the kernel programs, then the agent with them inside, and the black-box tests.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    exec::{self, output, step, which},
    setup::{self, Kit},
    toolchain::{BPF, Core, clean_cargo},
    workspace::Workspace,
};

/// How the programs of the host are compiled: the build and the unit tests must agree, or all is compiled twice.
#[derive(Debug)]
pub(crate) struct Host {
    cargo: PathBuf,
    triple: String,
    object: PathBuf,
}

/// Builds everything, and leaves the programs in `target/release`.
pub(crate) fn build(workspace: &Workspace) -> Result<Host> {
    let kit = setup::kit(workspace)?;
    let object = step("building the kernel programs", || kernel_object(workspace, &kit))?;
    let host = Host::find(object)?;
    step("building the agent", || {
        exec::run(host.cargo(workspace, "build").args(["-p", "tipstaff", "-p", "tipstaff-tests"]))?;
        let built = workspace.target.join(&host.triple).join("release");
        place(&built.join("tipstaff"), &workspace.agent())?;
        place(&built.join("tipstaff-tests"), &workspace.tests())
    })?;
    Ok(host)
}

impl Host {
    /// The cargo that runs this xtask, or the one on the PATH.
    fn find(object: PathBuf) -> Result<Self> {
        let cargo = env::var_os("CARGO").map(PathBuf::from).or_else(|| which("cargo"));
        let cargo = cargo.context("there is no cargo on the PATH; start this with ./x")?;
        let text = output(Command::new(&cargo).arg("-vV"))?;
        let triple = text.lines().find_map(|line| line.strip_prefix("host: ")).context("`cargo -vV` names no host")?;
        Ok(Self { triple: triple.to_owned(), cargo, object })
    }

    /// A cargo command for the host: released, static, with the kernel programs inside.
    ///
    /// `--target` keeps the flags from proc macros, which cannot be static.
    pub(crate) fn cargo(&self, workspace: &Workspace, verb: &str) -> Command {
        let mut cargo = clean_cargo(&self.cargo);
        cargo.current_dir(&workspace.root).arg(verb).args(["--release", "--target", &self.triple]);
        cargo.arg("--target-dir").arg(&workspace.target);
        cargo.arg("--config").arg(format!("target.{}.rustflags=['-Ctarget-feature=+crt-static']", self.triple));
        cargo.env("TIPSTAFF_EBPF_OBJECT", &self.object);
        for choice in ["RUSTC", "RUSTUP_TOOLCHAIN"] {
            // the caller's compiler is meant for the host, and only for the host
            cargo.envs(env::var_os(choice).map(|value| (choice, value)));
        }
        cargo
    }
}

/// Compiles the kernel programs; returns the object's path.
fn kernel_object(workspace: &Workspace, kit: &Kit) -> Result<PathBuf> {
    let target = workspace.bpf_target();
    let mut cargo = kernel_cargo(workspace, kit, "build");
    cargo.args(["--profile", "bpf", "-p", "tipstaff-ebpf"]);
    exec::run(&mut cargo)?;
    Ok(target.join(BPF).join("bpf/tipstaff-ebpf"))
}

/// A cargo command for the kernel programs.
pub(crate) fn kernel_cargo(workspace: &Workspace, kit: &Kit, verb: &str) -> Command {
    let mut cargo = clean_cargo(&kit.toolchain.cargo);
    cargo.current_dir(&workspace.root).arg(verb).args(["--target", BPF]);
    cargo.arg("--target-dir").arg(workspace.bpf_target());
    cargo.arg("--config").arg(format!("target.{BPF}.linker='{}'", kit.linker.display()));
    cargo.arg("--config").arg(format!(
        // v3 is in every kernel that has BPF task storage: 32-bit arithmetic and jumps, so fewer instructions
        "target.{BPF}.rustflags=['-Ctarget-cpu=v3', '-Clink-arg=--btf', '-Cdebuginfo=2', '--cfg=bpf_target_arch=\"{}\"']",
        env::consts::ARCH
    ));
    cargo.env("RUSTC", &kit.toolchain.rustc);
    match kit.toolchain.core {
        // only these may use what is not stable in the compiler: inline assembly for BPF
        Core::Prebuilt => cargo.env("RUSTC_BOOTSTRAP", "aya_ebpf,tipstaff_ebpf"),
        Core::Source => cargo.env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std=core"),
    };
    cargo
}

/// Puts a program where it is expected, without a moment in which it is half there.
fn place(from: &Path, to: &Path) -> Result<()> {
    let near = to.with_extension("new");
    let copy = || -> std::io::Result<()> {
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::copy(from, &near)?;
        fs::rename(&near, to)
    };
    copy().with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}
