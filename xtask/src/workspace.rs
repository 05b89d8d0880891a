//! Where things are: the checkout, and the folders below `target/` that xtask owns.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// The checkout and its target folder.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The folder of the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// `CARGO_TARGET_DIR`, or `target` in the checkout.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Finds the checkout that this xtask was compiled from.
    pub(crate) fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask's folder has no parent")?.to_owned();
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let target = std::path::absolute(&target).with_context(|| format!("CARGO_TARGET_DIR={}", target.display()))?;
        Ok(Self { root, target })
    }

    /// Tools that were compiled for this workspace: bpf-linker, cargo-deny.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// The kernel programs' own target folder: another compiler than the host's works there.
    pub(crate) fn bpf_target(&self) -> PathBuf {
        self.target.join("bpf")
    }

    /// Guest kernels, and what boots with them.
    pub(crate) fn vm(&self) -> PathBuf {
        self.target.join("vm")
    }

    /// The agent, as `build` leaves it.
    pub(crate) fn agent(&self) -> PathBuf {
        self.target.join("release/tipstaff")
    }

    /// The black-box tests, as `build` leaves them.
    pub(crate) fn tests(&self) -> PathBuf {
        self.target.join("release/tipstaff-tests")
    }
}
