//! Where everything is and what the host allows: flag over environment over file over default.
//!
//! Pure but for reading the file, the group database and the list of mounts. Nothing here comes from a policy or from
//! what is governed.
#![forbid(unsafe_code)]

mod file;
pub mod mountinfo;

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

pub use file::{Attach, Group};

/// The file that is read when none is named; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/tipstaff/tipstaff.toml";
/// Where group names are looked up; groups that only a directory service knows are given by number.
const GROUPS: &str = "/etc/group";
const DEFAULT_MAX_TTL: Duration = Duration::from_secs(24 * 3600);

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// A flag or variable holds no path.
    #[error("{origin} is empty: give a path, or leave it out")]
    EmptyPath {
        /// The flag or variable.
        origin: String,
    },
    /// A relative path could not be completed.
    #[error("cannot make {} absolute: {source}", path.display())]
    Absolute {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The group that the configuration names does not exist.
    #[error("there is no group {name:?}, which {key} names; make it with `groupadd {name}` or name another")]
    NoGroup {
        /// The key.
        key: String,
        /// The group.
        name: String,
    },
    /// The group database cannot be read.
    #[error("cannot look up the group {name:?} in /etc/group: {source}")]
    GroupLookup {
        /// The group.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The mounts cannot be read.
    #[error("cannot read /proc/self/mountinfo: {0}")]
    Mounts(#[source] io::Error),
    /// Version 1 of cgroups only, or none.
    #[error(
        "no cgroup2 is mounted: boot with systemd.unified_cgroup_hierarchy=1, or `mount -t cgroup2 none \
         /sys/fs/cgroup/unified`, or name a cgroup2 folder with --cgroup"
    )]
    NoCgroup2,
}

/// Paths that flags set, each over what environment and file say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--state-dir`
    pub state: Option<PathBuf>,
    /// `--runtime-dir`
    pub runtime: Option<PathBuf>,
    /// `--pin-dir`
    pub pins: Option<PathBuf>,
    /// `--cgroup`
    pub cgroup: Option<PathBuf>,
    /// `--policy-dir`
    pub policies: Option<PathBuf>,
    /// `--evidence-dir`
    pub evidence: Option<PathBuf>,
    /// `--users`
    pub users: Option<PathBuf>,
}

/// The configuration in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file that was read, if there is one.
    pub file: Option<PathBuf>,
    /// Where everything is.
    pub paths: Paths,
    /// Which sockets the programs on cgroups see.
    pub attach: Attach,
    /// Who may connect.
    pub groups: Groups,
    /// What no policy can exceed.
    pub limits: Limits,
}

/// Where everything is; all absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// What survives the agent.
    pub state: PathBuf,
    /// The sockets.
    pub runtime: PathBuf,
    /// The pinned kernel programs and maps.
    pub pins: PathBuf,
    /// The cgroup above the sessions' own, where one was named: see [`Paths::cgroup`].
    pub named_cgroup: Option<PathBuf>,
    /// Policies by name.
    pub policies: PathBuf,
    /// The evidence.
    pub evidence: PathBuf,
    /// The host's users: passwd(5).
    pub users: PathBuf,
}

impl Paths {
    /// The cgroup above the sessions' own: as named, or `tipstaff` where cgroup2 is mounted. Need not exist.
    ///
    /// # Errors
    /// [`ConfigError::NoCgroup2`] and [`ConfigError::Mounts`].
    pub fn cgroup(&self) -> Result<PathBuf, ConfigError> {
        self.named_cgroup.clone().map_or_else(|| Ok(cgroup2_mount()?.join("tipstaff")), Ok)
    }

    /// The evidence file.
    #[must_use]
    pub fn evidence_file(&self) -> PathBuf {
        self.evidence.join("evidence.jsonl")
    }

    /// The file that knows the evidence's last record.
    #[must_use]
    pub fn evidence_head(&self) -> PathBuf {
        self.state.join("evidence.head")
    }
}

/// Groups that the sockets belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// May ask.
    pub read: Group,
    /// May run and end sessions.
    pub operate: Group,
}

impl Group {
    /// The group's id. A group that only the default names need not exist: then the socket is root's alone (0).
    ///
    /// # Errors
    /// [`ConfigError::NoGroup`] where the configuration names one that does not exist.
    pub fn gid(&self) -> Result<u32, ConfigError> {
        let (key, name) = match self {
            Self::Id(id) => return Ok(*id),
            Self::Default(name) => (None, (*name).to_owned()),
            Self::Named { key, name } => (Some(key), name.clone()),
        };
        // the file and not getgrnam(3): the binary is static, and the C library's name services are not
        let groups = match fs::read_to_string(GROUPS) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => String::new(),
            other => other.map_err(|source| ConfigError::GroupLookup { name: name.clone(), source })?,
        };
        match (group_id(&groups, &name), key) {
            (Some(id), _) => Ok(id),
            (None, None) => Ok(0),
            (None, Some(key)) => Err(ConfigError::NoGroup { key: key.clone(), name }),
        }
    }
}

/// The id of a group in the text of group(5): `name:password:id:members`.
fn group_id(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() == Some(name) { fields.nth(1)?.parse().ok() } else { None }
    })
}

/// What no policy can exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest time to live of a session.
    pub max_ttl: Duration,
}

impl Config {
    /// Reads the configuration. `env` gives a variable's value.
    ///
    /// # Errors
    /// The first thing that is wrong, with its file and line or its flag or variable.
    pub fn load(flags: &Overrides, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, ConfigError> {
        let named = pick("--config", flags.config.as_ref(), "TIPSTAFF_CONFIG", env)?;
        let file = read(named.as_deref())?;
        let (file, content) = match file {
            Some((path, text)) => {
                let content = file::parse(&path, &text)?;
                (Some(path), content)
            }
            None => (None, file::Content::default()),
        };
        let from = &content.paths;
        let choose = |flag: &str, given: Option<&PathBuf>, variable: &str, filed: Option<&PathBuf>| {
            pick(flag, given, variable, env).map(|found| found.or_else(|| filed.cloned()))
        };
        let or = |path: Option<PathBuf>, default: &str| path.unwrap_or_else(|| PathBuf::from(default));
        let state = choose("--state-dir", flags.state.as_ref(), "TIPSTAFF_STATE_DIR", from.state.as_ref())?;
        let runtime = choose("--runtime-dir", flags.runtime.as_ref(), "TIPSTAFF_RUNTIME_DIR", from.runtime.as_ref())?;
        let pins = choose("--pin-dir", flags.pins.as_ref(), "TIPSTAFF_PIN_DIR", from.pins.as_ref())?;
        let cgroup = choose("--cgroup", flags.cgroup.as_ref(), "TIPSTAFF_CGROUP", from.cgroup.as_ref())?;
        let policies = choose("--policy-dir", flags.policies.as_ref(), "TIPSTAFF_POLICY_DIR", from.policies.as_ref())?;
        let evidence =
            choose("--evidence-dir", flags.evidence.as_ref(), "TIPSTAFF_EVIDENCE_DIR", from.evidence.as_ref())?;
        let users = choose("--users", flags.users.as_ref(), "TIPSTAFF_USERS", from.users.as_ref())?;
        let state = or(state, "/var/lib/tipstaff");
        Ok(Self {
            file,
            paths: Paths {
                evidence: evidence.unwrap_or_else(|| state.join("evidence")),
                state,
                runtime: or(runtime, "/run/tipstaff"),
                pins: or(pins, "/sys/fs/bpf/tipstaff"),
                named_cgroup: cgroup,
                policies: or(policies, "/etc/tipstaff/policies.d"),
                users: or(users, "/etc/passwd"),
            },
            attach: content.attach.unwrap_or_default(),
            groups: Groups {
                read: content.groups.read.unwrap_or(Group::Default("tipstaff-read")),
                operate: content.groups.operate.unwrap_or(Group::Default("tipstaff")),
            },
            limits: Limits { max_ttl: content.limits.max_ttl.unwrap_or(DEFAULT_MAX_TTL) },
        })
    }
}

/// The first cgroup2 mount of this process's mount namespace.
///
/// # Errors
/// [`ConfigError::NoCgroup2`] and [`ConfigError::Mounts`].
pub fn cgroup2_mount() -> Result<PathBuf, ConfigError> {
    let mounts = fs::read("/proc/self/mountinfo").map_err(ConfigError::Mounts)?;
    mountinfo::cgroup2(&mounts).ok_or(ConfigError::NoCgroup2)
}

/// Flag over environment, made absolute.
fn pick(
    flag: &str,
    given: Option<&PathBuf>,
    variable: &str,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Option<PathBuf>, ConfigError> {
    let (origin, path) = match (given, env(variable)) {
        (Some(path), _) => (flag, path.clone()),
        (None, Some(value)) => (variable, PathBuf::from(value)),
        (None, None) => return Ok(None),
    };
    if path.as_os_str().is_empty() {
        return Err(ConfigError::EmptyPath { origin: origin.to_owned() });
    }
    std::path::absolute(&path).map(Some).map_err(|source| ConfigError::Absolute { path, source })
}

/// The named file, which has to be there, or the default one, which need not.
fn read(named: Option<&Path>) -> Result<Option<(PathBuf, String)>, ConfigError> {
    let path = named.unwrap_or_else(|| Path::new(DEFAULT_FILE)).to_owned();
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some((path, text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => Ok(None),
        Err(source) => Err(ConfigError::Read { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(flags: &Overrides, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let env = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        Config::load(flags, &env)
    }

    /// A configuration file with the given text, as the flag that names it.
    fn with_file(text: &str) -> (tempfile::TempDir, Overrides) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.toml");
        fs::write(&path, text).unwrap();
        (directory, Overrides { config: Some(path), ..Overrides::default() })
    }

    fn message(text: &str) -> String {
        let (directory, flags) = with_file(text);
        let message = load(&flags, &[]).unwrap_err().to_string();
        message.replace(&directory.path().display().to_string(), "")
    }

    #[test]
    fn flag_beats_environment_beats_file_beats_default() {
        let (_directory, mut flags) = with_file("[paths]\nstate = \"/file\"\npins = \"/file-pins\"\n");
        let none = load(&flags, &[]).unwrap().paths;
        assert_eq!((none.state.as_path(), none.runtime.as_path()), (Path::new("/file"), Path::new("/run/tipstaff")));
        assert_eq!(none.evidence, Path::new("/file/evidence"));
        let variables = [("TIPSTAFF_STATE_DIR", "/variable"), ("TIPSTAFF_EVIDENCE_DIR", "/elsewhere")];
        let paths = load(&flags, &variables).unwrap().paths;
        assert_eq!((paths.state.as_path(), paths.pins.as_path()), (Path::new("/variable"), Path::new("/file-pins")));
        assert_eq!(paths.evidence, Path::new("/elsewhere"));
        flags.state = Some("/flag".into());
        assert_eq!(load(&flags, &variables).unwrap().paths.state, Path::new("/flag"));
    }

    #[test]
    fn every_path_has_its_flag_variable_and_key() {
        let keys = ["state", "runtime", "pins", "cgroup", "policies", "evidence", "users"];
        let text: String = keys.iter().map(|key| format!("{key} = \"/file/{key}\"\n")).collect();
        let all = |paths: &Paths| {
            let cgroup = paths.cgroup().unwrap();
            [&paths.state, &paths.runtime, &paths.pins, &cgroup, &paths.policies, &paths.evidence, &paths.users]
                .map(Clone::clone)
        };
        let expected = |root: &str| keys.map(|key| Path::new(root).join(key));
        let (_directory, mut flags) = with_file(&format!("[paths]\n{text}"));
        assert_eq!(all(&load(&flags, &[]).unwrap().paths), expected("/file"));
        let variables = [
            ("TIPSTAFF_STATE_DIR", "/variable/state"),
            ("TIPSTAFF_RUNTIME_DIR", "/variable/runtime"),
            ("TIPSTAFF_PIN_DIR", "/variable/pins"),
            ("TIPSTAFF_CGROUP", "/variable/cgroup"),
            ("TIPSTAFF_POLICY_DIR", "/variable/policies"),
            ("TIPSTAFF_EVIDENCE_DIR", "/variable/evidence"),
            ("TIPSTAFF_USERS", "/variable/users"),
        ];
        assert_eq!(all(&load(&flags, &variables).unwrap().paths), expected("/variable"));
        let flag = |key: &str| Some(Path::new("/flag").join(key));
        flags = Overrides {
            config: flags.config,
            state: flag("state"),
            runtime: flag("runtime"),
            pins: flag("pins"),
            cgroup: flag("cgroup"),
            policies: flag("policies"),
            evidence: flag("evidence"),
            users: flag("users"),
        };
        assert_eq!(all(&load(&flags, &variables).unwrap().paths), expected("/flag"));
    }

    #[test]
    fn a_relative_flag_is_completed_and_an_empty_one_is_refused() {
        let (_directory, mut flags) = with_file("");
        flags.state = Some("here".into());
        assert_eq!(load(&flags, &[]).unwrap().paths.state, std::env::current_dir().unwrap().join("here"));
        flags.state = None;
        let error = load(&flags, &[("TIPSTAFF_STATE_DIR", "")]).unwrap_err();
        assert_eq!(error.to_string(), "TIPSTAFF_STATE_DIR is empty: give a path, or leave it out");
    }

    #[test]
    fn what_is_wrong_in_the_file_is_named_with_its_line() {
        assert!(
            message("\n[paths]\nstat = \"/x\"\n").starts_with("/t.toml:3:1: unknown field `stat`, expected one of")
        );
        assert!(message("[path]\n").starts_with("/t.toml:1:2: unknown field `path`"));
        assert_eq!(message("[paths]\nstate = \"x\"\n"), "/t.toml:2:9: \"x\" is not an absolute path");
        assert!(message("[limits]\nmax_ttl = 24\n").starts_with("/t.toml:2:11: invalid type: integer `24`"));
        assert!(message("[limits]\nmax_ttl = \"24\"\n").starts_with("/t.toml:2:11: \"24\" has no unit"));
        assert_eq!(message("[limits]\nmax_ttl = \"0s\"\n"), "/t.toml:2:11: \"0s\" must be longer than zero");
        assert!(message("[groups]\nread = true\n").starts_with("/t.toml:2:8: invalid type: boolean `true`"));
        assert!(message("[paths\n").starts_with("/t.toml:1:7: "));
        let unknown = message("attach = \"rot\"\n");
        assert!(unknown.starts_with("/t.toml:1:10: attach cannot be \"rot\": write \"sessions\""), "{unknown}");
        assert!(message("attach = true\n").starts_with("/t.toml:1:10: invalid type: boolean `true`"));
    }

    #[test]
    fn programs_are_attached_to_the_sessions_cgroup_unless_the_file_says_root() {
        for (text, expected) in [
            ("", Attach::Sessions),
            ("attach = \"sessions\"\n", Attach::Sessions),
            ("attach = \"root\"\n", Attach::Root),
        ] {
            let (_directory, flags) = with_file(text);
            assert_eq!(load(&flags, &[]).unwrap().attach, expected);
        }
    }

    #[test]
    fn a_named_file_has_to_be_there() {
        let flags = Overrides { config: Some("/nonexistent/t.toml".into()), ..Overrides::default() };
        let error = load(&flags, &[]).unwrap_err().to_string();
        assert!(error.starts_with("cannot read the configuration /nonexistent/t.toml: "), "{error}");
    }

    #[test]
    fn groups_are_names_or_ids_and_a_named_one_has_to_exist() {
        let (_directory, flags) =
            with_file("[groups]\nread = \"no-such-group\"\noperate = 7\n[limits]\nmax_ttl = \"1h\"\n");
        let config = load(&flags, &[]).unwrap();
        assert_eq!(config.groups.operate.gid().unwrap(), 7);
        assert_eq!(config.limits.max_ttl, Duration::from_secs(3600));
        let error = config.groups.read.gid().unwrap_err().to_string();
        assert!(error.contains("\"no-such-group\"") && error.contains("groups.read"), "{error}");
        assert_eq!(Group::Default("no-such-group").gid().unwrap(), 0);
        assert_eq!(Group::Named { key: "k".into(), name: "root".into() }.gid().unwrap(), 0);
    }
}
