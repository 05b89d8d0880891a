//! A session's cgroup: made for it, killed with it, removed after it. Membership is the label; the cgroup is where the
//! first member is put and what `cgroup.kill` reaches.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, Instant},
};

use tracing::warn;

/// How long the kernel may take to let go of a cgroup whose tasks have ended.
const PATIENCE: Duration = Duration::from_secs(5);
const GLANCE: Duration = Duration::from_millis(1);

/// Where the agent was started: where the hierarchy is mounted, and its cgroup there.
static HOME: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();

/// Remembers where the agent is, in the hierarchy mounted at `mount`.
pub fn remember_home(mount: &Path) -> io::Result<()> {
    let home = cgroup_of(std::process::id(), mount)?;
    // who is asked twice was right the first time
    let _ = HOME.set((mount.to_owned(), home));
    Ok(())
}

/// Moves the agent out of `cgroup` and what is below it, where somebody moved it in: a member that is root can, and what ends,
/// stops or starves who is in there would reach the agent too. An agent that was started there stays.
pub fn step_out(cgroup: &Path) -> io::Result<()> {
    let Some((mount, home)) = HOME.get().filter(|(_, home)| !home.starts_with(cgroup)) else { return Ok(()) };
    let own = std::process::id();
    // a path that cannot be read may be one that somebody made too long
    let is_inside = || cgroup_of(own, mount).map_or(true, |now| now.starts_with(cgroup));
    if !is_inside() {
        return Ok(());
    }
    let above = cgroup.ancestors().skip(1).take_while(|place| place.starts_with(mount));
    let mut refused = io::Error::from_raw_os_error(libc::ENOENT);
    for place in std::iter::once(home.as_path()).chain(above) {
        // a cgroup that hands controllers on takes no process
        match OpenOptions::new()
            .write(true)
            .open(place.join("cgroup.procs"))
            .and_then(|mut procs| write!(procs, "{own}"))
        {
            Ok(()) if !is_inside() => {
                warn!("the agent was moved to {}, and is out of it again, in {}", cgroup.display(), place.display());
                return Ok(());
            }
            Ok(()) => {}
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// The cgroup of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionCgroup {
    path: PathBuf,
    id: u64,
}

impl SessionCgroup {
    /// Makes the cgroup `name` in `root`.
    pub fn create(root: &Path, name: &str) -> io::Result<Self> {
        let path = root.join(name);
        fs::create_dir(&path)?;
        let id = fs::metadata(&path)?.ino();
        Ok(Self { path, id })
    }

    /// A cgroup that an earlier agent made.
    #[must_use]
    pub fn existing(path: PathBuf) -> Option<Self> {
        let id = fs::metadata(&path).ok()?.ino();
        Some(Self { path, id })
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Its id, and those of the cgroups that members made below it.
    #[must_use]
    pub fn ids(&self) -> Vec<u64> {
        let mut ids = vec![self.id];
        add_below(&self.path, &mut ids);
        ids
    }

    /// True where a process is in it or below it.
    #[must_use]
    pub fn is_populated(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.events")).is_ok_and(|text| text.contains("populated 1"))
    }

    /// Moves a whole process into it.
    pub fn take(&self, pid: u32) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
    }

    /// Kills everything in it and below it, with one write (Linux 5.14); the agent too, where it cannot step out.
    pub fn kill(&self) -> io::Result<()> {
        if let Err(problem) = step_out(&self.path) {
            warn!("the agent was moved to {} and cannot leave it: {problem}", self.path.display());
        }
        match fs::write(self.path.join("cgroup.kill"), "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Removes it, with what members made below it. True: it is gone. False: the kernel still counts a task in it that
    /// has ended; try again.
    pub fn remove(&self) -> io::Result<bool> {
        match remove_tree(&self.path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Removes it, and waits for the kernel a moment where it must.
    pub fn remove_patiently(&self) -> io::Result<()> {
        let start = Instant::now();
        while !self.remove()? {
            if start.elapsed() > PATIENCE {
                return Err(io::Error::from_raw_os_error(libc::EBUSY));
            }
            std::thread::sleep(GLANCE);
        }
        Ok(())
    }
}

fn add_below(path: &Path, ids: &mut Vec<u64>) {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    for entry in entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())) {
        ids.extend(entry.metadata().map(|m| m.ino()));
        add_below(&entry.path(), ids);
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Directory of the cgroup that a process is in, in the hierarchy mounted at `mount`.
pub fn cgroup_of(pid: u32, mount: &Path) -> io::Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let line = text.lines().find_map(|l| l.strip_prefix("0::"));
    let line = line.ok_or_else(|| io::Error::other(format!("/proc/{pid}/cgroup has no line for cgroup2")))?;
    Ok(mount.join(line.trim_start_matches('/')))
}

/// The processes in the cgroup `path` and below it. A cgroup that is gone has none.
#[must_use]
pub fn processes_below(path: &Path) -> Vec<u32> {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    // 0: a process of a pid namespace that this one does not see
    let mut found: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect();
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    for entry in entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())) {
        found.extend(processes_below(&entry.path()));
    }
    found
}
