//! The small programs of attempts that no other test needs: what is done to processes, to the kernel and to files. Each
//! ends with `ok` or an errno, and brings about as little as shows that it was let go.

use std::{
    fs::{self, File, OpenOptions},
    io::{Error, Write as _},
    mem::zeroed,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sched::CloneFlags,
    sys::{
        prctl::set_child_subreaper,
        signal::{Signal, killpg},
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, pipe, setsid, write},
};

use super::{gifts, send, unix};
use crate::{
    harness::{bpf::pidfd, mounts},
    work,
};

/// `act NAME …`
pub(crate) fn act(words: &[&str]) -> Result<u8> {
    let (name, rest) = words.split_first().context("act what?")?;
    let done = match *name {
        "lead" => {
            nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
            return Ok(work::run(rest));
        }
        "orphan" => return orphan(rest),
        "leaderless" => return leaderless(rest),
        "enter" => return enter(rest),
        "another-user" => return another_user(rest),
        "file" => return file(rest),
        "ask" => return unix::ask(rest),
        "use-passed" => return gifts::use_passed(rest),
        "map" => map(rest)?,
        "signal-group" => killpg(pid(rest)?, Signal::SIGURG),
        "signal-by-pidfd" => by_pidfd(rest, |fd| {
            // SAFETY: null stands for no further information.
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGURG, 0, 0) }
        })?,
        // SAFETY: integers only; the descriptor ends with the process.
        "take-descriptor" => by_pidfd(rest, |fd| unsafe { libc::syscall(libc::SYS_pidfd_getfd, fd, 0, 0) })?,
        "limit" => limit(rest)?,
        "owner" => owner(rest)?,
        "schedule" => schedule(rest)?,
        "nice" => nice(rest)?,
        "nice-disk" => nice_on_disk(rest)?,
        "write" => write_to(rest)?,
        "join" => join(rest)?,
        "freeze-none" => io(OpenOptions::new().write(true).open(own_cgroup()?.join("cgroup.freeze")).map(drop)),
        "open-for-writing" => io(OpenOptions::new().append(true).open(argument(rest)?).map(drop)),
        "make-beside" => make_beside(argument(rest)?),
        "flags" => flags(argument(rest)?),
        "memory" => {
            io(OpenOptions::new().read(true).write(true).open(format!("/proc/{}/mem", argument(rest)?)).map(drop))
        }
        "mount-apart" => mount_apart(),
        "tree-apart" => tree_apart(),
        "mount-attributes" => mount_attributes(),
        // SAFETY: integers only; it holds for this process.
        "ports" => answer(unsafe { libc::iopl(3) }.into()),
        "unload" => unload(),
        "faults-device" => faults_device(),
        "type-ahead" => type_ahead(rest)?,
        "clock" => clock(),
        "pin" => pin(argument(rest)?)?,
        _ => return send::act(name, rest),
    };
    Ok(work::say(done))
}

pub(super) fn argument<'a>(words: &[&'a str]) -> Result<&'a str> {
    words.first().copied().context("an argument is missing")
}

pub(super) fn answer(value: libc::c_long) -> Result<(), Errno> {
    Errno::result(value).map(drop)
}

pub(super) fn io<T>(done: std::io::Result<T>) -> Result<T, Errno> {
    done.map_err(|error: Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
}

/// A process by its number, or `self`.
fn process(word: &str) -> Result<i32> {
    if word == "self" { Ok(std::process::id().cast_signed()) } else { Ok(word.parse()?) }
}

fn pid(words: &[&str]) -> Result<Pid> {
    process(argument(words)?).map(Pid::from_raw)
}

/// Waits for a child that goes on with the attempt.
fn told(child: Pid) -> Result<u8> {
    match waitpid(child, None)? {
        WaitStatus::Exited(_, status) => Ok(u8::try_from(status)?),
        other => bail!("the child came out as {other:?}"),
    }
}

/// `orphan REST`: a grandchild whose parent is gone, in a session and a process group of its own, does the rest.
fn orphan(rest: &[&str]) -> Result<u8> {
    // whoever is left without a parent becomes this process's, which waits for it
    set_child_subreaper(true)?;
    let child = work::in_child(|| match setsid() {
        Ok(_) => u8::from(work::in_child(|| work::run(rest)).is_err()),
        Err(_) => 1,
    })?;
    told(child)?;
    told(Pid::from_raw(-1))
}

/// `leaderless REST`: another thread does the rest when the first thread of the process is gone.
fn leaderless(rest: &[&str]) -> Result<u8> {
    let child = work::in_child(|| {
        let words: Vec<String> = rest.iter().map(|word| (*word).to_owned()).collect();
        let own = std::process::id();
        std::thread::spawn(move || {
            let zombie = || fs::read_to_string(format!("/proc/{own}/stat")).is_ok_and(|stat| stat.contains(") Z "));
            while !zombie() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let status = work::run(&words.iter().map(String::as_str).collect::<Vec<_>>());
            // SAFETY: ends the process and runs none of its exit handlers.
            unsafe { libc::_exit(status.into()) }
        });
        // SAFETY: ends this thread alone; nothing that it has is used by the other.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
        1
    })?;
    told(child)
}

/// `enter PID net|uts|ipc|mnt|cgroup REST`: a child in that namespace of the process does the rest.
fn enter(words: &[&str]) -> Result<u8> {
    let [process, kind, rest @ ..] = words else { bail!("enter takes a process, a namespace and the rest") };
    let path = format!("/proc/{process}/ns/{kind}");
    let namespace = match io(File::open(&path)) {
        Ok(namespace) => namespace,
        Err(errno) => return Ok(work::say(Err(errno))),
    };
    if let Err(errno) = nix::sched::setns(namespace, CloneFlags::empty()) {
        return Ok(work::say(Err(errno)));
    }
    told(work::in_child(|| work::run(rest))?)
}

/// `another-user UID REST`: becomes that user and does the rest.
fn another_user(words: &[&str]) -> Result<u8> {
    let (user, rest) = words.split_first().context("another-user takes a number")?;
    match nix::unistd::setuid(user.parse::<u32>()?.into()) {
        Ok(()) => Ok(work::run(rest)),
        Err(errno) => Ok(work::say(Err(errno))),
    }
}

/// `file HOW PROGRAM PATH REST`: makes the program run from PATH as well, by `symlink`, `link`, `copy`, `move` of a copy
/// over what is there, or `overwrite`, also through a mapping (`overwrite-mapped`); or names it another way: `root` (by /proc/self/root), `folder` (relative to a
/// descriptor of its folder), `place` (by a descriptor that is a place only). Then spawns it with the rest.
fn file(words: &[&str]) -> Result<u8> {
    let [how, program, path, rest @ ..] = words else { bail!("file takes a way, a program, a path and the rest") };
    let made = match *how {
        "symlink" => std::os::unix::fs::symlink(program, path).map(|()| (*path).to_owned()),
        "link" => fs::hard_link(program, path).map(|()| (*path).to_owned()),
        "copy" => fs::copy(program, path).map(|_| (*path).to_owned()),
        "move" => {
            let copy = format!("{path}.copy");
            fs::copy(program, &copy).and_then(|_| fs::rename(&copy, path)).map(|()| (*path).to_owned())
        }
        "overwrite-mapped" => overwrite_mapped(program, path).map(|()| (*path).to_owned()),
        "overwrite" => fs::read(program).and_then(|bytes| fs::write(path, bytes)).map(|()| (*path).to_owned()),
        "root" => Ok(format!("/proc/self/root{program}")),
        "folder" | "place" => {
            let place = Path::new(program);
            let opened = if *how == "folder" { place.parent().unwrap_or(place) } else { place };
            let opened = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(opened);
            opened.map(|opened| {
                let fd = opened.as_raw_fd();
                // it lies open until the process ends
                std::mem::forget(opened);
                let name = place.file_name().unwrap_or_default().to_string_lossy();
                if *how == "folder" { format!("/proc/self/fd/{fd}/{name}") } else { format!("/proc/self/fd/{fd}") }
            })
        }
        _ => bail!("there is no way {how:?} to a file"),
    };
    match io(made) {
        Ok(path) => Ok(work::run(&[&["spawn", &path], rest].concat())),
        Err(errno) => Ok(work::say(Err(errno))),
    }
}

/// Writes the program's bytes over those of a file by memory that it is mapped to: no call writes, and the file keeps its size, which
/// must be as much as the program has.
fn overwrite_mapped(program: &str, path: &str) -> std::io::Result<()> {
    let bytes = fs::read(program)?;
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    if file.metadata()?.len() < bytes.len() as u64 {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at a place that the kernel chooses.
    let place =
        unsafe { libc::mmap(std::ptr::null_mut(), bytes.len(), protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if place == libc::MAP_FAILED {
        return Err(Error::last_os_error());
    }
    // SAFETY: the mapping is as long as the file and may be written; it goes when its bytes are there.
    unsafe {
        for page in (0..bytes.len()).step_by(4096) {
            std::hint::black_box(place.cast::<u8>().add(page).read_volatile());
        }
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), place.cast(), bytes.len());
        libc::munmap(place, bytes.len());
    }
    Ok(())
}

/// `map FILE|-`: maps the file, or memory of its own, to be executed, and calls the code that lies there.
fn map(words: &[&str]) -> Result<Result<(), Errno>> {
    const LENGTH: usize = 4096;
    let (flags, file) = match argument(words)? {
        "-" => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None),
        path => (libc::MAP_PRIVATE, Some(File::open(path)?)),
    };
    let writing = if file.is_some() { 0 } else { libc::PROT_WRITE };
    let fd = file.as_ref().map_or(-1, |file| file.as_raw_fd());
    let protection = libc::PROT_READ | libc::PROT_EXEC | writing;
    // SAFETY: a new mapping at a place that the kernel chooses.
    let place = unsafe { libc::mmap(std::ptr::null_mut(), LENGTH, protection, flags, fd, 0) };
    if place == libc::MAP_FAILED {
        return Ok(Err(Errno::last()));
    }
    if file.is_none() {
        // SAFETY: the mapping is that long and may be written.
        unsafe { std::ptr::copy_nonoverlapping(super::CODE.as_ptr(), place.cast(), super::CODE.len()) };
    }
    // SAFETY: the page holds a function of that type: its bytes are those of `CODE`.
    let told = unsafe { std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> i32>(place)() };
    Ok(if told == super::CODE_SAYS { Ok(()) } else { Err(Errno::ENOEXEC) })
}

fn by_pidfd(words: &[&str], act: impl FnOnce(RawFd) -> libc::c_long) -> Result<Result<(), Errno>> {
    let process = pidfd(argument(words)?.parse()?)?;
    Ok(answer(act(process.as_raw_fd())))
}

/// `limit PID [same]`: a limit of another process: how long it may compute at all; or, where it is to be left as it is, that
/// which it has.
fn limit(words: &[&str]) -> Result<Result<(), Errno>> {
    let process = pid(words)?.as_raw();
    let none: *mut libc::rlimit64 = std::ptr::null_mut();
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    if words.get(1) == Some(&"same") {
        // SAFETY: the structure outlives the call.
        let read = unsafe { libc::prlimit64(process, libc::RLIMIT_CPU, none, &raw mut limit) };
        if read != 0 {
            return Ok(Err(Errno::last()));
        }
    }
    // SAFETY: as above.
    Ok(answer(unsafe { libc::prlimit64(process, libc::RLIMIT_CPU, &raw const limit, none) }.into()))
}

/// `owner PID fcntl|ex|ioctl SIGNAL`: a process becomes the owner of a pipe, or a socket, which sends it that signal when
/// something can be read.
fn owner(words: &[&str]) -> Result<Result<(), Errno>> {
    const F_SETSIG: i32 = 10;
    const F_SETOWN_EX: i32 = 15;
    const FIOSETOWN: libc::Ioctl = 0x8901;
    let [owner, how, signal] = words else { bail!("owner takes a process, a way and a signal") };
    let (process, signal) = (process(owner)?, signal.parse::<i32>()?);
    let (reader, writer): (OwnedFd, OwnedFd) = if *how == "ioctl" {
        let (one, other) = std::os::unix::net::UnixStream::pair()?;
        (one.into(), other.into())
    } else {
        pipe()?
    };
    let fd = reader.as_raw_fd();
    // SAFETY: integers, and structures that outlive the calls; the descriptor is open.
    let owned = unsafe {
        match *how {
            "fcntl" => libc::fcntl(fd, libc::F_SETOWN, process),
            // `F_OWNER_PID`, and the process
            "ex" => libc::fcntl(fd, F_SETOWN_EX, [1, process].as_ptr()),
            _ => libc::ioctl(fd, FIOSETOWN, &raw const process),
        }
    };
    if owned != 0 {
        return Ok(Err(Errno::last()));
    }
    // SAFETY: an integer.
    if unsafe { libc::fcntl(fd, F_SETSIG, signal) } != 0 {
        return Ok(Err(Errno::last()));
    }
    if let Err(errno) = fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_ASYNC | OFlag::O_NONBLOCK)) {
        return Ok(Err(errno));
    }
    write(&writer, b"x")?;
    Ok(Ok(()))
}

/// `schedule PID [same]`: what other process runs when nothing else does; or as it did.
fn schedule(words: &[&str]) -> Result<Result<(), Errno>> {
    let policy = if words.get(1) == Some(&"same") { libc::SCHED_OTHER } else { libc::SCHED_IDLE };
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters outlive the call.
    Ok(answer(unsafe { libc::sched_setscheduler(pid(words)?.as_raw(), policy, &raw const parameters) }.into()))
}

/// `nice PID`: its priority is what it was.
fn nice(words: &[&str]) -> Result<Result<(), Errno>> {
    let who = pid(words)?.as_raw().cast_unsigned();
    // SAFETY: numbers only. -1 is a priority as well, which none of these processes has.
    let same = unsafe { libc::getpriority(libc::PRIO_PROCESS, who) };
    if same == -1 {
        return Ok(Err(Errno::last()));
    }
    // SAFETY: numbers only.
    Ok(answer(unsafe { libc::setpriority(libc::PRIO_PROCESS, who, same) }.into()))
}

/// `nice-disk PID`: its priority at disks is what every process's is.
fn nice_on_disk(words: &[&str]) -> Result<Result<(), Errno>> {
    // `IOPRIO_WHO_PROCESS`; `IOPRIO_CLASS_BE` and the middle of it
    const PROCESS: i32 = 1;
    const USUAL: i32 = 2 << 13 | 4;
    // SAFETY: numbers only.
    Ok(answer(unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, pid(words)?.as_raw(), USUAL) }))
}

/// `write FILE [TEXT|same]`: writes the text, or what stands there, into a file of the kernel's; without one it is opened for
/// writing only.
fn write_to(words: &[&str]) -> Result<Result<(), Errno>> {
    let path = argument(words)?;
    let text = match words.get(1) {
        Some(&"same") => match io(fs::read_to_string(path)) {
            Ok(text) => text,
            Err(errno) => return Ok(Err(errno)),
        },
        Some(text) => (*text).to_owned(),
        None => return Ok(io(OpenOptions::new().write(true).open(path).map(drop))),
    };
    Ok(io(OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(text.trim().as_bytes()))))
}

/// The folder of the cgroup that this process is in.
fn own_cgroup() -> Result<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup2 in /proc/self/cgroup")?;
    Ok(mounts::cgroup2()?.join(path))
}

/// `join PID`: takes another process into its own cgroup.
fn join(words: &[&str]) -> Result<Result<(), Errno>> {
    let procs = own_cgroup()?.join("cgroup.procs");
    let process = argument(words)?;
    Ok(io(OpenOptions::new().write(true).open(procs).and_then(|mut file| file.write_all(process.as_bytes()))))
}

/// Makes a file, and removes it.
fn make_beside(path: &str) -> Result<(), Errno> {
    let beside = format!("{path}-beside");
    io(File::create_new(&beside).and_then(|_| fs::remove_file(beside)))
}

/// The attributes of a file, such as that it cannot be changed (chattr(1)), set to what they are, by who opened it to read.
fn flags(path: &str) -> Result<(), Errno> {
    const GET: libc::Ioctl = 0x8008_6601;
    const SET: libc::Ioctl = 0x4008_6602;
    let file = io(File::open(path))?;
    let mut flags: libc::c_long = 0;
    // SAFETY: both calls take the address of a long at most, which outlives them; the descriptor is open.
    unsafe {
        answer(libc::ioctl(file.as_raw_fd(), GET, &raw mut flags).into())?;
        answer(libc::ioctl(file.as_raw_fd(), SET, &raw const flags).into())
    }
}

/// A new file system that is mounted nowhere, and a file in it.
fn mount_apart() -> Result<(), Errno> {
    const CREATE: u32 = 6;
    // SAFETY: constant strings, and descriptors that were just made.
    unsafe {
        let context = Errno::result(libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), 1))?;
        answer(libc::syscall(libc::SYS_fsconfig, context, CREATE, 0, 0, 0))?;
        let mount = Errno::result(libc::syscall(libc::SYS_fsmount, context, 1, 0))?;
        let flags = libc::O_CREAT | libc::O_RDWR | libc::O_CLOEXEC;
        answer(libc::openat(i32::try_from(mount).unwrap_or(-1), c"file".as_ptr(), flags, 0o600).into())
    }
}

/// A copy of the tree of mounts, which is mounted nowhere.
fn tree_apart() -> Result<(), Errno> {
    const CLONE: u32 = 1;
    // SAFETY: a constant string; the descriptor ends with the process.
    answer(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), CLONE) })
}

/// mount_setattr(2) with nothing to set.
fn mount_attributes() -> Result<(), Errno> {
    let none = [0u64; 4];
    // SAFETY: a constant path, and a structure of 32 bytes that outlives the call.
    answer(unsafe {
        libc::syscall(libc::SYS_mount_setattr, libc::AT_FDCWD, c"/".as_ptr(), 0, none.as_ptr(), size_of_val(&none))
    })
}

/// Unloads a module that is not there.
fn unload() -> Result<(), Errno> {
    // SAFETY: a constant string, and a number.
    answer(unsafe { libc::syscall(libc::SYS_delete_module, c"tipstaff_none".as_ptr(), libc::O_NONBLOCK) })
}

/// userfaultfd(2) by its device.
fn faults_device() -> Result<(), Errno> {
    const NEW: libc::Ioctl = 0xaa00;
    let device = io(OpenOptions::new().read(true).write(true).open("/dev/userfaultfd"))?;
    // SAFETY: an integer; the descriptor that it makes ends with the process.
    answer(unsafe { libc::ioctl(device.as_raw_fd(), NEW, libc::O_CLOEXEC) }.into())
}

/// `type-ahead TERMINAL`: types a letter at a terminal, as who sits there would (`TIOCSTI`).
fn type_ahead(words: &[&str]) -> Result<Result<(), Errno>> {
    // the leader of a session without a terminal gets the first that it opens; who leads a group cannot make a session
    let child = work::in_child(|| {
        let typed = setsid().and_then(|_| {
            let terminal = io(OpenOptions::new().read(true).write(true).open(argument(words).unwrap_or_default()))?;
            // SAFETY: one byte that outlives the call; the descriptor is open.
            answer(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSTI, c"x".as_ptr()) }.into())
        });
        typed.map_or_else(|errno| u8::try_from(errno as i32).unwrap_or(u8::MAX), |()| 0)
    })?;
    Ok(match told(child)? {
        0 => Ok(()),
        errno => Err(Errno::from_raw(errno.into())),
    })
}

/// Sets the wall clock to what it says.
fn clock() -> Result<(), Errno> {
    // SAFETY: an all-zero timespec is a value of it, and outlives both calls.
    unsafe {
        let mut now: libc::timespec = zeroed();
        answer(libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now).into())?;
        answer(libc::clock_settime(libc::CLOCK_REALTIME, &raw const now).into())
    }
}

/// Opens what is pinned at a path by bpf(2).
fn pin(path: &str) -> Result<Result<(), Errno>> {
    const OBJ_GET: i32 = 7;
    let path = std::ffi::CString::new(path)?;
    let attributes = [path.as_ptr() as u64, 0];
    // SAFETY: the attributes and the path that they point to outlive the call.
    let opened = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, attributes.as_ptr(), size_of_val(&attributes)) };
    if let Ok(fd) = Errno::result(opened) {
        // SAFETY: the kernel just made it, and nobody else has it.
        drop(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) });
    }
    Ok(answer(opened))
}
