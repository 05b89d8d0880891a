//! Durations as people write them: `15m`, `1h30m`, `90s`, `250ms`, `2d`.
//!
//! One or more whole numbers, each with a unit, the larger units first. No sign, no fraction, no space.

use std::time::Duration;

/// Units with their milliseconds, from large to small.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// A text that is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a duration: write whole numbers with the units d, h, m, s or ms, as in \"1h30m\"")]
pub struct DurationError {
    text: String,
}

/// Reads a duration, exact to the millisecond.
///
/// # Errors
/// [`DurationError`] that shows the text and the form that is wanted.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    parts(text).map(Duration::from_millis).ok_or_else(|| DurationError { text: text.to_owned() })
}

fn parts(text: &str) -> Option<u64> {
    let mut total = 0_u64;
    let mut units = UNITS.iter();
    let mut rest = text;
    loop {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(letters);
        // the units that were passed over are used up: larger first, none twice
        let &(_, milliseconds) = units.find(|(name, _)| *name == unit)?;
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(milliseconds)?)?;
        rest = tail;
        if rest.is_empty() {
            return Some(total);
        }
    }
}

/// Writes a duration so that [`parse`] reads it back, less what is below a millisecond.
#[must_use]
pub fn format(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (name, milliseconds) in UNITS {
        let count = rest / milliseconds;
        rest %= milliseconds;
        if count > 0 {
            text.push_str(&format!("{count}{name}"));
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, milliseconds) in [
            ("15m", 900_000),
            ("1h30m", 5_400_000),
            ("90s", 90_000),
            ("250ms", 250),
            ("2d", 172_800_000),
            ("1m1ms", 60_001),
            ("0s", 0),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_an_error_that_shows_it() {
        for text in [
            "",
            "15",
            "m",
            "1.5h",
            "-1m",
            "15 m",
            "1m1h",
            "1m1m",
            "1w",
            "99999999999999999999s",
            "9999999999999d",
            "1h30",
        ] {
            assert!(parse(text).unwrap_err().to_string().starts_with(&format!("{text:?} is not a duration")), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(milliseconds in any::<u64>()) {
            let duration = Duration::from_millis(milliseconds);
            prop_assert_eq!(parse(&format(duration)), Ok(duration));
        }

        #[test]
        fn any_text_is_a_duration_or_an_error(text in any::<String>()) {
            let _ = parse(&text);
        }
    }
}
