//! The other floor: programs that do nothing on the hooks of Linux security modules and on the tracepoints that the agent uses.

use std::{fs, os::fd::OwnedFd};

use anyhow::{Context, Result, ensure};

use super::bpf;
use crate::harness::bpf::{Stats, stats};

/// `enum bpf_prog_type`: `TRACING`, `LSM`; `enum bpf_attach_type`: `BPF_TRACE_RAW_TP`, `BPF_LSM_MAC`.
const TRACING: (u32, u32) = (26, 23);
const LSM: (u32, u32) = (29, 27);
/// The tracepoints of both tiers.
const TRACEPOINTS: [&str; 4] = ["task_newtask", "sched_process_exec", "sched_process_exit", "cgroup_attach_task"];
/// The hooks of tier full that what is measured here comes by.
const HOOKS: [&str; 13] = [
    "task_alloc",
    "bprm_check_security",
    "bprm_creds_from_file",
    "file_open",
    "socket_create",
    "socket_post_create",
    "sock_graft",
    "socket_bind",
    "socket_connect",
    "socket_accept",
    "socket_sendmsg",
    "socket_recvmsg",
    "socket_setsockopt",
];
/// Kinds of `struct btf_type` (`include/uapi/linux/btf.h`, 6.18).
const TYPEDEF: u32 = 8;
const FUNCTION: u32 = 12;

/// Programs that do nothing; off when dropped.
#[derive(Debug)]
pub(super) struct Hooks {
    /// Name, program and link.
    programs: Vec<(&'static str, OwnedFd, OwnedFd)>,
}

impl Hooks {
    /// Attaches one to each tracepoint, and one to each LSM hook where the kernel runs such programs.
    pub(super) fn attach() -> Result<Self> {
        let types = fs::read("/sys/kernel/btf/vmlinux").context("/sys/kernel/btf/vmlinux")?;
        let mut programs = Vec::new();
        let mut attach = |name, (kind, attach), what, wanted: &str| {
            let target = number_of(&types, what, wanted)?;
            let (program, link) = bpf::empty_at(kind, attach, target).with_context(|| wanted.to_owned())?;
            programs.push((name, program, link));
            Ok::<_, anyhow::Error>(())
        };
        for name in TRACEPOINTS {
            attach(name, TRACING, TYPEDEF, &format!("btf_trace_{name}"))?;
        }
        // they load and never run where `bpf` is not among the active modules
        let active = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
        if active.split(',').any(|module| module.trim() == "bpf") {
            for name in HOOKS {
                // a host may refuse them all the same
                if let Err(error) = attach(name, LSM, FUNCTION, &format!("bpf_lsm_{name}")) {
                    eprintln!("bench: no empty LSM programs: {error:#}");
                    break;
                }
            }
        }
        Ok(Self { programs })
    }

    /// What the kernel counted for those that ran, by name.
    pub(super) fn counted(&self) -> Result<Vec<(&'static str, Stats)>> {
        let all = self.programs.iter().map(|(name, program, _)| Ok((*name, stats(program)?)));
        let all: Vec<_> = all.collect::<Result<_>>()?;
        Ok(all.into_iter().filter(|(_, counted)| counted.runs > 0).collect())
    }
}

/// The number of a type of that kind and name in the kernel's type information.
fn number_of(types: &[u8], kind: u32, name: &str) -> Result<u32> {
    let word = |at: usize| {
        let bytes = types.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_ne_bytes).context("the kernel's type information ends too early")
    };
    let place = |at: usize| word(at).map(|offset| offset as usize);
    ensure!(types.get(..2) == Some(&0xeb9f_u16.to_ne_bytes()), "this is no type information");
    // magic, version and flags; the header's length; where types begin and how long they are; the same of names
    let header = place(4)?;
    let (begin, end, names) = (header + place(8)?, header + place(8)? + place(12)?, header + place(16)?);
    let (mut at, mut number) = (begin, 1);
    while at < end {
        let (said, info) = (place(at)?, word(at + 4)?);
        let (found, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        let text = types.get(names + said..).unwrap_or_default();
        if found == kind && text.get(..=name.len()).is_some_and(|text| text == [name.as_bytes(), &[0]].concat()) {
            return Ok(number);
        }
        // what follows a type: by INT, ARRAY, STRUCT, UNION, ENUM, FUNC_PROTO, VAR, DATASEC, DECL_TAG, ENUM64
        let more = match found {
            1 | 14 | 17 => 4,
            3 => 12,
            4 | 5 | 15 | 19 => 12 * members,
            6 | 13 => 8 * members,
            _ => 0,
        };
        (at, number) = (at + 12 + more, number + 1);
    }
    anyhow::bail!("the kernel has no {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_found_by_kind_and_name() {
        let names = b"\0int\0one\0on\0";
        // an integer of one word more, a structure with a member, a function and a typedef of one name
        let types: [u32; 18] =
            [1, 1 << 24, 4, 32, 5, 4 << 24 | 1, 4, 0, 1, 0, 9, 12 << 24, 0, 9, 8 << 24, 1, 5, 12 << 24];
        let mut file: Vec<u8> = 0xeb9f_u16.to_ne_bytes().to_vec();
        file.extend([1, 0]);
        let length = u32::try_from(4 * types.len() + 4).expect("it is small");
        for word in [24, 0, length, length, u32::try_from(names.len()).expect("it is small")] {
            file.extend(word.to_ne_bytes());
        }
        types.iter().chain([&1]).for_each(|word| file.extend(word.to_ne_bytes()));
        file.extend(names);
        for (kind, name, number) in [(FUNCTION, "on", 3), (TYPEDEF, "on", 4), (FUNCTION, "one", 5), (4, "one", 2)] {
            assert_eq!(number_of(&file, kind, name).expect("it is there"), number, "{kind} {name}");
        }
        assert!(number_of(&file, FUNCTION, "o").is_err());
        assert!(number_of(&file[..40], FUNCTION, "on").is_err());
        assert!(number_of(b"\x7fELF", FUNCTION, "on").is_err());
    }
}
