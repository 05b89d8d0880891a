//! Finds a compiler for the kernel programs. Nothing is installed here.
//!
//! In this order: a rustc that has `core` for the BPF target; a rustc with the library's source, which then builds
//! `core` itself; rustup's nightly with its source.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use crate::exec::{output, which};

/// The target of the kernel programs.
pub(crate) const BPF: &str = "bpfel-unknown-none";
/// As `rust-version` in `Cargo.toml`.
const MINIMUM: u32 = 90;
/// The major versions of LLVM that bpf-linker can be built with.
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// Where `core` for the BPF target comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Core {
    /// Compiled, in the sysroot.
    Prebuilt,
    /// Built from the library's source by cargo (`-Zbuild-std`).
    Source,
}

/// A compiler for the kernel programs.
#[derive(Debug)]
pub(crate) struct Toolchain {
    pub(crate) rustc: PathBuf,
    pub(crate) cargo: PathBuf,
    pub(crate) core: Core,
    /// Major version of its LLVM.
    pub(crate) llvm: u32,
}

/// The best compiler for kernel programs on this machine, if there is any.
pub(crate) fn find() -> Option<Toolchain> {
    let found: Vec<Toolchain> = candidates().iter().filter_map(|rustc| inspect(rustc)).collect();
    let best = found.iter().position(|toolchain| toolchain.core == Core::Prebuilt).unwrap_or(0);
    found.into_iter().nth(best)
}

/// The compilers to ask, best known first. Each is the real program behind rustup's stand-in.
fn candidates() -> Vec<PathBuf> {
    let named = [env::var_os("RUSTC").map(PathBuf::from), which("rustc"), Some("/usr/bin/rustc".into())];
    let nightly = which("rustup")
        .and_then(|rustup| output(Command::new(rustup).args(["which", "--toolchain", "nightly", "rustc"])).ok());
    let all = named.into_iter().flatten().filter_map(|rustc| resolve(&rustc));
    let mut unique: Vec<PathBuf> = Vec::new();
    for rustc in all.chain(nightly.map(|path| PathBuf::from(path.trim()))) {
        if !unique.contains(&rustc) {
            unique.push(rustc);
        }
    }
    unique
}

/// The compiler inside its sysroot.
fn resolve(rustc: &Path) -> Option<PathBuf> {
    let sysroot = output(Command::new(rustc).args(["--print", "sysroot"])).ok()?;
    let real = Path::new(sysroot.trim()).join("bin/rustc");
    real.is_file().then_some(real)
}

/// What a compiler can do; nothing when it cannot compile the kernel programs.
fn inspect(rustc: &Path) -> Option<Toolchain> {
    let cargo = rustc.with_file_name("cargo");
    let (minor, llvm) = versions(&output(Command::new(rustc).arg("-vV")).ok()?)?;
    if minor < MINIMUM || !LLVM.contains(&llvm) || !cargo.is_file() {
        return None;
    }
    let core = if has_core(rustc) {
        Core::Prebuilt
    } else if has_source(rustc) {
        Core::Source
    } else {
        return None;
    };
    Some(Toolchain { rustc: rustc.to_owned(), cargo, core, llvm })
}

fn has_core(rustc: &Path) -> bool {
    let Ok(folder) = output(Command::new(rustc).args(["--print", "target-libdir", "--target", BPF])) else {
        return false;
    };
    let Ok(entries) = Path::new(folder.trim()).read_dir() else { return false };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    })
}

fn has_source(rustc: &Path) -> bool {
    let sysroot = rustc.parent().and_then(Path::parent);
    sysroot.is_some_and(|root| root.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file())
}

/// The minor version of Rust and the major version of LLVM, from `rustc -vV`.
fn versions(text: &str) -> Option<(u32, u32)> {
    let field = |name| text.lines().find_map(|line| line.strip_prefix(name));
    let minor = field("release: 1.")?.split('.').next()?.parse().ok()?;
    let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
    Some((minor, llvm))
}

#[cfg(test)]
mod tests {
    use super::versions;

    #[test]
    fn versions_are_read_from_stable_and_nightly() {
        let stable = "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(versions(stable), Some((96, 22)));
        let nightly = "binary: rustc\nrelease: 1.98.0-nightly\nLLVM version: 23.0\n";
        assert_eq!(versions(nightly), Some((98, 23)));
    }

    #[test]
    fn what_is_no_version_is_none() {
        assert_eq!(versions("release: 1.96.0\n"), None);
        assert_eq!(versions("release: 1.x.0\nLLVM version: 22.1.8\n"), None);
    }
}
