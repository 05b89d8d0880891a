//! Puts the kernel programs where the agent embeds them from: `$OUT_DIR/tipstaff.bpf.o`.
//!
//! They are compiled by `cargo xtask build`, never here: that needs another compiler, and would hide it in every
//! `cargo check`. `TIPSTAFF_EBPF_OBJECT` names the object; without it, what the last `cargo xtask build` left is taken.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

fn main() {
    let variable = |name| env::var_os(name).map(PathBuf::from);
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=TIPSTAFF_EBPF_OBJECT");
    let Some(out) = variable("OUT_DIR") else { return fail("OUT_DIR is not set; this is started by cargo") };
    let named = variable("TIPSTAFF_EBPF_OBJECT");
    let left = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/bpfel-unknown-none/bpf/tipstaff-ebpf");
    let object = named.clone().unwrap_or(left);
    // a path that does not exist counts as changed every time, so an object that appears is noticed
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = match fs::read(&object) {
        Ok(bytes) => bytes,
        Err(error) if named.is_some() => {
            return fail(&format!("cannot read TIPSTAFF_EBPF_OBJECT={}: {error}", object.display()));
        }
        Err(_) => {
            println!("cargo::warning=no kernel programs yet: this binary cannot enforce; build it with `./x build`");
            Vec::new()
        }
    };
    if let Err(error) = fs::write(out.join("tipstaff.bpf.o"), bytes) {
        fail(&format!("cannot write {}: {error}", out.join("tipstaff.bpf.o").display()));
    }
}

fn fail(message: &str) {
    println!("cargo::error={message}");
}
