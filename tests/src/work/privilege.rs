//! What takes a privilege: each word tries one thing that changes nothing where it is let go.

use std::{
    ffi::CString,
    fs,
    io::Write as _,
    os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
    time::SystemTime,
};

use anyhow::{Result, bail, ensure};
use nix::{
    errno::Errno,
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{Signal, kill},
        stat::Mode,
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, pause},
};

use super::{one, process::reopened, say};
use crate::harness::{bpf::pidfd, descriptors};

/// What runs as root for whoever writes it, what stops the machine, one as deep as they lie, and one of another file system.
const SETTINGS: [&str; 4] = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sysrq-trigger",
    "/proc/sys/net/ipv4/conf/lo/forwarding",
    "/sys/kernel/mm/transparent_hugepage/enabled",
];

/// Opens each; what came of all of them alike. A process's own settings are no class's.
fn each_opens(files: &[&str], write: bool) -> Result<Result<(), Errno>> {
    let open = |file: &str, write: bool| {
        let opened = fs::OpenOptions::new().read(!write).write(write).open(file);
        opened.map(drop).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
    };
    ensure!(open("/proc/self/oom_score_adj", true).is_ok(), "a process cannot write its own settings");
    let all: Vec<Result<(), Errno>> = files.iter().map(|file| open(file, write)).collect();
    ensure!(all.iter().all(|one| *one == all[0]), "{files:?} came out as {all:?}");
    Ok(all[0])
}

/// A user namespace of a child's own. In a root that is not the host's (chroot(2)) the kernel makes none for anybody.
pub(crate) fn user_namespace() -> Result<Result<(), Errno>> {
    in_child(|| nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER))
}

/// `privilege ACT [PID|COMMAND]`: an act is named as its class, or for what it does where a class has several.
pub(super) fn attempt(words: &[&str]) -> Result<u8> {
    let (act, rest) = one(words)?;
    let number = rest.first().map_or(Ok(0), |word| word.parse::<i32>())?;
    Ok(say(match act {
        "signal" => kill(Pid::from_raw(number), Signal::SIGURG),
        "ptrace" => read_memory(number),
        "write-memory" => write_memory(number),
        "seize" => seize(number)?,
        "bpf" => bpf(number),
        "modules" | "kexec" => code(act),
        "module-file" | "kexec-file" => code_in_file(act)?,
        // both at once are no propagation
        "mount" => mount(),
        "remount" => remount(),
        // SAFETY: a constant path. What is forced does not expire: it stays, whoever may unmount it.
        "unmount" => result(unsafe { libc::umount2(c"/proc".as_ptr(), libc::MNT_FORCE | libc::MNT_EXPIRE) }.into()),
        "move-mount" => move_mount(),
        "pivot-root" => pivot_root(),
        // SAFETY: a constant path.
        "chroot" => result(unsafe { libc::chroot(c"/".as_ptr()) }.into()),
        "namespaces" => user_namespace()?,
        "keyring" => add_key().map(drop),
        "keyctl" => look_at_key(number),
        "perf-event" => descriptors::perf_event().map(drop),
        "userfaultfd" => descriptors::user_fault().map(drop),
        "io-uring" => descriptors::ring().map(drop),
        "kernel-settings" => each_opens(&SETTINGS, true)?,
        "freeze" => freeze()?,
        "hang-up" => hang_up()?,
        "raw-devices" => each_opens(&["/dev/mem", "/dev/loop0"], false)?,
        "verbs" => verbs()?,
        _ => bail!("there is no privilege {act:?}"),
    }))
}

/// Opens the device of an adapter of InfiniBand that is not there.
fn verbs() -> Result<Result<(), Errno>> {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let path = format!("/dev/tipstaff-verbs-{}", std::process::id());
    mknod(path.as_str(), SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(231, 192))?;
    let opened = each_opens(&[&path], true);
    fs::remove_file(&path)?;
    opened
}

/// Freezes the file system of /proc, which cannot be frozen.
fn freeze() -> Result<Result<(), Errno>> {
    const FREEZE: libc::Ioctl = 0xc004_5877;
    let folder = fs::File::open("/proc")?;
    // SAFETY: no pointer; the descriptor is open.
    Ok(result(unsafe { libc::ioctl(folder.as_raw_fd(), FREEZE, 0) }.into()))
}

/// Hangs up a terminal of its own, which nobody has for theirs.
fn hang_up() -> Result<Result<(), Errno>> {
    const HANG_UP: libc::Ioctl = 0x5437;
    let pair = nix::pty::openpty(None, None)?;
    // SAFETY: no pointer; the descriptor is open.
    Ok(result(unsafe { libc::ioctl(pair.slave.as_raw_fd(), HANG_UP) }.into()))
}

/// `own-file move FROM TO`, `own-file ACT FILE`: `read` (opens it), `look` (reads all of it), `write`, `empty` (by opening it to read), `make`, `unlink`, `rmdir`, `mkdir`, `mknod`, `symlink`,
/// `link`, `rename`, `truncate`, `chmod`, `chown`, `touch`, `acl`, `attribute`, `no-acl`, `no-attribute` (takes it off);
/// what is made, linked to or renamed to has a name of its own beside it. `unmount`: the file system that begins there;
/// `mount-over`, `move-over`, `pivot-over`: something else in its place, by mount(2), move_mount(2), pivot_root(2).
pub(super) fn own_file(words: &[&str]) -> Result<u8> {
    if let ["move", from, to] = words {
        return Ok(say(fs::rename(from, to).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))));
    }
    let [act, file] = words else { bail!("own-file takes an act and a file") };
    let beside = format!("{file}-beside");
    let done = match *act {
        "read" => fs::File::open(file).map(drop),
        "look" => fs::read(file).map(drop),
        "write" => fs::OpenOptions::new().append(true).open(file).map(drop),
        "empty" => {
            let path = CString::new(*file)?;
            // SAFETY: a string that outlives the call; the descriptor ends with the process.
            result(unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_TRUNC) }.into()).map_err(Into::into)
        }
        "make" => fs::File::create_new(&beside).map(drop),
        "mknod" => nix::unistd::mkfifo(beside.as_str(), Mode::S_IRUSR).map_err(Into::into),
        "touch" => fs::File::open(file).and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH)),
        "acl" => set_attribute(file, ACL, &acl()),
        "attribute" => set_attribute(file, ATTRIBUTE, b"x"),
        "no-acl" => remove_attribute(file, ACL),
        "no-attribute" => remove_attribute(file, ATTRIBUTE),
        "unlink" => fs::remove_file(file),
        "rmdir" => fs::remove_dir(file),
        "mkdir" => fs::create_dir(&beside),
        "symlink" => std::os::unix::fs::symlink(file, &beside),
        "link" => fs::hard_link(file, &beside),
        "rename" => fs::rename(file, &beside),
        "truncate" => {
            let path = CString::new(*file)?;
            // SAFETY: a string that outlives the call.
            result(unsafe { libc::truncate(path.as_ptr(), 0) }.into()).map_err(Into::into)
        }
        "chmod" => fs::set_permissions(file, fs::Permissions::from_mode(0o700)),
        "chown" => std::os::unix::fs::chown(file, Some(0), Some(0)),
        "unmount" => nix::mount::umount2(*file, nix::mount::MntFlags::MNT_DETACH).map_err(Into::into),
        "mount-over" => {
            let (kind, none) = (Some("tmpfs"), None::<&str>);
            nix::mount::mount(kind, *file, kind, nix::mount::MsFlags::empty(), none).map_err(Into::into)
        }
        "move-over" => move_over(file)?.map_err(Into::into),
        "pivot-over" => {
            let path = CString::new(*file)?;
            // SAFETY: a string that outlives the call.
            result(unsafe { libc::syscall(libc::SYS_pivot_root, path.as_ptr(), path.as_ptr()) }).map_err(Into::into)
        }
        _ => bail!("there is no act {act:?}"),
    };
    Ok(say(done.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))))
}

/// A file system that was mounted nowhere, at a path.
fn move_over(path: &str) -> Result<Result<(), Errno>> {
    const FROM_DESCRIPTOR: libc::c_uint = 4;
    let [_, mounted, _] = descriptors::mounts()?;
    let (from, empty, to) = (mounted.as_raw_fd(), c"".as_ptr(), CString::new(path)?);
    // SAFETY: strings that outlive the call, and numbers; the descriptor is open.
    Ok(result(unsafe {
        libc::syscall(libc::SYS_move_mount, from, empty, libc::AT_FDCWD, to.as_ptr(), FROM_DESCRIPTOR)
    }))
}

const ACL: &std::ffi::CStr = c"system.posix_acl_access";
const ATTRIBUTE: &std::ffi::CStr = c"user.tipstaff";

fn remove_attribute(file: &str, name: &std::ffi::CStr) -> std::io::Result<()> {
    let path = CString::new(file)?;
    // SAFETY: two strings that outlive the call.
    result(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }.into()).map_err(Into::into)
}

fn set_attribute(file: &str, name: &std::ffi::CStr, value: &[u8]) -> std::io::Result<()> {
    let path = CString::new(file)?;
    // SAFETY: two strings, and bytes of the length that is said, which outlive the call.
    let done = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    result(done.into()).map_err(Into::into)
}

/// The list that lets everybody read, write and execute (`linux/posix_acl_xattr.h`, version 2): owner, group, others.
fn acl() -> Vec<u8> {
    let entry = |tag: u16| [&tag.to_le_bytes()[..], &7_u16.to_le_bytes(), &u32::MAX.to_le_bytes()].concat();
    [2_u32.to_le_bytes().to_vec(), entry(1), entry(4), entry(32)].concat()
}

/// `signal-in FILE`: a signal that changes nothing, to the process whose number is there.
pub(super) fn signal_in(words: &[&str]) -> Result<u8> {
    let (file, _) = one(words)?;
    Ok(say(kill(Pid::from_raw(fs::read_to_string(file)?.trim().parse()?), Signal::SIGURG)))
}

/// `enter PROCESS`: goes into the names of the host (UTS) that a process outside has, by its pidfd and by its file in /proc.
pub(super) fn enter(words: &[&str]) -> Result<u8> {
    let (process, _) = one(words)?;
    let by = |fd: Result<std::os::fd::OwnedFd, Errno>| {
        fd.and_then(|fd| nix::sched::setns(fd, nix::sched::CloneFlags::CLONE_NEWUTS))
    };
    say(by(Ok(pidfd(process.parse()?)?)));
    let file = fs::File::open(format!("/proc/{process}/ns/uts"));
    Ok(say(by(file.map(Into::into).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0))))))
}

/// `take-from PROCESS NUMBER`: takes a descriptor out of a process.
pub(super) fn take_from(words: &[&str]) -> Result<u8> {
    let [process, number] = words else { bail!("take-from takes a process and a number") };
    Ok(say(descriptors::take_from(&pidfd(process.parse()?)?, number.parse()?).map(drop)))
}

/// `own-child`: signals and reads a process of the session's own.
pub(super) fn own_child() -> Result<u8> {
    // SAFETY: workloads have one thread; the child only waits.
    let ForkResult::Parent { child } = (unsafe { nix::unistd::fork() })? else {
        loop {
            pause();
        }
    };
    let looked = read_memory(child.as_raw());
    let killed = kill(child, Signal::SIGKILL);
    waitpid(child, None)?;
    // nothing is at the address: who may look is told so
    Ok(say(if looked == Err(Errno::EFAULT) { killed } else { looked }))
}

/// `drop-capabilities`: lays down all that this process has; a program that root starts has them again.
pub(super) fn drop_capabilities() -> Result<u8> {
    let header = [0x2008_0522_u32, 0];
    // SAFETY: a header of version 3 and its data, all 0, which outlive the call.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), [0u32; 6].as_ptr()) };
    Ok(say(result(done)))
}

fn result(value: libc::c_long) -> Result<(), Errno> {
    Errno::result(value).map(drop)
}

/// One byte at an address where no process has memory.
fn memory(pid: i32, call: libc::c_long) -> Result<(), Errno> {
    let mut byte = 0u8;
    let here = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let there = libc::iovec { iov_base: std::ptr::without_provenance_mut(16), iov_len: 1 };
    let (one, flags): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: one byte of this process's, which outlives the call; the other address is the other process's.
    result(unsafe { libc::syscall(call, pid, &raw const here, one, &raw const there, one, flags) })
}

fn read_memory(pid: i32) -> Result<(), Errno> {
    memory(pid, libc::SYS_process_vm_readv)
}

fn write_memory(pid: i32) -> Result<(), Errno> {
    memory(pid, libc::SYS_process_vm_writev)
}

/// ptrace(2) of a process that goes on; it is let go at once, because its tracer ends.
fn seize(pid: i32) -> Result<Result<(), Errno>> {
    in_child(|| nix::sys::ptrace::seize(Pid::from_raw(pid), nix::sys::ptrace::Options::empty()))
}

/// A command of bpf(2) whose arguments are all 0; 11 asks for the first program's number.
fn bpf(command: i32) -> Result<(), Errno> {
    let mut attributes = [0u32; 4];
    // SAFETY: the attributes outlive the call, and hold no pointer but null.
    result(unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(&attributes)) })
}

/// What is no module, and more than can be started in the kernel's place.
fn code(class: &str) -> Result<(), Errno> {
    let nothing = [0u8; 128];
    // SAFETY: the bytes outlive the calls.
    result(unsafe {
        match class {
            "modules" => libc::syscall(libc::SYS_init_module, nothing.as_ptr(), nothing.len(), c"".as_ptr()),
            _ => libc::syscall(libc::SYS_kexec_load, 0, 1000, nothing.as_ptr(), 0),
        }
    })
}

/// As [`code`], out of a file that has no name.
fn code_in_file(what: &str) -> Result<Result<(), Errno>> {
    const WITHOUT_INITRAMFS: libc::c_ulong = 4;
    const END: libc::c_ulong = 1;
    let mut made = fs::File::from(memfd_create("code", MFdFlags::empty())?);
    made.write_all(&[0; 128])?;
    let file = reopened(made)?;
    let fd = file.as_raw_fd();
    // SAFETY: constant strings and numbers; the descriptor is open.
    Ok(result(unsafe {
        match what {
            "module-file" => libc::syscall(libc::SYS_finit_module, fd, c"".as_ptr(), 0),
            _ => libc::syscall(libc::SYS_kexec_file_load, fd, -1, END, c"".as_ptr(), WITHOUT_INITRAMFS),
        }
    }))
}

/// A mounted file system, configured anew with what it has, by the calls that are not mount(2).
fn remount() -> Result<(), Errno> {
    const RECONFIGURE: u32 = 7;
    let none: *const libc::c_char = std::ptr::null();
    // SAFETY: a constant path, numbers and null; the descriptor ends with the process.
    unsafe {
        let context = Errno::result(libc::syscall(libc::SYS_fspick, libc::AT_FDCWD, c"/proc".as_ptr(), 0))?;
        result(libc::syscall(libc::SYS_fsconfig, context, RECONFIGURE, none, none, 0))
    }
}

/// What is no mount is moved nowhere.
fn move_mount() -> Result<(), Errno> {
    let (from, to, at) = (c"/proc/sys", c"/proc", libc::AT_FDCWD);
    // SAFETY: constant paths and numbers.
    result(unsafe { libc::syscall(libc::SYS_move_mount, at, from.as_ptr(), at, to.as_ptr(), 0) })
}

/// To a root that would leave the old one outside of it, which no kernel does.
fn pivot_root() -> Result<(), Errno> {
    // SAFETY: constant paths.
    result(unsafe { libc::syscall(libc::SYS_pivot_root, c"/proc".as_ptr(), c"/dev".as_ptr()) })
}

fn mount() -> Result<(), Errno> {
    let none = std::ptr::null();
    let flags = libc::MS_PRIVATE | libc::MS_SHARED;
    // SAFETY: a constant path, and null where nothing is meant.
    result(unsafe { libc::mount(none, c"/".as_ptr(), none, flags, none.cast()) }.into())
}

/// A key in this process's own keyring, with which it goes; its number.
pub(crate) fn add_key() -> Result<i32, Errno> {
    const PROCESS_KEYRING: i32 = -2;
    let (kind, name, payload) = (c"user", c"tipstaff-test", [0u8; 1]);
    // SAFETY: constant strings and one byte, which outlive the call.
    let key = Errno::result(unsafe {
        libc::syscall(libc::SYS_add_key, kind.as_ptr(), name.as_ptr(), payload.as_ptr(), 1, PROCESS_KEYRING)
    })?;
    i32::try_from(key).map_err(|_error| Errno::ERANGE)
}

fn look_at_key(key: i32) -> Result<(), Errno> {
    const DESCRIBE: i32 = 6;
    let none: *mut libc::c_char = std::ptr::null_mut();
    // SAFETY: numbers; nothing is written where there is no room.
    result(unsafe { libc::syscall(libc::SYS_keyctl, DESCRIBE, key, none, none) })
}

/// What `act` comes to in a child, which it may change.
fn in_child(act: impl FnOnce() -> Result<(), Errno>) -> Result<Result<(), Errno>> {
    // SAFETY: workloads have one thread.
    let ForkResult::Parent { child } = (unsafe { nix::unistd::fork() })? else {
        let status = act().map_or_else(|errno| errno as i32, |()| 0);
        // SAFETY: ends this process and runs none of the parent's exit handlers.
        unsafe { libc::_exit(status) }
    };
    match waitpid(child, None)? {
        nix::sys::wait::WaitStatus::Exited(_, 0) => Ok(Ok(())),
        nix::sys::wait::WaitStatus::Exited(_, errno) => Ok(Err(Errno::from_raw(errno))),
        other => bail!("the child came out as {other:?}"),
    }
}

/// `own-standing`: this process's user ids, whether it may gain any privilege, its capabilities and its seccomp mode.
pub(super) fn own_standing() -> Result<u8> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = |name: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(name));
        format!("{name}{}", found.unwrap_or_default().replace('\t', " "))
    };
    let names = ["Uid:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "NoNewPrivs:", "Seccomp:"];
    println!("{}", names.map(line).join(", "));
    Ok(0)
}

/// `by-number x32|i386`: keyctl(2) by the numbers of another architecture, for the number of this process's own keyring.
pub(super) fn by_number(words: &[&str]) -> Result<u8> {
    const X32: i64 = 0x4000_0000;
    const PROCESS_KEYRING: i64 = -2;
    let (numbers, _) = one(words)?;
    let tried = match numbers {
        // SAFETY: integers only.
        "x32" => in_child(|| result(unsafe { libc::syscall(X32 + libc::SYS_keyctl, 0, PROCESS_KEYRING, 0) })),
        "i386" => in_child(|| through_interrupt(288, 0, PROCESS_KEYRING)),
        _ => bail!("there are no numbers of {numbers:?}"),
    };
    Ok(match tried {
        Ok(outcome) => say(outcome),
        // a kernel without 32-bit programs takes no such interrupt
        Err(error) => {
            println!("{error:#}");
            0
        }
    })
}

#[cfg(target_arch = "x86_64")]
fn through_interrupt(number: i64, first: i64, second: i64) -> Result<(), Errno> {
    let answer: i64;
    // SAFETY: the kernel takes integers and answers one; older ones lose the registers that are named so.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {first}",
            "int 0x80",
            "xchg rbx, {first}",
            first = inout(reg) first => _,
            inlateout("rax") number => answer,
            in("rcx") second,
            in("rdx") 0_i64,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    // 32 bits of it are the answer
    let answer = answer as i32;
    if (-4095..0).contains(&answer) { Err(Errno::from_raw(-answer)) } else { Ok(()) }
}

#[cfg(not(target_arch = "x86_64"))]
fn through_interrupt(_: i64, _: i64, _: i64) -> Result<(), Errno> {
    Err(Errno::ENOSYS)
}
