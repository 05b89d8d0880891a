//! The fingerprint of a credential, made here: what the credential itself is never leaves this process.

use std::{
    io::{ErrorKind, Read as _},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::{Exit, Failure};
use crate::{given, hex};

/// Which credential a session acts with.
#[derive(Debug, Default, clap::Args)]
#[group(skip)]
pub(super) struct Credential {
    /// A file with the credential: the agent is told the SHA-256 of its bytes, and nothing else of it
    #[arg(long, value_name = "FILE", conflicts_with = "credential_fingerprint")]
    credential: Option<PathBuf>,
    /// The SHA-256 of the credential, 64 hexadecimal digits
    #[arg(long, value_name = "HEX", value_parser = given)]
    credential_fingerprint: Option<String>,
}

impl Credential {
    /// The fingerprint that was asked for, if one was.
    pub(super) fn fingerprint(&self) -> Result<Option<String>, Failure> {
        match (&self.credential, &self.credential_fingerprint) {
            (Some(file), _) => of_file(file).map(Some),
            (None, given) => Ok(given.clone()),
        }
    }
}

/// A fingerprint as it was written, in its one spelling.
pub(super) fn given(text: &str) -> Result<String, String> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text).to_ascii_lowercase();
    match hex::decode::<32>(&digits) {
        Some(_) => Ok(digits),
        None => Err(format!("{text:?} is no fingerprint: write the 64 hexadecimal digits of a SHA-256")),
    }
}

/// A fingerprint, or the file with the credential. A file whose name is a fingerprint is named with its folder.
pub(super) fn either(text: &str) -> Result<String, Failure> {
    given(text).or_else(|_no_fingerprint| of_file(Path::new(text)))
}

fn of_file(path: &Path) -> Result<String, Failure> {
    let failed = |why: &dyn std::fmt::Display| {
        Failure::new(Exit::Usage, format!("cannot read the credential {}: {why}", path.display()))
    };
    let mut file = given::open(path).map_err(|error| failed(&error))?;
    let mut digest = Sha256::new();
    let (mut buffer, mut bytes) = ([0; 4096], 0);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                digest.update(&buffer[..count]);
                bytes += count;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(&error)),
        }
    }
    if bytes == 0 {
        // every empty file would be the same credential
        return Err(failed(&"it is empty: name the file that holds the credential"));
    }
    Ok(hex::encode(&digest.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_fingerprint_has_one_spelling() {
        for text in [ABC.to_owned(), ABC.to_uppercase(), format!("sha256:{ABC}")] {
            assert_eq!(given(&text).as_deref(), Ok(ABC), "{text}");
        }
        for text in ["", &ABC[1..], &ABC.replace('b', "g"), &format!("{ABC}0"), &format!("md5:{ABC}")] {
            assert!(given(text).is_err_and(|why| why.contains("64 hexadecimal digits")), "{text}");
        }
    }

    #[test]
    fn a_file_is_hashed_byte_for_byte() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        assert_eq!(either(&file("token", "abc")).unwrap(), ABC);
        assert_ne!(either(&file("line", "abc\n")).unwrap(), ABC);
        assert_eq!(either(ABC).unwrap(), ABC);
        assert!(either(&file("empty", "")).unwrap_err().message.ends_with("name the file that holds the credential"));
        assert!(either("no/such/file").unwrap_err().message.contains("no/such/file: No such file"));
    }
}
