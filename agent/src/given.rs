//! Files that a caller names: opened without waiting for anybody, and read only where they are files.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Opens a regular file. A FIFO would keep the caller waiting for a writer, a device has no end.
///
/// # Errors
/// It cannot be opened, or is no regular file; what it is instead is named.
pub fn open(path: &Path) -> io::Result<File> {
    // of what is no file nothing is asked but what it is: to open a terminal or a tape does something
    refuse_others(std::fs::metadata(path)?.file_type())?;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    // another may stand there since
    refuse_others(file.metadata()?.file_type())?;
    Ok(file)
}

/// The text of a regular file.
///
/// # Errors
/// As [`open`], and it is no UTF-8.
pub fn text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

fn refuse_others(kind: std::fs::FileType) -> io::Result<()> {
    if kind.is_file() {
        return Ok(());
    }
    let what = match kind {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a pipe or FIFO",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}: name a regular file")))
}

#[cfg(test)]
mod tests {
    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[test]
    fn only_files_are_read_and_nobody_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (file, fifo, socket) =
            (folder.path().join("file"), folder.path().join("fifo"), folder.path().join("socket"));
        std::fs::write(&file, "text").unwrap();
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(text(&file).unwrap(), "text");
        let device = Path::new("/dev/zero");
        for (path, what) in
            [(fifo.as_path(), "FIFO"), (folder.path(), "directory"), (&socket, "socket"), (device, "device")]
        {
            let error = open(path).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("name a regular file"), "{}: {error}", path.display());
        }
        assert_eq!(open(&folder.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
