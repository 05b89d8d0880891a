//! Directories that were made on the way, so that they can be taken away where nothing came of it.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

/// What was made, in its order.
#[derive(Debug, Default)]
pub struct Made(Vec<PathBuf>);

impl Made {
    /// Makes the directory and those above it that are missing, with this mode.
    ///
    /// # Errors
    /// One cannot be made, or something else stands there.
    pub fn directory(&mut self, path: &Path, mode: u32) -> io::Result<()> {
        let missing: Vec<&Path> =
            path.ancestors().take_while(|part| !part.as_os_str().is_empty() && !part.exists()).collect();
        for directory in missing.into_iter().rev() {
            match fs::DirBuilder::new().mode(mode).create(directory) {
                Ok(()) => self.0.push(directory.to_owned()),
                // somebody else was faster
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        if path.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
    }

    /// Removes what was made, as far as nobody uses it.
    pub fn take_away(self) {
        for directory in self.0.iter().rev() {
            // not empty: then it is in use
            let _ = fs::remove_dir(directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_made_is_taken_away() {
        let top = tempfile::tempdir().expect("a folder");
        let (there, deep) = (top.path().join("there"), top.path().join("there/a/b"));
        fs::create_dir(&there).expect("a folder");
        let mut made = Made::default();
        made.directory(&deep, 0o700).expect("made");
        made.directory(&there, 0o700).expect("it is there");
        assert!(deep.is_dir());
        made.take_away();
        assert!(there.is_dir() && !there.join("a").exists());
    }

    #[test]
    fn what_is_used_stays() {
        let top = tempfile::tempdir().expect("a folder");
        let deep = top.path().join("a/b");
        let mut made = Made::default();
        made.directory(&deep, 0o700).expect("made");
        fs::write(top.path().join("a/used"), "").expect("written");
        made.take_away();
        assert!(!deep.exists() && top.path().join("a/used").exists());
        assert!(Made::default().directory(&top.path().join("a/used"), 0o700).is_err(), "a file is no directory");
    }
}
