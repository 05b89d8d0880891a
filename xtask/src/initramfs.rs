//! Writes the guest's file system: a cpio archive in the `newc` format, which the kernel unpacks into memory.

use std::{
    fs,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{exec::run, modules, workspace::Workspace};

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const DEVICE: u32 = 0o020_600;

/// Bytes of the file system that guests bring; as `tests/src/harness/verity.rs` has it.
const DISK: u64 = 96 << 20;
/// No journal, few inodes, and always the same: what is not zero stands at the beginning.
const MKE2FS: [&str; 14] = [
    "-q",
    "-F",
    "-t",
    "ext4",
    "-b",
    "4096",
    "-N",
    "32",
    "-O",
    "verity,extent,^has_journal,^resize_inode",
    "-U",
    "74697073-7461-6666-8000-000000000001",
    "-E",
    "hash_seed=74697073-7461-6666-8000-000000000002,nodiscard",
];

/// The dynamic loader, which tests start as a program; guests are of this architecture.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// Writes an archive in which the black-box tests are `/init`, beside the agent, a loader, and the kernel's modules, which
/// are named in loading order by `/modules/order`. There is nothing else: the tests bring their own workloads.
pub(crate) fn write(workspace: &Workspace, modules: Option<&Path>, to: &Path) -> Result<()> {
    let file = fs::File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    let mut archive = Archive { out: BufWriter::new(file), entries: 0, scratch: to.with_extension("stripped") };
    fill(workspace, modules, &mut archive).with_context(|| format!("cannot write {}", to.display()))
}

fn fill<W: Write>(workspace: &Workspace, modules: Option<&Path>, archive: &mut Archive<W>) -> Result<()> {
    for folder in ["bin", "dev", "etc", "lib64", "modules", "proc", "root", "run", "sys", "tmp", "usr", "var"] {
        archive.entry(folder, FOLDER, b"", (0, 0))?;
    }
    // the console that init starts with
    archive.entry("dev/console", DEVICE, b"", (5, 1))?;
    archive.entry(
        "etc/passwd",
        FILE,
        b"root:x:0:0:root:/root:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        (0, 0),
    )?;
    archive.entry("etc/group", FILE, b"root:x:0:\nnogroup:x:65534:\n", (0, 0))?;
    archive.entry("etc/hosts", FILE, b"127.0.0.1 localhost\n::1 localhost\n", (0, 0))?;
    archive.program("init", &workspace.tests())?;
    archive.program("bin/tipstaff", &workspace.agent())?;
    archive.program(&LOADER[1..], Path::new(LOADER))?;
    archive.disk("ext4")?;
    let mut order = String::new();
    for (name, image) in modules.map(modules::load).transpose()?.unwrap_or_default() {
        archive.entry(&format!("modules/{name}.ko"), FILE, &image, (0, 0))?;
        order += &format!("{name}\n");
    }
    archive.entry(&format!("modules/{}", modules::ORDER), FILE, order.as_bytes(), (0, 0))?;
    archive.end()
}

/// A cpio archive in the making.
struct Archive<W: Write> {
    out: W,
    entries: u32,
    /// Where a program lies while it is stripped: another archive may be in the making.
    scratch: PathBuf,
}

impl<W: Write> Archive<W> {
    /// Adds a program of this machine, without its debug information: the guest has it in memory, and the tests copy
    /// theirs for every program that they need.
    fn program(&mut self, name: &str, from: &Path) -> Result<()> {
        let stripped = self.scratch.clone();
        run(Command::new("strip").arg("--strip-debug").arg("-o").arg(&stripped).arg(from))?;
        let bytes = fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))?;
        fs::remove_file(&stripped).with_context(|| format!("cannot remove {}", stripped.display()))?;
        self.entry(name, PROGRAM, &bytes, (0, 0))
    }

    /// Adds an empty file system that has fs-verity, without the zeros at its end: guests have no program that makes one.
    fn disk(&mut self, name: &str) -> Result<()> {
        let image = self.scratch.with_extension("ext4");
        let file = fs::File::create(&image).with_context(|| format!("cannot write {}", image.display()))?;
        file.set_len(DISK)?;
        // where it stands is in root's PATH alone; the same input makes the same archive
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let mut make = Command::new("mke2fs");
        make.args(MKE2FS).arg(&image).env("PATH", path).env("E2FSPROGS_FAKE_TIME", "1").stdout(std::io::stderr());
        run(&mut make).context("guests have a file system with fs-verity, which mke2fs makes (Debian: e2fsprogs)")?;
        let mut bytes = fs::read(&image).with_context(|| format!("cannot read {}", image.display()))?;
        fs::remove_file(&image).with_context(|| format!("cannot remove {}", image.display()))?;
        bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        self.entry(name, FILE, &bytes, (0, 0))
    }

    /// Adds an entry: `mode` says what it is, `device` is (major, minor) of a device.
    fn entry(&mut self, name: &str, mode: u32, content: &[u8], device: (u32, u32)) -> Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).with_context(|| format!("{name} is too large for the archive"))?;
        let name_size = u32::try_from(name.len() + 1).with_context(|| format!("{name} is too long a name"))?;
        // inode, mode, uid, gid, links, mtime, size, device of the file (2), device it is (2), name's size, check sum
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header += &format!("{field:08x}");
        }
        self.padded(&[header.as_bytes(), name.as_bytes(), b"\0"])?;
        self.padded(&[content])
    }

    fn end(&mut self) -> Result<()> {
        self.entry("TRAILER!!!", 0, b"", (0, 0))?;
        Ok(self.out.flush()?)
    }

    /// Writes the parts, then zeros up to a multiple of four bytes.
    fn padded(&mut self, parts: &[&[u8]]) -> Result<()> {
        let mut length = 0;
        for part in parts {
            self.out.write_all(part)?;
            length += part.len();
        }
        let padding = length.next_multiple_of(4) - length;
        Ok(self.out.write_all(&[0; 3][..padding])?)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Archive, FILE};

    #[test]
    fn an_entry_is_a_header_a_name_and_a_content_each_padded_to_four() {
        let mut archive = Archive { out: Vec::new(), entries: 0, scratch: PathBuf::new() };
        archive.entry("etc/hosts", FILE, b"hello", (0, 0)).unwrap();
        let text = String::from_utf8(archive.out).unwrap();
        let header = "070701\
            00000001000081a400000000000000000000000100000000\
            0000000500000000000000000000000000000000\
            0000000a00000000";
        assert_eq!(text, format!("{header}etc/hosts\0hello\0\0\0"));
    }
}
