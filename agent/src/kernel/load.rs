//! Loads the fixed set of programs and attaches it. That the LSM programs attached says nothing about whether they
//! decide: that is for the canary to prove, and what it proves is the tier.

use std::{
    collections::BTreeMap,
    fs,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::Path,
    time::Duration,
};

use aya::{
    Btf, Ebpf, EbpfLoader, Endianness, include_bytes_aligned,
    maps::MapType,
    programs::{Program, ProgramError, links::FdLink},
};
use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit, setrlimit},
};
use serde::{Deserialize, Serialize};
use tipstaff_common::{fingerprint::SECRETS, session::Settings};

use super::{
    CgroupRoot, KernelError, Pins,
    adopt::{self, Shape},
    attach::{OF_LABELS, attach_points},
    by_hand,
    maps::{self, Maps},
    offsets,
};

pub(super) static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tipstaff.bpf.o"));

/// Inode of the initial pid namespace (`PROC_PID_INIT_INO`, `include/linux/proc_ns.h`).
const INITIAL_PID_NAMESPACE: u64 = 0xefff_fffc;

/// How an exec out of scope is stopped on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// BPF LSM programs decide: the exec fails with `EPERM`.
    Full,
    /// They cannot be used: tracepoints decide, and the program is killed before its first instruction.
    NoLsm,
}

impl Tier {
    /// As evidence and output spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::NoLsm => "no-lsm",
        }
    }
}

/// What to load for.
#[derive(Debug)]
pub struct Options<'a> {
    /// The cgroup that sessions' cgroups stand in.
    pub root: &'a CgroupRoot,
    /// The cgroup that socket and packet programs are attached to: the same, or one above it.
    pub attach: &'a CgroupRoot,
    /// Deny, kill and drop only below this cgroup.
    pub confine: Option<&'a CgroupRoot>,
    /// Where links and maps are pinned; `None`: they go with the process.
    pub pins: Option<&'a Pins>,
}

/// The loaded programs and their maps.
pub struct Kernel {
    pub(super) ebpf: Ebpf,
    /// Links that are not pinned, by program.
    pub(super) links: Vec<(&'static str, FdLink)>,
    /// The clock's links that are not pinned, one a CPU.
    pub(super) clock: Vec<FdLink>,
    pub(super) clock_runs: bool,
    /// Number of this load.
    pub(super) generation: u32,
    /// The load that spoke before; 0: none.
    pub(super) previous: u32,
    /// The maps that the agent reads and writes.
    pub(super) maps: Maps,
    pub(super) tier: Tier,
    /// Why it is not tier full.
    pub(super) without_lsm: String,
    /// Hooks on privileges that this kernel does not have.
    pub(super) without_hooks: Vec<&'static str>,
    /// The iterator that lists sockets: `OF_LABELS` or `OF_FILES`.
    pub(super) lists_sockets: &'static str,
    /// Walks over all tasks.
    pub(super) walks: u64,
    /// What [`Kernel::waited`] tells.
    pub(super) waited: Duration,
    /// Its maps, for programs that aya does not load.
    pub(super) descriptors: BTreeMap<String, OwnedFd>,
    /// Links of such programs that are not pinned.
    pub(super) by_hand: Vec<OwnedFd>,
}

/// `CAP_SYS_ADMIN` (`include/uapi/linux/capability.h`, 6.18): without it no map is found by its id.
const SYS_ADMIN: u32 = 21;

fn has_sys_admin() -> Result<bool, KernelError> {
    let path = Path::new("/proc/self/status");
    let status = fs::read_to_string(path).map_err(KernelError::file("read", path))?;
    let effective = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    Ok(effective.is_some_and(|set| set & 1 << SYS_ADMIN != 0))
}

impl Kernel {
    /// Checks what the host must have, whatever the tier.
    pub fn check_host() -> Result<(), KernelError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(KernelError::NotRoot { uid: nix::unistd::geteuid().as_raw() });
        }
        // without it an agent starts where nothing is pinned, and could not read what the next one must know of sessions
        if !has_sys_admin()? {
            let reason = "the process lacks the capability SYS_ADMIN".to_owned();
            return Err(KernelError::NotPermitted { what: "maps within maps".into(), reason });
        }
        let namespace = Path::new("/proc/self/ns/pid");
        if fs::metadata(namespace).map_err(KernelError::file("look at", namespace))?.ino() != INITIAL_PID_NAMESPACE {
            return Err(KernelError::PidNamespace);
        }
        if OBJECT.is_empty() {
            return Err(KernelError::NoObject);
        }
        Ok(())
    }

    /// Loads and attaches, beside what an earlier agent left pinned, whose maps are taken over. Whatever was attached goes
    /// again when this fails. The programs decide from now on, and are silent until [`Kernel::speak`].
    pub fn load(options: &Options<'_>) -> Result<Self, KernelError> {
        let shapes = adopt::shapes()?;
        let mut previous = 0;
        if let Some(pins) = options.pins {
            adopt::check(pins, shapes)?;
            previous = adopt::speaking(pins)?;
            adopt::sweep(pins, previous)?;
        }
        let generation = previous.wrapping_add(1).max(1);
        let loaded = Self::load_as(options, shapes, (generation, previous));
        if let (Err(_), Some(pins)) = (&loaded, options.pins) {
            pins.remove_generation(generation)?;
        }
        loaded.map_err(|problem| too_old().unwrap_or(problem))
    }

    fn load_as(
        options: &Options<'_>,
        shapes: &[Shape],
        (generation, previous): (u32, u32),
    ) -> Result<Self, KernelError> {
        let settings = Settings {
            confine_cgroup: options.confine.map_or(0, |c| c.id),
            session_level: options.root.level + 1,
            agent: std::process::id(),
            generation,
            pad: 0,
            secrets: secrets()?,
            sessions_cgroup: if options.attach.id == options.root.id { 0 } else { options.root.id },
        };
        let root = by_hand::root();
        let (offsets, points) = offsets::resolve(&attach_points())?;
        let btf = Btf::parse(&points, Endianness::default());
        let btf = btf.map_err(|e| KernelError::refused("its own type information", &e))?;
        let mut loader = loader()?;
        loader.allow_unsupported_maps();
        loader
            .override_global("SETTINGS", &settings, true)
            .override_global("ROOT", &root, true)
            .override_global("OFFSETS", &offsets, true);
        if let Some(pins) = options.pins {
            pins.begin(generation)?;
            // what is pinned there is used, and was checked; what is not is made and pinned
            for shape in shapes {
                loader.map_pin_path(shape.name.as_str(), pins.map(&shape.name));
            }
        }
        let mut ebpf = loader.load(OBJECT).map_err(|e| KernelError::refused("the maps", &e))?;
        let descriptors = maps::descriptors(&ebpf)?;
        let maps = Maps::take(&mut ebpf)?;
        let mut kernel = Self {
            ebpf,
            links: Vec::new(),
            clock: Vec::new(),
            clock_runs: false,
            generation,
            previous,
            maps,
            tier: Tier::NoLsm,
            without_lsm: String::new(),
            without_hooks: Vec::new(),
            lists_sockets: OF_LABELS,
            walks: 0,
            waited: Duration::ZERO,
            descriptors,
            by_hand: Vec::new(),
        };
        kernel.attach_all(options, &btf)?;
        Ok(kernel)
    }

    /// How execs out of scope are stopped: tier full while the LSM programs are attached.
    #[must_use]
    pub const fn tier(&self) -> Tier {
        self.tier
    }

    /// Why LSM programs decide nothing here; empty in tier full.
    #[must_use]
    pub fn without_lsm(&self) -> &str {
        &self.without_lsm
    }

    /// Hooks on privileges that this kernel does not have, in tier full.
    #[must_use]
    pub fn without_hooks(&self) -> &[&'static str] {
        &self.without_hooks
    }

    pub(super) fn program_mut(&mut self, name: &str) -> Result<&mut Program, KernelError> {
        self.ebpf.program_mut(name).ok_or_else(|| KernelError::Missing {
            what: format!("program {name} in the kernel object"),
            hint: "; rebuild with `cargo xtask build`",
        })
    }

    pub(super) fn typed<'p, P>(&'p mut self, name: &str) -> Result<&'p mut P, KernelError>
    where
        &'p mut P: TryFrom<&'p mut Program, Error = ProgramError>,
    {
        let program = self.program_mut(name)?;
        program.try_into().map_err(|e: ProgramError| KernelError::refused(format!("program {name}"), &e))
    }
}

/// A loader that knows no type of the kernel: nothing in the object is relocated by them, what differs comes in by OFFSETS.
///
/// aya 0.14 reads all of them in `EbpfLoader::new`, whatever it is told afterwards: 45 ms and 20 MiB for nothing, a fifth of
/// a start (measured on 6.18). Where no file can be opened it goes on without, so none can for as long as that takes: nothing
/// else runs in this process yet.
fn loader() -> Result<EbpfLoader<'static>, KernelError> {
    let failed = |e: Errno| KernelError::refused("the limit of open files", &std::io::Error::from(e));
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard).map_err(failed)?;
    let mut loader = EbpfLoader::new();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).map_err(failed)?;
    loader.btf(None);
    Ok(loader)
}

/// What a kernel that is too old says it is too old for, in place of the first thing that it stumbled over. Asked for only
/// where a load failed: to make such a map and to give it back waits for every processor.
fn too_old() -> Option<KernelError> {
    // EPERM and the like say nothing about the feature
    let lacks = matches!(aya::sys::is_map_supported(MapType::TaskStorage), Ok(false));
    let what = "task-local storage (BPF_MAP_TYPE_TASK_STORAGE, since 5.11)".into();
    lacks.then_some(KernelError::Missing { what, hint: "" })
}

/// Numbers that nobody can guess.
fn secrets() -> Result<[u64; SECRETS], KernelError> {
    let mut bytes = [[0; 8]; SECRETS];
    let failed = |e: getrandom::Error| KernelError::refused("random bytes", &std::io::Error::other(e.to_string()));
    getrandom::fill(bytes.as_flattened_mut()).map_err(failed)?;
    Ok(bytes.map(u64::from_ne_bytes))
}
