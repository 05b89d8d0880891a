//! What each program of the fixed set is attached to: the tables of hooks, how each kind is attached and kept, and how
//! the LSM programs are taken off again where they do not decide.

use std::{
    collections::BTreeMap,
    error::Error,
    fs::{self, File},
    os::fd::AsFd as _,
};

use aya::{
    Btf,
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSock, CgroupSockAddr, Iter, Lsm,
        PerfEvent, ProgramError, links::FdLink,
    },
};
use aya_obj::btf::{BtfError, BtfKind};
use tracing::{debug, info};

use super::{CgroupRoot, Kernel, KernelError, Options, Pins, Tier, by_hand, programs, sys};

/// LSM programs: hook, which is the program's name too.
const LSM: [&str; 2] = ["task_alloc", "bprm_check_security"];
/// Tracepoint programs: program, tracepoint.
const TRACEPOINTS: [(&str, &str); 6] = [
    ("newtask", "task_newtask"),
    ("newtask_again", "task_newtask"),
    ("exec", "sched_process_exec"),
    ("exec_again", "sched_process_exec"),
    ("cgroup_attach", "cgroup_attach_task"),
    ("exit", "sched_process_exit"),
];
/// LSM programs on sockets, hook and program; attached after those above, and taken off with them.
const LSM_SOCKETS: [&str; 15] = [
    "socket_create",
    "socket_post_create",
    "sock_graft",
    "socket_connect",
    "socket_bind",
    "socket_listen",
    "socket_accept",
    "socket_sendmsg",
    "socket_recvmsg",
    "socket_shutdown",
    "socket_setsockopt",
    "sctp_bind_connect",
    "file_receive",
    "unix_stream_connect",
    "unix_may_send",
];
/// LSM programs on what a member does beyond its session, as above. What this kernel has no hook for is left out, and named
/// with the control.
const LSM_PRIVILEGES: [&str; 40] = [
    "bprm_creds_from_file",
    "ptrace_access_check",
    "task_kill",
    "bpf",
    "kernel_read_file",
    "kernel_load_data",
    "sb_mount",
    "sb_umount",
    "sb_remount",
    "sb_pivotroot",
    "move_mount",
    "path_chroot",
    "userns_create",
    "key_alloc",
    "key_permission",
    "perf_event_open",
    "inode_init_security_anon",
    "task_setrlimit",
    "task_setscheduler",
    "task_setnice",
    "task_setioprio",
    "file_fcntl",
    "file_ioctl",
    "file_ioctl_compat",
    "locked_down",
    "file_open",
    "inode_unlink",
    "inode_rmdir",
    "inode_create",
    "inode_mkdir",
    "inode_mknod",
    "inode_symlink",
    "inode_link",
    "inode_rename",
    "inode_setattr",
    "inode_file_setattr",
    "inode_setxattr",
    "inode_set_acl",
    "inode_removexattr",
    "inode_remove_acl",
];
/// Those that are not missed where the kernel has none: before 6.8, unless it was ported back, `file_ioctl` is asked in place of
/// the first; before 6.17 there is no call that asks the second; before 6.2 `inode_setxattr` and `inode_removexattr` are asked in
/// place of the others.
const LSM_OF_LATER: [&str; 4] = ["file_ioctl_compat", "inode_file_setattr", "inode_set_acl", "inode_remove_acl"];
const ADDRESSES: [&str; 6] = ["connect4", "connect6", "sendmsg4", "sendmsg6", "bind4", "bind6"];
const PACKETS: [(&str, CgroupSkbAttachType); 2] =
    [("egress", CgroupSkbAttachType::Egress), ("ingress", CgroupSkbAttachType::Ingress)];
/// Programs on the names of unix sockets: program, `enum bpf_attach_type` (`BPF_CGROUP_UNIX_CONNECT` and `…_SENDMSG`,
/// since 6.7).
const UNIX_NAMES: [(&str, u32); 2] = [("connect_unix", 49), ("sendmsg_unix", 50)];
/// Iterators: program, kind.
const ITERATORS: [(&str, &str); 3] = [("members", "task"), ("heirs", "task"), ("files", TASK_FILES)];
/// Kinds of iterators over sockets' labels, and over the files of all tasks.
const LABELS: &str = "bpf_sk_storage_map";
const TASK_FILES: &str = "task_file";
/// The iterator over the labels of sockets.
pub(super) const OF_LABELS: &str = "sockets";
/// The kernel's function that empties the label of a socket that goes, since 7.0: its iterator over labels follows the
/// emptied pointer where it holds that very label, and oopses, in the name of the agent (`kernel/bpf/bpf_local_storage.c`;
/// `__bpf_sk_storage_map_seq_show`, `net/core/bpf_sk_storage.c`; 7.2.13 does within seconds on two processors).
const EMPTIES_LABELS: &str = "bpf_selem_unlink_nofail";
/// What takes its place where the kernel refuses iterators over a map's values (measured on a 6.18 that does), or is not safe
/// with it.
const OF_FILES: &str = "sockets_held";

impl Kernel {
    /// Takes the LSM programs off again, which for this reason do not decide, and attaches what decides in their place as
    /// far as this kernel has hooks for it.
    pub fn leave_lsm(&mut self, why: String, options: &Options<'_>) -> Result<(), KernelError> {
        let pins = options.pins;
        info!("no LSM programs here: {why}");
        self.without_lsm = why;
        self.links.retain(|(name, _)| !of_lsm().any(|lsm| lsm == *name));
        let paths = of_lsm().filter_map(|name| Some(pins?.link(self.generation, name)));
        for path in paths.filter(|path| path.exists()) {
            fs::remove_file(&path).map_err(KernelError::file("remove", &path))?;
        }
        self.tier = Tier::NoLsm;
        if let Err(problem) = self.attach_unix(options.attach, pins) {
            info!("no programs on the names of unix sockets here: {problem}");
        }
        Ok(())
    }

    fn attach_unix(&mut self, place: &CgroupRoot, pins: Option<&Pins>) -> Result<(), KernelError> {
        let cgroup = File::open(&place.path).map_err(KernelError::file("open cgroup", &place.path))?;
        for (name, link) in by_hand::attach(&UNIX_NAMES, &self.descriptors, &cgroup)? {
            match pins {
                None => self.by_hand.push(link),
                Some(pins) => {
                    let place = pins.link(self.generation, name);
                    sys::pin(link.as_fd(), &place).map_err(KernelError::file("pin", &place))?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn attach_all(&mut self, options: &Options<'_>, btf: &Btf) -> Result<(), KernelError> {
        for (name, kind) in ITERATORS {
            self.load_iterator(name, kind, btf)?;
        }
        let of_labels = match btf.id_by_type_name_kind(EMPTIES_LABELS, BtfKind::Func) {
            Ok(_) => Err(KernelError::WalkOverSockets),
            Err(_) => self.load_iterator(OF_LABELS, LABELS, btf),
        };
        if let Err(problem) = of_labels {
            info!("sockets are found by who holds them open: {problem}");
            self.load_iterator(OF_FILES, TASK_FILES, btf)?;
            self.lists_sockets = OF_FILES;
        }
        let program: &mut PerfEvent = self.typed("clock")?;
        program.load().map_err(|e| KernelError::refused("program clock", &e))?;
        if options.pins.is_some() {
            // for the next agent, which asks these programs who is still labelled
            let link = attach_iterator(self.typed("members")?);
            self.keep(options, "members", link)?;
        }
        let attached = match active_modules() {
            Some(modules) if !modules.split(',').any(|module| module == "bpf") => {
                Err(KernelError::LsmNotActive { modules })
            }
            _ => self.attach_lsm_programs(options, btf),
        };
        if let Err(problem) = attached {
            self.leave_lsm(problem.to_string(), options)?;
        }
        for (name, tracepoint) in TRACEPOINTS {
            let link = attach_tracepoint(self.typed(name)?, tracepoint, btf);
            self.keep(options, name, link)?;
        }
        let directory = &options.attach.path;
        let cgroup = File::open(directory).map_err(KernelError::file("open cgroup", directory))?;
        for name in ADDRESSES {
            let link = attach_address(self.typed(name)?, &cgroup);
            self.keep(options, name, link)?;
        }
        let link = attach_creation(self.typed("sock_create")?, &cgroup);
        self.keep(options, "sock_create", link)?;
        for (name, kind) in PACKETS {
            let link = attach_packet(self.typed(name)?, kind, &cgroup);
            self.keep(options, name, link)?;
        }
        Ok(())
    }

    fn load_iterator(&mut self, name: &str, kind: &str, btf: &Btf) -> Result<(), KernelError> {
        let program: &mut Iter = self.typed(name)?;
        program.load(kind, btf).map_err(|e| KernelError::refused(format!("iterator {name}"), &e))
    }

    fn attach_lsm_programs(&mut self, options: &Options<'_>, btf: &Btf) -> Result<(), KernelError> {
        for name in LSM.into_iter().chain(LSM_SOCKETS) {
            let link = attach_lsm(self.typed(name)?, name, btf);
            self.keep(options, name, link)?;
        }
        for name in LSM_PRIVILEGES {
            match attach_lsm(self.typed(name)?, name, btf) {
                Err(problem) if is_no_hook(problem.as_ref()) => {
                    if !LSM_OF_LATER.contains(&name) {
                        self.without_hooks.push(name);
                    }
                }
                link => self.keep(options, name, link)?,
            }
        }
        self.tier = Tier::Full;
        Ok(())
    }

    /// Pins the link, or keeps it with the process.
    fn keep(
        &mut self,
        options: &Options<'_>,
        name: &'static str,
        link: Result<FdLink, Box<dyn Error>>,
    ) -> Result<(), KernelError> {
        let link = link.map_err(|e| KernelError::refused(format!("program {name}"), e.as_ref()))?;
        let verified = self.program_mut(name)?.info().ok().and_then(|info| info.verified_instruction_count());
        debug!("program {name}: the verifier followed {} instructions", verified.unwrap_or(0));
        match options.pins {
            None => self.links.push((name, link)),
            Some(pins) => {
                let pinned = link.pin(pins.link(self.generation, name));
                pinned.map_err(|e| KernelError::refused(format!("the pin of link {name}"), &e))?;
            }
        }
        Ok(())
    }

    /// Runs of the tracepoint programs of this load that the kernel skipped, by program. Programs that come in twos see
    /// what the other one missed.
    pub fn skipped(&self) -> Result<BTreeMap<&'static str, u64>, KernelError> {
        let count = |name: &'static str| {
            let refused =
                |error: &(dyn Error + 'static)| KernelError::refused(format!("the count of program {name}"), error);
            let program: &BtfTracePoint = self.ebpf.program(name).and_then(|p| p.try_into().ok())?;
            let fd = program.fd().map_err(|e| refused(&e));
            Some(fd.and_then(|fd| programs::skipped_runs(fd.as_fd()).map_err(|e| refused(&e))).map(|runs| (name, runs)))
        };
        TRACEPOINTS.iter().filter_map(|(name, _)| count(name)).collect()
    }
}

/// Every LSM program.
fn of_lsm() -> impl Iterator<Item = &'static str> {
    LSM.into_iter().chain(LSM_SOCKETS).chain(LSM_PRIVILEGES)
}

/// The kernel's names for what programs are attached to, and the function whose presence is asked for: the only types that
/// aya is asked for. To read all of them, an allocation for most, is dear.
pub(super) fn attach_points() -> Vec<String> {
    let hooks = of_lsm().map(|hook| format!("bpf_lsm_{hook}"));
    let tracepoints = TRACEPOINTS.iter().map(|(_, tracepoint)| format!("btf_trace_{tracepoint}"));
    let kinds = ITERATORS.iter().map(|(_, kind)| *kind).chain([LABELS, TASK_FILES]);
    hooks
        .chain(tracepoints)
        .chain(kinds.map(|kind| format!("bpf_iter_{kind}")))
        .chain([EMPTIES_LABELS.into()])
        .collect()
}

/// The kernel's list of the security modules that are active, separated by commas; none where it cannot be read. Programs of
/// a module that is not in it attach and never run, so they need not be loaded; of one that is in it only the canary can
/// tell.
fn active_modules() -> Option<String> {
    let list = fs::read_to_string("/sys/kernel/security/lsm").ok()?;
    Some(list.trim().to_owned()).filter(|list| !list.is_empty())
}

fn attach_iterator(program: &mut Iter) -> Result<FdLink, Box<dyn Error>> {
    let id = program.attach()?;
    Ok(program.take_link(id)?.try_into()?)
}

fn attach_lsm(program: &mut Lsm, hook: &str, btf: &Btf) -> Result<FdLink, Box<dyn Error>> {
    program.load(hook, btf)?;
    let id = program.attach()?;
    Ok(program.take_link(id)?.into())
}

/// Whether a program was not loaded because the kernel does not have what it is for.
fn is_no_hook(problem: &(dyn Error + 'static)) -> bool {
    matches!(problem.downcast_ref(), Some(ProgramError::Btf(BtfError::UnknownBtfTypeName { .. })))
}

fn attach_tracepoint(program: &mut BtfTracePoint, tracepoint: &str, btf: &Btf) -> Result<FdLink, Box<dyn Error>> {
    program.load(tracepoint, btf)?;
    let id = program.attach()?;
    Ok(program.take_link(id)?.into())
}

fn attach_address(program: &mut CgroupSockAddr, cgroup: &File) -> Result<FdLink, Box<dyn Error>> {
    program.load()?;
    let id = program.attach(cgroup, CgroupAttachMode::Single)?;
    Ok(program.take_link(id)?.try_into()?)
}

fn attach_creation(program: &mut CgroupSock, cgroup: &File) -> Result<FdLink, Box<dyn Error>> {
    program.load()?;
    let id = program.attach(cgroup, CgroupAttachMode::Single)?;
    Ok(program.take_link(id)?.try_into()?)
}

fn attach_packet(program: &mut CgroupSkb, kind: CgroupSkbAttachType, cgroup: &File) -> Result<FdLink, Box<dyn Error>> {
    program.load()?;
    let id = program.attach(cgroup, kind, CgroupAttachMode::Single)?;
    Ok(program.take_link(id)?.try_into()?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use aya_obj::{Object, ProgramSection};

    use super::{attach_points, of_lsm};
    use crate::kernel::load::OBJECT;

    /// What no table names is never attached, and what is not asked for counts as a hook that the kernel does not have.
    #[test]
    fn every_lsm_program_of_the_object_is_in_a_table_and_its_hook_is_asked_for() {
        if OBJECT.is_empty() {
            return;
        }
        let object = Object::parse(OBJECT).unwrap();
        let is_lsm = |section: &ProgramSection| matches!(section, ProgramSection::Lsm { .. });
        let programs = object.programs.iter().filter(|(_, program)| is_lsm(&program.section));
        let of_object: BTreeSet<&str> = programs.map(|(name, _)| name.as_str()).collect();
        assert_eq!(of_object, of_lsm().collect());
        let points = attach_points();
        let missing = of_lsm().find(|hook| !points.contains(&format!("bpf_lsm_{hook}")));
        assert_eq!(missing, None);
    }
}
