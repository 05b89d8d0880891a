//! Lengths of time as people write them: `15m`, `1h30m`, `90s`, `500ms`. One form for policies, flags and the
//! configuration.

use std::time::Duration;

/// Days, hours, minutes, seconds and milliseconds, in milliseconds: the longest first, as they must stand.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
/// One year. Longer is no bounded session, and a deadline must fit 64 bits of nanoseconds.
const LONGEST_MS: u64 = 365 * 24 * 3_600_000;

/// Why a text is no length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not numbers each with a unit, the longest unit first.
    #[error("is no length of time: write whole numbers with units, longest first, such as 15m, 1h30m, 90s or 500ms")]
    Form,
    /// A number without a unit.
    #[error("has no unit: write d, h, m, s or ms after the number, such as 15m")]
    Unit,
    /// Nothing at all.
    #[error("must be longer than zero")]
    Zero,
    /// More than a year.
    #[error("is longer than 365d: give a shorter one")]
    Long,
}

/// Reads a length of time from 1 ms to 365 days.
///
/// # Errors
/// The text has another form, or its value is out of that range.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(if text.bytes().all(|b| b == b'0') { DurationError::Zero } else { DurationError::Unit });
    }
    let mut rest = text;
    let mut allowed = UNITS.as_slice();
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (digits, tail) = split_while(rest, |c| c.is_ascii_digit());
        let (unit, tail) = split_while(tail, |c| c.is_ascii_alphabetic());
        let place = allowed.iter().position(|(name, _)| *name == unit).ok_or(DurationError::Form)?;
        if digits.is_empty() {
            return Err(DurationError::Form);
        }
        let part = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(allowed[place].1));
        total = part.and_then(|ms| total.checked_add(ms)).ok_or(DurationError::Long)?;
        allowed = &allowed[place + 1..];
        rest = tail;
    }
    match total {
        0 if text.is_empty() => Err(DurationError::Form),
        0 => Err(DurationError::Zero),
        ms if ms > LONGEST_MS => Err(DurationError::Long),
        ms => Ok(Duration::from_millis(ms)),
    }
}

fn split_while(text: &str, fits: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !fits(c)).unwrap_or(text.len()))
}

/// Writes a length of time as [`parse`] reads it; less than a millisecond is left out.
#[must_use]
pub fn format(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (name, ms) in UNITS {
        if rest >= ms {
            text.push_str(&std::format!("{}{name}", rest / ms));
            rest %= ms;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, ms) in
            [("15m", 900_000), ("1h30m", 5_400_000), ("90s", 90_000), ("500ms", 500), ("8760h", LONGEST_MS)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn refuses_everything_else() {
        for (text, error) in [
            ("", DurationError::Form),
            ("m", DurationError::Form),
            ("15", DurationError::Unit),
            ("0", DurationError::Zero),
            ("0s", DurationError::Zero),
            ("30m1h", DurationError::Form),
            ("1m1m", DurationError::Form),
            ("1.5h", DurationError::Form),
            ("-1h", DurationError::Form),
            ("1 h", DurationError::Form),
            ("1w", DurationError::Form),
            ("1h30", DurationError::Form),
            ("٣m", DurationError::Form),
            ("8760h1ms", DurationError::Long),
            ("99999999999999999999h", DurationError::Long),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn shows_what_it_reads() {
        for text in ["15m", "1h30m", "1m30s", "500ms", "1h2m3s4ms"] {
            assert_eq!(parse(text).map(format).as_deref(), Ok(text));
        }
        assert_eq!(format(Duration::ZERO), "0s");
    }
}
