//! Who starts programs, outside of every session, for whoever asks: the class of privileges `delegation`. Which places on
//! a host these are; the kernel programs know them by what this file says.

use std::path::Path;

use tipstaff_common::{
    limits::{PROTECTED, UNIX_NAME},
    privilege::DELEGATES,
};

use super::{
    note::Note,
    resolved::Resolved,
    table::names_logins,
    traffic::UnixTarget,
    types::{Effect, Policy},
};

/// The sockets of daemons that start programs, or have them started, for their clients. As policies name sockets, but for a
/// last `*`, which stands for whatever follows; below `/run/user/*/`, for any user's.
pub const SOCKETS: &[&str] = &[
    // container engines, their shims and their builders
    "/run/docker*",
    "/var/run/docker*",
    "/run/cri-dockerd.sock",
    "/run/containerd/*",
    "@/containerd-shim/*",
    "/run/podman/*",
    "/var/run/podman/*",
    "/run/crio/*",
    "/var/run/crio/*",
    "/run/k3s/containerd/*",
    "/run/buildkit/*",
    "/run/user/*/docker*",
    "/run/user/*/containerd*",
    "/run/user/*/podman/*",
    "/run/user/*/buildkit*",
    // virtual machines and containers of systems
    "/run/libvirt/*",
    "/var/run/libvirt/*",
    "/run/user/*/libvirt/*",
    "/var/lib/lxd/unix.socket",
    "/var/snap/lxd/common/lxd/unix.socket",
    "/var/lib/incus/unix.socket",
    "/run/incus/unix.socket",
    "/run/systemd/machine/*",
    // service managers
    "/run/systemd/private",
    "/run/systemd/io.systemd.*",
    "@/org/freedesktop/systemd1/*",
    "/run/user/*/systemd/private",
    "/run/user/*/systemd/io.systemd.*",
    "@/com/ubuntu/upstart*",
    "/run/snapd*",
    "/run/user/*/snapd-session-agent.socket",
    // buses, over which services are started and service managers asked
    "/run/dbus/*",
    "/var/run/dbus/*",
    "/tmp/dbus-*",
    "@/tmp/dbus-*",
    "@dbus-*",
    "/run/user/*/bus",
    "/run/user/*/dbus-*",
    // sshd(8) on this host
    "/run/ssh-unix-local/*",
    // terminals that others hold open
    "/tmp/tmux-*",
    "/run/tmux/*",
    "/run/screen/*",
    "/run/screens/*",
    "/run/user/*/tmux*",
    "/run/user/*/emacs/*",
];

/// The folders and files out of which a scheduler, a service manager or udevd(8) starts programs. What is written there
/// runs without anybody having to be asked.
pub const FOLDERS: &[&str] = &[
    "/var/spool/cron",
    "/var/spool/at",
    "/var/spool/anacron",
    "/etc/crontab",
    "/etc/anacrontab",
    "/etc/cron.d",
    "/etc/cron.hourly",
    "/etc/cron.daily",
    "/etc/cron.weekly",
    "/etc/cron.monthly",
    "/etc/systemd/system",
    "/etc/systemd/user",
    "/etc/systemd/system.control",
    "/etc/systemd/user.control",
    "/etc/systemd/system.attached",
    "/etc/systemd/system-generators",
    "/run/systemd/system",
    "/run/systemd/user",
    "/run/systemd/system.control",
    "/run/systemd/user.control",
    "/run/systemd/system.attached",
    "/run/systemd/transient",
    "/run/systemd/generator",
    "/run/systemd/generator.early",
    "/run/systemd/generator.late",
    "/run/systemd/system-generators",
    "/usr/local/lib/systemd/system",
    "/usr/local/lib/systemd/user",
    "/usr/local/lib/systemd/system-generators",
    "/usr/lib/systemd/system",
    "/usr/lib/systemd/user",
    "/usr/lib/systemd/system-generators",
    "/etc/udev/rules.d",
    "/run/udev/rules.d",
    "/usr/local/lib/udev/rules.d",
    "/usr/lib/udev/rules.d",
];

const _: () = assert!(SOCKETS.len() <= DELEGATES as usize);
// the agent's own folders and files are in the same map, and those above them
const _: () = assert!(FOLDERS.len() + 64 <= PROTECTED as usize);

/// Below it every user has a folder of their own.
const USERS: &str = "/run/user/";

/// A place as the kernel programs look it up: bits that count, and the bytes of the name, an abstract one with its leading 0.
pub type NameKey = (u32, [u8; UNIX_NAME]);

/// The keys of [`SOCKETS`], in their order. A name that is not begun only ends with a 0. What is below `/run/user/N` has a `~`
/// in the place of that.
#[must_use]
pub fn name_keys() -> Vec<NameKey> {
    SOCKETS.iter().filter_map(|place| name_key(place)).collect()
}

fn name_key(place: &str) -> Option<NameKey> {
    let (name, is_whole) = place.strip_suffix('*').map_or((place, true), |begin| (begin, false));
    let mut bytes = match (name.strip_prefix("/run/user/*"), name.strip_prefix('@')) {
        (Some(rest), _) => [b"~", rest.as_bytes()].concat(),
        (None, Some(name)) => [b"\0", name.as_bytes()].concat(),
        (None, None) => name.as_bytes().to_vec(),
    };
    if is_whole {
        bytes.push(0);
    }
    let mut key = [0; UNIX_NAME];
    key.get_mut(..bytes.len())?.copy_from_slice(&bytes);
    Some((u32::try_from(bytes.len() * 8).ok()?, key))
}

/// The place that a record's `detail` stands for: 1 and up, first [`SOCKETS`], then [`FOLDERS`].
#[must_use]
pub fn place(detail: u32) -> Option<&'static str> {
    let index = usize::try_from(detail).ok()?.checked_sub(1)?;
    SOCKETS.iter().chain(FOLDERS).nth(index).copied()
}

/// The `detail` of the first of [`FOLDERS`].
#[must_use]
pub fn first_folder() -> u32 {
    u32::try_from(SOCKETS.len() + 1).unwrap_or(u32::MAX)
}

/// Rules that allow what the class denies.
pub(super) fn notes(policy: &Policy, host: &Resolved) -> Vec<Note> {
    if policy.may_delegate() {
        return Vec::new();
    }
    let unix = policy.unix_rules().iter().filter(|rule| rule.effect == Effect::Allow);
    let unix = unix.filter_map(|rule| Some((&rule.id, named_by(&rule.target)?.to_owned())));
    let net = policy.net.iter().filter(|rule| rule.effect == Effect::Allow && names_logins(host, rule));
    let net = net.map(|rule| (&rule.id, rule.to_string()));
    unix.chain(net).map(|(rule, place)| Note::Delegation { rule: rule.clone(), place }).collect()
}

/// The place that a rule on unix sockets names, or one that lies below the directory that it names.
pub(super) fn named_by(target: &UnixTarget) -> Option<&'static str> {
    let fits = |place: &&&str| match target {
        UnixTarget::Path(path) => is(place, &path.to_string_lossy()),
        UnixTarget::Abstract(name) => is(place, &format!("@{name}")),
        UnixTarget::Dir(directory) => {
            let user = directory.starts_with(USERS.trim_end_matches('/'));
            Path::new(place.trim_end_matches('*')).starts_with(directory) || (user && place.starts_with(USERS))
        }
    };
    SOCKETS.iter().find(fits).copied()
}

/// Whether a socket with such a name is at a place, as the kernel programs find it.
fn is(place: &str, name: &str) -> bool {
    let users = name.strip_prefix(USERS).and_then(|rest| rest.split_once('/'));
    let name = users.map_or_else(|| name.to_owned(), |(_, rest)| format!("{USERS}*/{rest}"));
    place.strip_suffix('*').map_or(name == place, |begin| name.starts_with(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_has_a_key_of_its_own() {
        let keys = name_keys();
        assert_eq!(keys.len(), SOCKETS.len());
        let mut unique = keys.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), keys.len());
        let text = |place: &str| {
            let (bits, bytes) = name_key(place).expect(place);
            bytes[..bits as usize / 8].to_vec()
        };
        assert_eq!(text("/run/systemd/private"), b"/run/systemd/private\0");
        assert_eq!(text("/run/docker*"), b"/run/docker");
        assert_eq!(text("/run/user/*/bus"), b"~/bus\0");
        assert_eq!(text("@/tmp/dbus-*"), b"\0/tmp/dbus-");
    }

    #[test]
    fn a_detail_is_a_place() {
        assert_eq!(place(0), None);
        assert_eq!(place(1), Some(SOCKETS[0]));
        assert_eq!(place(first_folder()), Some(FOLDERS[0]));
        assert_eq!(place(first_folder() - 1), SOCKETS.last().copied());
    }

    #[test]
    fn rules_name_places() {
        let path = |text: &str| named_by(&UnixTarget::Path(text.into()));
        assert_eq!(path("/run/docker.sock"), Some("/run/docker*"));
        assert_eq!(path("/run/user/1000/bus"), Some("/run/user/*/bus"));
        assert_eq!(path("/run/user/1000/bus2"), None);
        assert_eq!(path("/run/systemd/private2"), None);
        assert_eq!(path("/run/nscd/socket"), None);
        assert_eq!(named_by(&UnixTarget::Abstract("/tmp/dbus-x".into())), Some("@/tmp/dbus-*"));
        let directory = |text: &str| named_by(&UnixTarget::Dir(text.into()));
        assert_eq!(directory("/run/dbus"), Some("/run/dbus/*"));
        assert_eq!(directory("/run/user/1000"), Some("/run/user/*/docker*"));
        assert_eq!(directory("/srv"), None);
    }
}
