//! Which files a policy's rules name on this host, as the kernel will see them.

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use tipstaff_common::{place::Way, rule::FileId};
use tracing::warn;

use super::{
    digests::Digests,
    look::{Found, look, mount_points},
    places,
};
use crate::{
    enforce::{only_root_can_place, only_root_can_replace},
    kernel::{Kernel, KernelError, Seen},
    policy::{
        self, Addresses, Effect, ExecRule, ExecTarget, Policy, ProgramClass, Resolved, UnixFound, UnixRule, UnixTarget,
    },
};

/// Places that a deny rule keeps of those to which links on its path led before.
const LOST: usize = 1024;
/// Files that are open at once.
const CHUNK: usize = 256;

/// Where the host's resolvers stand.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Where loaders and multi-call programs stand. What is called like one and stands elsewhere, the kernel programs know by
/// its name.
const CLASSED: [&str; 9] = [
    "/lib*/ld-*.so*",
    "/lib/*/ld-*.so*",
    "/usr/lib*/ld-*.so*",
    "/usr/lib/*/ld-*.so*",
    "/usr/bin/ld.so",
    "/bin/*box",
    "/usr/bin/*box",
    "/usr/bin/coreutils",
    "/usr/lib/*/busybox",
];

/// Where an identity belongs.
enum For {
    /// `Resolved::files`, a directory.
    Dir(usize),
    /// `Resolved::files`, a program.
    Program(usize),
    /// `Resolved::classes`
    Class,
    /// `UnixFound::files`
    Unix(usize),
    /// `UnixFound::place`, with the name in the directory.
    Place(usize, Vec<u8>),
}

/// What was known of the rules before, when they are resolved again for a live session.
#[derive(Clone, Copy)]
pub(super) struct Before<'a> {
    /// What they named.
    pub(super) host: &'a Resolved,
    /// Root started the session: who replaced a file may have been a member.
    pub(super) by_root: bool,
}

impl Before<'_> {
    /// Whether a rule may name a file that it did not name as it is now. One that has the digest it must have may be
    /// anybody's work; a denial is never wrong.
    fn admits(&self, (index, rule): (usize, &ExecRule), path: &Path, seen: Seen) -> bool {
        rule.effect == Effect::Deny
            || rule.digest.is_some()
            || (self.host.of(index).contains(&seen.id) && self.host.contents.get(&seen.id) == Some(&seen.content))
            || (!self.by_root && only_root_can_replace(path))
    }
}

/// Resolves the rules on programs again. What a denial named stays denied, and where; a directory that is allowed stays the one
/// that it was.
pub(super) fn again(
    kernel: &mut Kernel,
    digests: &mut Digests,
    policy: &Policy,
    before: Before<'_>,
) -> Result<Resolved, KernelError> {
    let mut host = resolve(kernel, digests, (policy, &[]), Some(before))?;
    for (index, rule) in policy.exec.iter().enumerate() {
        let known = before.host.of(index);
        match rule.target {
            _ if rule.effect == Effect::Deny => {
                let lost = known.iter().filter(|id| !host.files[index].contains(id)).copied().collect::<Vec<_>>();
                host.files[index].extend(lost);
                let places = &mut host.places[index];
                let lost = before.host.places_of(index).iter().filter(|place| !places.contains(place));
                let lost = lost.copied().collect::<Vec<_>>();
                // the oldest stand last
                places.extend_from_slice(&lost[lost.len().saturating_sub(LOST)..]);
            }
            ExecTarget::Dir(_) => host.files[index] = known.to_vec(),
            _ => {}
        }
    }
    // a class is the file's, whatever it is called by now
    for (file, classes) in &before.host.classes {
        *host.classes.entry(*file).or_default() |= classes;
    }
    host.unix.clone_from(&before.host.unix);
    host.resolvers.clone_from(&before.host.resolvers);
    host.own.clone_from(&before.host.own);
    Ok(host)
}

/// Resolves every rule: a program or socket, or a directory and the roots of what is mounted below it. A rule whose file
/// does not exist names nothing; one for a socket names its place, where the directory exists.
pub(super) fn rules(kernel: &mut Kernel, digests: &mut Digests, policy: &Policy) -> Result<Resolved, KernelError> {
    let mut host = resolve(kernel, digests, (policy, policy.unix_rules()), None)?;
    host.resolvers = resolvers(policy)?;
    host.own = if policy.may_delegate() { Vec::new() } else { own_addresses()? };
    Ok(host)
}

/// The programs of a policy whose resolvers and unix sockets are known. Where the host does not tell, there are none.
pub(super) fn programs(kernel: &mut Kernel, digests: &mut Digests, policy: &Policy) -> Resolved {
    let found = resolve(kernel, digests, (policy, &[]), None);
    let mut host = found.unwrap_or_else(|problem| {
        warn!("the programs of policy {} are those that the kernel holds: {problem}", policy.name);
        Resolved { files: vec![Vec::new(); policy.exec.len()], ..Resolved::default() }
    });
    host.unix = vec![UnixFound::default(); policy.unix_rules().len()];
    host
}

fn resolve(
    kernel: &mut Kernel,
    digests: &mut Digests,
    (policy, unix): (&Policy, &[UnixRule]),
    before: Option<Before<'_>>,
) -> Result<Resolved, KernelError> {
    let mounts = mount_points()?;
    let mut wanted: Vec<(For, PathBuf)> = Vec::new();
    for (index, rule) in policy.exec.iter().enumerate() {
        match &rule.target {
            ExecTarget::Path(path) => wanted.push((For::Program(index), path.clone())),
            ExecTarget::Glob(pattern) => {
                wanted.extend(matching(pattern).into_iter().map(|path| (For::Program(index), path)));
            }
            ExecTarget::Dir(path) => {
                wanted.extend(tree(path, &mounts).into_iter().map(|root| (For::Dir(index), root)));
            }
            ExecTarget::Class(_) => {}
        }
    }
    wanted.extend(CLASSED.iter().flat_map(|pattern| matching(pattern)).map(|path| (For::Class, path)));
    for (index, rule) in unix.iter().enumerate() {
        match &rule.target {
            UnixTarget::Abstract(_) => {}
            UnixTarget::Path(path) => {
                // the place is the socket's own, not that of a link to it
                let real = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
                if let (Some(directory), Some(name)) = (real.parent(), real.file_name()) {
                    wanted.push((For::Place(index, name.as_encoded_bytes().to_vec()), directory.to_owned()));
                }
                wanted.push((For::Unix(index), real));
            }
            UnixTarget::Dir(path) => {
                wanted.extend(tree(path, &mounts).into_iter().map(|root| (For::Unix(index), root)));
            }
        }
    }
    let mut resolved = Resolved {
        files: vec![Vec::new(); policy.exec.len()],
        places: places::of_rules(kernel, policy)?,
        unix: vec![UnixFound::default(); unix.len()],
        ..Resolved::default()
    };
    for (index, rule) in unix.iter().enumerate() {
        if let (Effect::Allow, UnixTarget::Path(path)) = (rule.effect, &rule.target) {
            resolved.unix[index].trusted = only_root_can_place(path) && !is_denied(policy, path);
        }
    }
    for chunk in wanted.chunks(CHUNK) {
        let paths: Vec<&Path> = chunk.iter().map(|(_, path)| path.as_path()).collect();
        for ((what, path), found) in chunk.iter().zip(look(kernel, &paths)?) {
            let id = found.as_ref().map(|found| found.seen.id);
            match what {
                For::Dir(index) => directory(&mut resolved, &policy.exec[*index], *index, (path, found)),
                For::Program(index) => {
                    let rule = &policy.exec[*index];
                    let admitted =
                        |found: &Found| before.is_none_or(|before| before.admits((*index, rule), path, found.seen));
                    match found {
                        Some(found) if admitted(&found) => {
                            program(&mut resolved, (rule, *index), (path, found), &mounts);
                        }
                        // it stays what it was, and is not that any more: the kernel says so
                        Some(found) => stays(&mut resolved, before, *index, found.seen.id),
                        None => {}
                    }
                }
                For::Class => classed(&mut resolved, path, found),
                For::Unix(index) => resolved.unix[*index].files.extend(id),
                For::Place(index, name) => resolved.unix[*index].place = id.map(|id| (id, name.clone())),
            }
            if let (For::Program(index), Some(id)) = (what, id)
                && let Some(wanted) = policy.exec[*index].digest
                && resolved.files[*index].contains(&id)
            {
                let (hashed, content) = digests.hash(kernel, path, (id, wanted))?;
                resolved.digests.insert(id, hashed);
                // what was hashed, which may be newer than what was looked at before
                resolved.contents.extend(content.map(|content| (id, content)));
            }
        }
    }
    Ok(resolved)
}

/// Whether a rule that denies names the socket at a path, its place, or a directory above it, by whatever name.
fn is_denied(policy: &Policy, path: &Path) -> bool {
    let file = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    let denied: Vec<(PathBuf, Option<(u64, u64)>)> = policy
        .unix_rules()
        .iter()
        .filter(|rule| rule.effect == Effect::Deny)
        .filter_map(|rule| match &rule.target {
            UnixTarget::Path(path) | UnixTarget::Dir(path) => Some((path.clone(), file(path))),
            UnixTarget::Abstract(_) => None,
        })
        .collect();
    let place = |path: &Path| Some((file(path.parent()?)?, path.file_name()?.to_owned()));
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let above: Vec<(u64, u64)> = real.ancestors().filter_map(file).collect();
    denied.iter().any(|(other, found)| {
        found.is_some_and(|found| above.contains(&found)) || (place(other).is_some() && place(other) == place(&real))
    })
}

/// What a rule names as a program.
fn program(
    resolved: &mut Resolved,
    (rule, index): (&ExecRule, usize),
    (path, found): (&Path, Found),
    mounts: &BTreeSet<PathBuf>,
) {
    if found.directory {
        if matches!(rule.target, ExecTarget::Path(_)) {
            resolved.mistaken.insert(rule.id.clone());
        }
        return;
    }
    let Seen { id, content, way } = found.seen;
    resolved.files[index].push(id);
    resolved.contents.insert(id, content);
    // by its other names it may be started too
    let alone = found.links == 1 && way.is_some_and(|way| is_below_a_whole_mount(&found.name, way, mounts));
    // a denial holds for the file wherever it is
    if rule.effect == Effect::Allow {
        hold(resolved, id, way.filter(|_| alone).map_or(0, |way| way.place.names));
    }
    classed(resolved, path, Some(found));
}

/// What a rule names as a directory, or what is mounted below it.
fn directory(resolved: &mut Resolved, rule: &ExecRule, index: usize, (path, found): (&Path, Option<Found>)) {
    match found {
        Some(found) if found.directory => resolved.files[index].push(found.seen.id),
        Some(_) if matches!(&rule.target, ExecTarget::Dir(own) if own == path) => {
            resolved.mistaken.insert(rule.id.clone());
        }
        _ => {}
    }
}

/// A rule goes on naming a file as it was.
fn stays(resolved: &mut Resolved, before: Option<Before<'_>>, index: usize, id: FileId) {
    let Some(before) = before.filter(|before| before.host.of(index).contains(&id)) else { return };
    let Some(content) = before.host.contents.get(&id) else { return };
    resolved.files[index].push(id);
    resolved.contents.entry(id).or_insert(*content);
    hold(resolved, id, before.host.stood.get(&id).copied().unwrap_or(0));
}

/// Holds a file to where it stands; where rules come to it in ways of which one may lead there from elsewhere, to no place.
fn hold(resolved: &mut Resolved, id: FileId, names: u64) {
    let held = resolved.stood.entry(id).or_insert(names);
    if *held != names {
        *held = 0;
    }
}

/// Whether a file has the names in its file system that its path has below the mount that it is in. Where that shows a part of
/// a file system (a folder that is mounted elsewhere, a subvolume), a directory above the part can be renamed and the path leads
/// where it led.
fn is_below_a_whole_mount(path: &Path, way: Way, mounts: &BTreeSet<PathBuf>) -> bool {
    let Some(mount) = path.ancestors().find(|above| mounts.contains(*above)) else { return false };
    let names = path.strip_prefix(mount).unwrap_or(path).components();
    let below = names.fold(Way::root(way.place.device), |way, name| way.below(name.as_os_str().as_encoded_bytes()));
    below == way
}

/// A file is of the classes of its own name and of the link's that led to it: `ld-linux-x86-64.so.2` to `ld-2.31.so`,
/// `ld-musl-x86_64.so.1` to `libc.so`.
fn classed(resolved: &mut Resolved, path: &Path, found: Option<Found>) {
    let Some(found) = found.filter(|found| !found.directory) else { return };
    let classes = ProgramClass::of_name(&found.name) | ProgramClass::of_name(path);
    if classes != 0 {
        *resolved.classes.entry(found.seen.id).or_default() |= classes;
    }
}

/// The directories in which files that match a pattern can come to stand.
pub(super) fn parents(pattern: &str) -> Vec<PathBuf> {
    let directory = Path::new(pattern).parent().unwrap_or_else(|| Path::new("/"));
    let text = directory.to_string_lossy();
    if is_pattern(&text) { matching(&text) } else { vec![directory.to_owned()] }
}

/// Whether it names more than what it is written as.
pub(super) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// The paths that match a pattern, each once. What cannot be read matches nothing, and neither does a name that is not
/// UTF-8.
pub(super) fn matching(pattern: &str) -> Vec<PathBuf> {
    let options =
        glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };
    let Ok(paths) = glob::glob_with(pattern, options) else { return Vec::new() };
    let mut seen = HashSet::new();
    paths.flatten().filter(|path| seen.insert(path.clone())).collect()
}

/// A directory and the roots of what is mounted below it.
fn tree(path: &Path, mounts: &BTreeSet<PathBuf>) -> Vec<PathBuf> {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let below = mounts.iter().filter(|m| m.starts_with(&real) && **m != real).cloned();
    std::iter::once(path.to_owned()).chain(below).collect()
}

/// The host's resolvers, where the policy speaks of them.
fn resolvers(policy: &Policy) -> Result<Vec<IpAddr>, KernelError> {
    if !policy.net.iter().any(|rule| rule.to == Addresses::Resolvers) {
        return Ok(Vec::new());
    }
    match fs::read(RESOLV_CONF) {
        Ok(text) => Ok(policy::resolvers(&String::from_utf8_lossy(&text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(policy::resolvers("")),
        Err(error) => Err(KernelError::file("read", RESOLV_CONF)(error)),
    }
}

/// The addresses of all the host's interfaces. Loopback needs none.
fn own_addresses() -> Result<Vec<IpAddr>, KernelError> {
    let found =
        nix::ifaddrs::getifaddrs().map_err(|errno| KernelError::file("list", "the host's addresses")(errno.into()))?;
    let address = |one: nix::ifaddrs::InterfaceAddress| {
        let storage = one.address?;
        let v4 = storage.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    let own: BTreeSet<IpAddr> = found.filter_map(address).filter(|address| !address.is_loopback()).collect();
    Ok(own.into_iter().collect())
}
