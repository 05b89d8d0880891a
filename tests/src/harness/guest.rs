//! Process 1 of a guest: mounts what a host has, loads the kernel's modules, runs the runner, reaps, says how it ended, and powers off.
//!
//! The kernel's command line says what to run: `tipstaff.tier=full tipstaff.args=--filter,exec`, with the arguments
//! separated by commas and percent-encoded.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt, symlink},
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        termios::tcdrain,
        wait::{WaitStatus, waitpid},
    },
    unistd::{dup2_stderr, dup2_stdin, dup2_stdout},
};

use super::wait::GUEST;

/// File system type and mount point, in the order in which they are mounted.
const MOUNTS: [(&str, &str); 9] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("devpts", "/dev/pts"),
    ("securityfs", "/sys/kernel/security"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
];

/// Returns only where the guest cannot be powered off.
pub(crate) fn init() -> ExitCode {
    let status = set_up().and_then(|()| run()).unwrap_or_else(|error| {
        eprintln!("tipstaff-tests as init: {error:#}");
        2
    });
    println!("TIPSTAFF-EXIT {status}");
    if let Err(error) = power_off() {
        eprintln!("tipstaff-tests as init: no power off: {error:#}");
    }
    // the kernel panics when its init ends, which ends the guest as well
    ExitCode::FAILURE
}

fn set_up() -> Result<()> {
    for (kind, path) in MOUNTS {
        fs::create_dir_all(path)?;
        mount(Some("none"), path, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("{kind} cannot be mounted at {path}"))?;
    }
    // as on every host: nobody but root puts anything there
    fs::set_permissions("/run", PermissionsExt::from_mode(0o755))?;
    let console = File::options().read(true).write(true).open("/dev/console").context("/dev/console")?;
    dup2_stdin(&console)?;
    dup2_stdout(&console)?;
    dup2_stderr(&console)?;
    println!("TIPSTAFF-INIT");
    if !Path::new("/dev/fd").exists() {
        symlink("/proc/self/fd", "/dev/fd")?;
    }
    load_modules()?;
    raise_loopback()
}

/// What the kernel has logged, a line each; as far as it can be read.
pub(crate) fn kernel_log() -> String {
    let options = File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
    let (mut text, mut record) = (String::new(), [0; 8192]);
    while let Ok(log) = &options {
        // a record a read; `EPIPE` for those that were overwritten, `EAGAIN` where there is no other
        match (&*log).read(&mut record) {
            Ok(length) => {
                let line = String::from_utf8_lossy(&record[..length]);
                text += line.split_once(';').map_or(&*line, |(_, said)| said).lines().next().unwrap_or_default();
                text.push('\n');
            }
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => break,
        }
    }
    text
}

/// Loads what lies in `/modules`, in the order that its list gives: a guest has no modprobe that the kernel could ask.
fn load_modules() -> Result<()> {
    let order = fs::read_to_string("/modules/order").context("/modules/order")?;
    for name in order.lines() {
        let path = format!("/modules/{name}.ko");
        let file = File::open(&path).with_context(|| path.clone())?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            // a part for IPv6 where there is none (`ipv6.disable=1`)
            Err(Errno::EAFNOSUPPORT) if !fs::exists("/proc/net/if_inet6")? => {
                eprintln!("{path} is for a family that this kernel has not")
            }
            Err(errno) => bail!("the kernel does not take its module {path}: {errno}; its log says why"),
        }
    }
    Ok(())
}

/// Runs the runner and reaps until it has ended; its exit status.
fn run() -> Result<i32> {
    let line = fs::read_to_string("/proc/cmdline")?;
    let words = arguments(&line)?;
    let runner = Command::new("/proc/self/exe")
        .args(words)
        .env(GUEST, "1")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .spawn()
        .context("the runner cannot be started")?;
    loop {
        match waitpid(None, None)? {
            WaitStatus::Exited(pid, status) if pid.as_raw().cast_unsigned() == runner.id() => return Ok(status),
            WaitStatus::Signaled(pid, signal, _) if pid.as_raw().cast_unsigned() == runner.id() => {
                bail!("the runner was killed by {signal}")
            }
            _ => {}
        }
    }
}

/// The runner's arguments as the kernel's command line has them.
fn arguments(line: &str) -> Result<Vec<String>> {
    let value = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key));
    let mut words = Vec::new();
    for word in value("tipstaff.args=").unwrap_or_default().split(',').filter(|word| !word.is_empty()) {
        words.push(decode(word).with_context(|| format!("{word:?} in tipstaff.args is not percent-encoded"))?);
    }
    // what is measured finds the tier itself
    match value("tipstaff.tier=") {
        Some(tier) if words.first().is_none_or(|word| word != "--bench") => {
            Ok([vec!["--tier".to_owned(), tier.to_owned()], words].concat())
        }
        _ => Ok(words),
    }
}

fn decode(word: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = word.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// Raises the loopback interface of the network namespace.
pub(crate) fn raise_loopback() -> Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: an all-zero ifreq is a value of it: integers, arrays and a union of those.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING)?;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call; `fd` is open.
    let done = unsafe { libc::ioctl(fd, libc::SIOCSIFFLAGS, &request) };
    ensure!(done == 0, "the loopback interface cannot be raised: {}", std::io::Error::last_os_error());
    Ok(())
}

fn power_off() -> Result<()> {
    // the console must have written everything
    tcdrain(std::io::stdout())?;
    nix::unistd::sync();
    let Err(errno) = reboot(RebootMode::RB_POWER_OFF);
    Err(errno.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_come_from_the_command_line() {
        let line = "console=ttyS0 quiet tipstaff.tier=no-lsm tipstaff.args=--filter,a%2Cb%20c lsm=capability\n";
        assert_eq!(arguments(line).expect("it is right"), ["--tier", "no-lsm", "--filter", "a,b c"]);
        assert!(arguments("quiet").expect("it is right").is_empty());
        assert!(arguments("tipstaff.args=%4").is_err());
    }
}
