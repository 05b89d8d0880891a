//! Guest kernels: Debian's own images, downloaded with an apt configuration of ours and unpacked below `target/vm`.
//!
//! The system's apt is never changed, only its mirror and its keyring are used. Only `vmlinuz` and the few modules that the
//! tests need are unpacked.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    exec::{output, run, say, step},
    modules,
    workspace::Workspace,
};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel to boot.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// As asked for: `6.1`, or a file's name.
    pub(crate) name: String,
    /// The package that it is of; nothing for an image that was named by its file.
    pub(crate) package: String,
    pub(crate) image: PathBuf,
    /// The folder of its modules; an image that was named by its file has none.
    pub(crate) modules: Option<PathBuf>,
    /// Too old: the agent is to refuse it.
    pub(crate) old: bool,
}

/// Where Debian has a kernel line.
struct Line {
    name: &'static str,
    suite: &'static str,
    security: bool,
    old: bool,
}

const LINES: [Line; 4] = [
    Line { name: "5.10", suite: "bullseye", security: true, old: true },
    Line { name: "6.1", suite: "bookworm", security: true, old: false },
    Line { name: "6.12", suite: "bookworm-backports", security: false, old: false },
    Line { name: "unstable", suite: "sid", security: false, old: false },
];

/// The kernel of that name (or in that file), downloaded when it is not there yet or `refresh` asks for the newest.
pub(crate) fn get(workspace: &Workspace, name: &str, refresh: bool) -> Result<Kernel> {
    let Some(line) = LINES.iter().find(|line| line.name == name) else {
        let image = PathBuf::from(name);
        if !image.is_file() {
            let names: Vec<_> = LINES.iter().map(|line| line.name).collect();
            bail!("there is no kernel `{name}`; name a kernel image or one of {}", names.join(", "));
        }
        let name = image.file_name().map_or_else(|| name.to_owned(), |file| file.to_string_lossy().into_owned());
        return Ok(Kernel { name, package: String::new(), image, modules: None, old: false });
    };
    let folder = workspace.vm().join("kernels").join(name);
    let image = folder.join("vmlinuz");
    let modules = modules::folder(&folder);
    if refresh || !image.is_file() || !modules::are_wanted(&modules) {
        step(&format!("downloading Debian's kernel {name}"), || fetch(workspace, line, &folder))?;
    }
    let package = fs::read_to_string(folder.join("version")).unwrap_or_default().trim().to_owned();
    Ok(Kernel { name: name.to_owned(), package, image, modules: Some(modules), old: line.old })
}

/// Downloads and unpacks the newest image of a line into `folder`.
fn fetch(workspace: &Workspace, line: &Line, folder: &Path) -> Result<()> {
    if !Path::new(KEYRING).is_file() || crate::exec::which("apt-get").is_none() {
        bail!("guest kernels are downloaded with Debian's apt-get and {KEYRING}; elsewhere name a kernel image");
    }
    let apt = Apt::new(workspace, line)?;
    let Packages { image, modules, version } = apt.newest()?;
    say(&format!("kernel {}: downloading {image} {version}", line.name));
    let unpacked = apt.folder.join("unpacked");
    for stale in [&unpacked, &apt.downloads()] {
        if stale.exists() {
            fs::remove_dir_all(stale).with_context(|| format!("cannot remove {}", stale.display()))?;
        }
        fs::create_dir_all(stale).with_context(|| format!("cannot make {}", stale.display()))?;
    }
    let mut archive = apt.archive(&image, &version)?;
    let member = archive.members.lines().find(|m| m.rsplit('/').next().is_some_and(|n| n.starts_with("vmlinuz")));
    let member = member.with_context(|| format!("{image} {version} holds no vmlinuz"))?.to_owned();
    run(Command::new("tar").arg("-xf").arg(&archive.path).arg("-C").arg(&unpacked).arg(&member))?;
    if modules != image {
        archive.remove()?;
        archive = apt.archive(&modules, &version)?;
    }
    modules::unpack(&archive.path, &archive.members, &unpacked, &modules::folder(folder))?;
    archive.remove()?;
    install(&unpacked.join(member), folder, &format!("{image} {version}\n"))
}

/// Puts the image in its place; the version is written first, so that an image always has one.
fn install(image: &Path, folder: &Path, version: &str) -> Result<()> {
    let work = || -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("version"), version)?;
        fs::rename(image, folder.join("vmlinuz"))
    };
    work().with_context(|| format!("cannot put a kernel into {}", folder.display()))
}

/// The packages that hold a kernel.
struct Packages {
    image: String,
    /// The same one where the image's package holds the modules too.
    modules: String,
    version: String,
}

/// The files of a package, as an archive.
struct Archive {
    path: PathBuf,
    /// The names of its members, one a line.
    members: String,
}

impl Archive {
    fn remove(self) -> Result<()> {
        fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))
    }
}

/// An apt of our own for one kernel line: sources, lists, caches and state below `target/vm/apt`.
struct Apt {
    folder: PathBuf,
    options: Vec<String>,
}

impl Apt {
    fn new(workspace: &Workspace, line: &Line) -> Result<Self> {
        let folder = workspace.vm().join("apt").join(line.name);
        for sub in ["lists/partial", "cache/archives/partial", "state"] {
            fs::create_dir_all(folder.join(sub)).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let (main, security) = mirrors();
        let mut sources = format!("deb [arch=amd64 signed-by={KEYRING}] {main} {} main\n", line.suite);
        if line.security {
            sources += &format!("deb [arch=amd64 signed-by={KEYRING}] {security} {}-security main\n", line.suite);
        }
        let list = folder.join("sources.list");
        fs::write(&list, sources).with_context(|| format!("cannot write {}", list.display()))?;
        let at = |sub: &str| folder.join(sub).display().to_string();
        let options = vec![
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State={}", at("state")),
            "Dir::State::status=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", at("lists")),
            format!("Dir::Cache={}", at("cache")),
            // apt's own user may not reach this folder, and the signatures are checked anyway
            "APT::Sandbox::User=root".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ];
        Ok(Self { folder, options })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.folder);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }

    fn downloads(&self) -> PathBuf {
        self.folder.join("downloads")
    }

    /// The packages of the newest image.
    ///
    /// `linux-image-amd64` depends on the image of a version, which holds the image and its modules, or depends on
    /// `linux-binary-…` and `linux-modules-…` that do.
    fn newest(&self) -> Result<Packages> {
        twice(|| run(self.command("apt-get").args(["update", "-q"]).stdout(std::io::stderr())))?;
        let show = |package: &str| output(self.command("apt-cache").args(["show", "--no-all-versions", package]));
        let found = dependency(&show("linux-image-amd64")?, "linux-image-");
        let package = found.context("linux-image-amd64 depends on no image")?;
        let record = show(&package)?;
        let version = field(&record, "Version").with_context(|| format!("{package} has no version"))?.to_owned();
        let image = dependency(&record, "linux-binary-").unwrap_or_else(|| package.clone());
        let modules = dependency(&record, "linux-modules-").unwrap_or(package);
        Ok(Packages { image, modules, version })
    }

    /// Downloads a package and takes the archive of its files out of it.
    fn archive(&self, package: &str, version: &str) -> Result<Archive> {
        let deb = self.download(package, version)?;
        let path = self.folder.join("data.tar");
        let tar = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        run(Command::new("dpkg-deb").arg("--fsys-tarfile").arg(&deb).stdout(tar))?;
        fs::remove_file(&deb).with_context(|| format!("cannot remove {}", deb.display()))?;
        let members = output(Command::new("tar").arg("-tf").arg(&path))?;
        Ok(Archive { path, members })
    }

    fn download(&self, package: &str, version: &str) -> Result<PathBuf> {
        let folder = self.downloads();
        let wanted = format!("{package}={version}");
        let download = ["download", "-q", &wanted];
        twice(|| run(self.command("apt-get").args(download).current_dir(&folder).stdout(std::io::stderr())))?;
        let entries = folder.read_dir().with_context(|| format!("cannot read {}", folder.display()))?;
        let deb = entries.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "deb"));
        deb.with_context(|| format!("apt-get left no package in {}", folder.display()))
    }
}

/// A mirror can fail for a moment, or change between its index and its files.
fn twice(work: impl Fn() -> Result<()>) -> Result<()> {
    work().or_else(|error| {
        say(&format!("{error:#}; trying once more"));
        work()
    })
}

/// The first package in `Depends` whose name begins with `prefix`.
fn dependency(record: &str, prefix: &str) -> Option<String> {
    let all = field(record, "Depends")?.split(", ");
    let mut names = all.filter_map(|one| one.split_whitespace().next());
    names.find(|name| name.starts_with(prefix)).map(str::to_owned)
}

fn field<'a>(record: &'a str, name: &str) -> Option<&'a str> {
    record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// Debian's mirror and its mirror of security updates, as this machine has them.
fn mirrors() -> (String, String) {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let parts = Path::new("/etc/apt/sources.list.d").read_dir().into_iter().flatten().flatten();
    files.extend(parts.map(|entry| entry.path()));
    let text: String = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
    mirrors_in(&text)
}

fn mirrors_in(text: &str) -> (String, String) {
    let lines = text.lines().filter(|line| line.starts_with("URIs:") || line.starts_with("deb "));
    let words = lines.flat_map(str::split_whitespace).map(|word| word.trim_end_matches('/'));
    let mirrors: Vec<&str> = words.filter(|word| word.contains("://")).collect();
    let find = |end: &str, default: &str| {
        mirrors.iter().find(|mirror| mirror.ends_with(end)).map_or_else(|| default.to_owned(), |m| (*m).to_owned())
    };
    (find("/debian", "http://deb.debian.org/debian"), find("/debian-security", "http://deb.debian.org/debian-security"))
}

#[cfg(test)]
mod tests {
    use super::{dependency, field, mirrors_in};

    #[test]
    fn the_image_is_found_through_its_dependencies() {
        let meta = "Package: linux-image-amd64\nVersion: 7.2.13-1\n\
            Depends: linux-base-amd64 (= 7.2.13-1), linux-image-7.2.13+deb14-amd64 (= 7.2.13-1)\n";
        assert_eq!(dependency(meta, "linux-image-").as_deref(), Some("linux-image-7.2.13+deb14-amd64"));
        assert_eq!(dependency(meta, "linux-binary-"), None);
        assert_eq!(field(meta, "Version"), Some("7.2.13-1"));
    }

    #[test]
    fn mirrors_are_read_from_both_formats_and_default_to_debians() {
        let text = "Types: deb\nURIs: http://mirror.example/debian/\n\
            deb [arch=amd64] https://other.example/debian-security bookworm-security main\n\
            deb https://vendor.example/apt stable main\n";
        let expected = ("http://mirror.example/debian".to_owned(), "https://other.example/debian-security".to_owned());
        assert_eq!(mirrors_in(text), expected);
        assert_eq!(mirrors_in("").1, "http://deb.debian.org/debian-security");
    }
}
