//! What an agent has of its host: its pins, its cgroup, its log and its store, each locked against other agents, and taken
//! in an order in which one that must not start has touched nothing of another's.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use nix::{errno::Errno, fcntl::Flock};
use tracing::warn;

use crate::{
    api::server::Listeners,
    cli::{Exit, Failure},
    config::{Config, Paths},
    engine,
    evidence::{Body, Gap, GapCause, Log},
    kernel::{CgroupRoot, KernelError, Pins, lock_soon},
    made::Made,
    store::{self, Store, StoreError},
};

/// What the host has, locked against other agents.
pub struct Ground {
    pub mount: PathBuf,
    pub root: CgroupRoot,
    pub pins: Pins,
    pub log: Log,
    pub store: Store,
    made: Made,
    _claim: Flock<File>,
}

impl Ground {
    /// Takes all of it.
    ///
    /// # Errors
    /// Something is another agent's, or cannot be made. What was made on the way is gone again.
    pub fn take(config: &Config, mount: PathBuf) -> Result<Self, Failure> {
        let pins = Pins::open(&config.paths.pins).map_err(unable)?;
        Self::with(config, mount, None, pins)
    }

    /// As [`Ground::take`], and the sockets (of `groups`: who may ask, who may operate), for an agent that stays.
    ///
    /// # Errors
    /// As [`Ground::take`]; the pins are another version's; or the cgroup is not below `confine`.
    pub fn take_for_good(
        config: &Config,
        mount: PathBuf,
        confine: Option<&CgroupRoot>,
        groups: (u32, u32),
    ) -> Result<(Listeners, Self), Failure> {
        let pins = Pins::open(&config.paths.pins).map_err(unable)?;
        let listeners =
            pins.check().map_err(unable).and_then(|()| Ok(Listeners::bind(&config.paths.runtime, groups.0, groups.1)?));
        let listeners = match listeners {
            Ok(listeners) => listeners,
            Err(failure) => {
                pins.leave();
                return Err(failure);
            }
        };
        Ok((listeners, Self::with(config, mount, confine, pins)?))
    }

    /// What else there is to take once the pins are held.
    fn with(config: &Config, mount: PathBuf, confine: Option<&CgroupRoot>, pins: Pins) -> Result<Self, Failure> {
        let mut made = Made::default();
        let named = config.paths.cgroup().map_err(Failure::from);
        let cgroup = named.and_then(|path| claim(&path, &mount, confine, &mut made));
        match cgroup.and_then(|cgroup| Ok((cgroup, open(&config.paths, &mut made)?))) {
            Ok(((root, claim), (log, store))) => Ok(Self { mount, root, pins, log, store, made, _claim: claim }),
            Err(failure) => {
                made.take_away();
                pins.leave();
                Err(failure)
            }
        }
    }

    /// Gives it up where nothing came of it: what was made for it is gone again, what an earlier agent left stays.
    pub fn leave(self) {
        self.made.take_away();
        self.pins.leave();
    }
}

/// Makes and locks the cgroup.
fn claim(
    path: &Path,
    mount: &Path,
    confine: Option<&CgroupRoot>,
    made: &mut Made,
) -> Result<(CgroupRoot, Flock<File>), Failure> {
    let root = CgroupRoot::create(path, mount, made).map_err(unable)?;
    if let Some(above) = confine.filter(|confine| !confine.holds(&root.path)) {
        let remedy = "an agent's --cgroup must lie below its --confine";
        return Err(unable(KernelError::NotBelow { path: root.path, above: above.path.clone(), remedy }));
    }
    let directory = File::open(&root.path).map_err(|e| unable(KernelError::file("open", &root.path)(e)))?;
    match lock_soon(directory) {
        Ok(claim) => Ok((root, claim)),
        Err(Errno::EWOULDBLOCK) => Err(unable(KernelError::CgroupHeld { path: root.path })),
        Err(error) => Err(unable(KernelError::file("lock", &root.path)(error.into()))),
    }
}

/// The store before the log: it holds the lock of the state folder, in which the log's head is too.
fn open(paths: &Paths, made: &mut Made) -> Result<(Log, Store), Failure> {
    let state = made.directory(&paths.state, 0o700);
    state.map_err(|e| unable(KernelError::file("make", &paths.state)(e)))?;
    let boot = read_line("/proc/sys/kernel/random/boot_id")?;
    let new = !paths.state.join(store::FILE).exists();
    let (store, spoiled) = Store::open(&paths.state, boot.clone()).map_err(refused)?;
    let host = nix::unistd::gethostname().map(|h| h.to_string_lossy().into_owned()).unwrap_or_default();
    let opened = Log::open(&paths.evidence, &paths.evidence_head(), &host, &boot, engine::now());
    let (mut log, recovery) = opened.map_err(unexpected)?;
    for gap in recovery.gaps {
        warn!("the evidence has a gap: {}", gap.detail.as_deref().unwrap_or("see its record"));
        log.append(&Body::Gap(gap), engine::now()).map_err(unexpected)?;
    }
    // the first agent makes both
    let gone = (new && log.last() > 0).then(|| {
        let (store, log) = (store.path().display(), log.path().display());
        format!("{store} was not there, and {log} has records: what was kept of sessions is lost, and every stay")
    });
    if let Some(why) = spoiled.or(gone) {
        warn!("{why}");
        let gap = Gap { detail: Some(why), ..Gap::new(GapCause::AgentAbsent) };
        log.append_durable(&Body::Gap(gap), engine::now()).map_err(unexpected)?;
    }
    log.flush().map_err(unexpected)?;
    Ok((log, store))
}

/// Removes the directories that nothing uses any more.
pub fn clean_up(pins: Pins, root: &Path) {
    if let Err(problem) = pins.remove() {
        warn!("{problem}");
    }
    if let Err(error) = fs::remove_dir(root) {
        warn!("cannot remove cgroup {}: {error}", root.display());
    }
}

fn read_line(path: &str) -> Result<String, Failure> {
    let text = fs::read_to_string(path).map_err(|e| unable(KernelError::file("read", path)(e)))?;
    Ok(text.trim().to_owned())
}

/// What the kernel or the host refused; what was said to be where it is not is the caller's.
pub fn unable(error: KernelError) -> Failure {
    if matches!(error, KernelError::NotPermitted { .. }) {
        let remedy = "run the agent as root with the capabilities SYS_ADMIN, BPF, PERFMON and NET_ADMIN, on a kernel that \
                      is not locked down";
        return Failure::new(Exit::Unable, format!("{error}; {remedy}"));
    }
    let exit = match error {
        KernelError::NotBelow { .. } => Exit::Usage,
        _ if error.host_cannot() => Exit::Unable,
        _ => Exit::Failed,
    };
    Failure::new(exit, error)
}

/// A state that another version or another agent must deal with is this host's, not a failure.
fn refused(error: StoreError) -> Failure {
    let exit = if matches!(error, StoreError::Newer { .. }) { Exit::Unable } else { Exit::Failed };
    Failure::new(exit, error)
}

pub fn unexpected(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, error)
}
