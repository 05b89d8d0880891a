//! Which file a command is: as execvp(3) finds it, with the statuses that a shell gives.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags},
    unistd::{AccessFlags, faccessat},
};

use super::{Exit, Failure};

/// Where execvp(3) looks when there is no `PATH`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The file to execute, with a slash in it. `search` is the value of `PATH`.
pub(super) fn resolve(command: &OsStr, search: Option<&OsStr>) -> Result<PathBuf, Failure> {
    if command.as_bytes().contains(&b'/') {
        return executable(Path::new(command)).map_err(|errno| failure(command, errno));
    }
    if command.is_empty() {
        return Err(failure(command, Errno::ENOENT));
    }
    let search = search.unwrap_or_else(|| OsStr::new(DEFAULT_PATH));
    let mut worst = Errno::ENOENT;
    for directory in search.as_bytes().split(|&byte| byte == b':') {
        // an empty entry is the working directory
        let directory = if directory.is_empty() { Path::new(".") } else { Path::new(OsStr::from_bytes(directory)) };
        match executable(&directory.join(command)) {
            Ok(path) => return Ok(path),
            // found but not allowed: the search goes on, and if nothing better comes, this is the answer
            Err(Errno::EACCES) => worst = Errno::EACCES,
            Err(_) => {}
        }
    }
    Err(failure(command, worst))
}

fn executable(path: &Path) -> Result<PathBuf, Errno> {
    let found = fs::metadata(path).map_err(|error| error.raw_os_error().map_or(Errno::ENOENT, Errno::from_raw))?;
    if !found.is_file() {
        return Err(Errno::EACCES);
    }
    faccessat(AT_FDCWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS).map(|()| path.to_owned())
}

/// The message and status of a command that cannot be executed for this reason.
pub(super) fn failure(command: &OsStr, errno: Errno) -> Failure {
    let exit = match errno {
        Errno::ENOENT | Errno::ENOTDIR => Exit::CommandNotFound,
        _ => Exit::NotExecutable,
    };
    Failure::new(exit, format!("{}: {}", command.display(), errno.desc()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A directory with `good` (executable), `plain` (not), and the directory `folder`.
    fn files() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, mode) in [("good", 0o755), ("plain", 0o644)] {
            let path = directory.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(directory.path().join("folder")).unwrap();
        directory
    }

    fn status(result: Result<PathBuf, Failure>) -> (u8, String) {
        let failure = result.unwrap_err();
        (failure.exit as u8, failure.message)
    }

    #[test]
    fn a_name_is_searched_and_the_first_executable_wins() {
        let (first, second) = (files(), files());
        fs::remove_file(first.path().join("good")).unwrap();
        let search = format!("/nonexistent:{}:{}", first.path().display(), second.path().display());
        assert_eq!(resolve("good".as_ref(), Some(search.as_ref())).unwrap(), second.path().join("good"));
    }

    #[test]
    fn a_path_is_taken_as_it_is() {
        let directory = files();
        let path = directory.path().join("good");
        assert_eq!(resolve(path.as_os_str(), None).unwrap(), path);
    }

    #[test]
    fn without_a_search_path_the_systems_is_used() {
        assert!(resolve("sh".as_ref(), None).unwrap().is_absolute());
    }

    #[test]
    fn what_is_not_there_is_127_and_what_cannot_be_executed_is_126() {
        let directory = files();
        let search = Some(directory.path().as_os_str());
        let path = |name: &str| directory.path().join(name).into_os_string();
        assert_eq!(status(resolve("no-such".as_ref(), search)), (127, "no-such: No such file or directory".to_owned()));
        assert_eq!(status(resolve("".as_ref(), search)).0, 127);
        assert_eq!(status(resolve(&path("no-such"), search)).0, 127);
        assert_eq!(status(resolve(&path("good/below"), search)).0, 127);
        assert_eq!(status(resolve("plain".as_ref(), search)), (126, "plain: Permission denied".to_owned()));
        assert_eq!(status(resolve(&path("plain"), search)).0, 126);
        assert_eq!(status(resolve("folder".as_ref(), search)).0, 126);
        assert_eq!(status(resolve(&path("folder"), search)).0, 126);
    }

    #[test]
    fn an_empty_entry_is_the_working_directory() {
        assert_eq!(resolve("Cargo.toml".as_ref(), Some("".as_ref())).unwrap_err().exit, Exit::NotExecutable);
        assert_eq!(resolve("no-such".as_ref(), Some("".as_ref())).unwrap_err().exit, Exit::CommandNotFound);
    }
}
