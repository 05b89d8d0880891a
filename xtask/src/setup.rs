//! Makes a compiler for the kernel programs and their linker available.
//!
//! What is there is used. On Debian the rest comes from `apt-get`, elsewhere the compiler comes from rustup. bpf-linker
//! is compiled against the LLVM of the compiler's major version and kept in `target/tools`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    cargo,
    exec::{self, output, path_with, say, step, which},
    packages,
    toolchain::{self, Toolchain},
    workspace::Workspace,
};

const BPF_LINKER: &str = "0.13.0";
const COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
const HELP: &str = "the kernel programs need a compiler that is not here. Install, and start again:
  Debian 12 and later: apt-get install rustc-web cargo-web libstd-rust-web-dev-bpf llvm-22-dev g++ zlib1g-dev libzstd-dev libxml2-dev
  Fedora:              dnf install rust cargo rust-src llvm-devel gcc-c++ zlib-devel libzstd-devel libxml2-devel
  Arch:                pacman -S rust rust-src llvm gcc zlib zstd libxml2
  with rustup:         rustup toolchain install nightly --component rust-src
                       and LLVM's headers, of the major version that `rustc +nightly -vV` names
The compiler is Rust 1.90 or newer with LLVM 21, 22 or 23, and llvm-config is of the same major version.";

/// Options of `setup`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Install what guests need as well: qemu, xz
    #[arg(long)]
    guests: bool,
    /// Install what benchmarks stand beside as well: execsnoop
    #[arg(long)]
    peers: bool,
}

/// What compiles and links the kernel programs.
#[derive(Debug)]
pub(crate) struct Kit {
    pub(crate) toolchain: Toolchain,
    pub(crate) linker: PathBuf,
}

pub(crate) fn setup(workspace: &Workspace, options: &Options) -> Result<()> {
    let kit = kit(workspace)?;
    say(&format!(
        "kernel programs: {} ({:?} core, LLVM {}), {}",
        kit.toolchain.rustc.display(),
        kit.toolchain.core,
        kit.toolchain.llvm,
        kit.linker.display()
    ));
    if options.guests {
        guest_tools()?;
    }
    if options.peers {
        peers();
    }
    Ok(())
}

/// The compiler and the linker; what is missing is installed.
pub(crate) fn kit(workspace: &Workspace) -> Result<Kit> {
    let toolchain = match toolchain::find() {
        Some(toolchain) => toolchain,
        None => {
            step("setting up a compiler for the kernel programs", install_compiler)?;
            toolchain::find().context(HELP)?
        }
    };
    let linker = linker(workspace, &toolchain)?;
    Ok(Kit { toolchain, linker })
}

fn install_compiler() -> Result<()> {
    if packages::is_debian() && packages::known(&COMPILER)? {
        return packages::install(&COMPILER);
    }
    if which("rustup").is_none() {
        bail!(HELP);
    }
    let toolchain = ["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"];
    exec::run(Command::new("rustup").args(toolchain)).context(HELP)
}

/// bpf-linker of the compiler's LLVM, compiled when it is not there yet.
fn linker(workspace: &Workspace, toolchain: &Toolchain) -> Result<PathBuf> {
    let tools = workspace.tools();
    let linker = tools.join("bin/bpf-linker");
    let stamp = tools.join("bpf-linker.stamp");
    let wanted = format!("{BPF_LINKER} llvm-{}\n", toolchain.llvm);
    if linker.is_file() && fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(linker);
    }
    let llvm = llvm(toolchain.llvm)?;
    step("compiling bpf-linker (once; one or two minutes)", || {
        let mut cargo = cargo::clean(&toolchain.cargo);
        cargo.env("RUSTC", &toolchain.rustc).env("PATH", path_with(&llvm)?);
        let feature = format!("llvm-{}", toolchain.llvm);
        cargo::install(cargo, "bpf-linker", BPF_LINKER, &["--no-default-features", "--features", &feature], &tools)
    })?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(linker)
}

/// The folder of the `llvm-config` of that major version, with what linking to LLVM needs; installed when missing.
fn llvm(major: u32) -> Result<PathBuf> {
    let package = format!("llvm-{major}-dev");
    let needed = [package.as_str(), "g++", "zlib1g-dev", "libzstd-dev", "libxml2-dev"];
    if let Some(folder) = llvm_folder(major).filter(|_| which("g++").is_some()) {
        return Ok(folder);
    }
    if packages::is_debian() && packages::known(&needed)? {
        packages::install(&needed)?;
    }
    llvm_folder(major).with_context(|| format!("there is no llvm-config of LLVM {major}; {HELP}"))
}

fn llvm_folder(major: u32) -> Option<PathBuf> {
    // Debian, Fedora, Arch and Alpine; then whatever the PATH leads to
    let usual = [format!("/usr/lib/llvm-{major}"), format!("/usr/lib64/llvm{major}"), format!("/usr/lib/llvm{major}")];
    let usual = usual.into_iter().map(|prefix| Path::new(&prefix).join("bin/llvm-config"));
    usual.chain(which("llvm-config")).find(|config| is_llvm(config, major))?.parent().map(Path::to_owned)
}

fn is_llvm(config: &Path, major: u32) -> bool {
    config.is_file()
        && output(Command::new(config).arg("--version")).is_ok_and(|version| version.starts_with(&format!("{major}.")))
}

/// What boots a guest: program and Debian's package. Debian compresses its kernels' modules with xz.
const GUEST_TOOLS: [(&str, &str); 2] = [("qemu-system-x86_64", "qemu-system-x86"), ("xz", "xz-utils")];

/// Installs what boots a guest where it is missing.
pub(crate) fn guest_tools() -> Result<()> {
    for (program, package) in GUEST_TOOLS {
        if which(program).is_none() && packages::is_debian() && packages::known(&[package])? {
            step(&format!("setting up {program}"), || packages::install(&[package]))?;
        }
        if which(program).is_none() {
            bail!("guests need {program}: install it (Debian: {package})");
        }
    }
    Ok(())
}

/// What the benchmarks stand beside: where Debian puts it, and in which package.
const PEERS: [(&str, &str); 1] = [("/usr/sbin/execsnoop", "libbpf-tools")];

/// Installs what the benchmarks stand beside where it is missing. Without it they are made all the same.
pub(crate) fn peers() {
    for (program, package) in PEERS.into_iter().filter(|(program, _)| !Path::new(program).is_file()) {
        let installed = if packages::is_debian() {
            packages::known(&[package]).and_then(|known| if known { packages::install(&[package]) } else { Ok(()) })
        } else {
            Ok(())
        };
        if let Err(error) = installed {
            say(&format!("{error:#}"));
        }
        if !Path::new(program).is_file() {
            say(&format!("{program} is not here, and its line stays away: install it (Debian: {package})"));
        }
    }
}
