//! Cargo commands: for the host, and for the kernel programs. Each states its compiler, its target and its flags.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    exec::{output, run, which},
    setup::Kit,
    toolchain::{BPF, Core},
    workspace::Workspace,
};

/// A cargo command that nothing of the surrounding cargo, rustup or user reaches: `cargo run` leaves its own toolchain
/// and flags to its children, and these would end up in another compiler's hands.
pub(crate) fn clean(cargo: &Path) -> Command {
    let mut command = Command::new(cargo);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let exact = ["CARGO", "LD_LIBRARY_PATH", "RUSTUP_TOOLCHAIN", "CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS"];
        let prefixes = ["RUSTC", "RUSTDOC", "CARGO_BUILD_", "CARGO_PKG_", "CARGO_MANIFEST_"];
        let flags = text.starts_with("CARGO_TARGET_") && text.ends_with("_RUSTFLAGS");
        if flags || exact.contains(&&*text) || prefixes.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

/// How the programs of the host are compiled: the build, the tests and the lints must agree, or all is compiled twice.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) cargo: PathBuf,
    pub(crate) triple: String,
    /// The kernel programs, compiled.
    object: PathBuf,
}

impl Host {
    /// The cargo that runs this xtask, or the one on the PATH.
    pub(crate) fn find(object: PathBuf) -> Result<Self> {
        let cargo = env::var_os("CARGO").map(PathBuf::from).or_else(|| which("cargo"));
        let cargo = cargo.context("there is no cargo on the PATH; start this with ./x")?;
        let text = output(Command::new(&cargo).arg("-vV"))?;
        let triple = text.lines().find_map(|line| line.strip_prefix("host: ")).context("`cargo -vV` names no host")?;
        Ok(Self { triple: triple.to_owned(), cargo, object })
    }

    /// A cargo command that compiles for the host: released, static, with the kernel programs inside.
    ///
    /// `--target` keeps the flags from proc macros, which cannot be static.
    pub(crate) fn compile(&self, workspace: &Workspace, verb: &str) -> Command {
        self.compile_as(workspace, verb, "release")
    }

    /// The same in another profile.
    pub(crate) fn compile_as(&self, workspace: &Workspace, verb: &str, profile: &str) -> Command {
        let mut cargo = self.cargo(workspace);
        cargo.args([verb, "--profile", profile, "--target", &self.triple, "--target-dir"]).arg(&workspace.target);
        cargo.arg("--config").arg(format!("target.{}.rustflags=['-Ctarget-feature=+crt-static']", self.triple));
        cargo.env("TIPSTAFF_EBPF_OBJECT", &self.object);
        cargo
    }

    /// A cargo command in the workspace, with the caller's choice of a compiler: it is meant for the host alone.
    pub(crate) fn cargo(&self, workspace: &Workspace) -> Command {
        let mut cargo = clean(&self.cargo);
        cargo.current_dir(&workspace.root);
        for choice in ["RUSTC", "RUSTUP_TOOLCHAIN"] {
            cargo.envs(env::var_os(choice).map(|value| (choice, value)));
        }
        cargo
    }
}

/// A command that compiles the kernel programs: `program` is their cargo, or the clippy beside it.
pub(crate) fn kernel(workspace: &Workspace, kit: &Kit, program: &Path, verb: &str) -> Command {
    let mut cargo = clean(program);
    cargo.current_dir(&workspace.root).arg(verb).args(["--target", BPF]);
    cargo.arg("--target-dir").arg(workspace.bpf_target());
    cargo.env(format!("CARGO_TARGET_{}_LINKER", BPF.replace('-', "_").to_uppercase()), &kit.linker);
    // v3 is in every kernel that has BPF task storage: 32-bit arithmetic and jumps, so fewer instructions. Memory is cleared
    // and copied in line: the linker's default makes each a loop over bytes, which the verifier follows step by step
    let flags = "'-Ctarget-cpu=v3', '-Clink-arg=--btf', '-Clink-arg=--disable-expand-memcpy-in-order', '-Cdebuginfo=2'";
    let arch = env::consts::ARCH;
    cargo.arg("--config");
    cargo.arg(format!("target.{BPF}.rustflags=[{flags}, '--cfg=bpf_target_arch=\"{arch}\"']"));
    cargo.env("RUSTC", &kit.toolchain.rustc);
    match kit.toolchain.core {
        // only these may use what is not stable in the compiler: inline assembly for BPF
        Core::Prebuilt => cargo.env("RUSTC_BOOTSTRAP", "aya_ebpf,tipstaff_ebpf"),
        Core::Source => cargo.env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std=core"),
    };
    cargo
}

/// Compiles a tool into `root`. Not optimised: that halves the wait, and each of them runs for a second or two.
pub(crate) fn install(mut cargo: Command, tool: &str, version: &str, features: &[&str], root: &Path) -> Result<()> {
    for (key, value) in [("DEBUG", "0"), ("DEBUG_ASSERTIONS", "false"), ("OVERFLOW_CHECKS", "false")] {
        cargo.env(format!("CARGO_PROFILE_DEV_{key}"), value);
    }
    cargo.args(["install", tool, "--version", version, "--locked", "--force", "--debug"]);
    run(cargo.args(features).arg("--root").arg(root))
}
