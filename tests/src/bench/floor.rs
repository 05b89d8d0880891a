//! The floor: programs of two instructions on a cgroup. What these cost, no program here can undercut.

use std::{fs::File, os::fd::OwnedFd};

use anyhow::{Context, Result};

use super::bpf;
use crate::harness::{
    bpf::{Map, Stats, stats},
    cgroup::Cgroup,
};

/// `enum bpf_prog_type`: `CGROUP_SKB`, `CGROUP_SOCK_ADDR`.
const SKB: u32 = 8;
const SOCK_ADDR: u32 = 18;
/// Name, program type and `enum bpf_attach_type`.
const HOOKS: [(&str, u32, u32); 6] = [
    ("ingress", SKB, 0),
    ("egress", SKB, 1),
    ("connect4", SOCK_ADDR, 10),
    ("connect6", SOCK_ADDR, 11),
    ("sendmsg4", SOCK_ADDR, 14),
    ("sendmsg6", SOCK_ADDR, 15),
];

/// Empty programs on a cgroup, on every hook of the traffic that the agent uses; off when dropped.
#[derive(Debug)]
pub(super) struct Floor {
    /// Name, program and link.
    programs: Vec<(&'static str, OwnedFd, OwnedFd)>,
}

impl Floor {
    pub(super) fn attach(cgroup: &Cgroup) -> Result<Self> {
        let target = File::open(cgroup.path()).with_context(|| format!("{}", cgroup.path().display()))?;
        let attach = |(name, kind, attach): &(&'static str, u32, u32)| {
            let program = bpf::empty(*kind, *attach)?;
            let link = bpf::link(&program, &target, *attach)?;
            Ok((*name, program, link))
        };
        let programs = HOOKS.iter().map(attach).collect::<Result<_>>();
        Ok(Self { programs: programs.context("the empty programs cannot be attached")? })
    }

    /// As [`Floor::attach`], and on `sock_create` one that gives each socket a value of `map`: a socket's label has at least
    /// that price.
    pub(super) fn with_labels(cgroup: &Cgroup, map: &Map) -> Result<Self> {
        let mut floor = Self::attach(cgroup)?;
        let target = File::open(cgroup.path()).with_context(|| format!("{}", cgroup.path().display()))?;
        let program = bpf::storing(map).context("the program that labels sockets")?;
        let link = bpf::link(&program, &target, bpf::SOCK_CREATE)?;
        floor.programs.push(("sock_create", program, link));
        Ok(floor)
    }

    /// What the kernel counted for the program on a hook.
    pub(super) fn stats(&self, hook: &str) -> Result<Stats> {
        let found = self.programs.iter().find(|(name, _, _)| *name == hook);
        stats(&found.with_context(|| format!("there is no empty program on {hook}"))?.1)
    }
}
