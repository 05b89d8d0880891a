//! Whom an `attach` is about: a process with all that descends from it, or what runs in a cgroup; and who can never
//! become a session's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::cgroup_of;

/// `PF_KTHREAD` in the flags of `/proc/PID/stat` (`include/linux/sched.h`).
const KERNEL_THREAD: u64 = 0x0020_0000;

/// What is to become a session's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A process, with all that descends from it.
    Process(u32),
    /// What runs in a cgroup and below it, with all that descends from it.
    Cgroup(PathBuf),
}

/// A process, as `/proc/PID/stat` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// The process that made it, or took it in since.
    pub parent: u32,
    /// When it started, in clock ticks since boot.
    pub started: u64,
    /// It is a thread of the kernel.
    pub of_kernel: bool,
}

/// What has to be known of the host to say who can become a session's.
#[derive(Debug)]
pub struct Host<'a> {
    /// Where cgroup2 is mounted.
    pub mount: &'a Path,
    /// The cgroup that sessions' cgroups stand in.
    pub sessions: &'a Path,
    /// The cgroup that the agent runs in.
    pub agent_cgroup: PathBuf,
    /// The agent.
    pub agent: u32,
    /// The caller.
    pub caller: u32,
    /// The caller named what it means twice.
    pub twice: bool,
    /// Every process.
    pub processes: BTreeMap<u32, Process>,
}

/// Why something cannot become a session's: the message, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such process or cgroup.
    Absent(String),
    /// It never can.
    Never(String, String),
}

impl Host<'_> {
    /// Every process that `/proc` lists.
    #[must_use]
    pub fn read() -> BTreeMap<u32, Process> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter_map(|pid| Some((pid, parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))).collect()
    }

    /// `roots` with all that descends from them.
    fn below(&self, roots: &[u32]) -> BTreeSet<u32> {
        let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (pid, process) in &self.processes {
            children.entry(process.parent).or_default().push(*pid);
        }
        let (mut found, mut open) = (BTreeSet::new(), roots.to_vec());
        while let Some(pid) = open.pop() {
            if found.insert(pid) {
                open.extend(children.get(&pid).into_iter().flatten());
            }
        }
        found
    }

    /// The caller and who it descends from, up to the host's first process.
    fn login(&self) -> Vec<u32> {
        let up = |pid: &u32| self.processes.get(pid).map(|p| p.parent).filter(|parent| *parent > 1);
        std::iter::successors(Some(self.caller), up).take(self.processes.len() + 1).collect()
    }
}

/// From `pid (name) state ppid …`; the name may hold anything.
fn parse(stat: &str) -> Option<Process> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Process {
        parent: u32::try_from(number(1)?).ok()?,
        started: number(19)?,
        of_kernel: number(6)? & KERNEL_THREAD != 0,
    })
}

/// The processes that `target` means, as they are now.
///
/// # Errors
/// Why they cannot become a session's. Who is in a session already is not looked at here.
pub fn whom(host: &Host<'_>, target: &Target, listed: impl Fn(&Path) -> Vec<u32>) -> Result<BTreeSet<u32>, Refusal> {
    let never = |message: String, remedy: &str| Refusal::Never(message, remedy.to_owned());
    let roots = match target {
        Target::Process(pid) => {
            check_process(host, *pid)?;
            vec![*pid]
        }
        Target::Cgroup(path) => {
            check_cgroup(host, path)?;
            let inside = listed(path);
            if inside.is_empty() {
                return Err(never(format!("no process is in cgroup {}", path.display()), "start it first"));
            }
            inside
        }
    };
    let found = host.below(&roots);
    if found.contains(&host.agent) {
        let message = format!("the agent itself (process {}) is in it", host.agent);
        return Err(never(message, "name a process or cgroup that the agent does not descend from"));
    }
    if found.contains(&1) {
        return Err(never("process 1 is in it, which the host stands on".into(), "name the workload's own processes"));
    }
    let kernel = |pid: &&u32| host.processes.get(pid).is_some_and(|p| p.of_kernel);
    if let Some(thread) = found.iter().find(kernel) {
        return Err(never(format!("process {thread} is a kernel thread"), "name a process that runs a program"));
    }
    let own = host.login().into_iter().find(|pid| found.contains(pid));
    if let (Some(own), false) = (own, host.twice) {
        let message = format!("process {own}, which this command descends from, is in it: this is your own login");
        return Err(never(message, "where that is meant, name it twice"));
    }
    Ok(found)
}

fn check_process(host: &Host<'_>, pid: u32) -> Result<(), Refusal> {
    let never = |message: String, remedy: &str| Err(Refusal::Never(message, remedy.to_owned()));
    if pid == 1 {
        return never("process 1 is what the host stands on".into(), "name the workload's own process");
    }
    if pid == host.agent {
        return never(format!("process {pid} is the agent itself"), "name the workload's own process");
    }
    match host.processes.get(&pid) {
        None => match thread_of(pid) {
            Some(process) => {
                never(format!("{pid} is a thread of process {process}"), "name the process: all its threads go with it")
            }
            None => Err(Refusal::Absent(format!("there is no process {pid}"))),
        },
        Some(process) if process.of_kernel => {
            never(format!("process {pid} is a kernel thread"), "name a process that runs a program")
        }
        Some(_) => Ok(()),
    }
}

/// The process that a thread belongs to, which `/proc` does not list.
fn thread_of(tid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok().filter(|tgid| *tgid != tid)
}

fn check_cgroup(host: &Host<'_>, path: &Path) -> Result<(), Refusal> {
    let never = |message: String, remedy: &str| Err(Refusal::Never(message, remedy.to_owned()));
    let name = path.display();
    if path == host.mount {
        return never("the root cgroup holds the whole host".into(), "name the workload's own cgroup");
    }
    if host.sessions.starts_with(path) {
        return never(format!("cgroup {name} holds Tipstaff's own"), "name the workload's own cgroup");
    }
    if host.agent_cgroup.starts_with(path) {
        return never(format!("cgroup {name} holds the agent"), "name the workload's own cgroup");
    }
    if path.starts_with(host.sessions) {
        return never(format!("cgroup {name} is a session's"), "end that session first");
    }
    Ok(())
}

/// The directory of the cgroup that a caller names: a path where cgroup2 is mounted, or one as `/proc/PID/cgroup` has it.
///
/// # Errors
/// It is not there.
pub fn cgroup_named(name: &str, mount: &Path) -> Result<PathBuf, Refusal> {
    let given = Path::new(name);
    let below = given.strip_prefix("/").unwrap_or(given);
    let path = if given.starts_with(mount) { given.to_owned() } else { mount.join(below) };
    let real = path.canonicalize().ok().filter(|real| real.starts_with(mount) && real.join("cgroup.procs").exists());
    real.ok_or_else(|| Refusal::Absent(format!("there is no cgroup {name} below {}", mount.display())))
}

/// The cgroups of `processes` that do not lie in `confine`, with a process of each.
#[must_use]
pub fn outside(processes: &BTreeSet<u32>, mount: &Path, inside: impl Fn(&Path) -> bool) -> Option<(u32, PathBuf)> {
    let places = processes.iter().filter_map(|pid| Some((*pid, cgroup_of(*pid, mount).ok()?)));
    places.into_iter().find(|(_, cgroup)| !inside(cgroup))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 ─ 10 (login) ─ 11 (caller); 1 ─ 20 (agent); 1 ─ 30 ─ 31; 2 (kthreadd) ─ 40.
    fn host<'a>() -> Host<'a> {
        let process = |parent, of_kernel| Process { parent, started: 0, of_kernel };
        let list = [(1, 0), (2, 0), (10, 1), (11, 10), (20, 1), (30, 1), (31, 30), (40, 2)];
        Host {
            mount: Path::new("/cg"),
            sessions: Path::new("/cg/tipstaff"),
            agent_cgroup: "/cg/system/agent".into(),
            agent: 20,
            caller: 11,
            twice: false,
            processes: list.map(|(pid, parent)| (pid, process(parent, pid == 2 || pid == 40))).into(),
        }
    }

    fn refused(host: &Host<'_>, target: Target) -> String {
        match whom(host, &target, |_| vec![30]).unwrap_err() {
            Refusal::Absent(message) | Refusal::Never(message, _) => message,
        }
    }

    #[test]
    fn a_process_goes_with_what_descends_from_it() {
        assert_eq!(whom(&host(), &Target::Process(30), |_| vec![]).unwrap(), [30, 31].into());
        assert_eq!(whom(&host(), &Target::Cgroup("/cg/work".into()), |_| vec![31]).unwrap(), [31].into());
    }

    #[test]
    fn who_can_never_become_a_sessions() {
        for (pid, why) in [
            (1, "process 1 is what the host stands on"),
            (2, "process 2 is a kernel thread"),
            (40, "process 40 is a kernel thread"),
            (20, "process 20 is the agent itself"),
            (4_000_000_000, "there is no process 4000000000"),
            (10, "this is your own login"),
            (11, "this is your own login"),
        ] {
            assert!(refused(&host(), Target::Process(pid)).contains(why), "{pid}");
        }
        for (path, why) in [
            ("/cg", "the root cgroup holds the whole host"),
            ("/cg/tipstaff", "holds Tipstaff's own"),
            ("/cg/tipstaff/1234", "is a session's"),
            ("/cg/system", "holds the agent"),
            ("/cg/system/agent", "holds the agent"),
        ] {
            assert!(refused(&host(), Target::Cgroup(path.into())).contains(why), "{path}");
        }
    }

    #[test]
    fn the_agent_and_the_first_process_are_refused_wherever_they_are() {
        for inside in [20, 1, 2] {
            let listed = whom(&host(), &Target::Cgroup("/cg/work".into()), |_| vec![30, inside]);
            assert!(matches!(listed, Err(Refusal::Never(..))), "{inside}");
        }
        let nobody = whom(&host(), &Target::Cgroup("/cg/work".into()), |_| vec![]);
        assert!(matches!(nobody, Err(Refusal::Never(message, _)) if message.starts_with("no process is in")));
    }

    #[test]
    fn a_login_is_taken_where_it_is_named_twice() {
        let host = Host { twice: true, ..host() };
        assert_eq!(whom(&host, &Target::Process(10), |_| vec![]).unwrap(), [10, 11].into());
        assert!(whom(&host, &Target::Process(1), |_| vec![]).is_err());
    }

    #[test]
    fn a_name_may_hold_anything() {
        let stat = "7 (a) b) R 3 7 7 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 4711 0";
        assert_eq!(parse(stat), Some(Process { parent: 3, started: 4711, of_kernel: false }));
        assert!(parse("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 3 0").unwrap().of_kernel);
        assert_eq!(parse(""), None);
    }
}
