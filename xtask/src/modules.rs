//! Kernel modules that a guest loads: what the tests need and Debian's kernels do not have built in.
//!
//! A kernel package has no list of dependencies (depmod makes it on installation), so each module is asked for its own:
//! its section `.modinfo` holds strings `key=value`, among them `depends=` with names separated by commas.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::exec::{run, which};

/// The file beside the modules that names them in the order in which they are loaded, one a line.
pub(crate) const ORDER: &str = "order";

/// What the tests need. What a kernel has built in, or has not at all (7.2 has no DCCP), is no module of it.
const WANTED: [&str; 22] = [
    // sock_diag(7), which lists and destroys sockets
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "raw_diag",
    "mptcp_diag",
    "unix_diag",
    "af_packet_diag",
    // further ways to send
    "sctp",
    "sctp_diag",
    "dccp_ipv4",
    "dccp_ipv6",
    "vsock",
    "vsock_loopback",
    "vsock_diag",
    "af_packet",
    // networks to send in
    "veth",
    "dummy",
    "tun",
    // file systems to run programs from, and what one needs that lies in a file
    "overlay",
    "ext4",
    "loop",
    // formats of programs that somebody registers
    "binfmt_misc",
];

/// What modules ask the kernel for by an alias when they are loaded (`softdep=pre: crc32c`), and the module that has it.
/// Later kernels have it built in.
const BY_ALIAS: ([&str; 2], &str) = (["libcrc32c", "ext4"], "crc32c_generic");

/// The file beside the modules that names those that were wanted when they were unpacked, one a line.
const ASKED: &str = "wanted";

/// Whether the modules in `folder` are those of this list.
pub(crate) fn are_wanted(folder: &Path) -> bool {
    folder.join(ORDER).is_file() && fs::read_to_string(folder.join(ASKED)).is_ok_and(|asked| asked == WANTED.join("\n"))
}

/// Unpacks the wanted modules and all that they depend on from a package's archive into `folder`, uncompressed, beside
/// the file [`ORDER`]. `members` lists the archive, `scratch` is an empty folder to unpack in.
pub(crate) fn unpack(archive: &Path, members: &str, scratch: &Path, folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let available: BTreeMap<String, &str> = members.lines().filter_map(|m| Some((module(m)?, m))).collect();
    let mut needs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut next: Vec<String> = WANTED.map(str::to_owned).into_iter().filter(|m| available.contains_key(m)).collect();
    while !next.is_empty() {
        let paths: Vec<&str> = next.iter().filter_map(|name| available.get(name).copied()).collect();
        run(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(scratch).args(&paths))?;
        for (name, path) in next.iter().zip(paths) {
            let image = decompress(&scratch.join(path))?;
            let mut others = depends(&image);
            others.extend(
                (BY_ALIAS.0.contains(&name.as_str()) && available.contains_key(BY_ALIAS.1))
                    .then(|| BY_ALIAS.1.to_owned()),
            );
            needs.insert(name.clone(), others);
            let file = folder.join(format!("{name}.ko"));
            fs::write(&file, image).with_context(|| format!("cannot write {}", file.display()))?;
        }
        next = needs.values().flatten().filter(|name| !needs.contains_key(*name)).cloned().collect();
        next.sort();
        next.dedup();
        if let Some(missing) = next.iter().find(|name| !available.contains_key(*name)) {
            bail!("the kernel's package has no module {missing}, which another one needs");
        }
    }
    let asked = folder.join(ASKED);
    fs::write(&asked, WANTED.join("\n")).with_context(|| format!("cannot write {}", asked.display()))?;
    // written last: where it is, the rest is there
    let order = order(&needs).join("\n") + "\n";
    let list = folder.join(ORDER);
    fs::write(&list, order).with_context(|| format!("cannot write {}", list.display()))
}

/// The modules in `folder` in loading order: name and image.
pub(crate) fn load(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let list = folder.join(ORDER);
    let names = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let read = |name: &str| {
        let path = folder.join(format!("{name}.ko"));
        let image = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok((name.to_owned(), image))
    };
    names.lines().map(read).collect()
}

/// The name of the module in a file; the kernel takes `-` and `_` for the same.
fn module(path: &str) -> Option<String> {
    let (name, _) = path.rsplit('/').next()?.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

fn decompress(file: &Path) -> Result<Vec<u8>> {
    let (tool, package) = match file.extension().and_then(|e| e.to_str()) {
        Some("xz") => ("xz", "xz-utils"),
        Some("zst") => ("zstd", "zstd"),
        Some("gz") => ("gzip", "gzip"),
        _ => return fs::read(file).with_context(|| format!("cannot read {}", file.display())),
    };
    if which(tool).is_none() {
        bail!("{} cannot be unpacked without {tool}: install it (Debian: {package})", file.display());
    }
    let output = Command::new(tool).arg("-dc").arg(file).output().with_context(|| format!("cannot start {tool}"))?;
    if !output.status.success() {
        bail!("{tool} cannot unpack {}: {}", file.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

/// The modules that a module says it depends on.
fn depends(image: &[u8]) -> Vec<String> {
    let mut strings = image.split(|byte| *byte == 0);
    let value = strings.find_map(|text| std::str::from_utf8(text).ok()?.strip_prefix("depends="));
    let names = value.unwrap_or_default().split(',').filter(|name| !name.is_empty());
    names.map(|name| name.replace('-', "_")).collect()
}

/// Every module after those that it needs.
fn order(needs: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    fn visit(name: &str, needs: &BTreeMap<String, Vec<String>>, done: &mut Vec<String>) {
        if done.iter().any(|other| other == name) {
            return;
        }
        // the kernel's modules have no circles: they could not be loaded
        needs.get(name).into_iter().flatten().for_each(|other| visit(other, needs, done));
        done.push(name.to_owned());
    }
    let mut done = Vec::new();
    needs.keys().for_each(|name| visit(name, needs, &mut done));
    done
}

/// The folder of a kernel's modules, in the folder of the kernel.
pub(crate) fn folder(kernel: &Path) -> PathBuf {
    kernel.join("modules")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_says_what_it_depends_on() {
        let image = b"\x7fELF\0license=GPL\0depends=inet_diag,vsock-common\0name=tcp_diag\0";
        assert_eq!(depends(image), ["inet_diag", "vsock_common"]);
        assert!(depends(b"\0depends=\0").is_empty());
        assert!(depends(b"\x7fELF").is_empty());
    }

    #[test]
    fn names_come_from_files_and_directories_have_none() {
        assert_eq!(module("./lib/modules/6.1/kernel/net/vmw-vsock.ko.xz").as_deref(), Some("vmw_vsock"));
        assert_eq!(module("./lib/modules/6.1/kernel/net/veth.ko").as_deref(), Some("veth"));
        assert_eq!(module("./lib/modules/6.1/modules.order"), None);
    }

    #[test]
    fn modules_of_another_list_are_unpacked_again() {
        let folder = std::env::temp_dir().join(format!("tipstaff-xtask-modules-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        assert!(!are_wanted(&folder), "an empty folder");
        fs::write(folder.join(ORDER), "").unwrap();
        assert!(!are_wanted(&folder), "nobody knows what was wanted");
        fs::write(folder.join(ASKED), WANTED.join("\n")).unwrap();
        assert!(are_wanted(&folder));
        fs::write(folder.join(ASKED), "veth").unwrap();
        assert!(!are_wanted(&folder), "others were wanted");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_is_needed_is_loaded_first() {
        let needs = |list: &[(&str, &[&str])]| {
            list.iter().map(|(n, d)| ((*n).to_owned(), d.iter().map(|d| (*d).to_owned()).collect())).collect()
        };
        let needs = needs(&[("a", &["z"]), ("m", &["a", "z"]), ("z", &[])]);
        assert_eq!(order(&needs), ["z", "a", "m"]);
    }
}
