//! Frames: JSON ended by one zero byte, no longer than [`LIMIT`].
//!
//! Reads from either kind of stream, asynchronous (agent) or blocking (client). What was read but does not end yet is
//! bounded by the limit and one read; nesting is bounded by `serde_json`.

use std::io::{self, ErrorKind, Read};

use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes of the longest frame, without its zero byte: a policy of 1 MiB, whose quotes and line ends take two bytes each.
pub const LIMIT: usize = 4 << 20;
/// Bytes of the longest question.
pub const QUESTION: usize = 64 * 1024;
const CHUNK: usize = 16 * 1024;

/// Why a frame could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side sends a frame that does not end within the limit.
    #[error("the frame is longer than {limit} bytes")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// The stream ended within a frame.
    #[error("the connection was closed within a frame")]
    Cut,
    /// The value has no JSON form.
    #[error("cannot write this as JSON: {0}")]
    Encode(#[source] serde_json::Error),
    /// The stream failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// One frame with its zero byte.
///
/// # Errors
/// [`FrameError::TooLong`] and [`FrameError::Encode`].
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = serde_json::to_vec(value).map_err(FrameError::Encode)?;
    if bytes.len() > LIMIT {
        return Err(FrameError::TooLong { limit: LIMIT });
    }
    bytes.push(0);
    Ok(bytes)
}

/// Cuts a byte stream into frames.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    scanned: usize,
    limit: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new(LIMIT)
    }
}

impl Decoder {
    /// A decoder for frames of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), scanned: 0, limit }
    }

    /// Takes more of the stream. Call [`Decoder::next_frame`] until it gives `None` before the next push, so that no
    /// more than the limit and one push is ever held.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame without its zero byte, if there is one.
    ///
    /// # Errors
    /// [`FrameError::TooLong`]; the stream is of no more use then.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let end = self.buffer[self.scanned..].iter().position(|&byte| byte == 0).map(|at| self.scanned + at);
        if end.unwrap_or(self.buffer.len()) > self.limit {
            return Err(FrameError::TooLong { limit: self.limit });
        }
        let Some(end) = end else {
            self.scanned = self.buffer.len();
            return Ok(None);
        };
        let rest = self.buffer.split_off(end + 1);
        let mut frame = std::mem::replace(&mut self.buffer, rest);
        frame.truncate(end);
        self.scanned = 0;
        Ok(Some(frame))
    }

    /// Bytes held that are not a whole frame yet.
    #[must_use]
    pub fn held(&self) -> usize {
        self.buffer.len()
    }

    fn at_end(&self) -> Result<Option<Vec<u8>>, FrameError> {
        if self.buffer.is_empty() { Ok(None) } else { Err(FrameError::Cut) }
    }
}

/// Reads the next frame; `None` when the stream ended between two frames. Nothing is lost if the future is dropped.
///
/// # Errors
/// Every [`FrameError`] but `Encode`.
pub async fn read_async<R: AsyncRead + Unpin>(
    stream: &mut R,
    decoder: &mut Decoder,
) -> Result<Option<Vec<u8>>, FrameError> {
    let mut chunk = vec![0; CHUNK];
    loop {
        if let Some(frame) = decoder.next_frame()? {
            return Ok(Some(frame));
        }
        match stream.read(&mut chunk).await? {
            0 => return decoder.at_end(),
            count => decoder.push(&chunk[..count]),
        }
    }
}

/// Reads the next frame; `None` when the stream ended between two frames.
///
/// # Errors
/// Every [`FrameError`] but `Encode`.
pub fn read_blocking<R: Read>(stream: &mut R, decoder: &mut Decoder) -> Result<Option<Vec<u8>>, FrameError> {
    let mut chunk = vec![0; CHUNK];
    loop {
        if let Some(frame) = decoder.next_frame()? {
            return Ok(Some(frame));
        }
        match stream.read(&mut chunk) {
            Ok(0) => return decoder.at_end(),
            Ok(count) => decoder.push(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pushes the stream in the given chunk sizes (over and over) and gives every frame.
    fn decode(stream: &[u8], chunks: &[usize], limit: usize) -> Result<Vec<Vec<u8>>, FrameError> {
        let mut decoder = Decoder::new(limit);
        let mut frames = Vec::new();
        let mut sizes = chunks.iter().cycle();
        let mut rest = stream;
        while !rest.is_empty() {
            let size = (*sizes.next().unwrap_or(&1)).min(rest.len());
            let (chunk, tail) = rest.split_at(size);
            decoder.push(chunk);
            assert!(decoder.held() <= limit + size);
            while let Some(frame) = decoder.next_frame()? {
                frames.push(frame);
            }
            assert!(decoder.held() <= limit);
            rest = tail;
        }
        Ok(frames)
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_chunks_stay_within_the_bound(
            stream in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..4000),
            chunks in proptest::collection::vec(1_usize..300, 1..10),
            limit in 1_usize..500,
        ) {
            if let Ok(frames) = decode(&stream, &chunks, limit) {
                let mut expected: Vec<_> = stream.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect();
                expected.pop();
                prop_assert_eq!(frames, expected);
            } else {
                prop_assert!(stream.split(|&byte| byte == 0).any(|frame| frame.len() > limit));
            }
        }

        #[test]
        fn what_is_encoded_is_decoded(texts in proptest::collection::vec(any::<String>(), 0..20), chunk in 1_usize..64) {
            let mut stream = Vec::new();
            for text in &texts {
                stream.extend(encode(text).unwrap());
            }
            let frames = decode(&stream, &[chunk], LIMIT).unwrap();
            let decoded: Vec<String> = frames.iter().map(|frame| serde_json::from_slice(frame).unwrap()).collect();
            prop_assert_eq!(decoded, texts);
        }

        #[test]
        fn any_bytes_are_a_call_or_an_error(frame in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = crate::api::wire::Call::decode(&frame);
        }
    }

    #[test]
    fn a_frame_of_the_limit_is_read_and_one_more_byte_is_not() {
        assert_eq!(decode(b"12345678\0", &[3], 8).unwrap(), [b"12345678".to_vec()]);
        assert!(matches!(decode(b"123456789\0", &[3], 8), Err(FrameError::TooLong { limit: 8 })));
    }

    #[test]
    fn an_end_within_a_frame_is_an_error_and_between_frames_is_not() {
        let mut decoder = Decoder::default();
        assert_eq!(read_blocking(&mut &b"{}\0"[..], &mut decoder).unwrap(), Some(b"{}".to_vec()));
        assert_eq!(read_blocking(&mut &b""[..], &mut decoder).unwrap(), None);
        assert!(matches!(read_blocking(&mut &b"{"[..], &mut decoder), Err(FrameError::Cut)));
    }

    #[test]
    fn deep_nesting_is_an_error() {
        let frame = format!(r#"{{"method":"dev.tipstaff.Ps","parameters":{}}}"#, "[".repeat(100_000));
        assert!(crate::api::wire::Call::decode(frame.as_bytes()).is_err());
    }
}
