//! Reads a log record by record, for showing it. It does not verify: that is [`super::verify`].

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use super::{
    chain::{Line, VERSION, next_line},
    error::Error,
    record::Record,
};
use crate::given;

/// The records of a log, in order.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    input: BufReader<File>,
    buffer: Vec<u8>,
    line: u64,
    failed: bool,
}

/// Opens a log for reading, also while an agent writes it: an unfinished last line ends the iteration.
///
/// # Errors
///
/// The file cannot be opened.
pub fn read(path: &Path) -> Result<Records, Error> {
    let file = given::open(path).map_err(|source| Error::Open { path: path.to_owned(), source })?;
    Ok(Records { path: path.to_owned(), input: BufReader::new(file), buffer: Vec::new(), line: 0, failed: false })
}

impl Records {
    fn malformed(&self, why: String) -> Error {
        Error::Malformed { path: self.path.clone(), line: self.line, why }
    }
}

impl Iterator for Records {
    type Item = Result<Record, Error>;

    /// After a malformed line the iteration goes on with the next; after a failed read it ends.
    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        self.line += 1;
        match next_line(&mut self.input, &mut self.buffer) {
            Ok(Line::End | Line::Unfinished) => None,
            Ok(Line::TooLong { bytes }) => Some(Err(self.malformed(format!("a line of {bytes} bytes")))),
            Ok(Line::Complete) => Some(match serde_json::from_slice::<Record>(&self.buffer) {
                Ok(record) if record.v != VERSION => Err(self.malformed(format!("format {} is unknown", record.v))),
                Ok(record) => Ok(record),
                Err(error) => Err(self.malformed(error.to_string())),
            }),
            Err(source) => {
                self.failed = true;
                Some(Err(Error::Read { path: self.path.clone(), source }))
            }
        }
    }
}
